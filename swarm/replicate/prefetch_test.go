package replicate

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestEndlessHints has a peer name blocks of a long core for ever, some of them
// again and again. SEC-20
func TestEndlessHints(t *testing.T) {
	simulate(t, func(t *testing.T, ctx context.Context) {
		w := singleWriter(1)
		w.appendN(20_000, 10)
		a, b := newNode(t, 1, w), newNode(t, 2)
		l := (&link{delay: 10 * time.Millisecond, rate: 1000}).connect(ctx, a, b) // hardly anything arrives
		s, _ := b.open(w.key, SessionOptions{})
		if _, err := s.Update(ctx); err != nil {
			t.Fatal(err)
		}
		for i := range uint64(20_000) {
			s.Prefetch(i, i/2, 7)
		}
		s.f.mu.Lock()
		ranges, blocks := len(s.f.ranges), len(s.f.blocks)
		s.f.mu.Unlock()
		if ranges > maxPrefetched || blocks > maxPrefetched {
			t.Errorf("%d downloads and %d blocks are under way, want at most %d", ranges, blocks, maxPrefetched)
		}
		l.cut()
		synctest.Wait()
	})
}
