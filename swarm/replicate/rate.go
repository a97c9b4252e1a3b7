package replicate

import (
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// A throttle shares a rate among those who transfer blocks: one block each, in
// the order in which they have asked. Blocks are never cut: what one takes too
// much is owed, so the average holds. A nil throttle lets everything pass.
type throttle struct {
	limit *rate.Limiter

	mu     sync.Mutex
	queue  []*waiting // for their turns
	timer  *time.Timer
	credit int // bytes that were taken and not used
}

// A waiting is one that waits for its turn. wake makes it call turn again soon,
// and does not wait; who does not is passed over, and may ask anew.
type waiting struct {
	who   any
	wake  func()
	woken time.Time // zero if it was not
}

func newThrottle(l *rate.Limiter) *throttle {
	if l == nil {
		return nil
	}
	t := &throttle{limit: l}
	t.timer = time.AfterFunc(time.Hour, t.next)
	t.timer.Stop()
	return t
}

// turn takes n bytes if it is the turn of who, and says so. Otherwise who is
// woken when it is.
func (t *throttle) turn(who any, n int, wake func()) bool {
	if t == nil {
		return true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	at := slices.IndexFunc(t.queue, func(w *waiting) bool { return w.who == who })
	if t.limit.Tokens() <= 0 || len(t.queue) > 0 && at != 0 {
		if at < 0 {
			t.queue = append(t.queue, &waiting{who: who, wake: wake})
		}
		if len(t.queue) == 1 {
			t.arm()
		}
		return false
	}
	if at == 0 {
		t.queue = slices.Delete(t.queue, 0, 1)
	}
	t.take(n)
	t.arm()
	return true
}

// settle corrects a turn that was taken for n bytes and used m.
func (t *throttle) settle(n, m int) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.take(m - n)
}

// take takes n bytes, or gives them back if it is negative. t.mu is held.
func (t *throttle) take(n int) {
	n -= t.credit
	t.credit = max(-n, 0)
	for now := time.Now(); n > 0; {
		part := min(n, max(t.limit.Burst(), 1))
		t.limit.ReserveN(now, part)
		n -= part
	}
}

// arm makes the first in the queue be woken once there is something to take.
// t.mu is held.
func (t *throttle) arm() {
	if len(t.queue) == 0 {
		return
	}
	missing := max(1-t.limit.Tokens(), 0)
	wait := missing / max(float64(t.limit.Limit()), 1) // seconds
	t.timer.Reset(min(time.Duration(wait*float64(time.Second)), time.Second))
}

// next wakes the first in the queue, or passes it over if it was woken before
// and has not come.
func (t *throttle) next() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.queue) > 0 && !t.queue[0].woken.IsZero() && time.Since(t.queue[0].woken) >= tick {
		t.queue = slices.Delete(t.queue, 0, 1)
	}
	if len(t.queue) == 0 || t.limit.Tokens() <= 0 {
		t.arm()
		return
	}
	if w := t.queue[0]; w.woken.IsZero() {
		w.woken = time.Now()
		w.wake()
	}
	t.timer.Reset(tick)
}
