package core

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// ErrFailed is matched by the errors of writes after the disk has refused one
// that the database cannot do without. What was acknowledged is safe and can be
// read; closing the store and opening it again puts the rest right.
var ErrFailed = errors.New("core: store has failed and must be opened again")

// openDatabase opens Pebble. When a write fails while it does, Pebble tries again
// for ever, or returns while goroutines of it still use what it has closed. So it
// is left behind then, with whatever it does next waiting for ever.
func (s *Store) openDatabase(dir string, o *pebble.Options) (*pebble.DB, error) {
	type result struct {
		db  *pebble.DB
		err error
	}
	done := make(chan result, 1)
	s.abandoned = make(chan struct{})
	go func() {
		db, err := pebble.Open(dir, o)
		done <- result{db, err}
	}()
	select {
	case r := <-done:
		s.opened.Store(true)
		if r.err == nil {
			r.err = s.broken()
		}
		return r.db, r.err
	case <-s.abandoned:
		return nil, s.broken()
	}
}

// databaseFS is the file system of the database. It differs in three things.
//
// Pebble names the list of its files by an empty file, the marker, and relies on
// directory entries reaching the disk in the order in which they were made. Where
// they do not, a crash may leave a marker of a list that is not there, or no
// marker, which to Pebble is a new database. So the directory is synced before
// and after each marker is made.
//
// When Pebble cannot log, it expects the process to end at once. Ours goes on, to
// serve what it has; so it must do nothing any more: it would remove files that
// the list, whatever of it reached the disk, may name. The same holds when a
// directory cannot be synced, where Pebble panics.
//
// Locking is left to the store.
type databaseFS struct {
	vfs.FS
	s *Store
}

// retryDelay is how long Pebble is kept from trying again what has failed.
const retryDelay = 100 * time.Millisecond

// change does something that changes what is on the disk, if that is allowed.
func (s *Store) change(do func() error) error {
	if err := s.broken(); err != nil {
		if !s.opened.Load() {
			select {} // left behind
		}
		time.Sleep(retryDelay)
		return err
	}
	err := do()
	if err != nil && !s.opened.Load() && !errors.Is(err, fs.ErrNotExist) {
		s.fail(err)
		s.giveUp.Do(func() { close(s.abandoned) })
		select {}
	}
	return err
}

func (f databaseFS) Create(name string, c vfs.DiskWriteCategory) (file vfs.File, err error) {
	if f.s.trouble.Load() != nil {
		time.Sleep(retryDelay)
	}
	marker := strings.HasPrefix(f.PathBase(name), "marker.")
	err = f.s.change(func() error {
		if marker {
			if err := syncDir(f.FS, f.PathDir(name)); err != nil {
				return err
			}
		}
		if file, err = f.FS.Create(name, c); err != nil || !marker {
			return err
		}
		return syncDir(f.FS, f.PathDir(name))
	})
	return databaseFile{file, f.s}, err
}

func (f databaseFS) ReuseForWrite(old, name string, c vfs.DiskWriteCategory) (file vfs.File, err error) {
	err = f.s.change(func() error { file, err = f.FS.ReuseForWrite(old, name, c); return err })
	return databaseFile{file, f.s}, err
}

func (f databaseFS) Rename(old, name string) error {
	return f.s.change(func() error { return f.FS.Rename(old, name) })
}

func (f databaseFS) Remove(name string) error {
	return f.s.change(func() error { return f.FS.Remove(name) })
}

func (f databaseFS) OpenDir(name string) (vfs.File, error) {
	d, err := f.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return databaseDir{d, f.s}, nil
}

func (f databaseFS) Lock(string) (io.Closer, error) { return io.NopCloser(nil), nil }

// A databaseFile is a file that is being written.
type databaseFile struct {
	vfs.File
	s *Store
}

func (f databaseFile) Write(b []byte) (n int, err error) {
	err = f.s.change(func() error { n, err = f.File.Write(b); return err })
	return n, err
}

func (f databaseFile) WriteAt(b []byte, off int64) (n int, err error) {
	err = f.s.change(func() error { n, err = f.File.WriteAt(b, off); return err })
	return n, err
}

func (f databaseFile) Sync() error     { return f.s.change(f.File.Sync) }
func (f databaseFile) SyncData() error { return f.s.change(f.File.SyncData) }

func (f databaseFile) SyncTo(n int64) (full bool, err error) {
	err = f.s.change(func() error { full, err = f.File.SyncTo(n); return err })
	return full, err
}

// maxPreallocate is how much space a log takes in advance, in bytes; Pebble wants
// more than a whole memory table, which is much for a store of a few cores.
const maxPreallocate = 1 << 20

func (f databaseFile) Preallocate(off, n int64) error {
	return f.File.Preallocate(off, min(n, maxPreallocate))
}

type databaseDir struct {
	vfs.File
	s *Store
}

