package core

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

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
