package artifact

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"regexp"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/zeebo/blake3"
)

const (
	formatFile = "format"
	formatLine = "pkgswarm artifacts 1\n"
	formatByte = 1
	tmpDir     = "tmp"
	privateDir = "private"

	recheck       = 6 * time.Hour // a file in use is read and checked again after this long
	maxHalfDone   = 1 << 20       // files that a crash may leave half stored
	checkedFiles  = 1 << 16       // files whose check is remembered
	stripes       = 64            // locks that serialize work on one file
	defaultFree   = 256 << 20     // bytes of disk left alone
	memTableBytes = 1 << 20
	blockCache    = 4 << 20
)

var (
	// ErrNotFound says that the store does not have a file. It matches fs.ErrNotExist.
	ErrNotFound = fmt.Errorf("not in the artifact store: %w", fs.ErrNotExist)
	// ErrNoSpace says that a file cannot be stored because of the disk cap, the
	// minimum of free space, or a full disk. It may be served without storing it.
	ErrNoSpace = errors.New("no space for artifacts")
	// ErrUnshared says that a file could not be made available to peers.
	ErrUnshared = errors.New("not available to peers")
	// ErrNewer says that the store was written by a later version of the program.
	ErrNewer = errors.New("artifact store has a newer format than this program knows")
)

// A WithdrawnError says that a file is not to be served or shared.
type WithdrawnError struct {
	Sum    Sum
	Reason string
}

func (e *WithdrawnError) Error() string { return fmt.Sprintf("%v was withdrawn: %s", e.Sum, e.Reason) }

// Cores makes stored files available to peers as static cores. Its methods may
// be called concurrently.
type Cores interface {
	// Add makes the file at path, which is complete, verified and of that size, a
	// static core and returns its key. r reads the same file. Adding a file
	// again, from the same or another path, is no error. An error that matches
	// ErrUnshared comes with the key: the file is fine, and to be added later.
	Add(path string, r io.ReaderAt, size int64) (Key, error)
	// Has reports whether the core of that key is there, whole.
	Has(k Key) bool
	// Remove forgets the core of that key. The file at its path goes away next.
	Remove(k Key) error
}

// Options configures a store. The zero value is a store without cap or peers.
type Options struct {
	// Cores is told of every file that peers may have. Nil: none is shared.
	Cores Cores
	// Cap bounds the size of all files, in bytes. 0 means no bound.
	Cap int64
	// MinFree is the free space of the disk that the store leaves alone, in
	// bytes. 0 means 256 MiB, negative none.
	MinFree int64
	// Logger gets damage and evictions. Nil discards them.
	Logger *slog.Logger

	step func(name string) error // called between the steps of a change; for tests
}

// A Store holds verified files. See the package comment.
type Store struct {
	opts Options
	log  *slog.Logger
	dir  string
	root *os.Root
	db   *database

	// stripes serialize check, placement and removal of one file. Taken before
	// totalsMu and mu.
	stripes [stripes]sync.Mutex

	totalsMu sync.Mutex // guards totals, and batches that change it
	totals   totals

	roomMu sync.Mutex // serializes makeRoom; taken before all others

	mu       sync.Mutex
	held     map[Sum]int       // files handed out and not closed
	touched  map[Sum]time.Time // last requests not yet in the database
	pending  int64             // bytes of open writers, written or reserved: they count for the cap
	reserved int64             // bytes that open writers may still write: they count for the free space
	damaged  uint64            // files found damaged, since Open
	evicted  uint64            // files evicted, since Open

	checked *lru.Cache[Sum, fingerprint]
}

type totals struct {
	files, bytes int64
}

