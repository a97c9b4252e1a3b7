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
		req := RangeRequest{Version: t.Version(), Range: t.storedRange(r)}
		w := walk{s: t.s, ctx: ctx}
		var c *cursor
		n := 0
		if t.s.askRange != nil {
			w.every = RangeHint
			w.ask = func() {
				rest := req
				if c != nil { // else it is being opened
					rest.Checkpoint = c.checkpoint()
					rest.Range.Limit = max(r.Limit-n, 0)
				}
				t.s.askRange(rest)
			}
		}
		c, end, err := openRange(w, req)
		for ; r.Limit <= 0 || n < r.Limit; n++ {
			var b *block
			if err == nil {
				b, err = c.next()
			}
			if err != nil {
				yield(Entry{}, err)
				return
			}
			if b == nil || end.before(b.key) || !yield(t.entry(b.seq, b.key, b.value), nil) {
				return
			}
		}
	}
}

// storedRange returns r with bounds as stored.
func (t *Tree) storedRange(r Range) Range {
	low, high, lowIncl, highIncl := t.bounds(r)
	out := Range{Reverse: r.Reverse, Limit: r.Limit}
	if lowIncl {
		out.GTE = low
	} else {
		out.GT = low
	}
	if highIncl {
		out.LTE = high
	} else {
		out.LT = high
	}
	return out
}

// A rangeEnd says where a range ends.
type rangeEnd struct {
	key     []byte // nil is the end of the tree
	incl    bool
	reverse bool
}

// before reports whether the range ends before key.
func (e rangeEnd) before(key []byte) bool { return beyond(key, e.key, e.incl, e.reverse) }

// openRange returns a cursor that stands before what r begins with.
func openRange(w walk, r RangeRequest) (*cursor, rangeEnd, error) {
	low, lowIncl := r.Range.GT, false
	if low == nil {
		low, lowIncl = r.Range.GTE, true
	}
	high, highIncl := r.Range.LT, false
	if high == nil {
		high, highIncl = r.Range.LTE, true
	}
	if r.Range.Reverse {
		low, lowIncl, high, highIncl = high, highIncl, low, lowIncl
	}
	c := &cursor{walk: w, reverse: r.Range.Reverse}
	end := rangeEnd{high, highIncl, r.Range.Reverse}
	if len(r.Checkpoint) > 0 {
		return c, end, c.resume(r.Version, r.Checkpoint)
	}
	return c, end, c.open(r.Version, low, lowIncl)
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
	moving  bool // next has taken a step of the last one in stack, and reads what it leads to
	resumed int  // blocks that resume has read
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

// checkpoint returns where the cursor is, for a [RangeRequest].
func (c *cursor) checkpoint() []uint64 {
	var out []uint64
	for k, s := range c.stack {
		if c.moving && k == len(c.stack)-1 {
			if s.i--; c.reverse {
				s.i += 2
			}
		}
		if s.i >= 0 {
			out = append(out, s.seq, s.offset, uint64(s.i))
		}
	}
	return out
}

// resume goes to a checkpoint.
func (c *cursor) resume(version uint64, checkpoint []uint64) error {
	seen := map[uint64]bool{}
	for ; len(checkpoint) >= 3; checkpoint = checkpoint[3:] {
		at := address{seq: checkpoint[0], offset: checkpoint[1]}
		if at.seq >= version {
			return fmt.Errorf("checkpoint in block %d: %w", at.seq, ErrFormat)
		}
		if err := c.push(at); err != nil {
			return err
		}
		seen[at.seq] = true
		c.stack[len(c.stack)-1].i = int(min(checkpoint[2], 1<<31))
	}
	c.resumed = len(seen)
	return nil
}

// next returns the next key's block, nil at the end.
func (c *cursor) next() (*block, error) {
	c.moving = true
	b, err := c.step()
	c.moving = false
	return b, err
}

func (c *cursor) step() (*block, error) {
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
