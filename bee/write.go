package bee

import (
	"bytes"
	"context"
	"fmt"
	"slices"
)

// Sizes of nodes, as the reference's.
const (
	minKeys = 4
	maxFull = 2*minKeys + 1 // keys at which a node is split
)

// A node is a tree node in memory that may be changed. What a node holds of
// other blocks is loaded when it is needed.
type node struct {
	keys     []keyRef
	children []*child
	changed  bool // has to go into the next block
}

type keyRef struct {
	seq uint64
	key []byte // nil: not loaded
}

// A child is one edge. It is shared by its parent, which may change, and the
// pending blocks, which look up where the node went.
type child struct {
	seq, offset uint64
	node        *node // nil: not loaded
}

// A pending is a block of a batch that is not appended yet.
type pending struct {
	seq        uint64
	key, value []byte
	index      []*child // by offset; nil where a node has moved on
}

// seq returns the block that the operation under way will get.
func (b *Batch) seq() uint64 { return b.start + uint64(len(b.blocks)) }

// load reads a node.
func (b *Batch) load(ctx context.Context, a address) (*node, error) {
	blk, err := b.t.s.block(ctx, a.seq)
	if err != nil {
		return nil, err
	}
	if a.offset >= uint64(len(blk.levels)) {
		return nil, fmt.Errorf("block %d has no node %d: %w", a.seq, a.offset, ErrFormat)
	}
	l := blk.levels[a.offset]
	n := &node{keys: make([]keyRef, len(l.keys), maxFull), children: make([]*child, len(l.children), len(l.children)+1)}
	for i, seq := range l.keys {
		n.keys[i].seq = seq
		if seq == a.seq {
			n.keys[i].key = blk.key
		}
	}
	for i, c := range l.children {
		n.children[i] = &child{seq: c.seq, offset: c.offset}
	}
	b.loaded++
	return n, nil
}

func (b *Batch) child(ctx context.Context, n *node, i int) (*node, error) {
	c := n.children[i]
	if c.node == nil {
		var err error
		if c.node, err = b.load(ctx, address{c.seq, c.offset}); err != nil {
			return nil, err
		}
	}
	return c.node, nil
}

// key returns the bytes of a key of n.
func (b *Batch) key(ctx context.Context, n *node, i int) ([]byte, error) {
	k := &n.keys[i]
	if k.key == nil {
		blk, err := b.t.s.block(ctx, k.seq)
		if err != nil {
			return nil, err
		}
		if k.key = blk.key; k.key == nil {
			k.key = []byte{}
		}
	}
	return k.key, nil
}

// entry returns key and value of a block, which may be pending.
func (b *Batch) entry(ctx context.Context, seq uint64) (Entry, error) {
	if seq >= b.start {
		p := b.blocks[seq-b.start]
		return b.t.entry(p.seq, p.key, p.value), nil
	}
	blk, err := b.t.s.block(ctx, seq)
	if err != nil {
		return Entry{}, err
	}
	return b.t.entry(blk.seq, blk.key, blk.value), nil
}

// search returns the place of key in n, and whether it is there.
func (b *Batch) search(ctx context.Context, n *node, key []byte) (int, bool, error) {
	return search(key, len(n.keys), func(i int) ([]byte, error) { return b.key(ctx, n, i) })
}

// mark notes that n has to be written.
func (b *Batch) mark(n *node) {
	if !n.changed {
		n.changed = true
		b.touched = append(b.touched, n)
	}
}

// refused reports whether a key that exists is to stay as it is.
func (b *Batch) refused(ctx context.Context, seq uint64, key, value []byte, put bool, cas CAS) (bool, error) {
	same := put && b.t.s.noDuplicates
	if cas == nil && !same {
		return false, nil
	}
	prev, err := b.entry(ctx, seq)
	if err != nil {
		return false, err
	}
	if cas != nil && !cas(prev, b.t.entry(b.seq(), key, value)) {
		return true, nil
	}
	return same && (prev.Value == nil) == (value == nil) && bytes.Equal(prev.Value, value), nil
}

