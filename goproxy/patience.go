package goproxy

import (
	"context"
	"sync"
	"time"
)

// withPatience is [context.WithTimeout] for work that seldom waits: its timer is
// made when somebody first waits for the context to end. Cancel it after use.
func withPatience(parent context.Context, d time.Duration) *patient {
	return &patient{Context: parent, until: time.Now().Add(d)}
}

type patient struct {
	context.Context // the parent
	until           time.Time

	mu       sync.Mutex
	waited   context.Context // with the timer; nil: nobody waits
	stop     context.CancelFunc
	canceled bool
}

func (p *patient) Deadline() (time.Time, bool) {
	if t, ok := p.Context.Deadline(); ok && t.Before(p.until) {
		return t, true
	}
	return p.until, true
}

func (p *patient) Done() <-chan struct{} { return p.wait().Done() }
func (p *patient) Err() error            { return p.wait().Err() }

// Value leads package context to what Done belongs to.
func (p *patient) Value(key any) any {
	p.mu.Lock()
	ctx := p.waited
	p.mu.Unlock()
	if ctx == nil {
		ctx = p.Context
	}
	return ctx.Value(key)
}

// wait returns the context that ends.
func (p *patient) wait() context.Context {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waited == nil {
		p.waited, p.stop = context.WithDeadline(p.Context, p.until)
		if p.canceled {
			p.stop()
		}
	}
	return p.waited
}

func (p *patient) cancel() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.canceled = true
	if p.stop != nil {
		p.stop()
	}
}
