package artifact

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/zeebo/blake3"
)

// A Writer is a file on its way into the store. One goroutine writes; ReadAt
// and Size may be called by others meanwhile, also after Commit. It ends with
// Close, which drops the file unless Commit has put it into the store.
type Writer struct {
	s        *Store
	f        *os.File
	name     string // under the root
	size     atomic.Int64
	pending  int64 // bytes counted in s.pending
	reserved int64 // bytes of these not yet written
	sha      hash.Hash
	b3       *blake3.Hasher
	verified *Digest // what Verify has proven, until more is written
	placed   bool    // the file is in the store
	origin   Origin
}

// Create starts a new file. size is its size in bytes, or -1 if unknown. The
// error matches ErrNoSpace when there is no room for it even after evicting
// what may be evicted.
func (s *Store) Create(size int64) (*Writer, error) {
	w := &Writer{s: s, sha: sha256.New(), b3: blake3.New()}
	if err := w.reserve(max(size, 0)); err != nil {
		return nil, err
	}
	w.name = path.Join(tmpDir, rand.Text())
	f, err := s.root.OpenFile(w.name, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		w.release()
		return nil, spaceError(fmt.Errorf("create artifact file: %w", err))
	}
	w.f = f
	return w, nil
}

// spaceError makes err match ErrNoSpace if a full disk is the cause.
func spaceError(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

// reserve makes room for n more bytes.
func (w *Writer) reserve(n int64) error {
	if err := w.s.makeRoom(n); err != nil {
		return err
	}
	w.pending += n
	w.reserved += n
	return nil
}

// release gives back what is reserved.
func (w *Writer) release() {
	w.s.mu.Lock()
	w.s.pending -= w.pending
	w.s.reserved -= w.reserved
	w.s.mu.Unlock()
	w.pending, w.reserved = 0, 0
}

// Write appends p to the file. The error matches ErrNoSpace when the disk is full.
func (w *Writer) Write(p []byte) (int, error) {
	if need := int64(len(p)) - w.reserved; need > 0 {
		if err := w.reserve(max(need, 1<<20)); err != nil {
			return 0, err
		}
	}
	if err := w.s.opts.step("write"); err != nil {
		return 0, spaceError(err)
	}
	n, err := w.f.Write(p)
	w.sha.Write(p[:n])
	w.b3.Write(p[:n])
	w.reserved -= int64(n)
	w.s.mu.Lock()
	w.s.reserved -= int64(n)
	w.s.mu.Unlock()
	w.verified = nil
	w.size.Add(int64(n))
	if err != nil {
		return n, spaceError(fmt.Errorf("write artifact file: %w", err))
	}
	return n, nil
}

// ReadAt reads what has been written.
func (w *Writer) ReadAt(p []byte, off int64) (int, error) { return w.f.ReadAt(p, off) }

// Size returns the number of bytes written.
func (w *Writer) Size() int64 { return w.size.Load() }

// Path returns the absolute name of the temporary file, for code that fills it
// by other means than Write. It must then call Adopt before Verify or Commit.
func (w *Writer) Path() string { return filepath.Join(w.s.dir, filepath.FromSlash(w.name)) }

// Adopt takes the content of the file as it is, written by others through Path.
func (w *Writer) Adopt() error {
	fi, err := w.f.Stat()
	if err != nil {
		return fmt.Errorf("adopt artifact file: %w", err)
	}
	w.sha.Reset()
	w.b3.Reset()
	w.verified = nil
	buf := make([]byte, 256<<10)
	for off := int64(0); off < fi.Size(); {
		n, err := w.f.ReadAt(buf[:min(int64(len(buf)), fi.Size()-off)], off)
		w.sha.Write(buf[:n])
		w.b3.Write(buf[:n])
		off += int64(n)
		if err != nil && off < fi.Size() {
			return fmt.Errorf("adopt artifact file: %w", err)
		}
	}
	w.s.mu.Lock()
	w.s.reserved -= w.reserved
	w.s.mu.Unlock()
	w.reserved = 0
	w.size.Store(fi.Size())
	return nil
}

// SetOrigin says where the bytes come from. Commit stores it, with its time.
func (w *Writer) SetOrigin(source string, from ...string) {
	w.origin = Origin{Source: source}
	for _, name := range from {
		name, _, _ = strings.Cut(name, "?") // a query may hold a secret (SEC-57)
		if name != "" {
			w.origin.From = append(w.origin.From, name)
		}
	}
}

// SHA256 returns the digest of what has been written.
func (w *Writer) SHA256() Digest { return Digest{SHA256, [32]byte(w.sha.Sum(nil))} }

// Verify checks what has been written against want. The error is a
// [MismatchError] if it is something else.
func (w *Writer) Verify(want Digest) error {
	if w.verified != nil && *w.verified == want {
		return nil
	}
	if want.Alg == SHA256 {
		if got := w.SHA256(); got != want {
			return &MismatchError{want, got, w.Size()}
		}
	} else if err := want.Verify(w, w.Size()); err != nil {
		return err
	}
	w.verified = &want
	return nil
}

// Close ends the use of the file. A file that is not committed is dropped.
func (w *Writer) Close() error {
	w.release()
	if !w.placed {
		w.s.root.Remove(w.name)
	}
	return w.f.Close()
}

// Commit verifies the file against want and moves it into the store, from where
// it can be opened and, unless private, shared. When Commit returns without
// error, the file survives a crash. The store keeps the first of several zips
// that hash to one h1:; the returned Info is that of the one kept.
func (w *Writer) Commit(want Digest, private bool) (Info, error) {
	if err := w.Verify(want); err != nil {
		return Info{}, err
	}
	if err := w.s.opts.step("sync"); err != nil {
		return Info{}, spaceError(err)
	}
	if err := w.f.Sync(); err != nil {
		return Info{}, spaceError(fmt.Errorf("sync artifact file: %w", err))
	}
	now := time.Now()
	w.origin.Time = now
	rec := &record{
		Info: Info{
			SHA256:      Sum(w.SHA256().Sum),
			Size:        w.Size(),
			Private:     private,
			LastRequest: now,
			Origin:      w.origin,
		},
		blake3: [32]byte(w.b3.Sum(nil)),
	}
	if want.Alg == H1 {
		rec.H1 = &want.Sum
		if kept, err := w.s.resolve(want); err == nil && kept.SHA256 != rec.SHA256 && kept.Private == private {
			if f, err := w.s.openChecked(kept); err == nil {
				f.Close()
				return kept.Info, nil
			}
		}
	}
	info, err := w.s.place(w, rec)
	w.release() // counted as stored now
	if err != nil {
		return Info{}, spaceError(fmt.Errorf("store artifact %v: %w", rec.SHA256, err))
	}
	return info, nil
}

// place moves w's file, which is synced, to where rec says and records it.
func (s *Store) place(w *Writer, rec *record) (Info, error) {
	lock := s.stripe(rec.SHA256)
	lock.Lock()
	defer lock.Unlock()
	old, err := s.record(rec.SHA256)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return Info{}, err
	}
	if old != nil {
		// Once shown to be public, it is public: peers may have it.
		rec.Private = rec.Private && old.Private
		if rec.H1 == nil {
			rec.H1 = old.H1
		}
	}
	if err := s.db.set(dbKey('i', rec.SHA256), nil); err != nil {
		return Info{}, err
	}
	if err := s.moveInAndRecord(w, rec, old); err != nil {
		if old == nil { // else the file is right, whatever became of the record
			s.root.Remove(rec.path())
		}
		return Info{}, err
	}
	if old != nil && old.Private != rec.Private {
		s.root.Remove(old.path())
	}
	if fi, err := s.root.Lstat(rec.path()); err == nil {
		s.checked.Add(rec.SHA256, fingerprint{fi, time.Now()})
	}
	return rec.Info, nil
}