// Open opens the store with files in artifactDir and the database in dbDir,
// creating both as needed. It removes what a crash left half done.
func Open(artifactDir, dbDir string, o Options) (*Store, error) {
	s := &Store{
		opts:    o,
		log:     o.Logger,
		dir:     artifactDir,
		held:    make(map[Sum]int),
		touched: make(map[Sum]time.Time),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.opts.MinFree == 0 {
		s.opts.MinFree = defaultFree
	}
	if s.opts.step == nil {
		s.opts.step = func(string) error { return nil }
	}
	s.checked, _ = lru.New[Sum, fingerprint](checkedFiles) // fails for sizes below 1 only
	if err := s.openFiles(); err != nil {
		return nil, fmt.Errorf("open artifact store %s: %w", artifactDir, err)
	}
	var err error
	if s.db, err = openDatabase(dbDir, s.log); err != nil {
		s.root.Close()
		return nil, fmt.Errorf("open artifact store %s: %w", artifactDir, err)
	}
	err = s.recover()
	if errors.Is(err, errDatabase) {
		if err = s.replaceDatabase(); err == nil {
			err = s.recover()
		}
	}
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("open artifact store %s: %w", artifactDir, err)
	}
	return s, nil
}

// newerFormat matches the format line of a later version.
var newerFormat = regexp.MustCompile(`^pkgswarm artifacts ([2-9]|[1-9][0-9]+)\n$`)

// openFiles makes the directories and checks the format of what is there.
func (s *Store) openFiles() error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	root, err := os.OpenRoot(s.dir)
	if err != nil {
		return err
	}
	s.root = root
	for _, d := range []string{tmpDir, privateDir} {
		if err := root.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	if fi, err := root.Lstat(formatFile); err == nil && !fi.Mode().IsRegular() {
		root.RemoveAll(formatFile) // SEC-42
	}
	b, err := root.ReadFile(formatFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return root.WriteFile(formatFile, []byte(formatLine), 0o600)
	case err != nil:
		return err
	case newerFormat.Match(b):
		return fmt.Errorf("%w: %.40q", ErrNewer, b)
	case string(b) != formatLine:
		// A torn write of the first start, or damage: the names of the files
		// prove their contents, so nothing hangs on this line.
		return root.WriteFile(formatFile, []byte(formatLine), 0o600)
	}
	return nil
}

// recover brings files and database back in step after a crash (REL-2, REL-3).
func (s *Store) recover() error {
	if b, err := s.db.get([]byte{'t'}); err == nil && len(b) == 16 {
		s.totals = totals{int64(binary.BigEndian.Uint64(b)), int64(binary.BigEndian.Uint64(b[8:]))}
	}
	if err := s.emptyTmp(); err != nil {
		return err
	}
	halfDone, err := s.db.from([]byte{'i'}, []byte{'i' + 1}, maxHalfDone)
	if err != nil {
		return err
	}
	for _, e := range halfDone {
		if len(e.key) != 33 {
			continue
		}
		sum := Sum(e.key[1:])
		rec, err := s.record(sum)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		for _, private := range []bool{false, true} {
			if rec == nil || rec.Private != private {
				s.root.Remove(filePath(sum, private)) // nobody was told that it is here
			}
		}
		if err := s.db.remove(dbKey('i', sum)); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) emptyTmp() error {
	d, err := s.root.Open(tmpDir)
	if err != nil {
		return err
	}
	names, err := d.Readdirnames(-1)
	d.Close()
	for _, n := range names {
		s.root.RemoveAll(path.Join(tmpDir, n))
	}
	return err
}

// Close writes back what is pending. Files handed out stay readable.
func (s *Store) Close() error {
	err := s.flushTouched()
	if errors.Is(err, errDatabase) {
		err = nil // it has been told of
	}
	return errors.Join(err, s.db.close(), s.root.Close())
}

// record reads the record of a file. The error matches ErrNotFound if there is none.
func (s *Store) record(sum Sum) (*record, error) {
	b, err := s.db.get(dbKey('a', sum))
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("read the record of %v: %w", sum, err)
	}
	rec, err := parseRecord(sum, b)
	if err != nil {
		s.db.fail(err)
		return nil, fmt.Errorf("%w: %w", errDatabase, err)
	}
	return rec, nil
}

