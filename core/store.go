package core

import (
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// filterBits is how many bits a key takes in the filters of tables: one in a
// hundred keys that are not there is looked for all the same. See [Store.find].
const filterBits = 10

// maxTables is how many files of the database are open at once.
const maxTables = 500

// Options are how a store is opened. The zero value is fine.
type Options struct {
	// PrimaryKey is the secret from which the key pairs of named cores derive.
	// Nil: the one that the store has, a random one when it is new. A store
	// keeps the first one; another one is an error.
	PrimaryKey *[32]byte

	// FS is the file system of everything but the files of static cores; nil is
	// the operating system's.
	FS vfs.FS

	// NoSync leaves it to the operating system when data reaches the disk.
	// Nothing is durable then before Close returns.
	NoSync bool

	// LogBytes is how much of the database is gathered in memory and in its log,
	// which takes that room on the disk from the start; 0 is 16 MiB. More makes
	// many small writes cheaper.
	LogBytes int64

	// CacheBytes is the memory for cached database blocks, in bytes; 0 is 8 MiB.
	CacheBytes int64

	Logger *slog.Logger // nil discards
}

// An InUseError says that another process has the store open.
type InUseError struct {
	Dir string
	PID int // 0 if not known
}

func (e *InUseError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("store %s is in use", e.Dir)
	}
	return fmt.Sprintf("store %s is in use by process %d", e.Dir, e.PID)
}

// ErrPrimaryKey is matched by the error of opening a store with another primary key
// than its own.
var ErrPrimaryKey = errors.New("core: the store has another primary key")

// ErrClosed is returned by everything after Close.
var ErrClosed = errors.New("core: closed")

// A Store keeps very many cores in one directory: heads, tree nodes and small
// blocks in a Pebble database, large appends in segment files, and the blocks of
// static cores in the files they are the content of. A core takes memory only
// while it is open.
//
// All methods may be called concurrently. One process at a time uses a store.
type Store struct {
	dir    string
	fs     vfs.FS
	db     *pebble.DB
	files  *pebble.FileCache
	lock   io.Closer
	seg    *segments
	acks   *acks
	log    *slog.Logger
	noSync bool
	pages  *pageCache

	commitMu  sync.Mutex // held while a batch enters the database; see commit
	wrote     bool       // something was committed
	unchecked int        // bytes written since free space was looked at
	checked   time.Time  // when that was
	full      error      // what was found
	layers    int        // of tables that are not merged yet

	failed  atomic.Pointer[error] // why nothing can be written any more
	trouble atomic.Pointer[error] // why nothing can be written for now
	damage  atomic.Pointer[error] // what was found of the database
	rotten  atomic.Pointer[error] // damage that keeps tables from being merged

	flushFailed chan struct{} // has one element after a flush has failed
	merged      chan struct{} // has one after tables were flushed or merged
	recount     atomic.Bool   // so that layers has to be looked at again

	opened atomic.Bool // the database is

	removeMu sync.Mutex
	loaded   bool     // the database has been found to be right
	obsolete []string // files that it wants to be removed, until then

	primary [32]byte

	mu     sync.Mutex
	cores  map[DiscoveryKey]*Core // open ones
	nextID uint32
	lost   map[DiscoveryKey]uint32 // numbers of cores whose records a rebuild has lost
	unread map[uint32]bool         // static cores whose files are to be read after one
	keyed  bool                    // a rebuild has found cores that are signed here
	closed bool

	snapshots atomic.Int64 // open snapshots: segments are not removed meanwhile
}

// OpenStore opens the store in dir, which is made if it is not there. Errors are
// an [*InUseError], or match [ErrVersion], or come from the file system.
func OpenStore(dir string, o Options) (*Store, error) {
	fsys := o.FS
	if fsys == nil {
		fsys = vfs.Default
		abs, err := filepath.Abs(dir) // locks within a process go by name
		if err != nil {
			return nil, fmt.Errorf("open store: %w", err)
		}
		dir = abs
	}
	version, err := readFormat(fsys, dir)
	if err == nil {
		err = makeDir(fsys, fsys.PathJoin(dir, "blocks"))
	}
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", dir, err)
	}
	lock, err := lockStore(fsys, dir)
	if err != nil {
		return nil, err
	}
	s := &Store{
		dir: dir, fs: fsys, lock: lock, noSync: o.NoSync,
		log: cmp.Or(o.Logger, slog.New(slog.DiscardHandler)), pages: newPageCache(),
		cores: map[DiscoveryKey]*Core{}, flushFailed: make(chan struct{}, 1), merged: make(chan struct{}, 1),
	}
	s.acks = &acks{fs: fsys, path: fsys.PathJoin(dir, "heads"), pending: map[uint32]ack{}}
	if err := s.open(o, version); err != nil {
		s.closeFiles()
		return nil, fmt.Errorf("open store %s: %w", dir, err)
	}
	return s, nil
}

