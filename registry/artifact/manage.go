package artifact

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

const (
	flushEvery  = 30 * time.Second
	reviveEvery = 5 * time.Second // until a failed database is looked at again
	evictBatch  = 64              // files looked at at once when room is needed
)

// Run keeps the store in order until ctx ends: it writes back the times of last
// requests, evicts what is over the cap, finds the files again after the database
// was lost, and reads through all files once in scrubEvery (0: never). It returns
// nil, or the error that ended it.
func (s *Store) Run(ctx context.Context, scrubEvery time.Duration) error {
	// Also after a crash that left files without their records.
	if err := s.Rebuild(ctx); err != nil && !errors.Is(err, errDatabase) && ctx.Err() == nil {
		return err
	}
	// The cap may have become smaller, or the disk fuller.
	if _, err := s.Collect(); err != nil && !errors.Is(err, errDatabase) {
		return fmt.Errorf("artifact store: %w", err)
	}
	flush := time.NewTicker(flushEvery)
	defer flush.Stop()
	var scrub <-chan time.Time
	if scrubEvery > 0 {
		t := time.NewTicker(scrubEvery)
		defer t.Stop()
		scrub = t.C
	}
	again := time.NewTimer(0) // to replace the database
	defer again.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case <-flush.C:
			_, err = s.Collect()
		case <-scrub:
			_, err = s.Scrub(ctx, true)
		case <-s.db.failed:
			again.Reset(0)
		case <-again.C:
			if err = s.revive(ctx); err != nil {
				s.log.Error("artifact database not replaced: files are passed through and not kept", "err", err, "again_in", reviveEvery)
				again.Reset(reviveEvery)
				err = nil
			}
		}
		if err != nil && !errors.Is(err, errDatabase) && ctx.Err() == nil {
			return fmt.Errorf("artifact store: %w", err)
		}
	}
}

// revive replaces a database that is out of use, and finds the files again.
func (s *Store) revive(ctx context.Context) error {
	if s.db.trouble() == nil {
		return nil
	}
	if err := s.replaceDatabase(); err != nil {
		return err
	}
	return s.Rebuild(ctx)
}

// replaceDatabase replaces a database that is out of use. Of a damaged one, what
// files cannot tell is kept as far as it can be read: pins and withdrawals.
func (s *Store) replaceDatabase() error {
	for i := range s.stripes {
		s.stripes[i].Lock()
		defer s.stripes[i].Unlock()
	}
	s.totalsMu.Lock()
	defer s.totalsMu.Unlock()
	fresh, err := s.db.replace(func(r pebble.Reader) (kept []entry) {
		for _, kind := range []byte{'p', 'w'} {
			es, _ := entries(r, []byte{kind}, []byte{kind + 1}, maxHalfDone)
			kept = append(kept, es...)
		}
		return kept
	})
	if fresh {
		s.totals = totals{}
	}
	return err
}

// makeRoom reserves n bytes within the cap and the free space, evicting what was
// not asked for longest.
func (s *Store) makeRoom(n int64) error {
	if err := s.opts.step("room"); err != nil {
		return spaceError(err)
	}
	s.roomMu.Lock()
	defer s.roomMu.Unlock()
	over := func() bool { return s.over(n) }
	if over() {
		if err := s.flushTouched(); err != nil {
			return err
		}
		if err := s.evictWhile(over); err != nil {
			return err
		}
		if over() {
			return fmt.Errorf("%w: %d bytes more do not fit", ErrNoSpace, n)
		}
	}
	s.mu.Lock()
	s.pending += n
	s.reserved += n
	s.mu.Unlock()
	return nil
}

// over reports whether n more bytes would break the cap or the minimum of free space.
func (s *Store) over(n int64) bool {
	fits, full := s.Fits(n)
	return full || !fits
}

// Fits reports whether a file of n bytes fits within the cap without another one being
// evicted for it, and whether the disk is too full for it.
func (s *Store) Fits(n int64) (fits, full bool) {
	s.totalsMu.Lock()
	stored := s.totals.bytes
	s.totalsMu.Unlock()
	s.mu.Lock()
	pending, reserved := s.pending, s.reserved
	s.mu.Unlock()
	fits = s.opts.Cap <= 0 || stored+pending+n <= s.opts.Cap
	if s.opts.MinFree < 0 {
		return fits, false
	}
	free, err := freeSpace(s.dir)
	return fits, err == nil && free-reserved-n < s.opts.MinFree
}

// evictWhile removes files in the order of their last request while over is
// true. Pinned files are not in that order; files in use are passed over.
func (s *Store) evictWhile(over func() bool) error {
	next := []byte{'l'}
	for over() {
		es, err := s.db.from(next, []byte{'l' + 1}, evictBatch)
		if err != nil || len(es) == 0 {
			return err
		}
		for _, e := range es {
			if sum, ok := sumOfLRU(e.key); ok && !s.isHeld(sum) && over() {
				if err := s.evict(sum); err != nil {
					return err
				}
			}
		}
		next = append(es[len(es)-1].key, 0)
	}
	return nil
}

