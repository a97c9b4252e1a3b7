package replicate

import (
	"math/rand/v2"
	"sync/atomic"
	"testing"
)

// TestHave compares a have with a plain set while both fit.
func TestHave(t *testing.T) {
	const size = 5 * pageBits
	for seed := range uint64(30) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var budget atomic.Int64
		budget.Store(maxConnPages)
		h := have{budget: &budget}
		want := make([]bool, size)  // what must be known
		truth := make([]bool, size) // what may be known
		for range 60 {
			lo := rng.Uint64N(size)
			hi := min(size, lo+1+rng.Uint64N([]uint64{2, 500, size}[rng.IntN(3)]))
			switch rng.IntN(5) {
			case 0: // what lay beyond a drop is unknown if it was the prefix
				for i := lo; i < h.contiguous; i++ {
					want[i] = false
				}
				h.drop(lo, hi)
				fill(want[lo:hi], false)
				fill(truth[lo:hi], false)
			case 1:
				lo = lo / 32 * 32
				m := bitfieldMessage{start: lo, words: make([]byte, 4*(1+rng.IntN(3000)))}
				for i := range m.words {
					m.words[i] = byte(rng.Uint32())
				}
				for i := lo; i < h.contiguous; i++ {
					want[i] = false
				}
				h.replace(m, size)
				for i := range uint64(len(m.words) * 8) {
					if lo+i < size {
						want[lo+i] = m.words[i/8]>>(i%8)&1 == 1
						truth[lo+i] = want[lo+i]
					}
				}
			case 2:
				h.add(0, hi/4)
				fill(want[:hi/4], true)
				fill(truth[:hi/4], true)
			default:
				h.add(lo, hi)
				fill(want[lo:hi], true)
				fill(truth[lo:hi], true)
			}
		}
		next := uint64(size)
		for i := uint64(size); i > 0; i-- {
			has := h.has(i - 1)
			if has {
				next = i - 1
			}
			if want[i-1] && !has || has && !truth[i-1] {
				t.Fatalf("seed %d: has(%d) = %v", seed, i-1, has)
			}
			if i%97 == 0 || i == next+1 {
				if got := h.next(i-1, size); got != next {
					t.Fatalf("seed %d: next(%d) = %d, want %d", seed, i-1, got, next)
				}
			}
		}
		h.forgetAll()
		if budget.Load() != maxConnPages {
			t.Fatalf("seed %d: %d pages lost", seed, maxConnPages-budget.Load())
		}
	}
}

func fill(b []bool, v bool) {
	for i := range b {
		b[i] = v
	}
}

// TestHaveBounded announces as much as a peer can. // SEC-20
func TestHaveBounded(t *testing.T) {
	var budget atomic.Int64
	budget.Store(maxConnPages)
	var all []*have
	for range 40 {
		h := &have{budget: &budget}
		all = append(all, h)
		for i := range uint64(100) {
			h.add(i<<40, i<<40+1<<39)
			h.add(i<<20|1, i<<20|2)
			h.replace(bitfieldMessage{start: i << 21, words: make([]byte, 1<<18)}, 1<<53)
		}
	}
	pages := 0
	for _, h := range all {
		pages += len(h.pages)
		if len(h.runs) > maxRuns || len(h.pages) > maxPages || len(h.order) != len(h.pages) {
			t.Fatalf("%d runs and %d pages", len(h.runs), len(h.pages))
		}
	}
	if pages > maxConnPages || budget.Load() != int64(maxConnPages-pages) {
		t.Fatalf("%d pages, budget %d", pages, budget.Load())
	}
}
