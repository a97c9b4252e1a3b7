package core

import (
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"
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
