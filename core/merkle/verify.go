package merkle

import (
	"fmt"
	"slices"

	"github.com/pkgswarm/pkgswarm/internal/compact"
	"github.com/pkgswarm/pkgswarm/internal/flattree"
)

// maxDepth is the depth of the highest node of a tree of MaxLength blocks.
const maxDepth = 52

// A nodeQueue gives out the nodes of one list of a proof, which must come in
// the order in which they are needed. extra is a node computed from another
// part of the proof; it is used when its turn comes, or never.
type nodeQueue struct {
	nodes []Node
	extra *Node
}

func (q *nodeQueue) empty() bool { return len(q.nodes) == 0 && q.extra == nil }

func (q *nodeQueue) shift(index uint64) (Node, error) {
	if q.extra != nil && q.extra.Index == index {
		n := *q.extra
		q.extra = nil
		return n, nil
	}
	if len(q.nodes) == 0 {
		return Node{}, fmt.Errorf("%w: node %d is missing", ErrMalformed, index)
	}
	n := q.nodes[0]
	if n.Index != index {
		return Node{}, fmt.Errorf("%w: node %d in place of %d", ErrMalformed, n.Index, index)
	}
	q.nodes = q.nodes[1:]
	return n, nil
}

// climb computes the ancestor of n that all nodes of q lead to, and appends
// what it meets to b.Nodes: n itself, each sibling and each parent.
func (b *Batch) climb(n Node, q nodeQueue) (Node, error) {
	b.Nodes = append(b.Nodes, n)
	for !q.empty() {
		if flattree.Depth(n.Index) >= maxDepth {
			return Node{}, fmt.Errorf("%w: path climbs out of the largest tree", ErrMalformed)
		}
		s, err := q.shift(flattree.Sibling(n.Index))
		if err != nil {
			return Node{}, err
		}
		if s.Size > compact.MaxUint-n.Size {
			return Node{}, fmt.Errorf("%w: node %d makes the tree too large", ErrMalformed, s.Index)
		}
		n = Parent(n, s)
		b.Nodes = append(b.Nodes, s, n)
	}
	return n, nil
}

// climbParts computes the node that the block, hash and seek parts of p lead
// to. The result is nil if p has no such parts.
//
// claimed says that the node was sent as it is: its hash was not computed, and
// so says nothing about its size.
func (b *Batch) climbParts(p *Proof) (root *Node, claimed bool, err error) {
	if p.Seek != nil && len(p.Seek.Nodes) > 0 {
		list := p.Seek.Nodes
		if err := checkIndex(list[0].Index); err != nil {
			return nil, false, err
		}
		n, err := b.climb(list[0], nodeQueue{nodes: list[1:]})
		if err != nil {
			return nil, false, err
		}
		root, claimed = &n, len(list) == 1
	}

	var start Node
	q := nodeQueue{extra: root}
	switch {
	case p.Block != nil:
		if p.Block.Index >= MaxLength {
			return nil, false, fmt.Errorf("%w: block %d", ErrMalformed, p.Block.Index)
		}
		start, claimed = Leaf(p.Block.Index, p.Block.Value), false
		q.nodes = p.Block.Nodes
	case p.Hash != nil:
		if err := checkIndex(p.Hash.Index); err != nil {
			return nil, false, err
		}
		q.nodes = p.Hash.Nodes
		if start, err = q.shift(p.Hash.Index); err != nil {
			return nil, false, err
		}
		claimed = q.empty()
	default:
		return root, claimed, nil
	}
	n, err := b.climb(start, q)
	return &n, claimed, err
}

// checkIndex refuses node indexes outside the largest tree.
func checkIndex(index uint64) error {
	if index >= 2*MaxLength || flattree.Depth(index) > maxDepth {
		return fmt.Errorf("%w: node index %d", ErrMalformed, index)
	}
	return nil
}

// grow extends b to the tree of length blocks with the nodes that next gives.
func (b *Batch) grow(length uint64, next func(index uint64) (Node, error)) error {
	add := func(index uint64) error {
		n, err := next(index)
		if err != nil {
			return err
		}
		return b.addForeignRoot(n)
	}

	var array [flattree.MaxRoots]uint64
	own := slices.Clone(b.Tree.Roots)
	joined := len(own) == 0 // whether own roots that end within a new root have been joined to it
	for _, root := range flattree.AppendRoots(array[:0], length) {
		if len(own) > 0 && own[0].Index == root {
			own = own[1:]
			continue
		}
		if !joined {
			joined = true
			if len(own) > 0 {
				// All roots left are below root: append siblings until they are root.
				for last := own[len(own)-1].Index; last != root; last = flattree.Parent(last) {
					if flattree.Depth(last) >= maxDepth {
						return fmt.Errorf("%w: upgrade to %d blocks does not contain the known tree", ErrMalformed, length)
					}
					if flattree.IsLeft(last) {
						if err := add(flattree.Sibling(last)); err != nil {
							return err
						}
					}
				}
				own = nil
				continue
			}
		}
		if err := add(root); err != nil {
			return err
		}
	}
	return nil
}

