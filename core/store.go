package core

import (
	"cmp"
	"container/list"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/pkgswarm/pkgswarm/internal/compact"
)

// formatVersion is that of the store on disk. A store of a higher version is
// refused untouched.
const formatVersion = 1

// Keys of the database. id is the core's number in this store, 4 bytes big
// endian, so that what belongs to a core stands together.
//
//	v                        format version, one byte
//	m                        primary key, 32 bytes
//	c                        the number of the next core, u32be
//	d <discovery key>        record of a core
//	a <H(namespace, name)>   discovery key of a named core
//	h <id>                   head
//	t <id> <level> <number>  tree page; number u64be
//	k <id> <block>           chunk: data of consecutive blocks of one page; u64be
//	u <id> <key>             user data
//	s <segment>              used bytes, i64be, u32be; merged by addition
//	y <id> <page>            the page's data may not be durable yet
const (
	prefixVersion  = 'v'
	prefixPrimary  = 'm'
	prefixCounter  = 'c'
	prefixRecord   = 'd'
	prefixAlias    = 'a'
	prefixHead     = 'h'
	prefixPage     = 't'
	prefixChunk    = 'k'
	prefixUser     = 'u'
	prefixSegment  = 's'
	prefixUnsynced = 'y'
)

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

// ErrVersion is matched by the error of a store that a newer program made.
var ErrVersion = errors.New("core: store has a newer format")

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
	log    *slog.Logger
	noSync bool
	pages  *pageCache

	commitMu  sync.Mutex // held while a batch enters the database; see commit
	unlogged  bool       // a batch could not be logged
	unchecked int        // bytes written since free space was looked at
	checked   time.Time  // when that was
	full      error      // what was found

	failed  atomic.Pointer[error] // why nothing can be written any more
	trouble atomic.Pointer[error] // why nothing can be written for now

	opened    atomic.Bool   // the database is
	abandoned chan struct{} // closed if it will never be
	giveUp    sync.Once     // closes it

	primary [32]byte

	mu     sync.Mutex
	cores  map[DiscoveryKey]*Core // open ones
	nextID uint32
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
	if err := makeDir(fsys, fsys.PathJoin(dir, "blocks")); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	lock, err := lockStore(fsys, dir)
	if err != nil {
		return nil, err
	}
	s := &Store{
		dir: dir, fs: fsys, lock: lock, noSync: o.NoSync,
		log: cmp.Or(o.Logger, slog.New(slog.DiscardHandler)), pages: newPageCache(),
		cores: map[DiscoveryKey]*Core{},
	}
	if err := s.open(o); err != nil {
		s.closeFiles()
		return nil, fmt.Errorf("open store %s: %w", dir, err)
	}
	return s, nil
}

