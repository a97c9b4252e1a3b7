package core

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
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
// serve what it has; so nothing may be changed any more: Pebble would remove files
// that the list, whatever of it reached the disk, may name. And Pebble, which
// panics if a log cannot be closed or a directory not synced, must not hear of it;
// commit asks the store instead. When a write fails while the database is being
// opened, Pebble tries again for ever, or returns while goroutines of it still use
// what it has closed. So it does not hear of that either: it goes on to open, in
// vain, and is closed.
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
			return nil
		}
		time.Sleep(retryDelay)
		return err
	}
	err := do()
	if err != nil && !s.opened.Load() && !errors.Is(err, fs.ErrNotExist) {
		s.fail(err)
		return nil
	}
	return err
}

// changeLog is change for logs.
func (s *Store) changeLog(do func() error) {
	if s.broken() != nil {
		return
	}
	if err := do(); err != nil {
		s.fail(fmt.Errorf("write database log: %w", err))
	}
}

// nowhere is a file for what is not written any more.
func nowhere() vfs.File {
	f, err := vfs.NewMem().Create("nowhere", vfs.WriteCategoryUnspecified)
	if err != nil {
		panic("core: " + err.Error()) // there is nothing that could fail
	}
	return f
}

func (f databaseFS) Create(name string, c vfs.DiskWriteCategory) (file vfs.File, err error) {
	if strings.HasSuffix(name, ".log") {
		return f.log(func() (vfs.File, error) { return f.FS.Create(name, c) })
	}
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
	if file == nil {
		file = nowhere()
	}
	return databaseFile{file, f.s}, err
}

// ReuseForWrite makes a log of an old one, which is written over.
func (f databaseFS) ReuseForWrite(old, name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return f.log(func() (vfs.File, error) { return f.FS.ReuseForWrite(old, name, c) })
}

func (f databaseFS) log(open func() (vfs.File, error)) (vfs.File, error) {
	l := &logFile{s: f.s}
	f.s.changeLog(func() (err error) {
		if l.File, err = open(); err != nil {
			return err
		}
		info, err := l.Stat()
		if err == nil {
			l.filled = info.Size()
		}
		return err
	})
	if l.File == nil {
		l.File = nowhere()
	}
	return l, nil
}

func (f databaseFS) Rename(old, name string) error {
	return f.s.change(func() error { return f.FS.Rename(old, name) })
}

// Remove keeps files while the database is being opened: Pebble may have an old
// list of files, and take those for obsolete that are missing in it.
func (f databaseFS) Remove(name string) error {
	if f.s.keep(name) {
		return nil
	}
	return f.s.change(func() error { return f.FS.Remove(name) })
}

func (s *Store) keep(name string) bool {
	s.removeMu.Lock()
	defer s.removeMu.Unlock()
	if s.loaded || !strings.HasSuffix(name, ".sst") {
		return false
	}
	s.obsolete = append(s.obsolete, name)
	return true
}

// removeLater removes what was kept, now that the database was found to be right.
func (s *Store) removeLater() {
	s.removeMu.Lock()
	defer s.removeMu.Unlock()
	s.loaded = true
	for _, name := range s.obsolete {
		s.change(func() error { return s.fs.Remove(name) }) // the next opening tries again
	}
	s.obsolete = nil
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
	if err == nil {
		n = len(b)
	}
	return n, err
}

func (f databaseFile) WriteAt(b []byte, off int64) (n int, err error) {
	err = f.s.change(func() error { n, err = f.File.WriteAt(b, off); return err })
	if err == nil {
		n = len(b)
	}
	return n, err
}

func (f databaseFile) Sync() error     { return f.s.change(f.File.Sync) }
func (f databaseFile) SyncData() error { return f.s.change(f.File.SyncData) }

func (f databaseFile) SyncTo(n int64) (full bool, err error) {
	err = f.s.change(func() error { full, err = f.File.SyncTo(n); return err })
	return full, err
}

// A logFile is a log of the database. One that is synced often is filled with
// zeros ahead of what is written: then a sync has nothing to do but to write the
// data. Else it waits for the file system's own journal as well, which has to
// note that the file has grown, and for all that others have put there.
type logFile struct {
	vfs.File
	s       *Store
	syncs   int
	written int64
	filled  int64 // written or zeros
}

// Logs are filled so far ahead, in bytes: little at first, for those of programs
// that soon end.
const (
	minFill = 64 << 10
	maxFill = 1 << 20
)

// Preallocate does nothing: blocks that are allocated but were never written cost
// a sync as much as new ones.
func (f *logFile) Preallocate(off, n int64) error { return nil }

func (f *logFile) Write(b []byte) (int, error) {
	f.s.changeLog(func() error { _, err := f.File.Write(b); return err })
	f.written += int64(len(b))
	return len(b), nil
}

func (f *logFile) Sync() error {
	f.fill()
	f.s.changeLog(f.File.Sync)
	return nil
}

func (f *logFile) SyncData() error {
	f.fill()
	f.s.changeLog(f.File.SyncData)
	return nil
}

func (f *logFile) SyncTo(n int64) (full bool, err error) {
	f.s.changeLog(func() (err error) { full, err = f.File.SyncTo(n); return err })
	return full, nil
}

func (f *logFile) fill() {
	if f.syncs++; f.syncs < 3 || f.written+minFill/4 <= f.filled || f.s.broken() != nil {
		return
	}
	from := max(f.written, f.filled)
	n := min(max(from, minFill), maxFill)
	if _, err := f.File.WriteAt(make([]byte, n), from); err != nil {
		f.syncs = math.MinInt // no space, perhaps: it works without
		return
	}
	f.filled = from + n
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
