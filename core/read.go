package core

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"iter"
	"os"
	"syscall"

	"github.com/cockroachdb/pebble/v2"

	"github.com/pkgswarm/pkgswarm/core/merkle"
)

// Has reports whether block index is here.
func (c *Core) Has(index uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.has(index)
}

func (c *Core) has(index uint64) bool {
	if index < c.head.contiguous {
		return true
	}
	if index >= c.head.tree.Length {
		return false
	}
	p, err := c.page(0, index/pageBlocks)
	return err == nil && p.data>>(index%pageBlocks)&1 != 0
}

// Get returns block index. The error matches [ErrRange] if the core is shorter,
// [ErrMissing] if the block is not here, or is a [*DamageError].
//
// Every block is checked against the tree before it is returned.
func (c *Core) Get(ctx context.Context, index uint64) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return c.readBlock(index)
}

// A place is where the data of a block is, and what it must hash to.
type place struct {
	node   pageNode
	run    run
	offset uint64
	file   *os.File // static cores

	summed bool
	sum    uint32 // checksum of the data, if summed
}

// holds reports whether data is what belongs at the place.
func (at place) holds(data []byte) bool {
	if at.summed {
		return crc32.Checksum(data, castagnoli) == at.sum
	}
	return merkle.LeafHash(data) == at.node.hash
}

// verified remembers that the data of a block was found to be right.
func (c *Core) verified(index uint64, at place, data []byte) {
	if at.summed || len(data) < summedBytes {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.store.pages.get(cacheKey{c.id, 0, index / pageBlocks})
	i := uint8(index % pageBlocks)
	if p != nil && p.known>>(2*i)&1 != 0 && p.nodes[2*i].hash == at.node.hash {
		p.sum(i, data)
	}
}

func (c *Core) readBlock(index uint64) ([]byte, error) {
	c.mu.Lock()
	at, err := c.locate(index)
	c.mu.Unlock()
	if err != nil {
		return nil, err
	}
	b, err := c.fetch(index, at)
	if err != nil || !at.holds(b) {
		return c.recheck(index)
	}
	c.verified(index, at, b)
	return b, nil
}

// recheck reads a block that looked damaged once more, while nothing can change
// its place, and forgets it if it is, so that it is not offered to anybody.
func (c *Core) recheck(index uint64) ([]byte, error) {
	c.mu.Lock()
	defer c.deliver()
	defer c.mu.Unlock()
	at, err := c.locate(index)
	if err != nil {
		return nil, err
	}
	b, err := c.fetch(index, at)
	if err == nil && merkle.LeafHash(b) != at.node.hash {
		err = errChecksum
	}
	if err == nil {
		return b, nil
	}
	if transient(err) {
		return nil, fmt.Errorf("core %s: read block %d: %w", c.rec.key.Short(), index, err)
	}
	c.store.log.Warn("dropped a damaged block", "core", c.rec.key.Short(), "index", index, "err", err)
	damage := &DamageError{c.rec.key, "block", index, err}
	ch := c.begin()
	if err := ch.clear(index, index+1); err != nil {
		ch.abort()
		return nil, errors.Join(damage, err)
	}
	if err := ch.commit(false); err != nil {
		return nil, errors.Join(damage, err)
	}
	return nil, damage
}

// transient reports whether an error of reading says nothing about the disk, but
// that the process is short of something, or the file was just closed.
func transient(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EINTR, os.ErrClosed} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// locate says where block index is. c.mu is held.
func (c *Core) locate(index uint64) (place, error) {
	if c.dead {
		return place{}, ErrClosed
	}
	if err := c.loss(); err != nil && index >= c.head.tree.Length && index < c.acked.length {
		return place{}, err
	}
	if index >= c.head.tree.Length {
		return place{}, fmt.Errorf("core %s: block %d of %d: %w", c.rec.key.Short(), index, c.head.tree.Length, ErrRange)
	}
	p, err := c.page(0, index/pageBlocks)
	if err != nil {
		return place{}, err
	}
	if !c.has(index) {
		return place{}, fmt.Errorf("core %s: block %d: %w", c.rec.key.Short(), index, ErrMissing)
	}
	at, err := c.place(p, index)
	if err == nil && c.rec.path != "" {
		at.file, err = c.openFile()
	}
	return at, err
}

// place says where block index of page p is.
func (c *Core) place(p *page, index uint64) (place, error) {
	i := uint8(index % pageBlocks)
	n, ok := p.node(int(2 * i))
	if !ok {
		return place{}, &DamageError{c.rec.key, "tree page", index, errors.New("no hash of a stored block")}
	}
	at := place{node: n, summed: p.summed>>i&1 != 0, sum: p.sums[i]}
	if c.rec.path != "" {
		at.offset = index * StaticBlock
		return at, nil
	}
	if at.run, at.offset, ok = p.location(i); !ok {
		return place{}, &DamageError{c.rec.key, "tree page", index, errors.New("no place of a stored block")}
	}
	return at, nil
}

// fetch reads the data of a block.
func (c *Core) fetch(index uint64, at place) ([]byte, error) {
	size := at.node.size
	switch {
	case size > MaxBlock+1<<20:
		return nil, fmt.Errorf("block of %d bytes", size)
	case size == 0:
		return []byte{}, nil
	case at.file != nil:
		b := make([]byte, size)
		_, err := at.file.ReadAt(b, int64(at.offset))
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return b, err
	case at.run.segment != 0:
		b := make([]byte, size)
		return b, c.store.seg.read(at.run.segment, at.offset, b)
	}
	return c.fetchChunk(c.store.db, index, at)
}

func (c *Core) fetchChunk(r pebble.Reader, index uint64, at place) ([]byte, error) {
	v, closer, err := r.Get(c.chunkKey(index/pageBlocks*pageBlocks + uint64(at.run.chunk)))
	if err != nil {
		return nil, err
	}
	defer closer.Close()
	if at.offset+at.node.size > uint64(len(v)) {
		return nil, io.ErrUnexpectedEOF
	}
	return append(make([]byte, 0, at.node.size), v[at.offset:at.offset+at.node.size]...), nil
}

// Blocks yields the blocks [lo, hi) in order, up to the first error.
func (c *Core) Blocks(ctx context.Context, lo, hi uint64) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for i := lo; i < hi; i++ {
			b, err := c.Get(ctx, i)
			if !yield(b, err) || err != nil {
				return
			}
		}
	}
}

