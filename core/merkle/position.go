package merkle

import (
	"fmt"

	"github.com/pkgswarm/pkgswarm/internal/flattree"
)

// ByteOffset returns the number of bytes before block, which may be t.Length.
// The error matches [ErrNotStored] when a node on the way is not stored, and
// [ErrRequest] when there is no such block.
func ByteOffset(t Tree, r NodeReader, block uint64) (uint64, error) {
	if block > t.Length {
		return 0, fmt.Errorf("%w: block %d of %d", ErrRequest, block, t.Length)
	}
	var offset uint64
	leaf := 2 * block
	for _, root := range t.Roots {
		if leaf > flattree.RightSpan(root.Index) {
			offset += root.Size
			continue
		}
		for n := root.Index; n != leaf; {
			left := flattree.LeftChild(n)
			if leaf < n {
				n = left
				continue
			}
			l, err := stored(r, left)
			if err != nil {
				return 0, err
			}
			offset += l.Size
			n = flattree.RightChild(n)
		}
		break
	}
	return offset, nil
}

// A Position is the result of [Seek].
type Position struct {
	// Found says that the position is in block Start, Offset bytes from its
	// beginning. Start is the length of the tree if the position is its end.
	Found  bool
	Offset uint64

	// If not Found, the position is in one of the blocks [Start, End), but
	// nodes that tell which are not stored. A peer that is asked for the hash
	// of node 2·i for any i among these blocks, with Nodes nodes, and for the
	// seek will send them.
	Start, End uint64
	Nodes      uint64
}

// Seek finds the block that holds the byte at position bytes. Padding is the
// number of bytes of every block that do not count; at most 255. A position
// past the end of the tree gives [ErrRequest].
func Seek(t Tree, r NodeReader, bytes, padding uint64) (Position, error) {
	if padding > maxPadding || bytes > t.ByteLength() {
		return Position{}, fmt.Errorf("%w: seek to byte %d of %d", ErrRequest, bytes, t.ByteLength())
	}
	rest := int64(bytes)
	if rest == 0 {
		return Position{Found: true}, nil
	}
	for _, root := range t.Roots {
		size := unpadded(root, padding)
		if rest == size {
			return Position{Found: true, Start: flattree.RightSpan(root.Index)/2 + 1}, nil
		}
		if rest > size {
			rest -= size
			continue
		}
		return seekIn(r, root.Index, rest, padding)
	}
	return Position{}, fmt.Errorf("%w: seek to byte %d with padding %d", ErrRequest, bytes, padding)
}

// seekIn finds the block below root that is bytes behind its first byte.
func seekIn(r NodeReader, root uint64, bytes int64, padding uint64) (Position, error) {
	n, rest, atEnd, err := descend(r, root, bytes, padding)
	if err != nil {
		return Position{}, err
	}
	if atEnd {
		return Position{Found: true, Start: flattree.RightSpan(n)/2 + 1}, nil
	}
	start, end := flattree.LeftSpan(n)/2, flattree.RightSpan(n)/2+1
	if flattree.Depth(n) == 0 {
		return Position{Found: true, Start: start, Offset: uint64(rest)}, nil
	}
	return Position{Start: start, End: end, Nodes: uint64(flattree.Depth(n))}, nil
}

// MissingNodes returns the number of steps from node index up to the first node
// that is stored: what a request for it must say. It is 0 for nodes outside the
// tree of length blocks.
func MissingNodes(length uint64, r NodeReader, index uint64) (uint64, error) {
	head := 2 * length
	if index >= head || flattree.RightSpan(index) >= head {
		return 0, nil
	}
	var steps uint64
	for n := index; !flattree.Contains(n, head); n = flattree.Parent(n) {
		_, ok, err := r.Node(n)
		if err != nil {
			return 0, fmt.Errorf("read tree node %d: %w", n, err)
		}
		if ok {
			break
		}
		steps++
	}
	return steps, nil
}

// MaxMissingNodes returns the most that [MissingNodes] can be for a reader that
// has the roots of a tree of length blocks and nothing else.
func MaxMissingNodes(length, index uint64) uint64 {
	head := 2 * length
	if index >= head || flattree.RightSpan(index) >= head || flattree.IsRoot(index, length) {
		return 0
	}
	var steps uint64
	for n := flattree.Parent(index); !flattree.Contains(n, head); n = flattree.Parent(n) {
		steps++
	}
	return steps
}
