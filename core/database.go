package core

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// ErrFailed is matched by the errors of writes after the disk has refused one
// that the database cannot do without. What was acknowledged is safe and can be
// read; closing the store and opening it again puts the rest right.
var ErrFailed = errors.New("core: store has failed and must be opened again")

// ErrDamaged is matched by what [Store.Err] returns for a damaged database.
var ErrDamaged = errors.New("core: database of the store is damaged")

// openDatabase opens Pebble.
func (s *Store) openDatabase(dir string, o *pebble.Options) (db *pebble.DB, err error) {
	db, err = pebble.Open(dir, o)
	if broken := s.broken(); broken != nil {
		if err == nil {
			db.Close() // whatever it says: nothing of it has reached the disk
		}
		return nil, broken
	}
	if err != nil && isBroken(err) && !strings.Contains(err.Error(), "unknown format major version") {
		err = fmt.Errorf("%w: %w", errOpen, err)
	}
	s.opened.Store(err == nil)
	return db, err
}

// ErrNoSpace is matched by the errors of writes that would fill the disk. They
// succeed again when there is space.
var ErrNoSpace = errors.New("core: no space left on the disk")

// commit makes the changes of b, all or none; if durable, they survive a power
// loss from then on, and with them all that was committed before.
//
// Batches enter the database one at a time; waiting for the disk is done together.
//
// heads are those of cores signed here that b makes.
func (s *Store) commit(b *pebble.Batch, durable bool, heads ...ack) error {
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
	s.wrote = true
	var acks []ack
	if err == nil {
		s.acks.later(heads)
		if durable {
			acks = s.acks.take()
		}
	}
	s.commitMu.Unlock()
	if err == nil && durable {
		err = b.SyncWait()
	}
	if err == nil {
		err = s.broken() // Pebble does not hear of it; see databaseFS
	}
	if err == nil {
		s.acknowledge(acks)
	}
	return err
}

// acknowledge notes heads that are durable, apart from the database.
func (s *Store) acknowledge(heads []ack) {
	if err := s.acks.write(heads); err != nil {
		s.log.Warn("acknowledged heads cannot be noted", "err", err)
	}
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
	if err := s.pace(); err != nil {
		return err
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

// Tables that were flushed lie in layers until they are merged with those below.
const (
	maxLayers   = 12 // at which writers have to wait; for Pebble they would wait for ever
	maxUnmerged = 8  // the same while damage keeps tables from being merged
	mergeWait   = 10 * time.Second
)

// pace waits while there are too many layers. commitMu is held.
func (s *Store) pace() error {
	if s.layers < maxLayers && s.rotten.Load() == nil && !s.recount.Load() {
		return nil
	}
	timeout := time.NewTimer(mergeWait)
	defer timeout.Stop()
	for {
		if s.recount.Swap(false) {
			s.layers = int(s.db.Metrics().Levels[0].Sublevels)
		}
		if damage := s.rotten.Load(); damage != nil && s.layers >= maxUnmerged {
			return s.rot(*damage)
		}
		if s.layers < maxLayers || s.broken() != nil {
			return nil
		}
		select {
		case <-s.merged:
		case <-timeout.C:
			return errors.New("database cannot merge its tables as fast as they are written")
		}
	}
}

// rot ends writing to a damaged database. The next opening makes a new one.
func (s *Store) rot(damage error) error {
	err := fmt.Errorf("database is damaged: %w", damage)
	if e := writeSmall(s.fs, s.rebuildPath(), []byte("\n")); e != nil {
		err = errors.Join(err, e)
	}
	s.fail(err)
	return s.broken()
}

// tablesChanged makes pace look again.
func (s *Store) tablesChanged() {
	s.recount.Store(true)
	select {
	case s.merged <- struct{}{}:
	default:
	}
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

// Err returns why the store should be opened again, or made anew: it has failed
// ([ErrFailed]), or what it has read of its database is damaged ([ErrDamaged]; see
// [Rebuild]).
// What can still be read is right all the same.
func (s *Store) Err() error {
	if err := s.damage.Load(); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, *err)
	}
	return s.broken()
}

// pebbleLog passes on what the database has to complain about.
type pebbleLog struct{ s *Store }

func (pebbleLog) Infof(string, ...any) {}

func (l pebbleLog) Errorf(format string, args ...any) {
	l.s.log.Error("database", "err", fmt.Sprintf(format, args...))
}

// Fatalf is called when the list of files cannot be written, or a
// file is gone. Pebble then returns an error where it can, and reading goes on.
func (l pebbleLog) Fatalf(format string, args ...any) {
	l.s.fail(fmt.Errorf("database: "+format, args...))
}

// listener hears of damage in the database. Without one, Pebble ends the process;
// with it, whoever reads the damaged place gets an error. It hears of failed
// flushes, too, which Pebble tries again for ever.
func (s *Store) listener() *pebble.EventListener {
	var flush atomic.Pointer[error] // how the last one has ended
	return &pebble.EventListener{
		DataCorruption: func(info pebble.DataCorruptionInfo) {
			s.damage.CompareAndSwap(nil, &info.Details)
			s.log.Error("database is damaged", "path", info.Path, "err", info.Details)
		},
		FlushEnd: func(info pebble.FlushInfo) {
			if flush.Store(&info.Err); info.Err == nil {
				s.trouble.Store(nil)
			}
			s.tablesChanged()
		},
		CompactionEnd: func(info pebble.CompactionInfo) {
			if pebble.IsCorruptionError(info.Err) {
				s.rotten.Store(&info.Err)
			}
			s.tablesChanged()
		},
		BackgroundError: func(err error) {
			s.log.Error("database", "err", err)
			if last := flush.Load(); last == nil || !errors.Is(err, *last) {
				return // something that can be done later
			}
			s.trouble.Store(&err)
			select {
			case s.flushFailed <- struct{}{}:
			default:
			}
		},
	}
}

// flush turns what is in memory, and in the log, into tables, and reports whether
// it has.
func (s *Store) flush() bool {
	select {
	case <-s.flushFailed: // long ago
	default:
	}
	s.commitMu.Lock()
	can := s.wrote && s.full == nil && s.trouble.Load() == nil && s.broken() == nil
	s.commitMu.Unlock()
	if !can {
		return false // the log has it
	}
	done, err := s.db.AsyncFlush()
	if err != nil {
		return false
	}
	select {
	case <-done:
		return true
	case <-s.flushFailed:
		return false
	}
}

// removeLogs removes the logs but the newest, after all that is in them has gone
// to tables. Pebble keeps some, to write over them later.
func (s *Store) removeLogs() {
	dir := s.fs.PathJoin(s.dir, "db")
	names, err := s.fs.List(dir)
	if err != nil {
		return // the next opening will
	}
	slices.Sort(names) // numbers of six digits or more
	var logs []string
	for _, n := range names {
		if strings.HasSuffix(n, ".log") {
			logs = append(logs, n)
		}
	}
	for _, n := range logs[:max(0, len(logs)-1)] {
		s.fs.Remove(s.fs.PathJoin(dir, n))
	}
}
