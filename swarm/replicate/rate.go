package replicate

import (
	"time"

	"golang.org/x/time/rate"
)

// mayTransfer says whether l has anything left; nil has always. Blocks are
// never cut: what one takes too much is owed, so the average holds.
func mayTransfer(l *rate.Limiter) bool { return l == nil || l.Tokens() > 0 }

// oweRate takes n bytes from l.
func oweRate(l *rate.Limiter, n int) {
	if l == nil {
		return
	}
	for now := time.Now(); n > 0; {
		part := min(n, max(l.Burst(), 1))
		l.ReserveN(now, part)
		n -= part
	}
}