func (d databaseDir) Sync() error {
	if err := d.s.change(d.File.Sync); err != nil {
		d.s.fail(fmt.Errorf("sync database directory: %w", err))
	}
	return nil // of no use to Pebble; commit asks the store
}

// ErrNoSpace is matched by the errors of writes that would fill the disk. They
// succeed again when there is space.
var ErrNoSpace = errors.New("core: no space left on the disk")

// commit makes the changes of b, all or none; if durable, they survive a power
// loss from then on, and with them all that was committed before.
//
// Batches enter the database one at a time: one that cannot be logged stays at
// the head of Pebble's queue for ever, and those behind it would never return.
// Waiting for the disk is done together.
func (s *Store) commit(b *pebble.Batch, durable bool) error {
	s.commitMu.Lock()
	if err := s.writable(b.Len()); err != nil {
		s.commitMu.Unlock()
		return err
	}
	durable = durable && !s.noSync
	var err error
	if durable {
		err = s.db.ApplyNoSyncWait(b, pebble.Sync)
	} else {
		err = s.db.Apply(b, pebble.NoSync)
	}
	if err == nil && s.unlogged {
		err = s.broken() // Pebble does not return it
	}
	s.commitMu.Unlock()
	if err == nil && durable {
		if err = b.SyncWait(); err != nil {
			s.fail(fmt.Errorf("sync database log: %w", err))
			err = s.broken()
		}
	}
	return err
}

// The database refuses writes while less space than this is left, in bytes, or an
// eighth of a small disk: Pebble does not survive a disk that is full.
const minFree = 32 << 20

// checkSpaceEvery is after how many bytes written to the database, or how long,
// free space is looked at.
const (
	checkSpaceBytes = 1 << 20
	checkSpaceEvery = 100 * time.Millisecond
)

// writable returns why n bytes cannot be written now. commitMu is held.
func (s *Store) writable(n int) error {
	if err := s.broken(); err != nil {
		return err
	}
	if err := s.trouble.Load(); err != nil {
		return fmt.Errorf("database cannot write its tables: %w", *err)
	}
	s.unchecked += n
	if s.full == nil && s.unchecked < checkSpaceBytes && time.Since(s.checked) < checkSpaceEvery {
		return nil
	}
	s.unchecked, s.checked, s.full = 0, time.Now(), nil
	u, err := s.fs.GetDiskUsage(s.dir)
	if err == nil && u.AvailBytes < min(minFree, u.TotalBytes/8) {
		s.full = fmt.Errorf("%w: %d bytes free", ErrNoSpace, u.AvailBytes)
	}
	return s.full // nil, too, where the file system does not tell
}

// set stores one value.
func (s *Store) set(key, value []byte, durable bool) error {
	b := s.db.NewBatch()
	defer b.Close()
	if err := b.Set(key, value, nil); err != nil {
		return err
	}
	return s.commit(b, durable)
}

// fail ends writing. After a write or a sync that failed, nobody knows what is on
// the disk, so that nothing may be built upon it.
func (s *Store) fail(err error) {
	if s.failed.CompareAndSwap(nil, &err) {
		s.log.Error("store has failed", "err", err)
	}
}

// broken returns why nothing can be written, nil if all is well.
func (s *Store) broken() error {
	if err := s.failed.Load(); err != nil {
		return fmt.Errorf("%w: %w", ErrFailed, *err)
	}
	return nil
}

// pebbleLog passes on what the database has to complain about.
type pebbleLog struct{ s *Store }

func (pebbleLog) Infof(string, ...any) {}

func (l pebbleLog) Errorf(format string, args ...any) {
	l.s.log.Error("database", "err", fmt.Sprintf(format, args...))
}

// Fatalf is called when the log or the list of files cannot be written, or a
// file is gone. Pebble then returns an error where it can, and reading goes on.
func (l pebbleLog) Fatalf(format string, args ...any) {
	if format == "pebble: fatal commit error: %v" {
		l.s.unlogged = true // called by Apply, and so under commitMu
	}
	l.s.fail(fmt.Errorf("database: "+format, args...))
}

// listener hears of damage in the database. Without one, Pebble ends the process;
// with it, whoever reads the damaged place gets an error. It hears of failed
// flushes, too, which Pebble tries again for ever.
func (s *Store) listener() *pebble.EventListener {
	return &pebble.EventListener{
		DataCorruption: func(info pebble.DataCorruptionInfo) {
			s.log.Error("database is damaged", "path", info.Path, "err", info.Details)
		},
		BackgroundError: func(err error) {
			if s.trouble.Swap(&err) == nil {
				s.log.Error("database cannot write its tables", "err", err)
			}
		},
		FlushEnd: func(info pebble.FlushInfo) {
			if info.Err == nil {
				s.trouble.Store(nil)
			}
		},
	}
}
