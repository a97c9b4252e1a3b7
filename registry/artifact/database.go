package artifact

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/pkgswarm/pkgswarm/internal/durable"
)

const (
	closeTimeout = 5 * time.Second // of a database that has failed
	tableFiles   = 48              // open at once
)

// errDatabase says that the database cannot be used now. Until it has been
// replaced the store finds nothing and takes nothing.
var errDatabase = errors.New("artifact database is out of use")

// A database is the store's Pebble database. One that fails while it is in use is
// of no use from then on, and can be replaced. Its methods may be called
// concurrently.
type database struct {
	dir string
	log *slog.Logger

	why    atomic.Pointer[error] // why it is out of use; nil while it is not
	failed chan struct{}         // gets a value when it goes out of use

	commitMu sync.Mutex // one batch at a time: Pebble keeps those behind a failed one waiting for ever

	mu sync.RWMutex // held for reading while db is used, for writing while it is replaced
	db *pebble.DB   // nil if there is none
}

// openDatabase opens the database in dir. One that is damaged is set aside
// (REL-5).
func openDatabase(dir string, log *slog.Logger) (*database, error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return nil, err
	}
	d := &database{dir: dir, log: log, failed: make(chan struct{}, 1)}
	_, err := d.open()
	if err != nil && isDatabaseDamage(err) {
		if err := d.setAside(err); err != nil {
			return nil, err
		}
		_, err = d.open()
	}
	return d, err
}

// open opens Pebble and checks the format. fresh reports whether the database has
// just been made.
func (d *database) open() (fresh bool, err error) {
	cache := pebble.NewCache(blockCache)
	defer cache.Unref()
	// Pebble's own ones would be gone if opening fails, with goroutines still
	// using them.
	files := pebble.NewFileCache(1, tableFiles)
	defer files.Unref() // the database keeps it while it is open
	d.why.Store(nil)
	db, err := pebble.Open(d.dir, &pebble.Options{
		FS:                    vfs.Default, // as it is
		Cache:                 cache,
		FileCache:             files,
		MemTableSize:          memTableBytes,
		FormatMajorVersion:    pebble.FormatNewest,
		Logger:                pebbleLog{d},
		EventListener:         &pebble.EventListener{DataCorruption: func(i pebble.DataCorruptionInfo) { d.fail(i.Details) }},
		WALBytesPerSync:       0,
		L0CompactionThreshold: 4,
	})
	if err != nil {
		return false, err
	}
	if fresh, err = checkFormat(db); err == nil {
		err = d.trouble()
	}
	if err != nil {
		db.Close()
		return false, err
	}
	d.db = db
	return fresh, nil
}

func checkFormat(db *pebble.DB) (fresh bool, err error) {
	v, err := get(db, []byte{'v'})
	switch {
	case errors.Is(err, pebble.ErrNotFound):
		return true, db.Set([]byte{'v'}, []byte{formatByte}, pebble.Sync)
	case err != nil:
		return false, err
	case len(v) != 1 || v[0] != formatByte:
		return false, fmt.Errorf("%w: database version %x", ErrNewer, v)
	}
	return false, nil
}

// isDatabaseDamage tells what is wrong with a database from what is wrong with
// the machine.
func isDatabaseDamage(err error) bool {
	return !errors.Is(err, ErrNewer) && !isLocked(err) && !durable.MachineFault(err)
}

// setAside moves the damaged database out of the way. The last one is kept, for
// people to look at.
func (d *database) setAside(cause error) error {
	older, _ := filepath.Glob(d.dir + ".damaged-*") // fails for malformed patterns only
	for _, name := range older {
		os.RemoveAll(name)
	}
	aside := fmt.Sprintf("%s.damaged-%d", d.dir, time.Now().UnixNano())
	d.log.Error("artifact database is damaged, making a new one from the files", "err", cause, "aside", aside)
	return os.Rename(d.dir, aside)
}

// fail takes the database out of use.
func (d *database) fail(err error) {
	if err == nil {
		err = errors.New("unknown fault")
	}
	if !d.why.CompareAndSwap(nil, &err) {
		return
	}
	d.log.Error("artifact database has failed", "err", err)
	select {
	case d.failed <- struct{}{}:
	default:
	}
}

// trouble returns an error that matches errDatabase while the database is out of
// use.
func (d *database) trouble() error {
	if why := d.why.Load(); why != nil {
		return fmt.Errorf("%w: %w", errDatabase, *why)
	}
	return nil
}

// use calls f with the database.
func (d *database) use(f func(db *pebble.DB) error) error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if err := d.trouble(); err != nil {
		return err
	}
	err := f(d.db)
	if err != nil && !errors.Is(err, pebble.ErrNotFound) && isDatabaseDamage(err) {
		d.fail(err)
	}
	if why := d.trouble(); why != nil {
		return why // what Pebble returns after a failed write may be nil
	}
	return err
}