func (s *Store) evict(sum Sum) error {
	lock := s.stripe(sum)
	lock.Lock()
	defer lock.Unlock()
	if s.isHeld(sum) || s.isPinned(sum) {
		return nil
	}
	rec, err := s.record(sum)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.evicted++
	s.mu.Unlock()
	s.log.Debug("artifact evicted", "sha256", sum.String()[:16], "bytes", rec.Size)
	return s.removeLocked(rec)
}

// Collect evicts what is over the cap or the minimum of free space and returns
// the bytes freed.
func (s *Store) Collect() (int64, error) {
	before := s.Stats().Bytes
	if err := s.flushTouched(); err != nil {
		return 0, err
	}
	err := s.evictWhile(func() bool { return s.over(0) })
	return before - s.Stats().Bytes, err
}

// Remove removes a file, pinned or not. Files handed out stay readable.
func (s *Store) Remove(sum Sum) error {
	lock := s.stripe(sum)
	lock.Lock()
	defer lock.Unlock()
	rec, err := s.record(sum)
	if err != nil {
		return err
	}
	return s.removeLocked(rec)
}

// removeLocked removes the record, the core, then the file (REL-3). The caller
// holds the file's stripe.
func (s *Store) removeLocked(rec *record) error {
	s.checked.Remove(rec.SHA256)
	err := s.commit(totals{-1, -rec.Size}, func(b *pebble.Batch) {
		s.deleteNames(b, rec)
		b.Delete(dbKey('a', rec.SHA256), nil)
		b.Set(dbKey('i', rec.SHA256), nil, nil)
	})
	if err != nil {
		return err
	}
	if err := s.opts.step("unshare"); err != nil {
		return err
	}
	if s.opts.Cores != nil && rec.Key != (Key{}) {
		if err := s.opts.Cores.Remove(rec.Key); err != nil {
			s.log.Warn("remove the core of an artifact", "sha256", rec.SHA256.String()[:16], "err", err)
		}
	}
	if err := s.opts.step("unlink"); err != nil {
		return err
	}
	if err := s.root.RemoveAll(rec.path()); err != nil {
		return err
	}
	return s.db.apply(func(b *pebble.Batch) { b.Delete(dbKey('i', rec.SHA256), nil) })
}

// Pin keeps a file from being evicted, whether it is here now or later.
func (s *Store) Pin(sum Sum) error { return s.setPin(sum, true) }

// Unpin lets a file be evicted again.
func (s *Store) Unpin(sum Sum) error { return s.setPin(sum, false) }

func (s *Store) setPin(sum Sum, pin bool) error {
	lock := s.stripe(sum)
	lock.Lock()
	defer lock.Unlock()
	rec, err := s.record(sum)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	err = s.db.apply(func(b *pebble.Batch) {
		if pin {
			b.Set(dbKey('p', sum), nil, nil)
			if rec != nil {
				b.Delete(lruKey(rec.LastRequest, sum), nil)
			}
			return
		}
		b.Delete(dbKey('p', sum), nil)
		if rec != nil {
			b.Set(lruKey(rec.LastRequest, sum), nil, nil)
		}
	})
	if err != nil {
		return err
	}
	return s.db.sync()
}

func (s *Store) isPinned(sum Sum) bool {
	_, err := s.db.get(dbKey('p', sum))
	return err == nil
}

// Withdraw keeps a file from being served or shared from now on, whether it is
// here now or comes later (SEC-19). reason is shown to those who ask for it.
func (s *Store) Withdraw(sum Sum, reason string) error {
	if err := s.db.set(dbKey('w', sum), []byte(reason)); err != nil {
		return fmt.Errorf("withdraw %v: %w", sum, err)
	}
	rec, err := s.record(sum)
	if err != nil || rec.Key == (Key{}) || s.opts.Cores == nil {
		return nil
	}
	return s.opts.Cores.Remove(rec.Key)
}

// Restore undoes Withdraw.
func (s *Store) Restore(sum Sum) error {
	if err := s.db.remove(dbKey('w', sum)); err != nil {
		return fmt.Errorf("restore %v: %w", sum, err)
	}
	rec, err := s.record(sum)
	if err != nil || rec.Key == (Key{}) || s.opts.Cores == nil {
		return nil
	}
	f, err := s.openChecked(rec)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = s.opts.Cores.Add(s.abs(rec.path()), f, rec.Size)
	return err
}

// withdrawn returns a WithdrawnError if the file is withdrawn.
func (s *Store) withdrawn(sum Sum) error {
	reason, err := s.db.get(dbKey('w', sum))
	if errors.Is(err, pebble.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look up withdrawal of %v: %w", sum, err)
	}
	return &WithdrawnError{sum, string(reason)}
}

