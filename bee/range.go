package bee

import (
	"bytes"
	"context"
	"fmt"
	"iter"
)

// A Range says which keys to read. Nil bounds do not bound; GT wins over GTE, and
// LT over LTE.
type Range struct {
	GT, GTE, LT, LTE []byte
	Reverse          bool // from the highest key down
	Limit            int  // at most so many entries; 0 is all
}

// bounds returns r's bounds as stored, with those that a sub implies.
func (t *Tree) bounds(r Range) (low, high []byte, lowIncl, highIncl bool) {
	switch {
	case r.GT != nil:
		low = t.stored(r.GT)
	case r.GTE != nil:
		low, lowIncl = t.stored(r.GTE), true
	case t.sub:
		low = t.stored([]byte{0})
	}
	switch {
	case r.LT != nil:
		high = t.stored(r.LT)
	case r.LTE != nil:
		high, highIncl = t.stored(r.LTE), true
	case t.sub:
		high = bytes.Clone(t.prefix)
		high[len(high)-1]++
	}
	return low, high, lowIncl, highIncl
}

// Range yields the entries in r, in order, up to the first error.
func (t *Tree) Range(ctx context.Context, r Range) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		t.s.refresh()
		low, high, lowIncl, highIncl := t.bounds(r)
		c := &cursor{walk: walk{s: t.s, ctx: ctx}, reverse: r.Reverse}
		start, startIncl, end, endIncl := low, lowIncl, high, highIncl
		if r.Reverse {
			start, startIncl, end, endIncl = high, highIncl, low, lowIncl
		}
		if err := c.open(t.Version(), start, startIncl); err != nil {
			yield(Entry{}, err)
			return
		}
		for n := 0; r.Limit <= 0 || n < r.Limit; n++ {
			b, err := c.next()
			if err != nil {
				yield(Entry{}, err)
				return
			}
			if b == nil || beyond(b.key, end, endIncl, r.Reverse) {
				return
			}
			if !yield(t.entry(b.seq, b.key, b.value), nil) {
				return
			}
		}
	}
}

// beyond reports whether key lies behind the end of a range.
func beyond(key, end []byte, incl, reverse bool) bool {
	if end == nil {
		return false
	}
	c := bytes.Compare(key, end)
	if reverse {
		c = -c
	}
	return c > 0 || c == 0 && !incl
}

// A cursor walks the keys of a version in order.
type cursor struct {
	walk
	reverse bool
	stack   []step
}

// A step is a node on the way to the next key: i is what comes next in it, 2k for
// child k and 2k+1 for key k.
type step struct {
	place
	i int
}

// push descends to a node, of which all is to come.
func (c *cursor) push(a address) error {
	if len(c.stack) >= maxDepth {
		return fmt.Errorf("tree is too deep: %w", ErrFormat)
	}
	last := a.seq
	if n := len(c.stack); n > 0 {
		last = c.stack[n-1].seq
	}
	p, err := c.place(a, last)
	if err != nil {
		return err
	}
	s := step{place: p}
	if c.reverse {
		s.i = 2 * len(p.keys)
	}
	c.stack = append(c.stack, s)
	return nil
}

// open goes to the first key at or behind start; nil is the very first.
func (c *cursor) open(version uint64, start []byte, incl bool) error {
	if version < 2 {
		return nil
	}
	at := address{seq: version - 1}
	for {
		if err := c.push(at); err != nil || start == nil {
			return err
		}
		top := &c.stack[len(c.stack)-1]
		i, found, err := c.search(&top.place, start)
		switch {
		case err != nil:
			return err
		case found && incl:
			top.i = 2*i + 1
			return nil
		case found && c.reverse:
			top.i = 2 * i
			return nil
		case found:
			top.i = 2*i + 2
			return nil
		case c.reverse:
			top.i = 2*i - 1
		default:
			top.i = 2*i + 1
		}
		if len(top.children) == 0 {
			return nil
		}
		at = top.children[i]
	}
}

// next returns the next key's block, nil at the end.
func (c *cursor) next() (*block, error) {
	for len(c.stack) > 0 {
		top := &c.stack[len(c.stack)-1]
		i := top.i
		if i < 0 || i > 2*len(top.keys) {
			c.stack = c.stack[:len(c.stack)-1]
			continue
		}
		if c.reverse {
			top.i--
		} else {
			top.i++
		}
		if i%2 == 1 {
			if top.keys[i/2] == top.seq {
				return top.owner, nil
			}
			return c.block(top.keys[i/2])
		}
		if len(top.children) > 0 {
			if err := c.push(top.children[i/2]); err != nil {
				return nil, err
			}
		}
	}
	return nil, nil
}

// HistoryRange says which blocks to read: [From, To). Zero values are the first
// and the version's end.
type HistoryRange struct {
	From, To uint64
	Reverse  bool
	Limit    int // at most so many; 0 is all
}

// A Change is one operation of a tree's history.
type Change struct {
	Entry
	Deleted bool
}

// History yields the operations in r, in the order they were made, up to the first
// error. It is that of the whole tree: a sub's keys come without its prefix, those
// of others are left out.
func (t *Tree) History(ctx context.Context, r HistoryRange) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		t.s.refresh()
		lo, hi := max(1, r.From), t.Version()
		if r.To != 0 {
			hi = min(hi, r.To)
		}
		n := 0
		for i := lo; i < hi && (r.Limit <= 0 || n < r.Limit); i++ {
			seq := i
			if r.Reverse {
				seq = hi - 1 - (i - lo)
			}
			b, err := t.s.block(ctx, seq)
			if err != nil {
				yield(Change{}, err)
				return
			}
			if !bytes.HasPrefix(b.key, t.prefix) {
				continue
			}
			n++
			if !yield(Change{t.entry(b.seq, b.key, b.value), b.deletes()}, nil) {
				return
			}
		}
	}
}