func (s *Store) moveInAndRecord(w *Writer, rec, old *record) (err error) {
	if err := s.moveIn(w, rec.path()); err != nil {
		return err
	}
	if err := s.opts.step("share"); err != nil {
		return err
	}
	if s.opts.Cores != nil && !rec.Private {
		if rec.Key, err = s.share(s.abs(rec.path()), w.f, rec.Size); err != nil {
			return err
		}
	}
	if err := s.opts.step("record"); err != nil {
		return err
	}
	return s.putRecord(rec, old)
}

// share makes a file available to peers. That it cannot be now does not keep it
// from being stored: it is tried again when a peer asks.
func (s *Store) share(path string, r io.ReaderAt, size int64) (Key, error) {
	k, err := s.opts.Cores.Add(path, r, size)
	if errors.Is(err, ErrUnshared) {
		s.log.Debug("artifact stored but not shared", "err", err)
		err = nil
	}
	return k, err
}

func (s *Store) abs(name string) string { return filepath.Join(s.dir, filepath.FromSlash(name)) }

// moveIn renames the temporary file to its place and makes that durable.
func (s *Store) moveIn(w *Writer, final string) error {
	dir := path.Dir(final)
	if err := s.root.Mkdir(dir, 0o700); err == nil {
		if err := s.syncDir(path.Dir(dir)); err != nil {
			return err
		}
	}
	if err := s.opts.step("rename"); err != nil {
		return err
	}
	if fi, err := s.root.Lstat(final); err == nil && !fi.Mode().IsRegular() {
		s.root.RemoveAll(final) // not ours; a rename onto a directory would fail
	}
	if err := s.root.Rename(w.name, final); err != nil {
		return err
	}
	w.placed = true
	if err := s.opts.step("syncdir"); err != nil {
		return err
	}
	return s.syncDir(dir)
}