// Damage is one finding of Scrub.
type Damage struct {
	Info // as recorded
	What string
}

// Scrub reads every file and compares it with its BLAKE3 hash (REL-6). With
// repair set, damaged files are removed, so that they are fetched anew when
// next asked for; else nothing is changed.
func (s *Store) Scrub(ctx context.Context, repair bool) ([]Damage, error) {
	var found []Damage
	var next []byte = []byte{'a'}
	for {
		rec, err := s.nextRecord(next)
		if err != nil || rec == nil {
			return found, err
		}
		next = append(dbKey('a', rec.SHA256), 0)
		if err := ctx.Err(); err != nil {
			return found, err
		}
		if err := s.checkFile(rec); err != nil {
			if _, gone := s.record(rec.SHA256); errors.Is(gone, ErrNotFound) {
				continue // evicted while we looked
			}
			found = append(found, Damage{rec.Info, err.Error()})
			if repair && isDamage(err) {
				s.dropDamaged(rec, err)
			}
		}
	}
}

// nextRecord returns the first record at or after key; nil at the end.
func (s *Store) nextRecord(key []byte) (*record, error) {
	es, err := s.db.from(key, []byte{'a' + 1}, 1)
	if err != nil || len(es) == 0 {
		return nil, err
	}
	if len(es[0].key) != 33 {
		return nil, fmt.Errorf("artifact database has a key of %d bytes", len(es[0].key))
	}
	return parseRecord(Sum(es[0].key[1:]), es[0].value)
}

// checkFile reads the file of rec whatever was checked before.
func (s *Store) checkFile(rec *record) error {
	f, err := s.openRegular(rec.path())
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	return s.checkNow(rec, f, fi)
}

// All returns what the store holds, in the order of the digests, calling yield
// until it returns false. Withdrawn files are among them.
func (s *Store) All(yield func(Info) bool) error {
	next := []byte{'a'}
	for {
		rec, err := s.nextRecord(next)
		if err != nil || rec == nil || !yield(rec.Info) {
			return err
		}
		next = append(dbKey('a', rec.SHA256), 0)
	}
}

// Rebuild finds files without a record, checks them against their names and
// records them, h1: hashes of zips included (REL-5). Pins and withdrawals of a
// lost database are lost.
func (s *Store) Rebuild(ctx context.Context) error {
	start, n := time.Now(), 0
	for _, private := range []bool{false, true} {
		top := "."
		if private {
			top = privateDir
		}
		err := fs.WalkDir(s.root.FS(), top, func(name string, d fs.DirEntry, err error) error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				return nil // unreadable directory: its files are fetched again
			}
			if d.IsDir() {
				if name == tmpDir || !private && name == privateDir {
					return fs.SkipDir
				}
				return nil
			}
			if ok, err := s.readmit(name, private); err != nil {
				return err
			} else if ok {
				n++
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("rebuild the artifact database: %w", err)
		}
	}
	if n > 0 {
		s.log.Info("artifact database rebuilt", "files", n, "elapsed", time.Since(start))
	}
	return nil
}

// readmit records the file name if its content matches its name. A file that
// does not match is removed.
func (s *Store) readmit(name string, private bool) (bool, error) {
	d, err := ParseSHA256(path.Base(name))
	if err != nil || filePath(d.Sum, private) != name {
		return false, nil
	}
	if _, err := s.record(d.Sum); !errors.Is(err, ErrNotFound) {
		return false, err
	}
	f, err := s.openRegular(name)
	if err != nil {
		return false, nil
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return false, err
	}
	if d.Verify(f, fi.Size()) != nil {
		s.log.Warn("damaged artifact removed", "sha256", path.Base(name)[:16], "bytes", fi.Size())
		return false, s.root.Remove(name)
	}
	rec := &record{Info: Info{SHA256: d.Sum, Size: fi.Size(), Private: private, LastRequest: fi.ModTime()}}
	if rec.blake3, err = blake3Of(f, rec.Size); err != nil {
		return false, err
	}
	if h1, err := HashZip(f, rec.Size); err == nil {
		rec.H1 = &h1.Sum
	}
	if s.opts.Cores != nil && !private {
		if rec.Key, err = s.share(s.abs(name), f, rec.Size); err != nil {
			return false, err
		}
	}
	lock := s.stripe(d.Sum)
	lock.Lock()
	defer lock.Unlock()
	if _, err := s.record(d.Sum); !errors.Is(err, ErrNotFound) {
		return false, err // stored again meanwhile
	}
	if now, err := s.root.Lstat(name); err != nil || !os.SameFile(now, fi) {
		return false, nil // removed meanwhile
	}
	return true, s.putRecord(rec, nil)
}
