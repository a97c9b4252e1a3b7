package core

import (
	"fmt"

	"github.com/pkgswarm/pkgswarm/core/merkle"
	"github.com/pkgswarm/pkgswarm/internal/flattree"
)

// maxGroup bounds what one commit takes from waiting appends, in bytes.
const maxGroup = 4 << 20

// rootIndexes returns the nodes that are the roots of a tree.
func rootIndexes(length uint64) []uint64 {
	return flattree.AppendRoots(make([]uint64, 0, 8), length)
}

// An appendCall is one call of Append that waits for its turn.
type appendCall struct {
	blocks  [][]byte
	durable bool
	length  uint64
	err     error
	done    chan struct{}
}

// Append adds blocks at the end and returns the new length. All of them are
// added, and durable when it returns, or none is. Concurrent calls share one
// signature and one wait for the disk. The error matches [ErrReadOnly] or
// [ErrTooLarge], or is a [*LossError].
func (c *Core) Append(blocks ...[]byte) (length uint64, err error) {
	return c.enqueue(&appendCall{blocks: blocks, durable: true})
}

// AppendLazy is Append, but what it adds is durable only with the next durable
// append to any core of the store, or [Store.Sync]. A crash may then leave the
// core as it was, or longer with the data of large blocks missing, never torn.
func (c *Core) AppendLazy(blocks ...[]byte) (length uint64, err error) {
	return c.enqueue(&appendCall{blocks: blocks})
}

// enqueue gets call done: by itself with all that wait, or by whoever is at it.
func (c *Core) enqueue(call *appendCall) (uint64, error) {
	for _, b := range call.blocks {
		if len(b) > MaxBlock {
			return 0, fmt.Errorf("%w: %d bytes", ErrTooLarge, len(b))
		}
	}
	c.queueMu.Lock()
	if c.leading {
		call.done = make(chan struct{})
		c.queue = append(c.queue, call)
		c.queueMu.Unlock()
		<-call.done
		return call.length, call.err
	}
	c.leading = true
	c.queueMu.Unlock()

	c.appendGroup([]*appendCall{call})
	for {
		c.queueMu.Lock()
		group := c.takeGroup()
		if len(group) == 0 {
			c.leading = false
			c.queueMu.Unlock()
			break
		}
		c.queueMu.Unlock()
		c.appendGroup(group)
		for _, w := range group {
			close(w.done)
		}
	}
	return call.length, call.err
}

// takeGroup removes the calls at the head of the queue that one commit can take.
func (c *Core) takeGroup() []*appendCall {
	n, size := 0, 0
	for n < len(c.queue) && size < maxGroup {
		for _, b := range c.queue[n].blocks {
			size += len(b)
		}
		n++
	}
	group := c.queue[:n:n]
	c.queue = c.queue[n:]
	return group
}

func (c *Core) appendGroup(group []*appendCall) {
	c.mu.Lock()
	err := c.appendLocked(group)
	c.mu.Unlock()
	for _, call := range group {
		if err != nil {
			call.length, call.err = 0, err
		}
	}
	if err == nil {
		c.deliver()
	}
}

func (c *Core) appendLocked(group []*appendCall) error {
	if c.dead {
		return ErrClosed
	}
	if !c.writable() {
		return fmt.Errorf("append to core %s: %w", c.rec.key.Short(), ErrReadOnly)
	}
	if err := c.loss(); err != nil {
		return err
	}
	n := 0
	for _, call := range group {
		n += len(call.blocks)
	}
	nb := merkle.NewBatch(c.head.tree)
	nb.Grow(n)
	blocks := make([][]byte, 0, n)
	durable := false
	for _, call := range group {
		for _, b := range call.blocks {
			nb.Append(b)
		}
		blocks = append(blocks, call.blocks...)
		call.length = nb.Tree.Length
		durable = durable || call.durable
	}
	if len(blocks) == 0 {
		return nil
	}
	sig, err := c.rec.manifest.SignTree(c.rec.key, nb.Tree, c.signers()...)
	if err != nil {
		return err
	}
	if p := c.rec.manifest.Prologue; p != nil && nb.Tree.Length <= p.Length {
		// Below the prologue only its very tree can ever be believed.
		if err := c.rec.manifest.VerifyTree(c.rec.key, nb.Tree, sig); err != nil {
			return err
		}
	}
	return c.grow(nb, sig, blocks, durable)
}