// get returns a copy of the value of key. The error matches pebble.ErrNotFound if
// there is none.
func (d *database) get(key []byte) (v []byte, err error) {
	err = d.use(func(db *pebble.DB) error {
		v, err = get(db, key)
		return err
	})
	return v, err
}

// get returns a copy of the value of key.
func get(r pebble.Reader, key []byte) ([]byte, error) {
	v, closer, err := r.Get(key)
	if err != nil {
		return nil, err
	}
	defer closer.Close()
	return append([]byte(nil), v...), nil
}

// apply makes the changes that fill puts into a batch: all or none.
func (d *database) apply(fill func(b *pebble.Batch)) error {
	return d.use(func(db *pebble.DB) error {
		b := db.NewBatch()
		defer b.Close()
		fill(b)
		d.commitMu.Lock()
		defer d.commitMu.Unlock()
		if err := d.trouble(); err != nil {
			return err
		}
		return db.Apply(b, pebble.NoSync)
	})
}

// sync makes durable what was applied. Calls at one time share the work.
func (d *database) sync() error {
	return d.use(func(db *pebble.DB) error {
		b := db.NewBatch()
		defer b.Close()
		b.LogData(nil, nil)
		d.commitMu.Lock()
		err := d.trouble()
		if err == nil {
			err = db.ApplyNoSyncWait(b, pebble.Sync)
		}
		d.commitMu.Unlock()
		if err != nil || d.trouble() != nil {
			return err
		}
		if err := b.SyncWait(); err != nil {
			d.fail(err) // nobody knows what is on the disk now
			return err
		}
		return nil
	})
}

// set stores a value durably.
func (d *database) set(key, value []byte) error {
	if err := d.apply(func(b *pebble.Batch) { b.Set(key, value, nil) }); err != nil {
		return err
	}
	return d.sync()
}

// remove removes a key durably.
func (d *database) remove(key []byte) error {
	if err := d.apply(func(b *pebble.Batch) { b.Delete(key, nil) }); err != nil {
		return err
	}
	return d.sync()
}

// An entry is a key and its value.
type entry struct{ key, value []byte }

// from returns copies of the first entries in [lo, hi), at most limit.
func (d *database) from(lo, hi []byte, limit int) (es []entry, err error) {
	err = d.use(func(db *pebble.DB) error {
		es, err = entries(db, lo, hi, limit)
		return err
	})
	return es, err
}

// entries returns what can be read of [lo, hi), at most limit entries.
func entries(r pebble.Reader, lo, hi []byte, limit int) ([]entry, error) {
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: lo, UpperBound: hi})
	if err != nil {
		return nil, err
	}
	var es []entry
	for it.First(); it.Valid() && len(es) < limit; it.Next() {
		es = append(es, entry{append([]byte(nil), it.Key()...), append([]byte(nil), it.Value()...)})
	}
	return es, errors.Join(it.Error(), it.Close())
}

// replace puts a database that is out of use right: by opening it again if the
// machine was at fault, else with a new one, to which keep lists what it moves of
// the old one where that can still be read. fresh reports whether it is a new one.
// Nobody may be changing anything meanwhile.
func (d *database) replace(keep func(r pebble.Reader) []entry) (fresh bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	why := d.why.Load()
	if why == nil {
		return false, nil
	}
	var kept []entry
	if d.db != nil {
		kept = keep(d.db)
		if err := d.closeFailed(); err != nil {
			return false, err
		}
	}
	if isDatabaseDamage(*why) {
		if err := d.setAside(*why); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
	}
	if fresh, err = d.open(); err != nil {
		d.why.Store(&err)
		return false, err
	}
	for _, e := range kept {
		if err := d.db.Set(e.key, e.value, pebble.Sync); err != nil {
			return fresh, err
		}
	}
	return fresh, nil
}

// closeFailed closes Pebble, which may not be able to.
func (d *database) closeFailed() error {
	db, done := d.db, make(chan struct{})
	go func() {
		defer close(done)
		defer func() { recover() }() // what it finds in itself, we know
		db.Close()
	}()
	select {
	case <-done:
		d.db = nil
		return nil
	case <-time.After(closeTimeout):
		return fmt.Errorf("%w: it cannot be closed: restart the node", errDatabase)
	}
}

func (d *database) close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.db == nil {
		return nil
	}
	if d.why.Load() != nil {
		return d.closeFailed()
	}
	db := d.db
	d.db = nil
	return db.Close()
}

// A pebbleLog hears of what Pebble does not return as an error.
type pebbleLog struct{ d *database }

func (pebbleLog) Infof(string, ...any)  {}
func (pebbleLog) Errorf(string, ...any) {}

// Fatalf is called when the log cannot be written, or a file is gone.
func (l pebbleLog) Fatalf(format string, args ...any) {
	for _, a := range args {
		if err, ok := a.(error); ok {
			l.d.fail(err)
			return
		}
	}
	l.d.fail(fmt.Errorf(format, args...))
}
