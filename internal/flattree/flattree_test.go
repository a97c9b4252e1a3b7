package flattree

import (
	"slices"
	"testing"

	"github.com/pkgswarm/pkgswarm/internal/vectors"
)

func TestVectors(t *testing.T) {
	var v struct {
		Nodes []struct {
			Index, Offset, Parent, Sibling, Leaves uint64
			Depth                                  int
			Spans                                  [2]uint64
		}
		Roots []struct {
			Length    uint64
			FullRoots []uint64
		}
		IsRoot []struct {
			Index, Length uint64
			IsRoot        bool
		}
	}
	vectors.Load(t, "flat-tree.json", &v)
	if len(v.Nodes) == 0 || len(v.Roots) == 0 || len(v.IsRoot) == 0 {
		t.Fatal("vector file lacks a section")
	}
	for _, c := range v.Nodes {
		n := c.Index
		if Depth(n) != c.Depth || Offset(n) != c.Offset || Index(c.Depth, c.Offset) != n {
			t.Errorf("node %d: depth %d offset %d, want %d %d", n, Depth(n), Offset(n), c.Depth, c.Offset)
		}
		if Parent(n) != c.Parent || Sibling(n) != c.Sibling || Leaves(n) != c.Leaves {
			t.Errorf("node %d: parent %d sibling %d leaves %d, want %d %d %d",
				n, Parent(n), Sibling(n), Leaves(n), c.Parent, c.Sibling, c.Leaves)
		}
		if got := [2]uint64{LeftSpan(n), RightSpan(n)}; got != c.Spans {
			t.Errorf("node %d: spans %v, want %v", n, got, c.Spans)
		}
	}
	for _, c := range v.Roots {
		if got := AppendRoots(nil, c.Length); !slices.Equal(got, c.FullRoots) {
			t.Errorf("AppendRoots(%d) = %v, want %v", c.Length, got, c.FullRoots)
		}
	}
	for _, c := range v.IsRoot {
		if got := IsRoot(c.Index, c.Length); got != c.IsRoot {
			t.Errorf("IsRoot(%d, %d) = %v", c.Index, c.Length, got)
		}
	}
}

func TestRelations(t *testing.T) {
	for n := uint64(0); n < 5000; n++ {
		p := Parent(n)
		if IsLeft(n) != (LeftChild(p) == n) || IsLeft(n) == (RightChild(p) == n) {
			t.Errorf("children of %d are %d and %d; IsLeft(%d) = %v", p, LeftChild(p), RightChild(p), n, IsLeft(n))
		}
		if s := Sibling(n); Parent(s) != p || Sibling(s) != n {
			t.Errorf("sibling of %d is %d", n, s)
		}
		if !Contains(p, n) || Contains(n, p) || RightSpan(n)-LeftSpan(n) != 2*(Leaves(n)-1) {
			t.Errorf("spans of %d do not fit its parent %d", n, p)
		}
	}
}

func TestRootsBySlowWay(t *testing.T) {
	var roots []uint64 // grown leaf by leaf
	for length := uint64(0); length < 600; length++ {
		if got := AppendRoots(nil, length); !slices.Equal(got, roots) {
			t.Fatalf("AppendRoots(%d) = %v, want %v", length, got, roots)
		}
		for n := uint64(0); n < 2*length+4; n++ {
			if got := IsRoot(n, length); got != slices.Contains(roots, n) {
				t.Fatalf("IsRoot(%d, %d) = %v, roots are %v", n, length, got, roots)
			}
		}
		var straddling []uint64
		for n := uint64(0); n < 2*length; n++ {
			if LeftSpan(n) < 2*length && RightSpan(n) >= 2*length {
				straddling = append(straddling, n)
			}
		}
		got := AppendStraddling(nil, length)
		slices.Sort(got)
		if !slices.Equal(got, straddling) {
			t.Fatalf("AppendStraddling(%d) = %v, want %v", length, got, straddling)
		}
		roots = append(roots, 2*length)
		for k := len(roots); k > 1 && Sibling(roots[k-1]) == roots[k-2]; k-- {
			roots = append(roots[:k-2], Parent(roots[k-1]))
		}
	}
}

func TestLargest(t *testing.T) {
	const length = 1<<52 - 1
	roots := AppendRoots(nil, length)
	if len(roots) != 52 || roots[51] != 2*(length-1) {
		t.Errorf("AppendRoots(2^52-1) has %d roots, last %d", len(roots), roots[len(roots)-1])
	}
}
