// Package bee is Hyperbee 2: a sorted map from byte strings to byte strings on an
// append-only log, such as a [core.Core]. Logs written by this package and by the
// npm package hyperbee 2 for the same operations are the same bytes.
//
// # Format
//
// Block 0 is the header; every other block is one operation, a put or a delete.
// Blocks are protobuf messages:
//
//	Header { string protocol = 1 ("hyperbee"); Metadata metadata = 2; }
//	Metadata { bytes contentFeed = 1; bytes userData = 2; }
//	Node { bytes index = 1; bytes key = 2; bytes value = 3; }
//	index: repeated Level = 1
//	Level { repeated uint64 keys = 1; repeated uint64 children = 2; }   (packed)
//
// A B-tree of 4 to 8 keys a node is spread over the blocks. The index of a block
// has the tree nodes that its operation has made new: their keys are named by the
// blocks that hold them, their children by block and position in its index. Node 0
// of the last block is the root. So every version of the map remains readable: the
// one after block n - 1 has version n. Versions inside a batch have no root and must
// not be read.
//
// # Use
//
// [Open] gives a [Tree] over a log. Reads of one call see one version. Writers take
// turns; a [Batch] is one turn. All methods of a Tree may be called concurrently.
//
// A log whose blocks come from peers may also have the methods of [Remote]: then a
// read asks ahead for the blocks it will need. Package swarm/remotebee opens such
// trees; the example of package swarm shares one with a program in JavaScript.
package bee

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"

	lru "github.com/hashicorp/golang-lru/v2"
)

// ErrNotFound means that there is no such key.
var ErrNotFound = errors.New("bee: key not found")

// A Log is what a tree is read from; [*core.Core] is one. Its methods may be
// called concurrently. If it also has a method Fork() uint64, a change of the
// result says that blocks were replaced.
type Log interface {
	// Length returns the number of blocks.
	Length() uint64
	// Get returns block i, from 0. The block must not change afterwards.
	Get(ctx context.Context, i uint64) ([]byte, error)
}

// An Appender is a Log that can be written.
type Appender interface {
	Log
	// Append adds blocks, all or none, and returns the new length.
	Append(blocks ...[]byte) (uint64, error)
}

// A Remote is a Log that may have to wait for blocks.
type Remote interface {
	Log
	// Has reports whether Get will not have to wait.
	Has(i uint64) bool
	// Prefetch begins to fetch blocks and returns at once.
	Prefetch(blocks ...uint64)
}

// Options are how a tree is opened. The zero value is fine.
type Options struct {
	// Metadata goes into the header if this tree writes it.
	Metadata *Metadata

	// NoDuplicates makes a put of the value that is there already do nothing. The
	// reference's default is to append it.
	NoDuplicates bool

	// CacheBlocks is how many decoded blocks are kept, 0 is 65536 (as many as the
	// reference). A block takes about 400 bytes, key and value.
	CacheBlocks int

	// Ask is called once by a Get that has to wait for a block: it may ask peers
	// which blocks the look-up will need. version and key are those of a
	// [GetRequest].
	Ask func(version uint64, key []byte)

	// AskRange is the same for Range, called again every [RangeHint] blocks.
	AskRange func(RangeRequest)
}

// An Entry is one key of a tree.
type Entry struct {
	Seq   uint64 // block that holds it
	Key   []byte
	Value []byte // nil if the value is null, or the entry records a deletion
}

// shared is what all views of a tree have in common.
type shared struct {
	log          Log
	remote       Remote // log, if it is one
	meta         *Metadata
	noDuplicates bool
	ask          func(uint64, []byte)
	askRange     func(RangeRequest)
	blocks       *lru.Cache[uint64, *block]

	forkMu sync.Mutex
	fork   uint64

	// The tree in memory as the last write left it, for the next one. Who has put
	// a token into writing may use it.
	writing     chan struct{}
	root        *node // nil: to be loaded
	rootVersion uint64
	loaded      int
}

// A Tree is a view of a map: of the newest version or of a fixed one, of all keys
// or of those in a sub.
type Tree struct {
	s        *shared
	checkout uint64 // 0: the newest
	prefix   []byte // of all keys, as stored
	sub      bool
}