// grow commits appended blocks.
func (c *Core) grow(nb *merkle.Batch, sig []byte, blocks [][]byte, durable bool) error {
	first := c.head.tree.Length
	ch := c.begin()
	if err := ch.putNodes(nb.Nodes); err != nil {
		ch.abort()
		return err
	}
	if err := ch.putBlocks(first, blocks); err != nil {
		ch.abort()
		return fmt.Errorf("append to core %s: %w", c.rec.key.Short(), err)
	}
	ch.head.tree, ch.head.signature = nb.Tree, sig
	ch.signed = c.writable()
	ch.events = append(ch.events, Event{Appended, first, nb.Tree.Length}, Event{Arrived, first, nb.Tree.Length})
	return ch.commit(durable)
}

// AppendSigned adds blocks with a signature that was made elsewhere, as for a
// core of several signers, or none for the blocks of a static core. The error
// matches [ErrSignature] unless the manifest vouches for the result. It is
// durable when it returns.
func (c *Core) AppendSigned(sig []byte, blocks ...[]byte) (length uint64, err error) {
	c.mu.Lock()
	defer c.deliver()
	defer c.mu.Unlock()
	if c.dead {
		return 0, ErrClosed
	}
	if c.rec.manifest == nil {
		return 0, fmt.Errorf("append to core %s: manifest not known: %w", c.rec.key.Short(), ErrReadOnly)
	}
	nb := merkle.NewBatch(c.head.tree)
	for _, b := range blocks {
		if len(b) > MaxBlock {
			return 0, fmt.Errorf("%w: %d bytes", ErrTooLarge, len(b))
		}
		nb.Append(b)
	}
	if err := c.rec.manifest.VerifyTree(c.rec.key, nb.Tree, sig); err != nil {
		return 0, err
	}
	return nb.Tree.Length, c.grow(nb, sig, blocks, true)
}

// NextTree returns the tree that appending blocks would give: what the signers
// of a core with several signers sign.
func (c *Core) NextTree(blocks ...[]byte) merkle.Tree {
	nb := merkle.NewBatch(c.Tree())
	for _, b := range blocks {
		nb.Append(b)
	}
	return nb.Tree
}

// Truncate cuts the core to its first length blocks and raises the fork number
// by one, so that replicas can tell the new history from the old one. It is
// durable when it returns. The error matches [ErrReadOnly] or [ErrRange].
func (c *Core) Truncate(length uint64) error {
	return c.TruncateFork(length, 0)
}

// TruncateFork is Truncate to a fork number of the caller's choice, which must
// be higher than the present one; 0 is one more than that.
func (c *Core) TruncateFork(length, fork uint64) error {
	c.mu.Lock()
	defer c.deliver()
	defer c.mu.Unlock()
	if c.dead {
		return ErrClosed
	}
	if !c.writable() {
		return fmt.Errorf("truncate core %s: %w", c.rec.key.Short(), ErrReadOnly)
	}
	t := c.head.tree
	last := t.Fork
	if c.loss() != nil {
		last = c.acked.fork
	}
	if fork == 0 {
		fork = last + 1
	}
	if length > t.Length || fork <= last {
		return fmt.Errorf("truncate core %s to %d of %d blocks, fork %d to %d: %w", c.rec.key.Short(), length, t.Length, last, fork, ErrRange)
	}
	nb, err := merkle.Truncate(t, (*lockedNodes)(c), length, fork)
	if err != nil {
		return fmt.Errorf("truncate core %s: %w", c.rec.key.Short(), err)
	}
	sig, err := c.rec.manifest.SignTree(c.rec.key, nb.Tree, c.signers()...)
	if err != nil {
		return err
	}
	if err := c.rec.manifest.VerifyTree(c.rec.key, nb.Tree, sig); err != nil {
		return err // below the prologue
	}
	return c.rewrite(nb, sig)
}

// rewrite commits a batch that drops blocks.
func (c *Core) rewrite(nb *merkle.Batch, sig []byte) error {
	ch := c.begin()
	if err := ch.truncate(nb); err != nil {
		ch.abort()
		return err
	}
	if err := ch.putNodes(nb.Nodes); err != nil {
		ch.abort()
		return err
	}
	ch.head.tree, ch.head.signature = nb.Tree, sig
	ch.signed = c.writable()
	return ch.commit(true)
}

// Clear drops the data of the blocks [lo, hi) here. The tree stays, so that they
// can be fetched, and verified, again.
func (c *Core) Clear(lo, hi uint64) error {
	c.mu.Lock()
	defer c.deliver()
	defer c.mu.Unlock()
	if c.dead {
		return ErrClosed
	}
	hi = min(hi, c.head.tree.Length)
	if lo >= hi {
		return nil
	}
	ch := c.begin()
	if err := ch.clear(lo, hi); err != nil {
		ch.abort()
		return err
	}
	return ch.commit(false)
}