func (b *Batch) put(ctx context.Context, key, value []byte, cas CAS) (bool, error) {
	if b.root == nil {
		b.root = &node{}
		b.mark(b.root)
	}
	target := keyRef{b.seq(), key}
	var path []*node
	n := b.root
	for {
		i, found, err := b.search(ctx, n, key)
		if err != nil {
			return false, err
		}
		leaf := len(n.children) == 0
		if !leaf {
			b.mark(n) // even if cas refuses: so does the reference
		}
		if found {
			no, err := b.refused(ctx, n.keys[i].seq, key, value, true, cas)
			if err != nil || no {
				return false, err
			}
			n.keys[i] = target
			b.mark(n)
			break
		}
		if leaf {
			n.keys = slices.Insert(n.keys, i, target)
			b.mark(n)
			if err := b.split(ctx, n, path); err != nil {
				return false, err
			}
			break
		}
		path = append(path, n)
		if n, err = b.child(ctx, n, i); err != nil {
			return false, err
		}
	}
	b.commit(key, value)
	return true, nil
}

// split divides n, and the nodes above it, while they are too large.
func (b *Batch) split(ctx context.Context, n *node, path []*node) error {
	for len(n.keys) >= maxFull {
		right := &node{}
		b.mark(right)
		at := len(n.keys) - len(n.keys)/2
		right.keys = append(make([]keyRef, 0, maxFull), n.keys[at:]...)
		if _, err := b.key(ctx, n, at-1); err != nil {
			return err
		}
		median := n.keys[at-1]
		n.keys = n.keys[:at-1]
		if len(n.children) > 0 {
			right.children = slices.Clone(n.children[at:])
			n.children = n.children[:at]
		}
		b.mark(n)
		if len(path) == 0 {
			root := &node{keys: []keyRef{median}, children: []*child{{node: n}, {node: right}}}
			b.mark(root)
			b.root = root
			return nil
		}
		parent := path[len(path)-1]
		path = path[:len(path)-1]
		i, _, err := b.search(ctx, parent, median.key)
		if err != nil {
			return err
		}
		parent.keys = slices.Insert(parent.keys, i, median)
		parent.children = slices.Insert(parent.children, i+1, &child{node: right})
		b.mark(parent)
		n = parent
	}
	return nil
}

func (b *Batch) del(ctx context.Context, key []byte, cas CAS) (bool, error) {
	if b.root == nil {
		return false, nil
	}
	var path []*node
	n := b.root
	for {
		path = append(path, n)
		i, found, err := b.search(ctx, n, key)
		if err != nil {
			return false, err
		}
		if found {
			no, err := b.refused(ctx, n.keys[i].seq, key, nil, false, cas)
			if err != nil || no {
				return false, err
			}
			if path, err = b.remove(ctx, n, i, path); err != nil {
				return false, err
			}
			break
		}
		if len(n.children) == 0 {
			return false, nil
		}
		if n, err = b.child(ctx, n, i); err != nil {
			return false, err
		}
	}
	for _, n := range path {
		b.mark(n)
	}
	if err := b.rebalance(ctx, path); err != nil {
		return false, err
	}
	b.commit(key, nil)
	return true, nil
}