// resolve returns the record that d leads to, whatever the file's state. The
// error is a WithdrawnError also for a file that is not here, if d is its SHA-256:
// it is not to be fetched either.
func (s *Store) resolve(d Digest) (*record, error) {
	if d.Alg == SHA256 {
		rec, err := s.record(d.Sum)
		if errors.Is(err, ErrNotFound) {
			if w := s.withdrawn(d.Sum); w != nil {
				return nil, w
			}
		}
		return rec, err
	}
	return s.resolveBy('h', d.Sum)
}

func (s *Store) resolveBy(kind byte, id [32]byte) (*record, error) {
	b, err := s.db.get(dbKey(kind, id))
	if errors.Is(err, pebble.ErrNotFound) || err == nil && len(b) != 32 {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("look up artifact %x: %w", id[:8], err)
	}
	return s.record(Sum(b))
}

// lost makes of an error that is due to the lack of a database that nothing is
// found: the file is fetched again, or passed through, meanwhile.
func lost(err error) error {
	if errors.Is(err, errDatabase) {
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	return err
}

// Stat describes the file of that digest. The error matches ErrNotFound if the
// store does not have it and is a [WithdrawnError] if it may not be served.
func (s *Store) Stat(d Digest) (Info, error) {
	rec, err := s.resolve(d)
	if err != nil {
		return Info{}, lost(err)
	}
	if err := s.withdrawn(rec.SHA256); err != nil {
		return Info{}, err
	}
	return rec.Info, nil
}

// Find is Stat for a file that may have been withdrawn.
func (s *Store) Find(d Digest) (Info, error) {
	rec, err := s.resolve(d)
	if err != nil {
		return Info{}, lost(err)
	}
	return rec.Info, nil
}

// StatKey is Stat by the key of the static core.
func (s *Store) StatKey(k Key) (Info, error) {
	rec, err := s.resolveBy('k', k)
	if err != nil {
		return Info{}, lost(err)
	}
	return rec.Info, s.withdrawn(rec.SHA256)
}

// Checked is like Stat for a file whose bytes are right, and says when they were
// found to be so: now, unless that was done lately. It does not count as a request.
func (s *Store) Checked(d Digest) (Info, time.Time, error) {
	info, err := s.Stat(d)
	if err != nil {
		return info, time.Time{}, err
	}
	rec, err := s.record(info.SHA256)
	if err != nil {
		return info, time.Time{}, err
	}
	f, err := s.openChecked(rec)
	if err != nil {
		return info, time.Time{}, err
	}
	defer f.Close()
	fp, _ := s.checked.Get(rec.SHA256)
	return rec.Info, fp.at, nil
}

// A File is an open, checked file of the store. While it is open the file is
// not evicted. It is an *os.File in all but Close, so that net/http sends it
// with sendfile.
type File struct {
	*os.File
	Info  Info
	store *Store
	once  sync.Once
}

// Close releases the file.
func (f *File) Close() error {
	f.once.Do(func() { f.store.release(f.Info.SHA256) })
	return f.File.Close()
}

func (s *Store) hold(sum Sum) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held[sum]++
}

func (s *Store) release(sum Sum) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held[sum]--; s.held[sum] == 0 {
		delete(s.held, sum)
	}
}

func (s *Store) isHeld(sum Sum) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held[sum] > 0
}

// Open opens the file of that digest and counts as a request for it. Its errors
// are those of Stat. A damaged file is removed and is ErrNotFound.
func (s *Store) Open(d Digest) (*File, error) {
	rec, err := s.resolve(d)
	if err != nil {
		return nil, lost(err)
	}
	if err := s.withdrawn(rec.SHA256); err != nil {
		return nil, err
	}
	f, err := s.openChecked(rec)
	if err != nil {
		return nil, err
	}
	s.touch(rec.SHA256)
	return f, nil
}

