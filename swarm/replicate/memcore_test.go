package replicate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/core/merkle"
	"github.com/pkgswarm/pkgswarm/internal/flattree"
)

// A memCore is a Core in memory.
type memCore struct {
	key   core.Key
	pairs []core.KeyPair

	mu         sync.Mutex
	manifest   core.Manifest
	known      bool
	tree       merkle.Tree
	sig        []byte
	nodes      map[uint64]merkle.Node
	blocks     map[uint64][]byte
	contiguous uint64
	watchers   map[int]func(core.Event)
	nextWatch  int
	applied    int // blocks stored by Apply
}

func emptyCore(key core.Key) *memCore {
	return &memCore{key: key, nodes: map[uint64]merkle.Node{}, blocks: map[uint64][]byte{}, watchers: map[int]func(core.Event){}}
}

// newWriter returns a core that the given pairs sign.
func newWriter(m core.Manifest, pairs ...core.KeyPair) *memCore {
	c := emptyCore(m.Key())
	c.manifest, c.known, c.pairs = m, true, pairs
	return c
}

func testPair(n byte) core.KeyPair { return core.NewKeyPair([32]byte{n}) }

func singleWriter(n byte) *memCore {
	p := testPair(n)
	return newWriter(core.SingleSigner(p.Public()), p)
}

// newStatic returns a core whose content is fixed.
func newStatic(blocks ...[]byte) *memCore {
	b := merkle.NewBatch(merkle.Tree{})
	for _, v := range blocks {
		b.Append(v)
	}
	c := newWriter(core.StaticManifest(b.Tree.Hash(), b.Tree.Length))
	c.append(blocks...)
	return c
}

func (c *memCore) append(blocks ...[]byte) {
	c.mu.Lock()
	start := c.tree.Length
	b := merkle.NewBatch(c.tree)
	for i, v := range blocks {
		b.Append(v)
		c.blocks[start+uint64(i)] = v
	}
	c.sign(b.Tree)
	c.store(b)
	c.mu.Unlock()
	end := start + uint64(len(blocks))
	c.changed(core.Event{Kind: core.Appended, Start: start, End: end}, core.Event{Kind: core.Arrived, Start: start, End: end})
}

func (c *memCore) appendN(n int, size int) {
	blocks := make([][]byte, n)
	for i := range blocks {
		blocks[i] = slices.Repeat([]byte(fmt.Sprintf("block %d ", int(c.Tree().Length)+i)), size/8+1)[:size]
	}
	c.append(blocks...)
}

func (c *memCore) sign(t merkle.Tree) {
	sig, err := c.manifest.SignTree(c.key, t, c.pairs...)
	if err != nil {
		panic(err)
	}
	c.sig = sig
}

func (c *memCore) store(b *merkle.Batch) {
	if b.Ancestors < b.Base().Length {
		for _, i := range b.Stale(nil) {
			delete(c.nodes, i)
		}
		for i := range c.nodes {
			if i >= 2*b.Ancestors {
				delete(c.nodes, i)
			}
		}
		for i := range c.blocks {
			if i >= b.Ancestors {
				delete(c.blocks, i)
			}
		}
		c.contiguous = min(c.contiguous, b.Ancestors)
	}
	for _, n := range b.Nodes {
		c.nodes[n.Index] = n
	}
	if b.Upgraded {
		c.tree = b.Tree
	}
	for c.blocks[c.contiguous] != nil {
		c.contiguous++
	}
}

func (c *memCore) truncate(length uint64) {
	c.mu.Lock()
	b, err := merkle.Truncate(c.tree, nodeReader{c}, length, c.tree.Fork+1)
	if err != nil {
		panic(err)
	}
	old := c.tree.Length
	c.sign(b.Tree)
	c.store(b)
	c.mu.Unlock()
	c.changed(core.Event{Kind: core.Truncated, Start: length, End: old})
}

func (c *memCore) clear(lo, hi uint64) {
	c.mu.Lock()
	for i := lo; i < hi; i++ {
		delete(c.blocks, i)
	}
	c.contiguous = min(c.contiguous, lo)
	c.mu.Unlock()
	c.changed(core.Event{Kind: core.Cleared, Start: lo, End: hi})
}

func (c *memCore) changed(events ...core.Event) {
	c.mu.Lock()
	var list []func(core.Event)
	for _, f := range c.watchers {
		list = append(list, f)
	}
	c.mu.Unlock()
	for _, f := range list {
		for _, e := range events {
			f(e)
		}
	}
}

// nodeReader reads nodes with c.mu held.
type nodeReader struct{ c *memCore }

func (r nodeReader) Node(i uint64) (merkle.Node, bool, error) {
	n, ok := r.c.nodes[i]
	return n, ok, nil
}

func (c *memCore) Key() core.Key { return c.key }

func (c *memCore) Manifest() (core.Manifest, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.manifest, c.known
}

func (c *memCore) Tree() merkle.Tree {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.tree
}

func (c *memCore) Has(i uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.blocks[i] != nil
}

func (c *memCore) ContiguousLength() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.contiguous
}

func (c *memCore) NextAbsent(i, end uint64) (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i < c.contiguous {
		i = c.contiguous
	}
	for i < end && c.blocks[i] != nil {
		i++
	}
	return min(i, end), nil
}

func (c *memCore) NextPresent(from, end uint64) (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.blocks {
		if i >= from && i < end {
			end = i
		}
	}
	return end, nil
}

