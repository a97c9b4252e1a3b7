package merkle

import (
	"encoding/binary"
	"hash"
	"sync"

	"golang.org/x/crypto/blake2b"

	"github.com/pkgswarm/pkgswarm/internal/compact"
	"github.com/pkgswarm/pkgswarm/internal/flattree"
)

// MaxLength is the largest length of a tree, in blocks. It keeps every node
// index within the 53 bits that the encoding can hold.
const MaxLength = 1 << 52

// A Hash is a BLAKE2b-256 hash of a node or a tree.
type Hash [32]byte

// A Node is one node of a tree.
type Node struct {
	Index uint64 // in flat tree order: block i is node 2i
	Size  uint64 // bytes of all blocks below
	Hash  Hash
}

// smallLeaf is the longest block that is hashed from a copy on the stack.
const smallLeaf = 503

// leafHasher hashes long blocks in place.
type leafHasher struct {
	h      hash.Hash
	header [9]byte
	sum    Hash
}

var leafHashers = sync.Pool{New: func() any {
	h, err := blake2b.New256(nil)
	if err != nil {
		panic("merkle: BLAKE2b without key: " + err.Error())
	}
	return &leafHasher{h: h}
}}

// LeafHash returns H(00 || LE64(length of block) || block).
func LeafHash(block []byte) Hash {
	if len(block) <= smallLeaf {
		var buf [9 + smallLeaf]byte
		binary.LittleEndian.PutUint64(buf[1:], uint64(len(block)))
		n := 9 + copy(buf[9:], block)
		return blake2b.Sum256(buf[:n])
	}
	l := leafHashers.Get().(*leafHasher)
	defer leafHashers.Put(l)
	l.h.Reset()
	binary.LittleEndian.PutUint64(l.header[1:], uint64(len(block)))
	l.h.Write(l.header[:])
	l.h.Write(block)
	l.h.Sum(l.sum[:0])
	return l.sum
}

// Leaf returns the leaf of block number block, whose content is data.
func Leaf(block uint64, data []byte) Node {
	return Node{Index: 2 * block, Size: uint64(len(data)), Hash: LeafHash(data)}
}

// Parent returns the node above the siblings a and b, in either order: its hash
// is H(01 || LE64(size) || left hash || right hash).
func Parent(a, b Node) Node {
	if a.Index > b.Index {
		a, b = b, a
	}
	var buf [73]byte
	buf[0] = 1
	size := a.Size + b.Size
	binary.LittleEndian.PutUint64(buf[1:], size)
	copy(buf[9:], a.Hash[:])
	copy(buf[41:], b.Hash[:])
	return Node{Index: flattree.Parent(a.Index), Size: size, Hash: blake2b.Sum256(buf[:])}
}

// TreeHash returns H(02 || hash || LE64(index) || LE64(size), for each root).
func TreeHash(roots []Node) Hash {
	var array [1 + 48*24]byte // enough for 24 roots without allocating
	buf := append(array[:0], 2)
	for _, n := range roots {
		buf = append(buf, n.Hash[:]...)
		buf = binary.LittleEndian.AppendUint64(buf, n.Index)
		buf = binary.LittleEndian.AppendUint64(buf, n.Size)
	}
	return blake2b.Sum256(buf)
}

// minNode is the shortest encoding of a node, in bytes.
const minNode = 34

// Append appends the encoding of n: uint index, uint size, hash.
func (n Node) Append(b []byte) []byte {
	b = compact.AppendUint(b, n.Index)
	b = compact.AppendUint(b, n.Size)
	return append(b, n.Hash[:]...)
}

// DecodeNode reads a node; see [Node.Append].
func DecodeNode(d *compact.Decoder) Node {
	return Node{Index: d.Uint(), Size: d.Uint(), Hash: d.Fixed32()}
}

// AppendNodes appends the number of nodes and the nodes.
func AppendNodes(b []byte, nodes []Node) []byte {
	b = compact.AppendUint(b, uint64(len(nodes)))
	for _, n := range nodes {
		b = n.Append(b)
	}
	return b
}

// DecodeNodes reads what AppendNodes wrote, at most limit nodes. The result is
// nil if there are none.
func DecodeNodes(d *compact.Decoder, limit int) []Node {
	n := d.Count(minNode)
	if n > limit {
		d.Fail(compact.ErrCount)
	}
	if n == 0 || d.Err() != nil {
		return nil
	}
	nodes := make([]Node, n)
	for i := range nodes {
		nodes[i] = DecodeNode(d)
	}
	return nodes
}

// A Tree is the head of a tree: all that is needed to grow it and to know what
// it commits to. Its zero value is the empty tree.
type Tree struct {
	Fork   uint64 // how often its history was rewritten
	Length uint64 // in blocks
	Roots  []Node // left to right, as flattree.AppendRoots orders them
}

// ByteLength returns the number of bytes in all blocks.
func (t Tree) ByteLength() uint64 {
	var n uint64
	for _, r := range t.Roots {
		n += r.Size
	}
	return n
}

// Hash returns the tree hash.
func (t Tree) Hash() Hash { return TreeHash(t.Roots) }

// A Prologue names the tree that a core must begin with.
type Prologue struct {
	Hash   Hash   // tree hash of that tree
	Length uint64 // in blocks
}

// A NodeReader looks up stored nodes. The boolean is false when the node is not
// stored; the error is for storage that cannot tell.
type NodeReader interface {
	Node(index uint64) (Node, bool, error)
}

// RootsAt appends to dst the roots of the tree of the first length blocks. The
// error matches [ErrNotStored] when r lacks one of them.
func RootsAt(dst []Node, r NodeReader, length uint64) ([]Node, error) {
	var array [flattree.MaxRoots]uint64
	for _, index := range flattree.AppendRoots(array[:0], length) {
		n, err := stored(r, index)
		if err != nil {
			return nil, err
		}
		dst = append(dst, n)
	}
	return dst, nil
}