// OpenKey is Open by the key of the static core. It does not count as a request.
func (s *Store) OpenKey(k Key) (*File, error) {
	rec, err := s.resolveBy('k', k)
	if err != nil {
		return nil, lost(err)
	}
	if err := s.withdrawn(rec.SHA256); err != nil {
		return nil, err
	}
	return s.openChecked(rec)
}

// CheckShared returns the file with that static core if peers may have it: it is
// here, not private, not withdrawn, and its bytes have been checked. The error
// matches ErrNotFound in every other case, whatever the reason (SEC-25).
func (s *Store) CheckShared(d Digest) (Info, error) {
	rec, err := s.resolve(d)
	if err != nil {
		return Info{}, ErrNotFound
	}
	return s.checkShared(rec)
}

// CheckSharedKey is CheckShared by the key of the static core.
func (s *Store) CheckSharedKey(k Key) (Info, error) {
	rec, err := s.resolveBy('k', k)
	if err != nil {
		return Info{}, ErrNotFound
	}
	return s.checkShared(rec)
}

func (s *Store) checkShared(rec *record) (Info, error) {
	if s.opts.Cores == nil || rec.Private || rec.Key == (Key{}) || s.withdrawn(rec.SHA256) != nil {
		return Info{}, ErrNotFound
	}
	f, err := s.openChecked(rec)
	if err != nil {
		return Info{}, ErrNotFound
	}
	defer f.Close()
	if !s.opts.Cores.Has(rec.Key) {
		// Its own database may have lost what was not yet on the disk in a crash.
		if k, err := s.opts.Cores.Add(s.abs(rec.path()), f, rec.Size); err != nil || k != rec.Key {
			return Info{}, ErrNotFound
		}
	}
	return rec.Info, nil
}

// A fingerprint tells whether a file may have changed since it was checked.
type fingerprint struct {
	info os.FileInfo
	at   time.Time // of the check
}

func (fp fingerprint) covers(fi os.FileInfo) bool {
	return fp.info != nil && os.SameFile(fp.info, fi) && fp.info.Size() == fi.Size() &&
		fp.info.ModTime().Equal(fi.ModTime()) && changeTime(fp.info) == changeTime(fi) &&
		time.Since(fp.at) < recheck
}

// openChecked opens the file of rec and makes sure that its bytes are right.
func (s *Store) openChecked(rec *record) (*File, error) {
	s.hold(rec.SHA256)
	f, err := s.openRegular(rec.path())
	if err == nil {
		err = s.check(rec, f)
		if err != nil {
			f.Close()
		}
	}
	if err != nil {
		s.release(rec.SHA256)
		if isDamage(err) {
			s.dropDamaged(rec, err)
			return nil, ErrNotFound
		}
		return nil, fmt.Errorf("open artifact %v: %w", rec.SHA256, err)
	}
	return &File{File: f, Info: rec.Info, store: s}, nil
}

// A damageError says what is wrong with a stored file.
type damageError string

func (e damageError) Error() string { return string(e) }

func isDamage(err error) bool {
	_, ok := errors.AsType[damageError](err)
	return ok
}

// openRegular opens a file that is no link, directory or device (SEC-42).
func (s *Store) openRegular(name string) (*os.File, error) {
	li, err := s.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, damageError("file is missing")
	}
	if err != nil {
		return nil, err
	}
	if !li.Mode().IsRegular() {
		return nil, damageError("not a regular file")
	}
	f, err := s.root.Open(name)
	if err != nil {
		return nil, err
	}
	if fi, err := f.Stat(); err != nil || !os.SameFile(li, fi) {
		f.Close()
		return nil, damageError("file was replaced while it was opened")
	}
	return f, nil
}

// check compares f with rec unless it did so lately and f has not changed since.
func (s *Store) check(rec *record, f *os.File) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if fp, ok := s.checked.Get(rec.SHA256); ok && fp.covers(fi) {
		return nil
	}
	lock := s.stripe(rec.SHA256)
	lock.Lock()
	defer lock.Unlock()
	if fp, ok := s.checked.Get(rec.SHA256); ok && fp.covers(fi) {
		return nil // checked by another meanwhile
	}
	return s.checkNow(rec, f, fi)
}

