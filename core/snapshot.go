package core

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"

	"github.com/pkgswarm/pkgswarm/core/merkle"
)

// A Snapshot is a core as it was at one moment. Appends, truncations and clears
// do not touch it, except that a static core's file is the same file. It must be
// closed; while one is open, disk space is not given back.
type Snapshot struct {
	c      *Core // a private copy, which reads db
	db     *pebble.Snapshot
	store  *Store
	closed atomic.Bool
}

// Snapshot returns the core as it is now.
func (c *Core) Snapshot() *Snapshot {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.store
	s.snapshots.Add(1)
	return &Snapshot{
		c:     &Core{store: s, id: c.id, rec: c.rec, discovery: c.discovery, head: c.head},
		db:    s.db.NewSnapshot(),
		store: s,
	}
}

// Length returns the number of blocks.
func (s *Snapshot) Length() uint64 { return s.c.head.tree.Length }

// Tree returns the head of the tree. Its roots must not be modified.
func (s *Snapshot) Tree() merkle.Tree { return s.c.head.tree }

// Get returns block index, as [Core.Get] does.
func (s *Snapshot) Get(ctx context.Context, index uint64) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if s.closed.Load() {
		return nil, ErrClosed
	}
	key := s.c.rec.key
	if index >= s.Length() {
		return nil, fmt.Errorf("core %s: block %d of %d: %w", key.Short(), index, s.Length(), ErrRange)
	}
	p, err := s.c.readPage(s.db, 0, index/pageBlocks)
	if err != nil {
		return nil, err
	}
	if p.data>>(index%pageBlocks)&1 == 0 {
		return nil, fmt.Errorf("core %s: block %d: %w", key.Short(), index, ErrMissing)
	}
	at, err := s.c.place(p, index)
	if err != nil {
		return nil, err
	}
	b, err := s.fetch(index, at)
	if err == nil && merkle.LeafHash(b) != at.node.hash {
		err = errChecksum
	}
	if err != nil {
		return nil, &DamageError{key, "block", index, err}
	}
	return b, nil
}

func (s *Snapshot) fetch(index uint64, at place) ([]byte, error) {
	if s.c.rec.path == "" && at.run.segment == 0 {
		return s.c.fetchChunk(s.db, index, at)
	}
	if s.c.rec.path != "" {
		s.c.mu.Lock()
		f, err := s.c.openFile()
		s.c.mu.Unlock()
		if err != nil {
			return nil, err
		}
		at.file = f
	}
	return s.c.fetch(index, at)
}

// Close lets go of the snapshot.
func (s *Snapshot) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	s.store.snapshots.Add(-1)
	s.c.shut()
	return errors.Join(s.db.Close())
}