func lockStore(fsys vfs.FS, dir string) (io.Closer, error) {
	pidFile := fsys.PathJoin(dir, "process")
	if err := clearWay(fsys, dir, "lock"); err != nil { // whatever it is, it holds no lock
		return nil, fmt.Errorf("open store: %w", err)
	}
	lock, err := fsys.Lock(fsys.PathJoin(dir, "lock"))
	if _, ok := errors.AsType[*fs.PathError](err); ok { // it cannot be opened
		return nil, fmt.Errorf("open store: %w", err)
	}
	if err != nil {
		e := &InUseError{Dir: dir}
		if f, err := fsys.Open(pidFile); err == nil {
			b, _ := io.ReadAll(io.LimitReader(f, 32))
			f.Close()
			e.PID, _ = strconv.Atoi(strings.TrimSpace(string(b)))
		}
		return nil, e
	}
	err = clearWay(fsys, dir, "process", "heads", "format", "primary", "rebuild")
	var f vfs.File
	if err == nil {
		f, err = fsys.Create(pidFile, vfs.WriteCategoryUnspecified)
	}
	if err == nil {
		_, err = fmt.Fprintln(f, os.Getpid())
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		lock.Close()
		return nil, fmt.Errorf("open store: %w", err)
	}
	return lock, nil
}

// open opens all parts. A damaged database is made anew, if this is not the first
// time that the store is opened: then version is not 0.
func (s *Store) open(o Options, version int) error {
	_, rebuild, err := s.rebuilding()
	if err != nil {
		return err
	}
	cause := errors.New("an earlier rebuild was interrupted, or damage was found while the store was used")
	if !rebuild && version > 0 {
		cause = s.incomplete()
		rebuild = cause != nil
	}
	if !rebuild {
		if cause = s.openParts(o, version, nil); cause != nil && s.broken() == nil && isDamage(cause) {
			rebuild = true
			s.closeParts()
		} else if cause != nil {
			return cause
		}
	}
	if rebuild {
		aside, err := s.setAside(cause)
		if err != nil {
			return fmt.Errorf("set the damaged database aside (%w): %w", cause, err)
		}
		v := &salvage{s, map[string]salvaged{}}
		v.read(s.fs.PathJoin(aside, "db"))
		if err := s.openParts(o, version, v); err != nil {
			return err
		}
		if err := s.fs.Remove(s.rebuildPath()); err != nil {
			return err
		}
	}
	s.removeLater()
	err = writeSmall(s.fs, s.fs.PathJoin(s.dir, "format"), formatLine(formatVersion))
	if err != nil && version > 0 {
		s.log.Warn("format version cannot be written", "err", err)
		return nil
	}
	return err
}

// openParts opens the database and the segments. If v is not nil, the database is
// a new one that gets what v has.
func (s *Store) openParts(o Options, version int, v *salvage) (err error) {
	cache := pebble.NewCache(cmp.Or(o.CacheBytes, 8<<20))
	defer cache.Unref()
	s.files = pebble.NewFileCache(2, maxTables)
	options := &pebble.Options{
		FS:                 databaseFS{s.fs, s},
		Cache:              cache,
		FileCache:          s.files,
		FormatMajorVersion: pebble.FormatValueSeparation,
		MemTableSize:       uint64(cmp.Or(o.LogBytes, 16<<20)),
		Merger:             addMerger,

		// Writers wait in pace, which can end it.
		L0StopWritesThreshold: 1000,

		Logger:        pebbleLog{s},
		EventListener: s.listener(),
	}
	options.Levels[0].FilterPolicy = bloom.FilterPolicy(filterBits) // and those below
	if s.db, err = s.openDatabase(s.fs.PathJoin(s.dir, "db"), options); err != nil {
		return err
	}
	if s.seg, err = openSegments(s.fs, s.fs.PathJoin(s.dir, "blocks")); err != nil {
		return err
	}
	if v != nil {
		if err := s.restore(v); err != nil {
			return err
		}
	}
	for _, load := range []func() error{
		func() error { return s.checkVersion(version > 0 && v == nil) },
		func() error { return s.loadPrimary(o.PrimaryKey, v != nil) },
		s.loadCounter, s.loadRestored, s.loadLive, s.recover,
	} {
		if err := load(); err != nil {
			return err
		}
	}
	return nil
}

