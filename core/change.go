package core

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"github.com/cockroachdb/pebble/v2"

	"github.com/pkgswarm/pkgswarm/core/merkle"
	"github.com/pkgswarm/pkgswarm/internal/flattree"
)

// inlineBytes is up to how much data one append or proof keeps its blocks in the
// database, in bytes. There they cost one sync, in a segment file two, but a
// quarter of the work.
const inlineBytes = 16 << 10

// A change is what one commit does to a core. The core's lock is held from begin
// to commit or abort.
type change struct {
	c       *Core
	b       *pebble.Batch
	head    head
	pages   map[cacheKey]*page
	cuts    map[uint8]uint64 // pages of a level behind that one are gone
	last    *page            // the page of lastKey, which most nodes are for
	lastKey cacheKey
	segs    map[uint32]int64 // change in used bytes
	written []uint64         // pages with new data in segments
	events  []Event
	deleted bool
	signed  bool // the head is one that is signed here
}

func (c *Core) begin() *change {
	h := c.head
	return &change{c: c, b: c.store.db.NewBatch(), head: h, pages: map[cacheKey]*page{}}
}

func (ch *change) abort() { ch.b.Close() }

// page returns a page that may be modified.
func (ch *change) page(level uint8, number uint64) (*page, error) {
	k := cacheKey{ch.c.id, level, number}
	if ch.last != nil && k == ch.lastKey {
		return ch.last, nil
	}
	p := ch.pages[k]
	if p == nil {
		if cut, ok := ch.cuts[level]; ch.c.known && (!ok || number <= cut) {
			old, err := ch.c.page(level, number)
			if err != nil {
				return nil, err
			}
			p = ch.c.copyPage(old)
		} else {
			p = &page{}
		}
		ch.pages[k] = p
	}
	ch.last, ch.lastKey = p, k
	return p, nil
}

// copyPage returns a copy of p, in the memory of a page that was replaced if there
// is one: most changes replace just one page. c.mu is held, as by all who use pages
// of c.
func (c *Core) copyPage(p *page) *page {
	q := c.spare
	if c.spare = nil; q == nil {
		q = new(page)
	}
	runs := append(q.runs[:0], p.runs...)
	*q = *p
	q.runs = runs
	return q
}

// changedNodes reads the nodes of a core as a change will leave them.
type changedNodes struct{ ch *change }

func (r changedNodes) Node(index uint64) (merkle.Node, bool, error) {
	level, number, local := pageOf(index)
	p, err := r.ch.peek(level, number)
	if err != nil {
		return merkle.Node{}, false, err
	}
	n, ok := p.node(local)
	return merkle.Node{Index: index, Size: n.size, Hash: n.hash}, ok, nil
}

// peek returns a page as the change will leave it. It must not be modified.
func (ch *change) peek(level uint8, number uint64) (*page, error) {
	k := cacheKey{ch.c.id, level, number}
	if ch.last != nil && k == ch.lastKey {
		return ch.last, nil
	}
	if p := ch.pages[k]; p != nil {
		return p, nil
	}
	if cut, ok := ch.cuts[level]; ok && number > cut {
		return &page{}, nil
	}
	return ch.c.page(level, number)
}

// has reports whether the data of a block will be here.
func (ch *change) has(index uint64) (bool, error) {
	if index < ch.head.contiguous {
		return true, nil
	}
	p, err := ch.peek(0, index/pageBlocks)
	return err == nil && p.data>>(index%pageBlocks)&1 != 0, err
}

// putNodes stores tree nodes.
func (ch *change) putNodes(nodes []merkle.Node) error {
	for i := range nodes {
		n := &nodes[i]
		level, number, local := pageOf(n.Index)
		p, err := ch.page(level, number)
		if err != nil {
			return err
		}
		p.set(local, pageNode{n.Size, n.Hash})
	}
	return nil
}

// putBlocks stores the data of consecutive blocks whose leaves are put already.
func (ch *change) putBlocks(first uint64, blocks [][]byte) error {
	if ch.c.rec.path != "" {
		return ch.putFileBlocks(first, blocks)
	}
	total := 0
	for _, b := range blocks {
		total += len(b)
	}
	var segment uint32
	var offset uint64
	if total > inlineBytes {
		var err error
		if segment, offset, err = ch.c.store.seg.append(blocks); err != nil {
			return err
		}
		ch.addLive(segment, int64(total))
	}
	for len(blocks) > 0 {
		number, i := first/pageBlocks, uint8(first%pageBlocks)
		n := min(len(blocks), pageBlocks-int(i))
		p, err := ch.page(0, number)
		if err != nil {
			return err
		}
		r := run{first: i, count: uint8(n), segment: segment, offset: offset}
		var size int
		for k, b := range blocks[:n] {
			size += len(b)
			p.sum(i+uint8(k), b)
		}
		if segment == 0 {
			r.chunk = p.freeChunk(i)
			if err := ch.putChunk(number*pageBlocks+uint64(r.chunk), blocks[:n], size); err != nil {
				return err
			}
		} else {
			ch.written = append(ch.written, number)
			offset += uint64(size)
		}
		p.addRun(r)
		first += uint64(n)
		blocks = blocks[n:]
	}
	return nil
}

