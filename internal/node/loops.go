package node

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
)

// loops are the node's background workers. One that ends before its time makes
// the node not ready (REL-16).
type loops struct {
	log *slog.Logger
	wg  sync.WaitGroup

	mu   sync.Mutex
	dead map[string]error
}

// start runs f until ctx ends.
func (l *loops) start(ctx context.Context, name string, f func(context.Context) error) {
	l.wg.Go(func() {
		err := l.run(ctx, name, f)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			err = fmt.Errorf("ended by itself")
		}
		l.log.Error("background work ended", "loop", name, "err", err)
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.dead == nil {
			l.dead = make(map[string]error)
		}
		l.dead[name] = err
	})
}

func (l *loops) run(ctx context.Context, name string, f func(context.Context) error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			l.log.Error("panic in background work", "loop", name, "panic", r, "stack", string(debug.Stack()))
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	return f(ctx)
}

// broken returns the name of a worker that has died, or "".
func (l *loops) broken() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name := range l.dead {
		return name
	}
	return ""
}
