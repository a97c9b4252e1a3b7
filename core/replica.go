package core

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"github.com/cockroachdb/pebble/v2"

	"github.com/pkgswarm/pkgswarm/core/merkle"
)

var (
	// ErrFork means that a proof is of another fork than the core's.
	ErrFork = errors.New("core: proof of another fork")
	// ErrStale means that the core has changed since the proof was asked for, so
	// that it cannot be used any more. It is nobody's fault.
	ErrStale = errors.New("core: tree has changed meanwhile")
	// ErrNoManifest means that a core's manifest is not known and not in the
	// proof either.
	ErrNoManifest = errors.New("core: manifest not known")
)

// Prove answers a request from what is here. The error matches [merkle.ErrRequest]
// for what nobody could answer, [ErrMissing] or [merkle.ErrNotStored] for what
// this replica cannot, [ErrFork], or is a [*DamageError].
func (c *Core) Prove(req merkle.Request) (*merkle.Proof, error) {
	c.mu.Lock()
	p, at, err := c.proveLocked(req)
	c.mu.Unlock()
	if err != nil || p.Block == nil {
		return p, err
	}
	// Reading the block needs no lock: what is at its place is checked.
	value, err := c.fetch(p.Block.Index, at)
	if err == nil && at.holds(value) {
		c.verified(p.Block.Index, at, value)
	} else if value, err = c.readBlock(p.Block.Index); err != nil {
		return nil, err
	}
	p.Block.Value = value
	return p, nil
}

func (c *Core) proveLocked(req merkle.Request) (*merkle.Proof, place, error) {
	t := c.head.tree
	if req.Fork != t.Fork {
		return nil, place{}, fmt.Errorf("%w: %d, not %d", ErrFork, t.Fork, req.Fork)
	}
	var at place
	if req.Block != nil && t.Length > 0 {
		var err error
		if at, err = c.locate(req.Block.Index); err != nil {
			if errors.Is(err, ErrRange) {
				err = fmt.Errorf("%w: %w", merkle.ErrRequest, err)
			}
			return nil, place{}, err
		}
	}
	var prologue uint64
	m := c.rec.manifest
	if m != nil && m.Prologue != nil {
		prologue = m.Prologue.Length
	}
	p, err := merkle.Prove(t, prologue, (*lockedNodes)(c), req)
	if err != nil {
		return nil, place{}, err
	}
	if p.Upgrade != nil {
		p.Upgrade.Signature = c.head.signature
	}
	if req.Manifest && m != nil && !m.IsCompat(c.rec.key) {
		p.Manifest = m.Encode()
	}
	return p, at, nil
}

// MissingNodes returns how many steps above node index the first known node is:
// what a request for it must say.
func (c *Core) MissingNodes(index uint64) (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return merkle.MissingNodes(c.head.tree.Length, (*lockedNodes)(c), index)
}

// Node returns a tree node, if it is known.
func (c *Core) Node(index uint64) (merkle.Node, bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return (*lockedNodes)(c).Node(index)
}

// Applied is what a proof has changed.
type Applied struct {
	Upgraded bool // the tree has grown
	Length   uint64
	NewBlock bool // the proof's block was not here before
}

// Apply verifies all of a proof from a peer and stores what it adds, all at once
// or not at all. It is durable after the next durable append or Sync: until then
// a crash costs a fetch, nothing else.
//
// The proof's fork must be the core's; for higher ones see [Core.BeginReorg].
// Errors match those of [merkle.Verify], [ErrSignature], [ErrManifest],
// [ErrNoManifest], [ErrFork] or [ErrTooLarge]; others are of our own disk. What
// was lied about is not stored. The slices of p may be kept.
func (c *Core) Apply(p *merkle.Proof) (Applied, error) {
	out, errs := c.ApplyAll([]*merkle.Proof{p})
	return out[0], errs[0]
}

