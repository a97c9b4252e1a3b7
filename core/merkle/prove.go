package merkle

import (
	"fmt"

	"github.com/pkgswarm/pkgswarm/internal/flattree"
)

// maxPadding is the largest padding of a seek; the reference uses 8 at most.
const maxPadding = 255

// Prove returns the proof that answers req, without block value, signature and
// manifest. t is the whole tree, r has its nodes, and prologueLen is the length
// of the core's prologue, or 0: an upgrade from inside it is widened to all of
// it. A tree without blocks gives an empty proof.
//
// The error matches [ErrRequest] when nobody could answer, and [ErrNotStored]
// when r lacks a node.
func Prove(t Tree, prologueLen uint64, r NodeReader, req Request) (*Proof, error) {
	proof := &Proof{Fork: t.Fork}
	if t.Length == 0 {
		return proof, nil
	}
	p := prover{tree: t, r: r, req: req, proof: proof}
	if err := p.check(prologueLen); err != nil {
		return nil, err
	}
	if err := p.run(); err != nil {
		return nil, err
	}
	return proof, nil
}

// A prover holds one call of Prove.
type prover struct {
	tree  Tree
	r     NodeReader
	req   Request
	proof *Proof

	head, from, to uint64 // node indexes: 2 · the lengths of tree, upgrade.start, upgrade's end

	target    uint64 // node of the block or hash
	hasTarget bool
	emitted   bool // whether the paths for target and seek are in the proof
}

// check validates the request and computes the positions it means.
func (p *prover) check(prologueLen uint64) error {
	p.head = 2 * p.tree.Length
	p.to = p.head
	if u := p.req.Upgrade; u != nil {
		start, length := u.Start, u.Length
		if start < prologueLen {
			start, length = 0, prologueLen
		}
		if start > p.tree.Length || length == 0 || length > p.tree.Length-start {
			return fmt.Errorf("%w: upgrade from %d by %d of %d blocks", ErrRequest, start, length, p.tree.Length)
		}
		p.proof.Upgrade = &UpgradeProof{Start: start, Length: length}
		p.from, p.to = 2*start, 2*(start+length)
	}
	switch {
	case p.req.Block != nil:
		if p.req.Block.Index >= p.tree.Length {
			return fmt.Errorf("%w: block %d of %d", ErrRequest, p.req.Block.Index, p.tree.Length)
		}
		p.target, p.hasTarget = 2*p.req.Block.Index, true
		p.proof.Block = &BlockProof{Index: p.req.Block.Index}
	case p.req.Hash != nil:
		index := p.req.Hash.Index
		if index >= p.head || flattree.RightSpan(index) >= p.head {
			return fmt.Errorf("%w: node %d of %d blocks", ErrRequest, index, p.tree.Length)
		}
		p.target, p.hasTarget = index, true
		p.proof.Hash = &HashProof{Index: index}
	}
	if s := p.req.Seek; s != nil {
		if s.Padding > maxPadding {
			return fmt.Errorf("%w: seek with padding %d", ErrRequest, s.Padding)
		}
		if p.proof.Upgrade != nil && p.hasTarget && p.target >= p.from {
			return fmt.Errorf("%w: seek and new block in one upgrade", ErrRequest)
		}
	}
	return nil
}

func (p *prover) run() error {
	sub := p.head // subtree whose path goes into the upgrade; head is none
	switch {
	case p.hasTarget && (p.proof.Upgrade == nil || flattree.RightSpan(p.target) < p.from):
		root, err := p.raise()
		if err != nil {
			return err
		}
		seekNode := p.head
		if p.req.Seek != nil {
			if seekNode, err = p.seekBelow(root); err != nil {
				return err
			}
		}
		sub = root
		if err := p.paths(seekNode, root); err != nil {
			return err
		}
	case p.proof.Upgrade == nil:
		return nil
	case p.req.Seek != nil:
		var err error
		if sub, err = p.seekFromHead(); err != nil {
			return err
		}
	case p.hasTarget:
		sub = p.target
	}
	if p.proof.Upgrade == nil {
		return nil
	}
	if err := p.upgrade(sub); err != nil {
		return err
	}
	if p.hasTarget && !p.emitted {
		return fmt.Errorf("%w: node %d is not part of the upgrade", ErrRequest, p.target)
	}
	return nil
}

// raise returns the ancestor of the target that the reader says it knows.
func (p *prover) raise() (uint64, error) {
	steps := uint64(0)
	if p.req.Block != nil {
		steps = p.req.Block.Nodes
	} else {
		steps = p.req.Hash.Nodes
	}
	n := p.target
	for range steps {
		if n = flattree.Parent(n); flattree.Contains(n, p.to) {
			return 0, fmt.Errorf("%w: %d nodes above node %d", ErrRequest, steps, p.target)
		}
	}
	return n, nil
}

// add appends the stored node of that index to list.
func (p *prover) add(list *[]Node, index uint64) error {
	n, err := stored(p.r, index)
	if err != nil {
		return err
	}
	if *list == nil {
		*list = make([]Node, 0, 8)
	}
	*list = append(*list, n)
	return nil
}