// remove takes key i out of n: directly from a leaf, else by putting the next
// lower or higher key in its place. It returns path, down to the leaf.
func (b *Batch) remove(ctx context.Context, n *node, i int, path []*node) ([]*node, error) {
	if len(n.children) == 0 {
		n.keys = slices.Delete(n.keys, i, i+1)
		return path, nil
	}
	down := func(from int, last bool) ([]*node, error) {
		at, err := b.child(ctx, n, from)
		nodes := []*node{at}
		for err == nil && len(at.children) > 0 {
			next := 0
			if last {
				next = len(at.children) - 1
			}
			if at, err = b.child(ctx, at, next); err == nil {
				nodes = append(nodes, at)
			}
		}
		return nodes, err
	}
	lower, err := down(i, true)
	if err != nil {
		return nil, err
	}
	higher, err := down(i+1, false)
	if err != nil {
		return nil, err
	}
	low, high := lower[len(lower)-1], higher[len(higher)-1]
	if len(low.keys) < len(high.keys) {
		n.keys[i] = high.keys[0]
		high.keys = slices.Delete(high.keys, 0, 1)
		return append(path, higher...), nil
	}
	last := len(low.keys) - 1
	n.keys[i] = low.keys[last]
	low.keys = low.keys[:last]
	return append(path, lower...), nil
}

// rebalance fills nodes of the path that have become too small, from the leaf
// upwards.
func (b *Batch) rebalance(ctx context.Context, path []*node) error {
	for len(path) > 1 {
		n, parent := path[len(path)-1], path[len(path)-2]
		path = path[:len(path)-1]
		if len(n.keys) >= minKeys {
			return nil
		}
		done, err := b.refill(ctx, n, parent)
		if err != nil || done {
			return err
		}
	}
	if len(b.root.keys) == 0 && len(b.root.children) > 0 {
		root, err := b.child(ctx, b.root, 0)
		if err != nil {
			return err
		}
		b.root = root
	}
	return nil
}

// refill takes a key from a sibling of n, and reports that all is well then, or
// merges n with a sibling.
func (b *Batch) refill(ctx context.Context, n, parent *node) (done bool, err error) {
	i := slices.IndexFunc(parent.children, func(c *child) bool { return c.node == n })
	var left, right *node
	if i > 0 {
		if left, err = b.child(ctx, parent, i-1); err != nil {
			return false, err
		}
	}
	if i < len(parent.children)-1 {
		if right, err = b.child(ctx, parent, i+1); err != nil {
			return false, err
		}
	}
	if left != nil && len(left.keys) > minKeys {
		b.mark(left)
		n.keys = slices.Insert(n.keys, 0, parent.keys[i-1])
		last := len(left.keys) - 1
		parent.keys[i-1] = left.keys[last]
		left.keys = left.keys[:last]
		if k := len(left.children); k > 0 {
			n.children = slices.Insert(n.children, 0, left.children[k-1])
			left.children = left.children[:k-1]
		}
		return true, nil
	}
	if right != nil && len(right.keys) > minKeys {
		b.mark(right)
		n.keys = append(n.keys, parent.keys[i])
		parent.keys[i] = right.keys[0]
		right.keys = slices.Delete(right.keys, 0, 1)
		if len(right.children) > 0 {
			n.children = append(n.children, right.children[0])
			right.children = slices.Delete(right.children, 0, 1)
		}
		return true, nil
	}
	if left != nil {
		i--
		right = n
	} else {
		left = n
	}
	b.mark(left)
	left.keys = append(append(left.keys, parent.keys[i]), right.keys...)
	left.children = append(left.children, right.children...)
	parent.keys = slices.Delete(parent.keys, i, i+1)
	parent.children[i+1].seq = 0 // freed: no block needs it any more
	parent.children = slices.Delete(parent.children, i+1, i+2)
	b.mark(parent)
	return false, nil
}

// commit makes the operation's block of the nodes that have changed.
func (b *Batch) commit(key, value []byte) {
	p := pending{seq: b.seq(), key: key, value: value}
	number(b.root, &p)
	p.index[0] = &child{seq: p.seq, node: b.root}
	b.blocks = append(b.blocks, p)
}

// number gives n, and changed nodes below it, the next places in p's index.
func number(n *node, p *pending) uint64 {
	offset := uint64(len(p.index))
	p.index = append(p.index, nil)
	n.changed = false
	for _, c := range n.children {
		if c.node == nil || !c.node.changed {
			continue
		}
		c.seq = p.seq
		c.offset = number(c.node, p)
		p.index[c.offset] = c
	}
	return offset
}