// ApplyAll is Apply for several proofs in that order, with one commit for all
// that are right. Those that are wrong have their error in the result; they do
// not hinder the others. An error of our own disk is that of all of them.
func (c *Core) ApplyAll(proofs []*merkle.Proof) ([]Applied, []error) {
	out, errs := make([]Applied, len(proofs)), make([]error, len(proofs))
	c.mu.Lock()
	defer c.deliver()
	defer c.mu.Unlock()
	a := applying{c: c, change: c.begin()}
	for i, p := range proofs {
		out[i], errs[i] = a.add(p)
		if a.broken != nil {
			break
		}
	}
	if err := a.finish(); err != nil {
		clear(out)
		for i := range errs {
			errs[i] = err
		}
	}
	return out, errs
}

// applying gathers the proofs of one ApplyAll in a change.
type applying struct {
	c      *Core
	change *change
	useful bool     // the change has something in it
	first  uint64   // of blocks
	blocks [][]byte // verified, consecutive, to be put
	broken error    // our own disk failed: nothing can be stored
}

// add verifies p against what the change makes of the core, and adds it. The
// core's lock is held.
func (a *applying) add(p *merkle.Proof) (Applied, error) {
	c, ch := a.c, a.change
	if c.dead {
		return Applied{}, ErrClosed
	}
	if p.Block != nil && len(p.Block.Value) > MaxBlock {
		return Applied{}, fmt.Errorf("%w: %d bytes", ErrTooLarge, len(p.Block.Value))
	}
	m, err := c.manifestFor(p)
	if err != nil {
		return Applied{}, err
	}
	old := ch.head.tree
	if p.Fork != old.Fork && old.Length+old.Fork > 0 {
		return Applied{}, fmt.Errorf("%w: %d, not %d", ErrFork, p.Fork, old.Fork)
	}
	nb, err := merkle.Verify(old, prologueOf(m), changedNodes{ch}, p)
	if err != nil {
		return Applied{}, fmt.Errorf("core %s: %w", c.rec.key.Short(), err)
	}
	if nb.Upgraded {
		if err := m.VerifyTree(c.rec.key, nb.Tree, nb.Signature); err != nil {
			return Applied{}, err
		}
	}
	out, err := a.put(m, nb, p)
	a.broken = err
	return out, err
}

// put adds what a verified proof says.
func (a *applying) put(m *Manifest, nb *merkle.Batch, p *merkle.Proof) (Applied, error) {
	ch := a.change
	a.useful = true
	if err := ch.putNodes(nb.Nodes); err != nil {
		return Applied{}, err
	}
	out := Applied{Upgraded: nb.Upgraded, Length: nb.Tree.Length}
	if nb.Upgraded {
		ch.events = append(ch.events, Event{Appended, ch.head.tree.Length, nb.Tree.Length})
		ch.head.tree, ch.head.signature = nb.Tree, bytes.Clone(nb.Signature)
	}
	if p.Block != nil {
		here, err := ch.has(p.Block.Index)
		if err != nil {
			return Applied{}, err
		}
		if out.NewBlock = !here && !a.holds(p.Block.Index); out.NewBlock {
			if err := a.hold(p.Block.Index, p.Block.Value); err != nil {
				return Applied{}, err
			}
		}
	}
	return out, a.c.learn(ch, m)
}

// holds says whether a block waits to be put.
func (a *applying) holds(index uint64) bool {
	return index >= a.first && index-a.first < uint64(len(a.blocks))
}

// hold takes a block to be put together with those before and after it.
func (a *applying) hold(index uint64, data []byte) error {
	if index != a.first+uint64(len(a.blocks)) {
		if err := a.flush(); err != nil {
			return err
		}
		a.first = index
	}
	a.blocks = append(a.blocks, data)
	return nil
}

// flush puts the blocks held.
func (a *applying) flush() error {
	if len(a.blocks) == 0 {
		return nil
	}
	end := a.first + uint64(len(a.blocks))
	if err := a.change.putBlocks(a.first, a.blocks); err != nil {
		return fmt.Errorf("core %s: store blocks from %d: %w", a.c.rec.key.Short(), a.first, err)
	}
	a.change.events = append(a.change.events, Event{Arrived, a.first, end})
	a.blocks = a.blocks[:0]
	return nil
}