// upgrade applies the upgrade part of p. climbed is the node that the other
// parts lead to, or nil; the result says whether the upgrade contains it.
func (b *Batch) upgrade(p *UpgradeProof, prologue *Prologue, climbed *Node) (used bool, err error) {
	if p.Start > MaxLength || p.Length > MaxLength-p.Start {
		return false, fmt.Errorf("%w: upgrade to block %d + %d", ErrMalformed, p.Start, p.Length)
	}
	if prologue != nil && p.Start < prologue.Length && (p.Start != 0 || p.Length < prologue.Length) {
		return false, ErrPrologue
	}
	length := p.Start + p.Length
	if length < b.base.Length {
		return false, fmt.Errorf("%w: upgrade to %d blocks, %d are known", ErrMalformed, length, b.base.Length)
	}
	q := nodeQueue{nodes: p.Nodes, extra: climbed}
	if err := b.grow(length, q.shift); err != nil {
		return false, err
	}
	if prologue != nil && length == prologue.Length && b.Tree.Hash() != prologue.Hash {
		return false, ErrPrologue
	}
	b.Prefix = b.Tree
	if len(p.Additional) > 0 {
		b.Prefix = clone(b.Tree)
		if b.Tree.Length == 0 {
			return false, fmt.Errorf("%w: additional nodes without upgrade", ErrMalformed)
		}
	}
	for _, n := range p.Additional {
		if err := checkIndex(n.Index); err != nil {
			return false, err
		}
		if err := b.addForeignRoot(n); err != nil {
			return false, err
		}
	}
	b.Signature = slices.Clone(p.Signature) // p may live in a buffer that is used again
	return q.extra == nil, nil
}

// Verify checks p against the tree t, whose stored nodes r has, and returns
// what p adds to it. prologue is that of the core's manifest, if any. The proof
// must have t's fork; for higher ones see [NewReorg].
//
// If the batch is Upgraded, nothing in it may be believed before its Signature
// over its Tree is verified. If it is not, all of it is proven by nodes that t
// or r have.
//
// Errors match [ErrMalformed], [ErrDetached], [ErrChecksum] or [ErrPrologue];
// others come from r.
func Verify(t Tree, prologue *Prologue, r NodeReader, p *Proof) (*Batch, error) {
	b := &Batch{Tree: t, Ancestors: t.Length, base: t, Nodes: make([]Node, 0, 2*p.CountNodes()+1)}
	b.Tree.Fork = p.Fork
	if p.Upgrade != nil {
		b.Tree = clone(b.Tree)
	}
	climbed, claimed, err := b.climbParts(p)
	if err != nil {
		return nil, err
	}
	if p.Upgrade != nil {
		used, err := b.upgrade(p.Upgrade, prologue, climbed)
		if err != nil {
			return nil, err
		}
		if used {
			climbed = nil
		}
	}
	if climbed != nil {
		if err := attached(t, r, *climbed, claimed); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// attached checks n against the node that is known by its index. A hash that
// was computed from children covers the sum of their sizes, so the size of n
// needs no check then; it may even differ from the known one, which came with
// some earlier path as one of the two lowest nodes and could be off by what its
// sibling was off the other way. Such a node is replaced by n.
func attached(t Tree, r NodeReader, n Node, claimed bool) error {
	known, ok, err := r.Node(n.Index)
	switch {
	case err != nil:
		return fmt.Errorf("read tree node %d: %w", n.Index, err)
	case !ok || flattree.RightSpan(n.Index) >= 2*t.Length:
		return fmt.Errorf("%w: %d", ErrDetached, n.Index)
	case known.Hash != n.Hash || claimed && known.Size != n.Size:
		return fmt.Errorf("%w at node %d", ErrChecksum, n.Index)
	}
	return nil
}

// VerifyHead checks the upgrade of p on its own, from the empty tree. It serves
// to compare the signed head of a peer with one's own; its signature is not
// looked at. The batch is not meant to be stored.
func VerifyHead(prologue *Prologue, p *Proof) (*Batch, error) {
	if p.Upgrade == nil || p.Upgrade.Start != 0 {
		return nil, fmt.Errorf("%w: no upgrade from 0", ErrMalformed)
	}
	return Verify(Tree{Fork: p.Fork}, prologue, noNodes{}, p)
}

type noNodes struct{}

func (noNodes) Node(uint64) (Node, bool, error) { return Node{}, false, nil }

// Extend returns the tree of t.Length + n blocks, taking the nodes that lead
// there from nodes. The error matches [ErrMalformed] when they do not.
func Extend(t Tree, nodes []Node, n uint64) (Tree, error) {
	if t.Length > MaxLength || n > MaxLength-t.Length {
		return Tree{}, fmt.Errorf("%w: %d + %d blocks", ErrMalformed, t.Length, n)
	}
	b := NewBatch(t)
	err := b.grow(t.Length+n, func(index uint64) (Node, error) {
		// The last one counts, as in the reference.
		for i := len(nodes) - 1; i >= 0; i-- {
			if nodes[i].Index == index {
				return nodes[i], nil
			}
		}
		return Node{}, fmt.Errorf("%w: node %d is missing", ErrMalformed, index)
	})
	return b.Tree, err
}