// addRun adds r, to the run before it where the data goes on without a gap.
func (p *page) addRun(r run) {
	for i := r.first; i < r.end(); i++ {
		p.data |= 1 << i
	}
	if len(p.runs) > 0 {
		l := &p.runs[len(p.runs)-1]
		if r.segment != 0 && l.segment == r.segment && l.end() == r.first && l.offset+p.size(*l) == r.offset {
			l.count += r.count
			return
		}
	}
	p.runs = append(p.runs, r)
}

// freeChunk returns a name for a new chunk: that of its first block, unless a
// chunk of which other blocks are still in use has it.
func (p *page) freeChunk(first uint8) uint8 {
	if !p.namesChunk(first) {
		return first
	}
	for i := uint8(0); ; i++ { // there are fewer chunks than blocks
		if !p.namesChunk(i) {
			return i
		}
	}
}

func (ch *change) putChunk(name uint64, blocks [][]byte, size int) error {
	op := ch.b.SetDeferred(13, size)
	copy(op.Key, ch.c.chunkKey(name))
	n := 0
	for _, b := range blocks {
		n += copy(op.Value[n:], b)
	}
	return op.Finish()
}

func (ch *change) addLive(segment uint32, n int64) {
	if ch.segs == nil {
		ch.segs = map[uint32]int64{}
	}
	ch.segs[segment] += n
}

// clear drops the data of the blocks [lo, hi).
func (ch *change) clear(lo, hi uint64) error {
	if lo >= hi {
		return nil
	}
	ch.head.contiguous = min(ch.head.contiguous, lo)
	numbers, err := ch.c.dataPages(lo/pageBlocks, (hi-1)/pageBlocks)
	if err != nil {
		return err
	}
	for _, number := range numbers {
		p, err := ch.page(0, number)
		if err != nil {
			return err
		}
		base := number * pageBlocks
		first, end := max(lo, base)-base, min(hi, base+pageBlocks)-base
		gone, chunks := p.drop(uint8(first), uint8(end))
		for _, r := range gone {
			if r.segment != 0 {
				ch.addLive(r.segment, -int64(p.size(r)))
			}
		}
		for _, chunk := range chunks {
			if err := ch.b.Delete(ch.c.chunkKey(base+uint64(chunk)), nil); err != nil {
				return err
			}
		}
	}
	ch.events = append(ch.events, Event{Cleared, lo, hi})
	return nil
}

// dataPages returns the stored pages of level 0 in [lo, hi] that have data, in
// order.
func (c *Core) dataPages(lo, hi uint64) ([]uint64, error) {
	it, err := c.store.db.NewIter(&pebble.IterOptions{LowerBound: c.pageKey(0, lo), UpperBound: c.pageKey(0, hi+1)})
	if err != nil {
		return nil, err
	}
	var numbers []uint64
	for ok := it.First(); ok; ok = it.Next() {
		if k, v := it.Key(), it.Value(); len(k) == 14 && len(v) >= 12 && binary.LittleEndian.Uint32(v[8:]) != 0 {
			numbers = append(numbers, binary.BigEndian.Uint64(k[6:]))
		}
	}
	return numbers, errors.Join(it.Error(), it.Close())
}

// truncate cuts the tree to nb and drops what lies behind.
func (ch *change) truncate(nb *merkle.Batch) error {
	length, before := nb.Ancestors, ch.head.tree.Length
	if err := ch.clear(length, before); err != nil {
		return err
	}
	for level := uint8(0); before > 0 && flattree.Depth(rootAbove(before)) >= int(level)*pageDepths; level++ {
		if err := ch.truncateLevel(level, 2*length); err != nil {
			return err
		}
	}
	ch.events = append(ch.events, Event{Truncated, length, before})
	return nil
}

// rootAbove returns the lowest node that all nodes of a tree lie below.
func rootAbove(length uint64) uint64 {
	return 1<<bits.Len64(length-1) - 1
}

