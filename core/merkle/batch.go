package merkle

import (
	"fmt"
	"slices"

	"github.com/pkgswarm/pkgswarm/internal/compact"
	"github.com/pkgswarm/pkgswarm/internal/flattree"
)

// A Batch is a change to a tree that is not stored yet: blocks appended to it,
// or what a verified proof adds. The change is (Tree, Nodes): storing means to
// remove the nodes that [Batch.Stale] names, put Nodes and, if Upgraded, make
// Tree the head, all at once, and only if the stored head still has the fork
// and length that the batch was made from.
//
// A Batch may be used by one goroutine at a time.
type Batch struct {
	Tree  Tree   // the new head
	Nodes []Node // new nodes, in the order they became known; may repeat stored ones

	// Upgraded says that Tree differs from the head the batch was made from,
	// and so must be signed.
	Upgraded bool

	// Ancestors is the number of blocks that the old and the new tree share.
	// It is below the old length only after a reorganisation.
	Ancestors uint64

	// Signature is that of the proof's upgrade, not looked at here. It belongs
	// to Tree.
	Signature []byte

	// Prefix is the tree of Start + Length blocks of the proof's upgrade: a
	// prefix of Tree, or all of it if there were no additional nodes.
	Prefix Tree

	base Tree // head the batch was made from
}

// NewBatch returns a batch without changes to t. It does not modify t.Roots.
func NewBatch(t Tree) *Batch {
	return &Batch{Tree: clone(t), Ancestors: t.Length, base: t}
}

func clone(t Tree) Tree {
	roots := make([]Node, len(t.Roots), len(t.Roots)+4)
	copy(roots, t.Roots)
	t.Roots = roots
	return t
}

// Base returns the head that the batch was made from.
func (b *Batch) Base() Tree { return b.base }

// Grow makes room for the nodes of that many blocks.
func (b *Batch) Grow(blocks int) { b.Nodes = slices.Grow(b.Nodes, 2*blocks) }

// Append adds a block and returns its leaf.
func (b *Batch) Append(block []byte) Node {
	n := Leaf(b.Tree.Length, block)
	b.AppendLeaf(n.Size, n.Hash)
	return n
}

// AppendLeaf adds a block of size bytes, whose leaf hash is hash.
func (b *Batch) AppendLeaf(size uint64, hash Hash) {
	b.addRoot(Node{Index: 2 * b.Tree.Length, Size: size, Hash: hash})
}

// addRoot adds a complete subtree at the end of the tree, where it must belong,
// and joins roots that have become siblings.
func (b *Batch) addRoot(n Node) {
	b.Upgraded = true
	b.Nodes = append(b.Nodes, n)
	b.Tree.Length += flattree.Leaves(n.Index)
	roots := b.Tree.Roots
	for len(roots) > 0 && roots[len(roots)-1].Index == flattree.Sibling(n.Index) {
		n = Parent(roots[len(roots)-1], n)
		b.Nodes = append(b.Nodes, n)
		roots = roots[:len(roots)-1]
	}
	b.Tree.Roots = append(roots, n)
}

// addForeignRoot is addRoot for nodes that a peer sent.
func (b *Batch) addForeignRoot(n Node) error {
	switch {
	case flattree.LeftSpan(n.Index) != 2*b.Tree.Length:
		return fmt.Errorf("%w: node %d does not follow block %d", ErrMalformed, n.Index, b.Tree.Length)
	case flattree.Leaves(n.Index) > MaxLength-b.Tree.Length:
		return fmt.Errorf("%w: node %d is beyond the largest tree", ErrMalformed, n.Index)
	case n.Size > compact.MaxUint-b.Tree.ByteLength():
		return fmt.Errorf("%w: node %d makes the tree too large", ErrMalformed, n.Index)
	}
	b.addRoot(n)
	return nil
}

// Stale appends to dst the nodes below index 2·Ancestors that are wrong once
// the batch is stored. Besides them all stored nodes from 2·Ancestors on are.
func (b *Batch) Stale(dst []uint64) []uint64 {
	if b.Ancestors == b.base.Length {
		return dst
	}
	return flattree.AppendStraddling(dst, b.Ancestors)
}

// Truncate returns a batch that cuts t to its first length blocks under a new
// fork number. The error matches [ErrNotStored] when r lacks a root of that
// length.
func Truncate(t Tree, r NodeReader, length, fork uint64) (*Batch, error) {
	if length > t.Length {
		return nil, fmt.Errorf("%w: truncate to %d of %d blocks", ErrRequest, length, t.Length)
	}
	roots, err := RootsAt(nil, r, length)
	if err != nil {
		return nil, err
	}
	return &Batch{
		Tree:      Tree{Fork: fork, Length: length, Roots: roots},
		Upgraded:  true,
		Ancestors: length,
		base:      t,
	}, nil
}

// Node returns the node of that index if the batch has it, else what r has.
func (b *Batch) Node(r NodeReader, index uint64) (Node, bool, error) {
	if i := slices.IndexFunc(b.Nodes, func(n Node) bool { return n.Index == index }); i >= 0 {
		return b.Nodes[i], true, nil
	}
	return r.Node(index)
}