// Open returns the tree on log. Nothing is read or written yet; the header is
// appended by the first change.
func Open(log Log, o Options) *Tree {
	n := o.CacheBlocks
	if n <= 0 {
		n = 65536
	}
	cache, err := lru.New[uint64, *block](n)
	if err != nil {
		panic("bee: " + err.Error()) // n is positive
	}
	s := &shared{
		log: log, meta: o.Metadata, noDuplicates: o.NoDuplicates, ask: o.Ask, askRange: o.AskRange, blocks: cache,
		writing: make(chan struct{}, 1),
	}
	s.remote, _ = log.(Remote)
	s.refresh()
	return &Tree{s: s}
}

// refresh drops what is remembered of blocks that were replaced.
func (s *shared) refresh() {
	f, ok := s.log.(interface{ Fork() uint64 })
	if !ok {
		return
	}
	s.forkMu.Lock()
	defer s.forkMu.Unlock()
	if fork := f.Fork(); fork != s.fork {
		s.fork = fork
		s.blocks.Purge()
		s.root = nil
	}
}

// block returns a decoded block.
func (s *shared) block(ctx context.Context, seq uint64) (*block, error) {
	if b, ok := s.blocks.Get(seq); ok {
		return b, nil
	}
	raw, err := s.log.Get(ctx, seq)
	if err != nil {
		return nil, err
	}
	b, err := decodeBlock(seq, raw)
	if err != nil {
		return nil, err
	}
	s.blocks.Add(seq, b)
	return b, nil
}

// Version returns the version that reads see: the number of blocks it spans, at
// least 1.
func (t *Tree) Version() uint64 {
	if t.checkout != 0 {
		return t.checkout
	}
	return max(1, t.s.log.Length())
}

// Checkout returns the tree as it was at a version, for reading only. Version 0
// counts as 1, the empty tree.
func (t *Tree) Checkout(version uint64) *Tree {
	c := *t
	c.checkout = max(1, version)
	return &c
}

// Snapshot is a Checkout of the present version.
func (t *Tree) Snapshot() *Tree { return t.Checkout(t.Version()) }

// Sub returns the view of the keys that begin with name and a zero byte, without
// them. Subs nest.
func (t *Tree) Sub(name string) *Tree { return t.SubSep(name, []byte{0}) }

// SubSep is Sub with another separator, which must not be empty.
func (t *Tree) SubSep(name string, sep []byte) *Tree {
	c := *t
	c.prefix = append(append(bytes.Clone(t.prefix), name...), sep...)
	c.sub = true
	return &c
}

// stored returns key as it is stored.
func (t *Tree) stored(key []byte) []byte {
	if len(t.prefix) == 0 {
		return key
	}
	return append(append(make([]byte, 0, len(t.prefix)+len(key)), t.prefix...), key...)
}

// entry returns an entry as callers of t see it. It is the caller's.
func (t *Tree) entry(seq uint64, key, value []byte) Entry {
	if !bytes.HasPrefix(key, t.prefix) {
		key = nil // of another sub: only History sees those
	} else {
		key = key[len(t.prefix):]
	}
	return Entry{seq, bytes.Clone(key), bytes.Clone(value)}
}

// Header returns the metadata of the tree's header, nil if it has none. The error
// matches [ErrFormat] if the log is no Hyperbee, and [ErrNotFound] if it is empty.
func (t *Tree) Header(ctx context.Context) (*Metadata, error) {
	if t.s.log.Length() == 0 {
		return nil, ErrNotFound
	}
	b, err := t.s.log.Get(ctx, 0)
	if err != nil {
		return nil, err
	}
	return DecodeHeader(b)
}

// maxDepth bounds how deep a tree may be: 4^32 keys. Deeper ones are a trap.
const maxDepth = 32

// A walk is one read operation.
type walk struct {
	s       *shared
	ctx     context.Context
	touch   func(seq uint64) // called with each block that is read; may be nil
	ask     func()           // called before waiting; may be nil
	every   int              // after how many blocks ask may be called again; 0 is never
	quiet   int              // how many of them are left
	noAhead bool
}

