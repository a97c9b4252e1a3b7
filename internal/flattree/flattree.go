// Package flattree does the arithmetic of flat trees: binary trees whose nodes
// are numbered by an in-order walk, so that leaf i is node 2i and no node ever
// changes its number while the tree grows.
//
//	      3
//	  1       5
//	0   2   4   6   8
//
// A node has a depth (0 for leaves) and an offset (its place among the nodes of
// that depth); its index is (2·offset + 1)·2^depth − 1. Indexes must be below
// 2^62, so that every relation below fits a uint64.
//
// The numbering is that of the reference's flat-tree package.
package flattree

import "math/bits"

// MaxRoots is the largest number of roots a tree can have.
const MaxRoots = 64

// Index returns the node at that depth and offset.
func Index(depth int, offset uint64) uint64 { return (2*offset+1)<<depth - 1 }

// Depth returns the number of levels below node n, 0 for a leaf.
func Depth(n uint64) int { return bits.TrailingZeros64(^n) }

// Offset returns the number of nodes of n's depth that lie left of n.
func Offset(n uint64) uint64 { return n >> (Depth(n) + 1) }

// Parent returns the node above n.
func Parent(n uint64) uint64 {
	d := Depth(n)
	return Index(d+1, n>>(d+2))
}

// Sibling returns the other child of n's parent.
func Sibling(n uint64) uint64 {
	d := Depth(n)
	return n ^ 2<<d // flips the lowest bit of the offset
}

// IsLeft says whether n is the left child of its parent.
func IsLeft(n uint64) bool { return n>>(Depth(n)+1)&1 == 0 }

// LeftChild returns the left node below n, which must not be a leaf.
func LeftChild(n uint64) uint64 { return n - 1<<(Depth(n)-1) }

// RightChild returns the right node below n, which must not be a leaf.
func RightChild(n uint64) uint64 { return n + 1<<(Depth(n)-1) }

// LeftSpan returns the leftmost leaf node below n, or n if it is a leaf.
func LeftSpan(n uint64) uint64 { return n + 1 - 1<<Depth(n) }

// RightSpan returns the rightmost leaf node below n, or n if it is a leaf.
func RightSpan(n uint64) uint64 { return n - 1 + 1<<Depth(n) }

// Leaves returns the number of leaves below n, 1 for a leaf.
func Leaves(n uint64) uint64 { return 1 << Depth(n) }

// Contains says whether x is n or lies below it.
func Contains(n, x uint64) bool { return LeftSpan(n) <= x && x <= RightSpan(n) }

// IsRoot says whether n is one of the roots of a tree of length leaves.
func IsRoot(n, length uint64) bool {
	d := Depth(n)
	return d < 63 && length>>d&1 == 1 && LeftSpan(n) == length>>(d+1)<<(d+2)
}

// AppendRoots appends the roots of a tree of length leaves, left to right: one
// complete subtree for each power of two in length, the largest first. A dst
// with room for MaxRoots elements is never reallocated.
func AppendRoots(dst []uint64, length uint64) []uint64 {
	var start uint64 // first leaf not covered yet
	for rest := length; rest > 0; {
		d := bits.Len64(rest) - 1
		dst = append(dst, Index(d, start>>d))
		start += 1 << d
		rest -= 1 << d
	}
	return dst
}

// AppendStraddling appends the nodes that begin before leaf length and end at
// or after it, though their index is that of a node before it: those that a
// truncation to length leaves makes wrong besides the nodes from 2·length on.
func AppendStraddling(dst []uint64, length uint64) []uint64 {
	if length == 0 {
		return dst
	}
	head := 2 * length
	for n := head - 2; ; n = Parent(n) {
		if n < head && RightSpan(n) >= head {
			dst = append(dst, n)
		}
		if n >= head && Offset(n) == 0 {
			return dst
		}
	}
}