// closeParts undoes openParts.
func (s *Store) closeParts() error {
	var errs []error
	if s.db != nil {
		errs = append(errs, s.db.Close())
	}
	if s.files != nil {
		s.files.Unref()
	}
	if s.seg != nil {
		errs = append(errs, s.seg.close())
	}
	s.db, s.files, s.seg = nil, nil, nil
	s.obsolete = nil // of a database that is set aside
	s.opened.Store(false)
	return errors.Join(errs...)
}

// checkVersion reads the format version, which must be there in an old database.
func (s *Store) checkVersion(old bool) error {
	b, err := s.get([]byte{prefixVersion})
	switch {
	case err != nil:
		return err
	case b == nil && old:
		return fmt.Errorf("format version is gone: %w", errMalformed)
	case b == nil:
		return s.set([]byte{prefixVersion}, []byte{formatVersion}, true)
	case len(b) != 1:
		return fmt.Errorf("format version: %w", errMalformed)
	case b[0] != formatVersion:
		return fmt.Errorf("%w: version %d, this program knows %d", ErrVersion, b, formatVersion)
	}
	return nil
}

func (s *Store) loadCounter() error {
	b, err := s.get([]byte{prefixCounter})
	if err == nil && len(b) == 4 {
		s.nextID = binary.BigEndian.Uint32(b)
	}
	if err != nil {
		return err
	}
	var gone error
	err = s.acks.from(s.nextID, func(a ack) { gone = fmt.Errorf("core number %d is gone: %w", a.id, errMalformed) })
	return errors.Join(err, gone)
}

// loadPrimary finds the primary key, in the database or in its own file, and puts
// it where it is missing. rebuilt says that the database is a new one for cores
// that are older.
func (s *Store) loadPrimary(want *[32]byte, rebuilt bool) error {
	key := []byte{prefixPrimary}
	b, err := s.get(key)
	if err != nil {
		return err
	}
	filed, ok, err := s.readPrimary()
	if err != nil {
		return err
	}
	have := true
	switch {
	case len(b) == 32:
		s.primary = [32]byte(b)
	case ok:
		s.primary = filed
	default:
		have = false
	}
	switch {
	case have && want != nil && *want != s.primary:
		return ErrPrimaryKey
	case have:
	case want != nil:
		s.primary = *want
	case rebuilt && s.keyed:
		return ErrKeyLost
	default:
		rand.Read(s.primary[:])
	}
	// Named cores are nothing without it: durable before any of them exists.
	err = s.writePrimary(s.primary)
	if len(b) == 32 {
		if err != nil {
			s.log.Warn("primary key cannot be kept in its file", "err", err)
		}
		return nil
	}
	if err != nil {
		return err
	}
	return s.set(key, s.primary[:], true)
}

// Close closes the store, once everything in it is durable. Its cores must not
// be in use any more.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	open := s.cores
	s.cores = map[DiscoveryKey]*Core{}
	s.mu.Unlock()
	for _, c := range open {
		c.shut()
	}
	err := s.Sync()
	flushed := s.flush()
	if flushed && s.noSync {
		s.acknowledge(s.acks.take())
	}
	err = errors.Join(err, s.closeFiles())
	if flushed && err == nil {
		s.removeLogs()
	}
	return err
}

func (s *Store) closeFiles() error {
	err := s.closeParts()
	err = errors.Join(err, s.acks.close(!s.noSync))
	s.fs.Remove(s.fs.PathJoin(s.dir, "process"))
	return errors.Join(err, s.lock.Close())
}

// Sync makes everything that was appended or applied before the call durable.
func (s *Store) Sync() error {
	b := s.db.NewBatch()
	defer b.Close()
	if err := s.syncSegments(b); err != nil {
		return err
	}
	b.LogData([]byte("sync"), nil) // carries the log to the disk
	return s.commit(b, true)
}

// syncSegments makes the data of segments durable and notes in b that it is.
func (s *Store) syncSegments(b *pebble.Batch) error {
	if s.noSync {
		return nil
	}
	pages, err := s.seg.sync()
	if err != nil {
		// The next sync may succeed though what this one was for is lost.
		s.fail(err)
		return err
	}
	for _, k := range pages {
		if err := b.Delete(unsyncedKey(k), nil); err != nil {
			return err
		}
	}
	return nil
}