// paths emits the path from the target up to root, in which the path of
// seekNode replaces the sibling that contains it; without target the path from
// seekNode to root.
func (p *prover) paths(seekNode, root uint64) error {
	p.emitted = true
	if !p.hasTarget {
		return p.seekPath(seekNode, root)
	}
	var list *[]Node
	if p.proof.Block != nil {
		list = &p.proof.Block.Nodes
	} else {
		list = &p.proof.Hash.Nodes
		if err := p.add(list, p.target); err != nil {
			return err
		}
	}
	for n := p.target; n != root; n = flattree.Parent(n) {
		s := flattree.Sibling(n)
		var err error
		if p.req.Seek != nil && s != seekNode && flattree.Contains(s, seekNode) {
			err = p.seekPath(seekNode, s)
		} else {
			err = p.add(list, s)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// seekPath emits seekNode and the siblings from it up to root.
func (p *prover) seekPath(seekNode, root uint64) error {
	p.proof.Seek = &SeekProof{Bytes: p.req.Seek.Bytes}
	list := &p.proof.Seek.Nodes
	if err := p.add(list, seekNode); err != nil {
		return err
	}
	for n := seekNode; n != root; n = flattree.Parent(n) {
		if err := p.add(list, flattree.Sibling(n)); err != nil {
			return err
		}
	}
	return nil
}

// upgrade emits the nodes of the upgrade and the additional ones. The path of
// sub takes the place of the first node that contains it.
func (p *prover) upgrade(sub uint64) error {
	u := p.proof.Upgrade
	err := walkUpgrade(p.from, p.to, func(index uint64) error {
		if !p.emitted && flattree.Contains(index, sub) {
			return p.paths(sub, index)
		}
		return p.add(&u.Nodes, index)
	})
	if err != nil || p.to == p.head {
		return err
	}
	return walkUpgrade(p.to, p.head, func(index uint64) error {
		return p.add(&u.Additional, index)
	})
}

// walkUpgrade calls emit with the nodes that lead from the tree of from/2
// blocks to that of to/2 blocks.
func walkUpgrade(from, to uint64, emit func(index uint64) error) error {
	joined := from == 0
	var array [flattree.MaxRoots]uint64
	for _, root := range flattree.AppendRoots(array[:0], to/2) {
		if flattree.RightSpan(root) < from {
			continue // the reader has it
		}
		if joined || !flattree.Contains(root, from-2) {
			joined = true
			if err := emit(root); err != nil {
				return err
			}
			continue
		}
		joined = true
		for n := from - 2; n != root; n = flattree.Parent(n) {
			if s := flattree.Sibling(n); s > from-2 {
				if err := emit(s); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// unpadded returns the size of n without padding, which may be negative if the
// padding is not that of the core.
func unpadded(n Node, padding uint64) int64 {
	return int64(n.Size) - int64(padding*flattree.Leaves(n.Index))
}

// seekFromHead returns the node at the seek's position, as deep as the stored
// nodes allow, or p.to if it is beyond the end.
func (p *prover) seekFromHead() (uint64, error) {
	bytes := int64(p.req.Seek.Bytes)
	var array [flattree.MaxRoots]uint64
	for _, root := range flattree.AppendRoots(array[:0], p.to/2) {
		n, err := stored(p.r, root)
		if err != nil {
			return 0, err
		}
		size := unpadded(n, p.req.Seek.Padding)
		if bytes == size {
			return root, nil
		}
		if bytes < size {
			return p.seekDown(root, bytes)
		}
		bytes -= size
	}
	return p.to, nil
}

// seekBelow returns the node at the seek's position, which must be below root.
func (p *prover) seekBelow(root uint64) (uint64, error) {
	s := p.req.Seek
	first := flattree.LeftSpan(root) / 2
	offset, err := ByteOffset(p.tree, p.r, first)
	if err != nil {
		return 0, err
	}
	n, err := stored(p.r, root)
	if err != nil {
		return 0, err
	}
	bytes := int64(s.Bytes) - int64(offset) + int64(s.Padding*first)
	if bytes == 0 {
		return root, nil
	}
	if bytes < 0 || bytes >= unpadded(n, s.Padding) {
		return 0, fmt.Errorf("%w: byte %d is not below node %d", ErrRequest, s.Bytes, root)
	}
	return p.seekDown(root, bytes)
}

// seekDown goes down from n to the node that begins bytes after n does.
func (p *prover) seekDown(n uint64, bytes int64) (uint64, error) {
	if bytes == 0 {
		return n, nil
	}
	n, _, _, err := descend(p.r, n, bytes, p.req.Seek.Padding)
	return n, err
}

// descend goes down from n to the node that begins bytes after n's first one.
// It stops at a leaf; above a node that is not stored; or, and then atEnd is
// true, at a left child that ends exactly there. rest is what is left of bytes
// from the beginning of the node where it stopped.
func descend(r NodeReader, n uint64, bytes int64, padding uint64) (node uint64, rest int64, atEnd bool, err error) {
	for flattree.Depth(n) > 0 {
		left, ok, err := r.Node(flattree.LeftChild(n))
		if err != nil {
			return 0, 0, false, fmt.Errorf("read tree node %d: %w", flattree.LeftChild(n), err)
		}
		if !ok {
			break
		}
		size := unpadded(left, padding)
		switch {
		case size == bytes:
			return left.Index, bytes, true, nil
		case size > bytes:
			n = left.Index
		default:
			bytes -= size
			n = flattree.RightChild(n)
		}
	}
	return n, bytes, false, nil
}