// Reader returns a reader of the bytes of the blocks [lo, hi), one after
// another.
func (c *Core) Reader(ctx context.Context, lo, hi uint64) io.Reader {
	return &blockReader{ctx: ctx, get: c.Get, next: lo, end: hi}
}

type blockReader struct {
	ctx       context.Context
	get       func(context.Context, uint64) ([]byte, error)
	next, end uint64
	rest      []byte
}

func (r *blockReader) Read(b []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.next >= r.end {
			return 0, io.EOF
		}
		var err error
		if r.rest, err = r.get(r.ctx, r.next); err != nil {
			return 0, err
		}
		r.next++
	}
	n := copy(b, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// Seek returns the block that holds the byte at offset, and the position of the
// byte in it. For the end of the core it returns (length, 0). The error matches
// [ErrRange] behind the end, and [ErrMissing] where a replica lacks the nodes
// that would tell; a peer can then be asked for them.
func (c *Core) Seek(ctx context.Context, offset uint64) (block, within uint64, err error) {
	pos, err := c.Position(offset)
	if err != nil {
		return 0, 0, err
	}
	if !pos.Found {
		return 0, 0, fmt.Errorf("core %s: seek to byte %d: tree nodes: %w", c.rec.key.Short(), offset, ErrMissing)
	}
	return pos.Start, pos.Offset, nil
}

// Position is Seek for replicas: where nodes are missing, the result says what
// to ask a peer for.
func (c *Core) Position(offset uint64) (merkle.Position, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if size := c.head.tree.ByteLength(); offset > size {
		return merkle.Position{}, fmt.Errorf("core %s: byte %d of %d: %w", c.rec.key.Short(), offset, size, ErrRange)
	}
	return merkle.Seek(c.head.tree, (*lockedNodes)(c), offset, 0)
}

// ByteOffset returns the number of bytes before block index, which may be the
// length of the core.
func (c *Core) ByteOffset(index uint64) (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return merkle.ByteOffset(c.head.tree, (*lockedNodes)(c), index)
}
