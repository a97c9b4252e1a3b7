package core

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/pkgswarm/pkgswarm/core/merkle"
)

// StaticBlock is the length of every block of a static core that is made from a
// file, but of the last one, in bytes. It is part of what the key is computed
// from and never changes.
const StaticBlock = 64 << 10

// ErrEmpty is matched by the errors for files of no bytes: a static core has at
// least one block.
var ErrEmpty = errors.New("core: an empty file has no static core")

// A StaticTree is the tree over a file that was cut into blocks of StaticBlock
// bytes. Its key is a function of the file's bytes alone.
type StaticTree struct {
	Tree   merkle.Tree
	leaves []merkle.Hash
	size   int64
}

// Manifest returns the manifest that fixes the content.
func (t *StaticTree) Manifest() Manifest { return StaticManifest(t.Tree.Hash(), t.Tree.Length) }

// Key returns the key of the core with that content.
func (t *StaticTree) Key() Key {
	m := t.Manifest()
	return m.Key()
}

// leafSize returns the number of bytes of block i.
func (t *StaticTree) leafSize(i int) uint64 {
	return uint64(min(StaticBlock, t.size-int64(i)*StaticBlock))
}

// HashStatic computes the tree of the first size bytes of r, on all processors.
// r must allow concurrent reads. The error matches [ErrEmpty] for size 0, or
// comes from r.
func HashStatic(r io.ReaderAt, size int64) (*StaticTree, error) {
	if size <= 0 {
		return nil, ErrEmpty
	}
	n := int((size + StaticBlock - 1) / StaticBlock)
	t := &StaticTree{leaves: make([]merkle.Hash, n), size: size}
	if err := t.hashLeaves(r); err != nil {
		return nil, fmt.Errorf("hash file: %w", err)
	}
	nb := merkle.NewBatch(merkle.Tree{})
	for i, h := range t.leaves {
		nb.AppendLeaf(t.leafSize(i), h)
	}
	t.Tree = nb.Tree
	return t, nil
}