// block reads a block.
func (w *walk) block(seq uint64) (*block, error) {
	if w.touch != nil {
		w.touch(seq)
	}
	w.quiet = max(w.quiet-1, 0)
	if w.ask != nil && w.quiet == 0 && w.s.remote != nil && !w.s.blocks.Contains(seq) && !w.s.remote.Has(seq) {
		w.ask()
		if w.quiet = w.every; w.every == 0 {
			w.ask = nil
		}
	}
	return w.s.block(w.ctx, seq)
}

// A place is a tree node that is being read.
type place struct {
	address
	owner *block
	level
}

// place reads a node of a tree up to block last, and begins to fetch the blocks
// that comparing and descending will need. A child is never in a later block than
// its parent.
func (w *walk) place(a address, last uint64) (place, error) {
	if a.seq > last {
		return place{}, fmt.Errorf("block %d has a child in block %d: %w", last, a.seq, ErrFormat)
	}
	b, err := w.block(a.seq)
	if err != nil {
		return place{}, err
	}
	if a.offset >= uint64(len(b.levels)) {
		return place{}, fmt.Errorf("block %d has no node %d: %w", a.seq, a.offset, ErrFormat)
	}
	p := place{a, b, b.levels[a.offset]}
	if w.s.remote != nil && !w.noAhead {
		w.ahead(p)
	}
	return p, nil
}

func (w *walk) ahead(p place) {
	var want []uint64
	add := func(seq uint64) {
		if seq != p.seq && !w.s.blocks.Contains(seq) && !w.s.remote.Has(seq) {
			want = append(want, seq)
		}
	}
	for _, seq := range p.keys {
		add(seq)
	}
	for _, c := range p.children {
		add(c.seq)
	}
	if len(want) > 0 {
		w.s.remote.Prefetch(want...)
	}
}

// key returns the bytes of key i of p.
func (w *walk) key(p *place, i int) ([]byte, error) {
	if p.keys[i] == p.seq {
		return p.owner.key, nil
	}
	b, err := w.block(p.keys[i])
	if err != nil {
		return nil, err
	}
	return b.key, nil
}

// search returns the place of key among the keys of p, and whether it is there.
func (w *walk) search(p *place, key []byte) (int, bool, error) {
	return search(key, len(p.keys), func(i int) ([]byte, error) { return w.key(p, i) })
}

// search returns the place of key among n sorted ones, and whether it is there.
// As few of them are read as that needs: each may be a block to wait for.
func search(key []byte, n int, at func(i int) ([]byte, error)) (int, bool, error) {
	lo, hi := 0, n
	for lo < hi {
		mid := (lo + hi) / 2
		k, err := at(mid)
		if err != nil {
			return 0, false, err
		}
		switch c := bytes.Compare(key, k); {
		case c == 0:
			return mid, true, nil
		case c < 0:
			hi = mid
		default:
			lo = mid + 1
		}
	}
	return lo, false, nil
}

// get finds key, as stored, in a version.
func (w *walk) get(version uint64, key []byte) (*block, error) {
	if version < 2 {
		return nil, ErrNotFound
	}
	at, last := address{seq: version - 1}, version-1
	for range maxDepth {
		p, err := w.place(at, last)
		if err != nil {
			return nil, err
		}
		if bytes.Equal(p.owner.key, key) {
			if p.owner.deletes() {
				return nil, ErrNotFound
			}
			return p.owner, nil
		}
		i, found, err := w.search(&p, key)
		if err != nil {
			return nil, err
		}
		if found {
			return w.block(p.keys[i])
		}
		if len(p.children) == 0 {
			return nil, ErrNotFound
		}
		at, last = p.children[i], p.seq
	}
	return nil, fmt.Errorf("version %d: tree is too deep: %w", version, ErrFormat)
}

// Get returns the entry of key. The error matches [ErrNotFound] if there is none,
// [ErrFormat] if the log is no Hyperbee, or is the log's.
func (t *Tree) Get(ctx context.Context, key []byte) (Entry, error) {
	t.s.refresh()
	version, stored := t.Version(), t.stored(key)
	w := &walk{s: t.s, ctx: ctx}
	if t.s.ask != nil {
		w.ask = func() { t.s.ask(version, stored) }
	}
	b, err := w.get(version, stored)
	if err != nil {
		return Entry{}, err
	}
	return t.entry(b.seq, b.key, b.value), nil
}
