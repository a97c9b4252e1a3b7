package bee

import (
	"context"
	"iter"
)

// Get returns the entry of key as the batch leaves it. The error matches
// [ErrNotFound] if there is none.
func (b *Batch) Get(ctx context.Context, key []byte) (Entry, error) {
	switch {
	case b.done:
		return Entry{}, ErrBatch
	case !b.locked: // nothing was changed yet
		return b.t.Get(ctx, key)
	}
	stored := b.t.stored(key)
	for n := b.root; n != nil; {
		i, found, err := b.search(ctx, n, stored)
		if err != nil {
			return Entry{}, err
		}
		if found {
			return b.entry(ctx, n.keys[i].seq)
		}
		if len(n.children) == 0 {
			break
		}
		if n, err = b.child(ctx, n, i); err != nil {
			return Entry{}, err
		}
	}
	return Entry{}, ErrNotFound
}

// Range yields the entries in r, in order, as the batch leaves them, up to the
// first error. The batch must not be changed meanwhile.
func (b *Batch) Range(ctx context.Context, r Range) iter.Seq2[Entry, error] {
	if !b.done && !b.locked {
		return b.t.Range(ctx, r)
	}
	return func(yield func(Entry, error) bool) {
		if b.done {
			yield(Entry{}, ErrBatch)
			return
		}
		g := batchRange{b: b, ctx: ctx, Range: r, yield: yield}
		low, high, lowIncl, highIncl := b.t.bounds(r)
		g.start, g.startIncl, g.end, g.endIncl = low, lowIncl, high, highIncl
		if r.Reverse {
			g.start, g.startIncl, g.end, g.endIncl = high, highIncl, low, lowIncl
		}
		if b.root == nil {
			return
		}
		if _, err := g.visit(b.root, g.start != nil); err != nil {
			yield(Entry{}, err)
		}
	}
}

// A batchRange is one range read of a batch.
type batchRange struct {
	Range
	b                  *Batch
	ctx                context.Context
	start, end         []byte // in the order of reading; nil: no bound
	startIncl, endIncl bool
	yield              func(Entry, error) bool
	count              int
}

// visit yields the keys below n; with bounded, only those from start on. It
// returns whether there may be more to come.
func (g *batchRange) visit(n *node, bounded bool) (more bool, err error) {
	// As in a cursor, 2k is child k and 2k+1 key k.
	last, step := 2*len(n.keys), 1
	at := 0
	if g.Reverse {
		at, step = last, -1
	}
	first := -1 // the child in which start lies
	if bounded {
		i, found, err := g.b.search(g.ctx, n, g.start)
		switch {
		case err != nil:
			return false, err
		case found && g.startIncl:
			at = 2*i + 1
		case found:
			at = 2*i + 1 + step
		default:
			at, first = 2*i, 2*i
		}
	}
	for ; at >= 0 && at <= last; at += step {
		switch {
		case at%2 == 1:
			more, err = g.emit(n, at/2)
		case len(n.children) > 0:
			var c *node
			if c, err = g.b.child(g.ctx, n, at/2); err == nil {
				more, err = g.visit(c, at == first)
			}
		default:
			continue
		}
		if err != nil || !more {
			return false, err
		}
	}
	return true, nil
}

// emit yields key i of n.
func (g *batchRange) emit(n *node, i int) (more bool, err error) {
	key, err := g.b.key(g.ctx, n, i)
	if err != nil || beyond(key, g.end, g.endIncl, g.Reverse) {
		return false, err
	}
	e, err := g.b.entry(g.ctx, n.keys[i].seq)
	if err != nil || !g.yield(e, nil) {
		return false, err
	}
	g.count++
	return g.Limit <= 0 || g.count < g.Limit, nil
}
