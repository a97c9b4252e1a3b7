package replicate

import (
	"encoding/binary"
	"math/bits"
	"slices"
	"sync/atomic"
)

// A have is what is known of the blocks that a peer has of one core: a prefix,
// some long runs, and pages of bits. Its size is bounded whatever the peer
// announces; what does not fit is forgotten, as if it had not been said.
type have struct {
	contiguous uint64 // has all blocks below
	runs       []run  // longer than a page, ascending, not touching
	pages      map[uint64]*page
	order      []uint64      // pages in the order they were made
	budget     *atomic.Int64 // pages that may still be made for the whole connection
}

type run struct{ start, end uint64 }

// A page holds pageBits bits.
type page [pageBits / 64]uint64

// has says whether the peer is known to have block i.
func (h *have) has(i uint64) bool {
	if i < h.contiguous || h.inRun(i) {
		return true
	}
	p := h.pages[i/pageBits]
	return p != nil && p[i%pageBits/64]>>(i%64)&1 == 1
}

func (h *have) inRun(i uint64) bool {
	for _, r := range h.runs {
		if r.start <= i && i < r.end {
			return true
		}
	}
	return false
}

// next returns the first block in [lo, hi) that the peer is known to have, or hi.
func (h *have) next(lo, hi uint64) uint64 {
	if lo >= hi || lo < h.contiguous {
		return lo
	}
	best := hi
	for _, r := range h.runs {
		if r.end > lo && r.start < best {
			best = max(r.start, lo)
			break
		}
	}
	for key, p := range h.pages {
		start := key * pageBits
		if start >= best || start+pageBits <= lo {
			continue
		}
		if i := p.next(max(lo, start) - start); start+i < best && i < pageBits {
			best = start + i
		}
	}
	return best
}

// next returns the first bit set from i on, or pageBits.
func (p *page) next(i uint64) uint64 {
	for w := i / 64; w < uint64(len(p)); w++ {
		word := p[w]
		if w == i/64 {
			word &= ^uint64(0) << (i % 64)
		}
		if word != 0 {
			return w*64 + uint64(bits.TrailingZeros64(word))
		}
	}
	return pageBits
}

// set sets or clears bits [lo, hi) of the page.
func (p *page) set(lo, hi uint64, on bool) {
	for w := lo / 64; w*64 < hi; w++ {
		mask := ^uint64(0)
		if w == lo/64 {
			mask <<= lo % 64
		}
		if hi-w*64 < 64 {
			mask &= 1<<(hi-w*64) - 1
		}
		if on {
			p[w] |= mask
		} else {
			p[w] &^= mask
		}
	}
}

// page returns the page of that number, making it if it can.
func (h *have) page(key uint64) *page {
	if p := h.pages[key]; p != nil {
		return p
	}
	if len(h.order) >= maxPages || h.budget != nil && h.budget.Load() <= 0 {
		if len(h.order) == 0 {
			return nil
		}
		h.forgetPage(h.order[0])
	}
	if h.pages == nil {
		h.pages = make(map[uint64]*page)
	}
	p := new(page)
	h.pages[key] = p
	h.order = append(h.order, key)
	if h.budget != nil {
		h.budget.Add(-1)
	}
	return p
}

func (h *have) forgetPage(key uint64) {
	if h.pages[key] == nil {
		return
	}
	delete(h.pages, key)
	h.order = slices.DeleteFunc(h.order, func(k uint64) bool { return k == key })
	if h.budget != nil {
		h.budget.Add(1)
	}
}

// forgetAll returns to the state of knowing nothing.
func (h *have) forgetAll() {
	if h.budget != nil {
		h.budget.Add(int64(len(h.order)))
	}
	*h = have{budget: h.budget}
}

// add notes that the peer has the blocks [lo, hi).
func (h *have) add(lo, hi uint64) {
	if lo <= h.contiguous {
		h.contiguous = max(h.contiguous, hi)
		h.settle()
		return
	}
	if lo >= hi {
		return
	}
	if hi-lo > pageBits {
		h.addRun(run{lo, hi})
		return
	}
	for lo < hi {
		key := lo / pageBits
		end := min(hi, (key+1)*pageBits)
		if p := h.page(key); p != nil {
			p.set(lo-key*pageBits, end-key*pageBits, true)
		}
		lo = end
	}
}

// settle drops what the contiguous prefix covers.
func (h *have) settle() {
	h.runs = slices.DeleteFunc(h.runs, func(r run) bool {
		if r.start <= h.contiguous {
			h.contiguous = max(h.contiguous, r.end)
			return true
		}
		return false
	})
	for _, key := range slices.Clone(h.order) {
		if (key+1)*pageBits <= h.contiguous {
			h.forgetPage(key)
		}
	}
}

// addRun joins r with the runs it touches.
func (h *have) addRun(r run) {
	h.runs = slices.DeleteFunc(h.runs, func(o run) bool {
		if o.start <= r.end && r.start <= o.end {
			r = run{min(o.start, r.start), max(o.end, r.end)}
			return true
		}
		return false
	})
	i, _ := slices.BinarySearchFunc(h.runs, r, func(a, b run) int {
		if a.start < b.start {
			return -1
		}
		return 1
	})
	h.runs = slices.Insert(h.runs, i, r)
	if len(h.runs) > maxRuns {
		h.runs = h.runs[1:]
	}
}

// drop notes that the peer has the blocks [lo, hi) no more.
func (h *have) drop(lo, hi uint64) {
	h.contiguous = min(h.contiguous, lo)
	h.cutRuns(lo, hi)
	for _, key := range h.order {
		start := key * pageBits
		if a, b := max(lo, start), min(hi, start+pageBits); a < b {
			h.pages[key].set(a-start, b-start, false)
		}
	}
}

// cutRuns removes [lo, hi) from the runs.
func (h *have) cutRuns(lo, hi uint64) {
	var kept []run
	for _, r := range h.runs {
		if r.end <= lo || r.start >= hi {
			kept = append(kept, r)
			continue
		}
		if r.start < lo {
			kept = append(kept, run{r.start, lo})
		}
		if r.end > hi {
			kept = append(kept, run{hi, r.end})
		}
	}
	h.runs = kept[:min(len(kept), maxRuns)]
}

// replace notes the exact state of the blocks of a bitfield message, as far as
// they lie below length.
func (h *have) replace(m bitfieldMessage, length uint64) {
	lo := m.start
	hi := min(lo+uint64(len(m.words))*8, length)
	if lo >= hi {
		return
	}
	h.contiguous = min(h.contiguous, lo)
	h.cutRuns(lo, hi)
	for lo < hi {
		key := lo / pageBits
		end := min(hi, (key+1)*pageBits)
		if p := h.page(key); p != nil {
			h.fill(p, m, lo, end)
		}
		lo = end
	}
}

// fill copies the blocks [lo, hi) of m, all of one page, to p.
func (h *have) fill(p *page, m bitfieldMessage, lo, hi uint64) {
	p.set(lo%pageBits, lo%pageBits+hi-lo, false)
	for i := lo; i < hi; i += 32 {
		w := uint64(binary.LittleEndian.Uint32(m.words[(i-m.start)/8:]))
		if hi-i < 32 {
			w &= 1<<(hi-i) - 1
		}
		p[i%pageBits/64] |= w << (i % 64)
	}
}

// truncate forgets everything from length on.
func (h *have) truncate(length uint64) { h.drop(length, ^uint64(0)) }