func lockStore(fsys vfs.FS, dir string) (io.Closer, error) {
	pidFile := fsys.PathJoin(dir, "process")
	lock, err := fsys.Lock(fsys.PathJoin(dir, "lock"))
	if err != nil {
		e := &InUseError{Dir: dir}
		if f, err := fsys.Open(pidFile); err == nil {
			b, _ := io.ReadAll(io.LimitReader(f, 32))
			f.Close()
			e.PID, _ = strconv.Atoi(strings.TrimSpace(string(b)))
		}
		return nil, e
	}
	f, err := fsys.Create(pidFile, vfs.WriteCategoryUnspecified)
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

func (s *Store) open(o Options) (err error) {
	cache := pebble.NewCache(cmp.Or(o.CacheBytes, 8<<20))
	defer cache.Unref()
	// Pebble's own one would be gone if opening fails, with goroutines still
	// using it.
	s.files = pebble.NewFileCache(2, maxTables)
	s.db, err = s.openDatabase(s.fs.PathJoin(s.dir, "db"), &pebble.Options{
		FS:                 databaseFS{s.fs, s},
		Cache:              cache,
		FileCache:          s.files,
		FormatMajorVersion: pebble.FormatValueSeparation,
		MemTableSize:       uint64(cmp.Or(o.LogBytes, 16<<20)),
		Merger:             addMerger,
		Logger:             pebbleLog{s},
		EventListener:      s.listener(),
	})
	if err != nil {
		return err
	}
	if err := s.checkVersion(); err != nil {
		return err
	}
	if s.seg, err = openSegments(s.fs, s.fs.PathJoin(s.dir, "blocks")); err != nil {
		return err
	}
	if err := s.loadPrimary(o.PrimaryKey); err != nil {
		return err
	}
	if b, err := s.get([]byte{prefixCounter}); err != nil {
		return err
	} else if len(b) == 4 {
		s.nextID = binary.BigEndian.Uint32(b)
	}
	if err := s.loadLive(); err != nil {
		return err
	}
	return s.recover()
}

func (s *Store) checkVersion() error {
	b, err := s.get([]byte{prefixVersion})
	switch {
	case err != nil:
		return err
	case b == nil:
		return s.set([]byte{prefixVersion}, []byte{formatVersion}, true)
	case len(b) != 1 || b[0] != formatVersion:
		return fmt.Errorf("%w: version %d, this program knows %d", ErrVersion, b, formatVersion)
	}
	return nil
}

func (s *Store) loadPrimary(want *[32]byte) error {
	key := []byte{prefixPrimary}
	b, err := s.get(key)
	switch {
	case err != nil:
		return err
	case len(b) == 32:
		s.primary = [32]byte(b)
		if want != nil && *want != s.primary {
			return errors.New("the store has another primary key")
		}
		return nil
	case want != nil:
		s.primary = *want
	default:
		rand.Read(s.primary[:])
	}
	// Named cores are nothing without it: durable before any of them exists.
	return s.set(key, s.primary[:], true)
}

// loadLive reads how much of each segment is used and removes those of which
// nothing is, among them files that a crash has left behind.
func (s *Store) loadLive() error {
	err := s.scan([]byte{prefixSegment}, func(k, v []byte) error {
		if len(k) != 5 || len(v) != 8 {
			return errors.New("malformed segment counter")
		}
		n := binary.BigEndian.Uint32(k[1:])
		if s.seg.addLive(n, int64(binary.BigEndian.Uint64(v))) {
			return s.removeSegment(n)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return s.seg.removeUnknown()
}

// removeSegment removes a segment that nothing uses. That nothing does must be
// durable before the file goes, and with it whatever was committed till now.
func (s *Store) removeSegment(n uint32) error {
	if s.snapshots.Load() > 0 {
		return nil // the next open will
	}
	b := s.db.NewBatch()
	defer b.Close()
	if err := b.Delete(segmentKey(n), nil); err != nil {
		return err
	}
	if err := s.commit(b, true); err != nil {
		return err
	}
	return s.seg.remove(n)
}

// recover looks at the pages whose data was not synced when the store was last
// used. Blocks that did not make it are forgotten; they were never acknowledged
// as durable. The tree stays: another history of this length must not be signed.
func (s *Store) recover() error {
	var todo []pageKey
	err := s.scan([]byte{prefixUnsynced}, func(k, _ []byte) error {
		if len(k) != 13 {
			return errors.New("malformed recovery record")
		}
		todo = append(todo, pageKey{binary.BigEndian.Uint32(k[1:]), binary.BigEndian.Uint64(k[5:])})
		return nil
	})
	if err != nil || len(todo) == 0 {
		return err
	}
	for _, k := range todo {
		if err := s.recoverPage(k); err != nil {
			return fmt.Errorf("recover page %d of core number %d: %w", k.number, k.core, err)
		}
	}
	// What was found may be in the operating system's memory only, as after a
	// kill of the process.
	if _, err := s.seg.sync(); err != nil {
		return err
	}
	b := s.db.NewBatch()
	defer b.Close()
	if err := b.DeleteRange([]byte{prefixUnsynced}, []byte{prefixUnsynced + 1}, nil); err != nil {
		return err
	}
	return s.commit(b, true)
}

func (s *Store) recoverPage(k pageKey) error {
	c := &Core{store: s, id: k.core}
	if err := c.loadHead(); err != nil {
		return err
	}
	p, err := c.page(0, k.number)
	if err != nil {
		return err
	}
	ch := c.begin()
	for i := range uint64(pageBlocks) {
		if p.data>>i&1 == 0 {
			continue
		}
		block := k.number*pageBlocks + i
		at, err := c.locate(block)
		if err == nil && at.run.segment == 0 {
			continue // in the database, which is as old as the page
		}
		if err == nil {
			var data []byte
			if data, err = c.fetch(block, at); err == nil && at.holds(data) {
				s.seg.noteDirty(at.run.segment)
				continue
			}
		}
		s.log.Warn("block lost in a crash", "core", k.core, "index", block)
		if err := ch.clear(block, block+1); err != nil {
			return err
		}
	}
	return ch.commit(true)
}

// get returns a copy of a value, nil if there is none.
func (s *Store) get(key []byte) ([]byte, error) { return getFrom(s.db, key) }

func getFrom(r pebble.Reader, key []byte) ([]byte, error) {
	v, closer, err := r.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer closer.Close()
	return append([]byte{}, v...), nil
}

// scan calls f with each key that begins with prefix.
func (s *Store) scan(prefix []byte, f func(k, v []byte) error) error {
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: prefixEnd(prefix)})
	if err != nil {
		return err
	}
	for ok := it.First(); ok; ok = it.Next() {
		if err := f(it.Key(), it.Value()); err != nil {
			return errors.Join(err, it.Close())
		}
	}
	return errors.Join(it.Error(), it.Close())
}

func prefixEnd(p []byte) []byte {
	end := append([]byte{}, p...)
	for i := len(end) - 1; ; i-- {
		if end[i]++; end[i] != 0 { // the first byte is a letter
			return end[:i+1]
		}
	}
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
	return errors.Join(s.Sync(), s.closeFiles())
}

func (s *Store) closeFiles() error {
	var errs []error
	if s.db != nil {
		errs = append(errs, s.db.Close())
		s.files.Unref()
	}
	if s.seg != nil {
		errs = append(errs, s.seg.close())
	}
	s.fs.Remove(s.fs.PathJoin(s.dir, "process"))
	return errors.Join(append(errs, s.lock.Close())...)
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

// A record is what the store knows of a core besides its content.
//
//	version u8 = 1, uint id, key, flags u8 (1 manifest, 2 named, 4 file),
//	[buffer manifest] [namespace, string name] [string path]
type record struct {
	id        uint32
	key       Key
	manifest  *Manifest
	named     bool
	namespace Namespace
	name      string
	path      string // static cores whose blocks are in a file
}

func (r *record) encode() []byte {
	b := compact.AppendUint([]byte{1}, uint64(r.id))
	b = append(b, r.key[:]...)
	flags := byte(0)
	if r.manifest != nil {
		flags |= 1
	}
	if r.named {
		flags |= 2
	}
	if r.path != "" {
		flags |= 4
	}
	b = append(b, flags)
	if r.manifest != nil {
		b = compact.AppendBytes(b, r.manifest.Encode())
	}
	if r.named {
		b = compact.AppendString(append(b, r.namespace[:]...), r.name)
	}
	if r.path != "" {
		b = compact.AppendString(b, r.path)
	}
	return b
}

func decodeRecord(b []byte) (record, error) {
	d := compact.NewDecoder(b)
	if v := d.Byte(); v != 1 {
		return record{}, fmt.Errorf("core record of version %d", v)
	}
	id := d.Uint()
	r := record{id: uint32(id), key: d.Fixed32()}
	flags := d.Byte()
	if flags&1 != 0 {
		m, err := DecodeManifest(d.Bytes())
		if err != nil {
			return record{}, err
		}
		r.manifest = &m
	}
	if flags&2 != 0 {
		r.named, r.namespace, r.name = true, d.Fixed32(), d.String()
	}
	if flags&4 != 0 {
		r.path = d.String()
	}
	if id > 1<<32-1 {
		d.Fail(compact.ErrRange)
	}
	return r, d.Err()
}

// lookup returns the record of a core. The error matches [fs.ErrNotExist] when
// the store does not have it.
func (s *Store) lookup(dk DiscoveryKey) (record, error) {
	b, err := s.get(append([]byte{prefixRecord}, dk[:]...))
	if err != nil {
		return record{}, err
	}
	if b == nil {
		return record{}, fmt.Errorf("core with discovery key %s: %w", dk.String()[:8], fs.ErrNotExist)
	}
	return decodeRecord(b)
}

// Named opens the core of that name in the root namespace; see
// [Store.NamedIn].
func (s *Store) Named(name string) (*Core, error) { return s.NamedIn(Namespace{}, name) }

// NamedIn opens the writable core of that name, which is made if it is not
// there. Its key pair derives from the store's primary key as in the reference's
// corestore, so that stores with one primary key give equal names equal keys.
func (s *Store) NamedIn(ns Namespace, name string) (*Core, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	alias := aliasKey(ns, name)
	b, err := s.get(alias)
	if err != nil {
		return nil, fmt.Errorf("open core %q: %w", name, err)
	}
	var dk DiscoveryKey
	if len(b) == len(dk) {
		dk = DiscoveryKey(b)
	} else {
		m := SingleSigner(DeriveKeyPair(s.primary, ns, name).Public())
		key := m.Key()
		dk = key.Discovery()
		r := record{key: key, manifest: &m, named: true, namespace: ns, name: name}
		if _, err := s.lookup(dk); errors.Is(err, fs.ErrNotExist) {
			if err := s.create(dk, r, alias); err != nil {
				return nil, fmt.Errorf("create core %q: %w", name, err)
			}
		} else if err := s.rename(dk, r, alias); err != nil {
			return nil, fmt.Errorf("name core %q: %w", name, err)
		}
	}
	return s.openLocked(dk)
}

// NamedExisting opens the core of that name. The error matches [fs.ErrNotExist] if
// the store does not have it.
func (s *Store) NamedExisting(ns Namespace, name string) (*Core, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := s.get(aliasKey(ns, name))
	if err != nil {
		return nil, err
	}
	if len(b) != 32 {
		return nil, fmt.Errorf("core %q: %w", name, fs.ErrNotExist)
	}
	return s.openLocked(DiscoveryKey(b))
}

// rename makes a core that was opened by its key before known by its name.
func (s *Store) rename(dk DiscoveryKey, r record, alias []byte) error {
	old, err := s.lookup(dk)
	if err != nil {
		return err
	}
	r.id = old.id
	b := s.db.NewBatch()
	defer b.Close()
	b.Set(append([]byte{prefixRecord}, dk[:]...), r.encode(), nil)
	b.Set(alias, dk[:], nil)
	if err := s.commit(b, false); err != nil {
		return err
	}
	if c := s.cores[dk]; c != nil {
		c.setRecord(r)
	}
	return nil
}

// create stores a new core under r, which gets the next number.
func (s *Store) create(dk DiscoveryKey, r record, alias []byte) error {
	r.id = s.nextID
	b := s.db.NewBatch()
	defer b.Close()
	b.Set([]byte{prefixCounter}, binary.BigEndian.AppendUint32(nil, r.id+1), nil)
	b.Set(append([]byte{prefixRecord}, dk[:]...), r.encode(), nil)
	if alias != nil {
		b.Set(alias, dk[:], nil)
	}
	if err := s.commit(b, false); err != nil {
		return err
	}
	s.nextID++
	return nil
}

// Open opens the core key, an empty replica if the store does not have it.
func (s *Store) Open(key Key) (*Core, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	dk := key.Discovery()
	if _, err := s.lookup(dk); errors.Is(err, fs.ErrNotExist) {
		if err := s.create(dk, record{key: key}, nil); err != nil {
			return nil, fmt.Errorf("create core %s: %w", key.Short(), err)
		}
	}
	return s.openLocked(dk)
}

// OpenExisting opens the core key. The error matches [fs.ErrNotExist] if the
// store does not have it.
func (s *Store) OpenExisting(key Key) (*Core, error) { return s.ByDiscovery(key.Discovery()) }

// ByDiscovery opens the core with that discovery key. The error matches
// [fs.ErrNotExist] if the store does not have it.
func (s *Store) ByDiscovery(dk DiscoveryKey) (*Core, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.openLocked(dk)
}

// Create opens the core whose manifest is m, making it if it is not there. It is
// writable with as many of the signers' key pairs as m's quorum needs; the pairs
// are not stored. The error matches [ErrManifest] for a manifest that nobody
// could ever satisfy.
func (s *Store) Create(m Manifest, pairs ...KeyPair) (*Core, error) {
	return s.createWith(m.Key(), m, pairs...)
}

// CreateCompat opens the core whose key is the public key of its only signer, as
// old cores are.
func (s *Store) CreateCompat(pair KeyPair) (*Core, error) {
	m := compatManifest(Key(pair.Public()))
	return s.createWith(Key(pair.Public()), m, pair)
}

// compatManifest is the manifest of a core whose key is a public key.
func compatManifest(key Key) Manifest {
	m := SingleSigner(PublicKey(key))
	m.Version = 0
	return m
}

func (s *Store) createWith(key Key, m Manifest, pairs ...KeyPair) (*Core, error) {
	if err := m.Validate(); err != nil {
		return nil, fmt.Errorf("create core: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	dk := key.Discovery()
	r, err := s.lookup(dk)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = s.create(dk, record{key: key, manifest: &m}, nil)
	case err == nil && r.manifest == nil:
		r.manifest = &m
		err = s.set(append([]byte{prefixRecord}, dk[:]...), r.encode(), false)
		if c := s.cores[dk]; c != nil {
			c.setRecord(r)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("create core %s: %w", key.Short(), err)
	}
	c, err := s.openLocked(dk)
	if err != nil {
		return nil, err
	}
	if len(pairs) > 0 {
		c.mu.Lock()
		c.pairs = pairs
		c.mu.Unlock()
	}
	return c, nil
}

// openLocked returns the open core, or opens it. s.mu is held.
func (s *Store) openLocked(dk DiscoveryKey) (*Core, error) {
	if s.closed {
		return nil, ErrClosed
	}
	if c := s.cores[dk]; c != nil {
		c.refs++
		return c, nil
	}
	r, err := s.lookup(dk)
	if err != nil {
		return nil, err
	}
	c := &Core{store: s, id: r.id, rec: r, discovery: dk, refs: 1}
	if err := c.loadHead(); err != nil {
		return nil, fmt.Errorf("open core %s: %w", r.key.Short(), err)
	}
	s.cores[dk] = c
	return c, nil
}

// release is Core.Close.
func (s *Store) release(c *Core) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.refs--; c.refs == 0 && s.cores[c.discovery] == c {
		delete(s.cores, c.discovery)
		c.shut()
	}
}

// Cores yields the keys of all cores, in the order of their discovery keys.
func (s *Store) Cores() iter.Seq2[Key, error] {
	return func(yield func(Key, error) bool) {
		stop := errors.New("stop")
		err := s.scan([]byte{prefixRecord}, func(_, v []byte) error {
			r, err := decodeRecord(v)
			if !yield(r.key, err) {
				return stop
			}
			return nil
		})
		if err != nil && !errors.Is(err, stop) {
			yield(Key{}, err)
		}
	}
}

// Delete removes the core key and all it has here; the file of a static core
// stays. It must not be open.
func (s *Store) Delete(key Key) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	dk := key.Discovery()
	if s.cores[dk] != nil {
		return fmt.Errorf("delete core %s: it is open", key.Short())
	}
	r, err := s.lookup(dk)
	if err != nil {
		return err
	}
	c, err := s.openLocked(dk)
	if err != nil {
		return err
	}
	delete(s.cores, dk)
	ch := c.begin()
	if err := ch.clear(0, c.head.tree.Length); err != nil {
		ch.abort()
		return err
	}
	for _, p := range []byte{prefixHead, prefixPage, prefixChunk, prefixUser, prefixUnsynced} {
		lo := binary.BigEndian.AppendUint32([]byte{p}, r.id)
		ch.b.DeleteRange(lo, binary.BigEndian.AppendUint32([]byte{p}, r.id+1), nil)
	}
	ch.b.Delete(append([]byte{prefixRecord}, dk[:]...), nil)
	if r.named {
		ch.b.Delete(aliasKey(r.namespace, r.name), nil)
	}
	ch.deleted = true
	return ch.commit(true)
}

func aliasKey(ns Namespace, name string) []byte {
	h := keyedHash(ns[:], []byte(name))
	return append([]byte{prefixAlias}, h[:]...)
}

func segmentKey(n uint32) []byte { return binary.BigEndian.AppendUint32([]byte{prefixSegment}, n) }

func unsyncedKey(k pageKey) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32([]byte{prefixUnsynced}, k.core), k.number)
}

// addMerger adds 64-bit integers, big endian.
var addMerger = &pebble.Merger{
	Name: "pkgswarm.add",
	Merge: func(_, value []byte) (pebble.ValueMerger, error) {
		m := new(sum)
		return m, m.MergeNewer(value)
	},
}

type sum int64

func (m *sum) MergeNewer(v []byte) error {
	if len(v) != 8 {
		return fmt.Errorf("counter of %d bytes", len(v))
	}
	*m += sum(binary.BigEndian.Uint64(v))
	return nil
}

func (m *sum) MergeOlder(v []byte) error { return m.MergeNewer(v) }

func (m *sum) Finish(bool) ([]byte, io.Closer, error) {
	return binary.BigEndian.AppendUint64(nil, uint64(*m)), nil, nil
}

// pageCache keeps recently used pages of all cores.
type pageCache struct {
	mu    sync.Mutex
	items map[cacheKey]*list.Element
	order list.List // of *cached, most recent first
}

// cachedPages is how many pages are kept: about 2.6 KiB each.
const cachedPages = 4096

type cacheKey struct {
	core   uint32
	level  uint8
	number uint64
}

type cached struct {
	key  cacheKey
	page *page
}

func newPageCache() *pageCache { return &pageCache{items: map[cacheKey]*list.Element{}} }

func (c *pageCache) get(k cacheKey) *page {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.items[k]
	if e == nil {
		return nil
	}
	c.order.MoveToFront(e)
	return e.Value.(*cached).page
}

func (c *pageCache) put(k cacheKey, p *page) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.items[k]; e != nil {
		e.Value.(*cached).page = p
		c.order.MoveToFront(e)
		return
	}
	c.items[k] = c.order.PushFront(&cached{k, p})
	if c.order.Len() > cachedPages {
		last := c.order.Back()
		delete(c.items, last.Value.(*cached).key)
		c.order.Remove(last)
	}
}

// drop forgets all pages of a core.
func (c *pageCache) drop(core uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, e := range c.items {
		if k.core == core {
			c.order.Remove(e)
			delete(c.items, k)
		}
	}
}