func (c *memCore) Present(start uint64, words []uint32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range words {
		words[i] = 0
		for k := range uint64(32) {
			if c.blocks[start+32*uint64(i)+k] != nil {
				words[i] |= 1 << k
			}
		}
	}
	return nil
}

func (c *memCore) Node(i uint64) (merkle.Node, bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, ok := c.nodes[i]
	return n, ok && flattree.RightSpan(i) < 2*c.tree.Length, nil
}

func (c *memCore) TreeAt(n uint64) (merkle.Tree, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	roots, err := merkle.RootsAt(nil, nodeReader{c}, n)
	return merkle.Tree{Fork: c.tree.Fork, Length: n, Roots: roots}, err
}

func (c *memCore) Get(_ context.Context, i uint64) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b := c.blocks[i]; b != nil {
		return b, nil
	}
	return nil, core.ErrMissing
}

func (c *memCore) Prove(req merkle.Request) (*merkle.Proof, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	prologue := uint64(0)
	if c.known && c.manifest.Prologue != nil {
		prologue = c.manifest.Prologue.Length
	}
	p, err := merkle.Prove(c.tree, prologue, nodeReader{c}, req)
	if err != nil {
		return nil, err
	}
	if p.Block != nil {
		if p.Block.Value = c.blocks[p.Block.Index]; p.Block.Value == nil {
			return nil, merkle.ErrNotStored
		}
	}
	if p.Upgrade != nil {
		p.Upgrade.Signature = c.sig
	}
	if req.Manifest && c.known && !c.manifest.IsCompat(c.key) {
		p.Manifest = c.manifest.Encode()
	}
	return p, nil
}

// learn takes the manifest of a proof.
func (c *memCore) learn(p *merkle.Proof) error {
	if c.known {
		return nil
	}
	if p.Manifest == nil {
		if p.Upgrade != nil {
			c.manifest, c.known = core.SingleSigner(core.PublicKey(c.key)), true
		}
		return nil
	}
	m, err := core.DecodeManifest(p.Manifest)
	if err == nil {
		err = m.CheckKey(c.key)
	}
	if err != nil {
		return err
	}
	c.manifest, c.known = m, true
	return nil
}

func (c *memCore) prologue() *merkle.Prologue {
	if !c.known {
		return nil
	}
	return c.manifest.Prologue
}

func (c *memCore) ApplyAll(proofs []*merkle.Proof) ([]core.Applied, []error) {
	applied, errs := make([]core.Applied, len(proofs)), make([]error, len(proofs))
	for i, p := range proofs {
		before := c.Tree().Length
		errs[i] = c.Apply(p)
		after := c.Tree().Length
		applied[i] = core.Applied{Upgraded: after > before, Length: after}
	}
	return applied, errs
}

func (c *memCore) Apply(p *merkle.Proof) error {
	c.mu.Lock()
	events, err := c.apply(p)
	c.mu.Unlock()
	if err == nil {
		c.changed(events...)
	}
	return err
}

func (c *memCore) apply(p *merkle.Proof) (events []core.Event, err error) {
	if p.Fork != c.tree.Fork {
		return nil, core.ErrFork
	}
	was, manifest := c.known, c.manifest
	if err := c.learn(p); err != nil {
		return nil, err
	}
	b, err := merkle.Verify(c.tree, c.prologue(), nodeReader{c}, p)
	if err == nil && b.Upgraded {
		err = c.manifest.VerifyTree(c.key, b.Tree, b.Signature)
	}
	if err != nil {
		c.known, c.manifest = was, manifest
		return nil, err
	}
	if b.Upgraded {
		c.sig = slices.Clone(b.Signature)
		events = append(events, core.Event{Kind: core.Appended, Start: c.tree.Length, End: b.Tree.Length})
	}
	if p.Block != nil {
		c.blocks[p.Block.Index] = append([]byte{}, p.Block.Value...)
		events = append(events, core.Event{Kind: core.Arrived, Start: p.Block.Index, End: p.Block.Index + 1})
		c.applied++
	}
	c.store(b)
	return events, nil
}

func (c *memCore) BeginReorg(p *merkle.Proof) (*merkle.Reorg, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p.Fork <= c.tree.Fork {
		return nil, core.ErrFork
	}
	if err := c.learn(p); err != nil {
		return nil, err
	}
	g, err := merkle.NewReorg(c.tree, c.prologue(), nodeReader{c}, p)
	if err != nil {
		return nil, err
	}
	b := g.Batch()
	return g, c.manifest.VerifyTree(c.key, b.Tree, b.Signature)
}

func (c *memCore) UpdateReorg(g *merkle.Reorg, p *merkle.Proof) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return g.Update(nodeReader{c}, p)
}

func (c *memCore) FinishReorg(g *merkle.Reorg) error {
	c.mu.Lock()
	b := g.Batch()
	if _, open := g.Want(); open || b.Base().Length != c.tree.Length || b.Base().Fork != c.tree.Fork {
		c.mu.Unlock()
		return errors.New("reorg does not fit")
	}
	old := c.tree.Length
	c.sig = slices.Clone(b.Signature)
	c.store(b)
	c.mu.Unlock()
	c.changed(core.Event{Kind: core.Truncated, Start: b.Ancestors, End: max(old, b.Ancestors)}, core.Event{Kind: core.Appended, Start: b.Ancestors, End: b.Tree.Length})
	return nil
}

func (c *memCore) Watch(f func(core.Event)) (cancel func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.nextWatch
	c.nextWatch++
	c.watchers[n] = f
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.watchers, n)
	}
}