// truncateLevel forgets the nodes of a level that reach to or behind index head.
func (ch *change) truncateLevel(level uint8, head uint64) error {
	shift := int(level)*pageDepths + pageDepths - 1
	number := head / 2 >> shift // the first page that is not all before head
	p, err := ch.page(level, number)
	if err != nil {
		return err
	}
	for rest := p.known; rest != 0; rest &= rest - 1 {
		local := bits.TrailingZeros64(rest)
		if flattree.RightSpan(globalIndex(level, number, local)) >= head {
			p.known &^= 1 << local
		}
	}
	// All pages behind it go; those in memory too.
	for k := range ch.pages {
		if k.level == level && k.number > number {
			delete(ch.pages, k)
			ch.last = nil
		}
	}
	if ch.cuts == nil {
		ch.cuts = map[uint8]uint64{}
	}
	ch.cuts[level] = number
	lo := ch.c.pageKey(level, number+1)
	return ch.b.DeleteRange(lo, prefixEnd(append(ch.c.key(prefixPage, nil), level)), nil)
}

// commit makes the change, all of it or nothing. If durable, it survives a power
// loss from then on; else it is durable after the next durable commit or Sync.
func (ch *change) commit(durable bool) error {
	defer ch.b.Close()
	c := ch.c
	if err := ch.encode(); err != nil {
		return err
	}
	if durable && !c.store.noSync {
		for _, n := range ch.written {
			c.store.seg.noteUnsynced(pageKey{c.id, n})
		}
		if err := c.store.syncSegments(ch.b); err != nil {
			return fmt.Errorf("core %s: %w", c.rec.key.Short(), err)
		}
	} else if !c.store.noSync {
		for _, n := range ch.written {
			if err := ch.b.Set(unsyncedKey(pageKey{c.id, n}), nil, nil); err != nil {
				return err
			}
		}
	}
	var heads []ack
	if ch.signed {
		heads = append(heads, c.headAck(ch.head))
	}
	if err := c.store.commit(ch.b, durable, heads...); err != nil {
		return fmt.Errorf("core %s: %w", c.rec.key.Short(), err)
	}
	if !durable {
		for _, n := range ch.written {
			c.store.seg.noteUnsynced(pageKey{c.id, n})
		}
	}
	ch.apply()
	return nil
}

// encode puts head, pages and counters into the batch.
func (ch *change) encode() error {
	if err := ch.advance(); err != nil {
		return err
	}
	if ch.deleted {
		clear(ch.pages)
	} else if err := ch.b.Set(ch.c.key(prefixHead, nil), ch.head.encode(), nil); err != nil {
		return err
	}
	for k, p := range ch.pages {
		if p.empty() {
			if err := ch.b.Delete(ch.c.pageKey(k.level, k.number), nil); err != nil {
				return err
			}
			continue
		}
		var array [2048]byte
		if err := ch.b.Set(ch.c.pageKey(k.level, k.number), p.encode(array[:0]), nil); err != nil {
			return err
		}
	}
	for n, d := range ch.segs {
		if d == 0 {
			continue
		}
		if err := ch.b.Merge(segmentKey(n), binary.BigEndian.AppendUint64(nil, uint64(d)), nil); err != nil {
			return err
		}
	}
	return nil
}

// advance moves the contiguous length over blocks that are here now.
func (ch *change) advance() error {
	for ch.head.contiguous < ch.head.tree.Length {
		number, i := ch.head.contiguous/pageBlocks, ch.head.contiguous%pageBlocks
		p := ch.pages[cacheKey{ch.c.id, 0, number}]
		if p == nil {
			if ch.c.have != nil && ch.c.have[number] == 0 {
				return nil
			}
			var err error
			if p, err = ch.c.page(0, number); err != nil {
				return err
			}
		}
		n := uint64(bits.TrailingZeros32(^(p.data >> i)))
		n = min(n, pageBlocks-i, ch.head.tree.Length-ch.head.contiguous)
		if n == 0 {
			return nil
		}
		ch.head.contiguous += n
	}
	return nil
}

// apply makes the committed change visible.
func (ch *change) apply() {
	c, s := ch.c, ch.c.store
	if ch.head.tree.Length < c.head.tree.Length || ch.deleted {
		s.pages.drop(c.id)
		c.have = nil
	}
	if ch.head.contiguous < c.head.contiguous {
		c.have = nil // it lacks the pages that were contiguous
	}
	for k, p := range ch.pages {
		c.spare = s.pages.put(k, p)
		if k.level == 0 && c.have != nil {
			c.setHave(k.number, p.data)
		}
	}
	c.head, c.known = ch.head, !ch.deleted
	for n, d := range ch.segs {
		if s.seg.addLive(n, d) {
			if err := s.removeSegment(n); err != nil {
				s.log.Warn("remove segment", "err", err)
			}
		}
	}
	c.events = append(c.events, ch.events...)
}