func (s *Store) syncDir(name string) error {
	d, err := s.root.Open(name)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) && runtime.GOOS != "windows" {
		return fmt.Errorf("sync directory: %w", err)
	}
	return nil
}

// putRecord writes rec, its other names and the totals, and ends the change
// that the i record brackets. old is the record it replaces, or nil.
func (s *Store) putRecord(rec, old *record) error {
	pinned := s.isPinned(rec.SHA256)
	delta := totals{1, rec.Size}
	if old != nil {
		delta = totals{0, rec.Size - old.Size}
	}
	return s.commit(delta, func(b *pebble.Batch) {
		if old != nil {
			s.deleteNames(b, old)
		}
		b.Set(dbKey('a', rec.SHA256), rec.append(nil), nil)
		if rec.H1 != nil {
			b.Set(dbKey('h', *rec.H1), rec.SHA256[:], nil)
		}
		if rec.Key != (Key{}) {
			b.Set(dbKey('k', rec.Key), rec.SHA256[:], nil)
		}
		if !pinned {
			b.Set(lruKey(rec.LastRequest, rec.SHA256), nil, nil)
		}
		b.Delete(dbKey('i', rec.SHA256), nil)
	})
}

// deleteNames removes from the database whatever leads to rec.
func (s *Store) deleteNames(b *pebble.Batch, rec *record) {
	if rec.H1 != nil {
		b.Delete(dbKey('h', *rec.H1), nil)
	}
	if rec.Key != (Key{}) {
		b.Delete(dbKey('k', rec.Key), nil)
	}
	b.Delete(lruKey(rec.LastRequest, rec.SHA256), nil)
}

// commit makes the changes of fill and of the totals in one step, durably.
func (s *Store) commit(delta totals, fill func(b *pebble.Batch)) error {
	s.totalsMu.Lock()
	t := totals{s.totals.files + delta.files, s.totals.bytes + delta.bytes}
	err := s.db.apply(func(b *pebble.Batch) {
		fill(b)
		v := binary.BigEndian.AppendUint64(nil, uint64(t.files))
		b.Set([]byte{'t'}, binary.BigEndian.AppendUint64(v, uint64(t.bytes)), nil)
	})
	if err == nil {
		s.totals = t
	}
	s.totalsMu.Unlock()
	if err != nil {
		return err
	}
	return s.db.sync() // outside the lock, so that commits share a sync
}