// finish commits the change, or drops it if it is of no use.
func (a *applying) finish() error {
	err := a.broken
	if err == nil {
		err = a.flush()
	}
	if err != nil || !a.useful {
		a.change.abort()
		return err
	}
	return a.change.commit(false)
}

func prologueOf(m *Manifest) *merkle.Prologue {
	if m == nil {
		return nil
	}
	return m.Prologue
}

// manifestFor returns the manifest by which p is to be judged: the known one, or
// that of p if it belongs to the key, or the one of an old core.
func (c *Core) manifestFor(p *merkle.Proof) (*Manifest, error) {
	if c.rec.manifest != nil {
		return c.rec.manifest, nil
	}
	if p.Manifest != nil {
		return c.parseManifest(p.Manifest)
	}
	if p.Upgrade == nil {
		return nil, nil
	}
	m := compatManifest(c.rec.key)
	return &m, nil
}

func (c *Core) parseManifest(b []byte) (*Manifest, error) {
	m, err := DecodeManifest(b)
	if err != nil {
		return nil, err
	}
	return &m, m.CheckKey(c.rec.key)
}

// learn stores a manifest that was not known.
func (c *Core) learn(ch *change, m *Manifest) error {
	if m == nil || c.rec.manifest != nil {
		return nil
	}
	r := c.rec
	r.manifest = m
	dk := c.discovery
	if err := ch.b.Set(append([]byte{prefixRecord}, dk[:]...), r.encode(), nil); err != nil {
		return err
	}
	c.rec = r
	return nil
}

// SetManifest tells a replica its manifest, which must belong to its key.
func (c *Core) SetManifest(encoded []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rec.manifest != nil {
		return nil
	}
	m, err := c.parseManifest(encoded)
	if err != nil {
		return err
	}
	ch := c.begin()
	if err := c.learn(ch, m); err != nil {
		ch.abort()
		return err
	}
	return ch.commit(false)
}

// VerifyHead checks a peer's signed head, an upgrade proof from 0, on its own.
// It returns the tree that is signed. Nothing is stored.
func (c *Core) VerifyHead(p *merkle.Proof) (*merkle.Batch, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m, err := c.manifestFor(p)
	if err != nil {
		return nil, err
	}
	nb, err := merkle.VerifyHead(prologueOf(m), p)
	if err != nil {
		return nil, err
	}
	return nb, m.VerifyTree(c.rec.key, nb.Tree, nb.Signature)
}

// BeginReorg starts to replace the history by that of a higher fork, which p, an
// upgrade proof from 0, proves. Go on with [Core.UpdateReorg] until nothing is
// wanted, then [Core.FinishReorg].
func (c *Core) BeginReorg(p *merkle.Proof) (*merkle.Reorg, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p.Fork <= c.head.tree.Fork {
		return nil, fmt.Errorf("%w: %d is not above %d", ErrFork, p.Fork, c.head.tree.Fork)
	}
	m, err := c.manifestFor(p)
	if err != nil {
		return nil, err
	}
	if m == nil {
		return nil, fmt.Errorf("%w: core %s", ErrNoManifest, c.rec.key.Short())
	}
	g, err := merkle.NewReorg(c.head.tree, m.Prologue, (*lockedNodes)(c), p)
	if err != nil {
		return nil, err
	}
	nb := g.Batch()
	if err := m.VerifyTree(c.rec.key, nb.Tree, nb.Signature); err != nil {
		return nil, err
	}
	if c.rec.manifest == nil {
		ch := c.begin()
		if err := c.learn(ch, m); err != nil {
			ch.abort()
			return nil, err
		}
		if err := ch.commit(false); err != nil {
			return nil, err
		}
	}
	return g, nil
}

// UpdateReorg takes the answer to what g wants.
func (c *Core) UpdateReorg(g *merkle.Reorg, p *merkle.Proof) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.current(g.Batch()); err != nil {
		return err
	}
	return g.Update((*lockedNodes)(c), p)
}