func (s *Store) checkNow(rec *record, f *os.File, fi os.FileInfo) error {
	if fi.Size() != rec.Size {
		return damageError(fmt.Sprintf("file has %d bytes, want %d", fi.Size(), rec.Size))
	}
	sum, err := blake3Of(f, rec.Size)
	if err != nil {
		return err
	}
	if sum != rec.blake3 {
		return damageError("content does not match its BLAKE3 hash")
	}
	s.checked.Add(rec.SHA256, fingerprint{fi, time.Now()})
	return nil
}

func blake3Of(r io.ReaderAt, size int64) (sum [32]byte, err error) {
	h := blake3.New()
	buf := make([]byte, min(size, 256<<10))
	if _, err := io.CopyBuffer(onlyWriter{h}, onlyReader{io.NewSectionReader(r, 0, size)}, buf); err != nil {
		return sum, err
	}
	h.Sum(sum[:0])
	return sum, nil
}

type onlyReader struct{ io.Reader } // hides WriteTo, which would not use the buffer
type onlyWriter struct{ io.Writer }

func (s *Store) stripe(sum Sum) *sync.Mutex { return &s.stripes[sum[0]%stripes] }

func (s *Store) dropDamaged(rec *record, cause error) {
	lock := s.stripe(rec.SHA256)
	lock.Lock()
	defer lock.Unlock()
	now, err := s.record(rec.SHA256)
	if err != nil || now.path() != rec.path() {
		return // already dropped, or moved while we looked
	}
	s.log.Warn("damaged artifact removed", "sha256", rec.SHA256.String()[:16], "bytes", rec.Size, "err", cause)
	s.mu.Lock()
	s.damaged++
	s.mu.Unlock()
	if err := s.removeLocked(now); err != nil {
		s.log.Error("remove damaged artifact", "sha256", rec.SHA256.String()[:16], "err", err)
	}
}

// touch notes a request for a file. The database learns of it in bulk.
func (s *Store) touch(sum Sum) {
	s.mu.Lock()
	s.touched[sum] = time.Now()
	full := len(s.touched) >= 4096
	s.mu.Unlock()
	if full {
		s.flushTouched()
	}
}

// flushTouched writes the times of last requests to the database.
func (s *Store) flushTouched() error {
	s.mu.Lock()
	touched := s.touched
	s.touched = make(map[Sum]time.Time)
	s.mu.Unlock()
	for sum, t := range touched {
		if err := s.flushOne(sum, t); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) flushOne(sum Sum, t time.Time) error {
	lock := s.stripe(sum)
	lock.Lock()
	defer lock.Unlock()
	rec, err := s.record(sum)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	before := rec.LastRequest
	rec.LastRequest = t
	// Not synced: losing it costs a little precision only.
	return s.db.apply(func(b *pebble.Batch) {
		b.Delete(lruKey(before, sum), nil)
		b.Set(lruKey(t, sum), nil, nil)
		b.Set(dbKey('a', sum), rec.append(nil), nil)
	})
}

// Stats are figures of the store.
type Stats struct {
	Files, Bytes int64  // stored
	Cap          int64  // in bytes; 0 if there is none
	Free         int64  // bytes free on the disk, -1 if unknown
	Damaged      uint64 // files found damaged since Open
	Evicted      uint64 // files evicted since Open
	Trouble      string // why nothing can be stored or found now; empty if all is well
}

// Stats returns the store's figures.
func (s *Store) Stats() Stats {
	s.totalsMu.Lock()
	t := s.totals
	s.totalsMu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	free, err := freeSpace(s.dir)
	if err != nil {
		free = -1
	}
	st := Stats{Files: t.files, Bytes: t.bytes, Cap: s.opts.Cap, Free: free, Damaged: s.damaged, Evicted: s.evicted}
	if err := s.db.trouble(); err != nil {
		st.Trouble = err.Error()
	}
	return st
}
