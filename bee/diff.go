package bee

import (
	"bytes"
	"context"
	"iter"
)

// A Difference is a key whose entry differs between two versions. Left or Right is
// nil where the key does not exist.
type Difference struct {
	Left, Right *Entry
}

// Diff yields the keys in r whose entries in t, the left side, and in another
// version, the right side, are not the same block, in key order. Subtrees that both
// have in common are not read. Reverse is not supported and ignored.
func (t *Tree) Diff(ctx context.Context, version uint64, r Range) iter.Seq2[Difference, error] {
	return func(yield func(Difference, error) bool) {
		t.s.refresh()
		low, high, lowIncl, highIncl := t.bounds(r)
		d := differ{end: high, endIncl: highIncl}
		for i, v := range []uint64{t.Version(), max(1, version)} {
			c := &diffSide{walk: walk{s: t.s, ctx: ctx}}
			if err := c.open(v, low, lowIncl); err != nil {
				yield(Difference{}, err)
				return
			}
			d.sides[i] = c
		}
		for n := 0; r.Limit <= 0 || n < r.Limit; n++ {
			l, right, err := d.next()
			if err != nil {
				yield(Difference{}, err)
				return
			}
			if l == nil && right == nil {
				return
			}
			if !yield(Difference{t.pointer(l), t.pointer(right)}, nil) {
				return
			}
		}
	}
}

func (t *Tree) pointer(b *block) *Entry {
	if b == nil {
		return nil
	}
	e := t.entry(b.seq, b.key, b.value)
	return &e
}

// A differ merges two walks. What each has next is either a key or a whole
// subtree; subtrees that are the same node are skipped unread.
type differ struct {
	sides   [2]*diffSide
	end     []byte
	endIncl bool
}

type diffSide struct {
	walk
	stack []step
}

// An item is what a side has next.
type item struct {
	isKey bool
	address
	key []byte // of a key; of a subtree, the key behind it, nil if it is the last
}

func (s *diffSide) open(version uint64, start []byte, incl bool) error {
	c := cursor{walk: s.walk}
	err := c.open(version, start, incl)
	s.walk, s.stack = c.walk, c.stack
	return err
}

// peek returns what comes next; false at the end.
func (s *diffSide) peek() (item, bool, error) {
	for len(s.stack) > 0 {
		top := &s.stack[len(s.stack)-1]
		if top.i > 2*len(top.keys) {
			s.stack = s.stack[:len(s.stack)-1]
			continue
		}
		if top.i%2 == 1 {
			k, err := s.key(&top.place, top.i/2)
			return item{true, address{seq: top.keys[top.i/2]}, k}, true, err
		}
		if len(top.children) == 0 {
			top.i++
			continue
		}
		k, err := s.behind()
		return item{false, top.children[top.i/2], k}, true, err
	}
	return item{}, false, nil
}

// behind returns the first key behind the subtree that comes next.
func (s *diffSide) behind() ([]byte, error) {
	for j := len(s.stack) - 1; j >= 0; j-- {
		p := &s.stack[j]
		// Above the top, i has moved on to the key behind the child below.
		if k := p.i / 2; k < len(p.keys) {
			return s.key(&p.place, k)
		}
	}
	return nil, nil
}

// skip leaves out what comes next.
func (s *diffSide) skip() { s.stack[len(s.stack)-1].i++ }

// take returns the block of the key that comes next.
func (s *diffSide) take() (*block, error) {
	top := &s.stack[len(s.stack)-1]
	seq := top.keys[top.i/2]
	top.i++
	return s.block(seq)
}

// descend goes into the subtree that comes next.
func (s *diffSide) descend() error {
	top := &s.stack[len(s.stack)-1]
	a := top.children[top.i/2]
	top.i++
	c := cursor{walk: s.walk, stack: s.stack}
	err := c.push(a)
	s.walk, s.stack = c.walk, c.stack
	return err
}

// next returns the next key that differs, as its block on either side.
func (d *differ) next() (left, right *block, err error) {
	for {
		l, okL, err := d.sides[0].peek()
		if err != nil {
			return nil, nil, err
		}
		r, okR, err := d.sides[1].peek()
		if err != nil || !okL && !okR {
			return nil, nil, err
		}
		if okL && okR && l.isKey == r.isKey && l.address == r.address {
			d.sides[0].skip()
			d.sides[1].skip()
			continue
		}
		takeL, takeR := choose(l, okL, r, okR)
		if takeL && !l.isKey || takeR && !r.isKey {
			// Subtrees are opened, never keys taken along with them.
			if takeL && !l.isKey {
				err = d.sides[0].descend()
			}
			if err == nil && takeR && !r.isKey {
				err = d.sides[1].descend()
			}
			if err != nil {
				return nil, nil, err
			}
			continue
		}
		key := r.key
		if takeL {
			key = l.key
		}
		if beyond(key, d.end, d.endIncl, false) {
			return nil, nil, nil
		}
		if takeL {
			if left, err = d.sides[0].take(); err != nil {
				return nil, nil, err
			}
		}
		if takeR {
			right, err = d.sides[1].take()
		}
		return left, right, err
	}
}

// choose says which side's next item comes first, or both.
func choose(l item, okL bool, r item, okR bool) (takeL, takeR bool) {
	switch {
	case !okL:
		return false, true
	case !okR:
		return true, false
	case !l.isKey && !r.isKey:
		// The one that reaches further is opened: the other may be in it.
		switch c := compareEnds(l.key, r.key); {
		case c == 0:
			return true, true
		case c < 0:
			return false, true
		}
		return true, false
	case !l.isKey:
		return true, false
	case !r.isKey:
		return false, true
	}
	c := bytes.Compare(l.key, r.key)
	return c <= 0, c >= 0
}

// compareEnds compares keys of which nil is behind all.
func compareEnds(a, b []byte) int {
	switch {
	case a == nil && b == nil:
		return 0
	case a == nil:
		return 1
	case b == nil:
		return -1
	}
	return bytes.Compare(a, b)
}