// FinishReorg stores the new history in one step. It is durable when it returns.
func (c *Core) FinishReorg(g *merkle.Reorg) error {
	c.mu.Lock()
	defer c.deliver()
	defer c.mu.Unlock()
	if _, open := g.Want(); open {
		return fmt.Errorf("core %s: reorganisation is not complete", c.rec.key.Short())
	}
	nb := g.Batch()
	if err := c.current(nb); err != nil {
		return err
	}
	return c.rewrite(nb, bytes.Clone(nb.Signature))
}

// current checks that nb was made from the head as it is.
func (c *Core) current(nb *merkle.Batch) error {
	if b := nb.Base(); b.Fork != c.head.tree.Fork || b.Length != c.head.tree.Length {
		return fmt.Errorf("core %s: %w", c.rec.key.Short(), ErrStale)
	}
	return nil
}

// loadHave reads which blocks behind the contiguous ones are here. c.mu is held.
func (c *Core) loadHave() error {
	if c.have != nil {
		return nil
	}
	have := map[uint64]uint32{}
	lo := c.head.contiguous / pageBlocks
	it, err := c.store.db.NewIter(&pebble.IterOptions{LowerBound: c.pageKey(0, lo), UpperBound: c.pageKey(1, 0)})
	if err != nil {
		return err
	}
	for ok := it.First(); ok; ok = it.Next() {
		if k, v := it.Key(), it.Value(); len(k) == 14 && len(v) >= 12 {
			if mask := binary.LittleEndian.Uint32(v[8:]); mask != 0 {
				have[binary.BigEndian.Uint64(k[6:])] = mask
			}
		}
	}
	if err := errors.Join(it.Error(), it.Close()); err != nil {
		return err
	}
	c.have = have
	return nil
}

func (c *Core) setHave(number uint64, mask uint32) {
	if mask == 0 {
		delete(c.have, number)
	} else {
		c.have[number] = mask
	}
}

// mask returns which blocks of a page are here. loadHave has been called.
func (c *Core) mask(number uint64) uint32 {
	if end := (number + 1) * pageBlocks; end <= c.head.contiguous {
		return 1<<32 - 1
	} else if start := number * pageBlocks; start < c.head.contiguous {
		return c.have[number] | (1<<(c.head.contiguous-start) - 1)
	}
	return c.have[number]
}

// Present fills words with which blocks are here: bit i of word w is block
// start + 32w + i. start must be a multiple of 32.
func (c *Core) Present(start uint64, words []uint32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.loadHave(); err != nil {
		return err
	}
	for w := range words {
		words[w] = c.mask(start/pageBlocks + uint64(w))
	}
	return nil
}

// NextAbsent returns the first block at or after from, below end, that is not
// here; end if there is none.
func (c *Core) NextAbsent(from, end uint64) (uint64, error) {
	return c.next(from, end, func(mask uint32) uint32 { return ^mask })
}

// NextPresent returns the first block at or after from, below end, that is here;
// end if there is none.
func (c *Core) NextPresent(from, end uint64) (uint64, error) {
	return c.next(from, end, func(mask uint32) uint32 { return mask })
}

func (c *Core) next(from, end uint64, pick func(mask uint32) uint32) (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.loadHave(); err != nil {
		return 0, err
	}
	absent := pick(0) != 0
	for from < end {
		number := from / pageBlocks
		if !absent && number*pageBlocks >= c.head.contiguous {
			// Only pages that are stored have blocks: do not walk the others.
			n, ok := c.nextPage(number)
			if !ok {
				return end, nil
			}
			number, from = n, max(from, n*pageBlocks)
		} else if absent && from < c.head.contiguous {
			from = c.head.contiguous
			continue
		}
		if m := pick(c.mask(number)) >> (from % pageBlocks); m != 0 {
			return min(from+uint64(bits.TrailingZeros32(m)), end), nil
		}
		from = (number + 1) * pageBlocks
	}
	return end, nil
}

// nextPage returns the first page at or after number that has blocks.
func (c *Core) nextPage(number uint64) (uint64, bool) {
	if c.have[number] != 0 {
		return number, true
	}
	best, ok := uint64(0), false
	for n := range c.have {
		if n >= number && (!ok || n < best) {
			best, ok = n, true
		}
	}
	return best, ok
}