func (t *StaticTree) hashLeaves(r io.ReaderAt) error {
	var next atomic.Int64
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), len(t.leaves)) {
		wg.Go(func() {
			buf := make([]byte, StaticBlock)
			for failed.Load() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(t.leaves) {
					return
				}
				b := buf[:t.leafSize(i)]
				if n, err := r.ReadAt(b, int64(i)*StaticBlock); n < len(b) {
					if err == io.EOF {
						err = io.ErrUnexpectedEOF
					}
					failed.Store(&err)
					return
				}
				t.leaves[i] = merkle.LeafHash(b)
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	return nil
}

// A StaticHasher computes a [StaticTree] from bytes that come one after another,
// as those of a download do. Its zero value is ready.
type StaticHasher struct {
	leaves []merkle.Hash
	size   int64
	part   []byte
}

// Write adds bytes. It never fails.
func (h *StaticHasher) Write(b []byte) (int, error) {
	n := len(b)
	h.size += int64(n)
	for len(b) > 0 {
		if len(h.part) == 0 && len(b) >= StaticBlock {
			h.leaves = append(h.leaves, merkle.LeafHash(b[:StaticBlock]))
			b = b[StaticBlock:]
			continue
		}
		k := min(StaticBlock-len(h.part), len(b))
		h.part = append(h.part, b[:k]...)
		b = b[k:]
		if len(h.part) == StaticBlock {
			h.leaves = append(h.leaves, merkle.LeafHash(h.part))
			h.part = h.part[:0]
		}
	}
	return n, nil
}

// Tree returns the tree over what was written. The error matches [ErrEmpty].
func (h *StaticHasher) Tree() (*StaticTree, error) {
	if h.size == 0 {
		return nil, ErrEmpty
	}
	t := &StaticTree{leaves: h.leaves, size: h.size}
	if len(h.part) > 0 {
		t.leaves = append(t.leaves[:len(t.leaves):len(t.leaves)], merkle.LeafHash(h.part))
	}
	nb := merkle.NewBatch(merkle.Tree{})
	for i, l := range t.leaves {
		nb.AppendLeaf(t.leafSize(i), l)
	}
	t.Tree = nb.Tree
	return t, nil
}

// AddStatic opens the static core of the file at path, whose tree is t: all
// blocks are here, as ranges of the file, which is not copied and must not
// change. If the core is stored already, it is read from path from now on.
//
// It is durable after the next durable append or Sync.
func (s *Store) AddStatic(path string, t *StaticTree) (*Core, error) {
	c, err := s.openStatic(t.Key(), path)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.deliver()
	defer c.mu.Unlock()
	if c.head.tree.Length == t.Tree.Length && c.head.contiguous == t.Tree.Length {
		return c, nil
	}
	if err := c.fillStatic(t); err != nil {
		c.store.release(c)
		return nil, fmt.Errorf("add static core %s: %w", c.rec.key.Short(), err)
	}
	return c, nil
}

func (c *Core) fillStatic(t *StaticTree) error {
	ch := c.begin()
	nb := merkle.NewBatch(merkle.Tree{})
	for i, h := range t.leaves {
		nb.AppendLeaf(t.leafSize(i), h)
	}
	m := t.Manifest()
	err := errors.Join(ch.putNodes(nb.Nodes), c.learn(ch, &m))
	for i := uint64(0); i < t.Tree.Length && err == nil; i += pageBlocks {
		var p *page
		if p, err = ch.page(0, i/pageBlocks); err == nil {
			p.data = 1<<min(pageBlocks, t.Tree.Length-i) - 1
		}
	}
	if err != nil {
		ch.abort()
		return err
	}
	ch.head.tree = t.Tree
	if c.head.tree.Length < t.Tree.Length {
		ch.events = append(ch.events, Event{Appended, c.head.tree.Length, t.Tree.Length})
	}
	ch.events = append(ch.events, Event{Arrived, 0, t.Tree.Length})
	return ch.commit(false)
}

// OpenStatic opens the static core key for a download into the file at path,
// which is made if it is not there. Blocks that [Core.Apply] verifies are
// written to their place in the file; those that are here can be served at once.
// The file is complete when ContiguousLength is Length, and Length is not 0.
func (s *Store) OpenStatic(key Key, path string) (*Core, error) {
	return s.openStatic(key, path)
}

func (s *Store) openStatic(key Key, path string) (*Core, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	dk := key.Discovery()
	r, err := s.lookup(dk)
	switch {
	case errors.Is(err, os.ErrNotExist):
		err = s.create(dk, &record{key: key, path: abs}, nil)
	case err == nil && r.path != abs:
		if err = s.movable(r); err == nil {
			err = s.move(dk, r, abs)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open static core %s: %w", key.Short(), err)
	}
	return s.openLocked(dk)
}

// movable returns an error unless the blocks of a core are, or can be, in a file.
func (s *Store) movable(r record) error {
	if r.manifest != nil && !r.manifest.IsStatic() {
		return fmt.Errorf("%w: the core is not static", ErrManifest)
	}
	if r.path != "" {
		return nil
	}
	b, err := s.get((&Core{id: r.id}).key(prefixHead, nil))
	if err == nil && b != nil {
		err = errors.New("its blocks are in the store already")
	}
	return err
}

// move makes path the file of a static core.
func (s *Store) move(dk DiscoveryKey, r record, path string) error {
	r.path = path
	if err := s.set(append([]byte{prefixRecord}, dk[:]...), r.encode(), true); err != nil {
		return err
	}
	if c := s.cores[dk]; c != nil {
		c.mu.Lock()
		c.rec = r
		if c.file != nil {
			c.file.Close()
			c.file = nil
		}
		c.mu.Unlock()
	}
	return nil
}

// openFile returns the file of a static core. c.mu is held.
func (c *Core) openFile() (*os.File, error) {
	if c.file != nil {
		return c.file, nil
	}
	f, err := os.OpenFile(c.rec.path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrPermission) {
		f, err = os.Open(c.rec.path)
	}
	if transient(err) {
		return nil, fmt.Errorf("core %s: %w", c.rec.key.Short(), err)
	}
	if err != nil {
		return nil, &DamageError{c.rec.key, "file", 0, err}
	}
	c.file = f
	return f, nil
}

// putFileBlocks writes blocks to their places in the file.
func (ch *change) putFileBlocks(first uint64, blocks [][]byte) error {
	c := ch.c
	if c.file == nil {
		f, err := os.OpenFile(c.rec.path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		c.file = f
	}
	if size := int64(ch.head.tree.ByteLength()); c.head.tree.Length == 0 {
		if err := c.file.Truncate(size); err != nil {
			return err
		}
	}
	for i, b := range blocks {
		index := first + uint64(i)
		if want := min(StaticBlock, ch.head.tree.ByteLength()-index*StaticBlock); uint64(len(b)) != want {
			return fmt.Errorf("block %d has %d bytes, not %d: not a file cut into blocks of %d", index, len(b), want, StaticBlock)
		}
		if _, err := c.file.WriteAt(b, int64(index)*StaticBlock); err != nil {
			return err
		}
		p, err := ch.page(0, index/pageBlocks)
		if err != nil {
			return err
		}
		p.data |= 1 << (index % pageBlocks)
	}
	return nil
}
