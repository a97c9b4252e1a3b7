package crates

import (
	"context"
	"sync"
	"time"

	"github.com/pkgswarm/pkgswarm/registry"
)

// ahead fetches index files that a client is about to ask for.
type ahead struct {
	queue chan job

	mu     sync.Mutex
	recent map[string]time.Time // when a name, or a name/feature, was last queued
}

type job struct {
	need      // of no name: the upstream's config.json, which names where crates are
	depth int // steps from what a client asked for
}

// Run fetches ahead until ctx ends. It returns nil.
func (s *Crates) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for range aheadWorkers {
		wg.Go(func() {
			for {
				select {
				case j := <-s.ahead.queue:
					if j.name == "" {
						s.dl(ctx)
						continue
					}
					if f, err := s.file(ctx, j.name); err == nil {
						s.lookAhead(f, j.features, j.depth)
					}
				case <-ctx.Done():
					return
				}
			}
		})
	}
	return nil
}

// likely is what the users of a crate ask for most, when nothing tells what they
// do. Of a sample of 203 crates, which a client asked for one by one, 9 were not
// there yet, and 59 were fetched in vain; with every optional dependency it was 6
// and 142.
var likely = []string{"default", "full", "derive"}

// lookFrom looks ahead from a file that a client has asked for.
func (s *Crates) lookFrom(name registry.CrateName, f *File) {
	if s.c.NoAhead || s.c.Upstream == nil || !s.ahead.first("likely "+string(name)) {
		return
	}
	if s.ahead.first("") {
		s.ahead.add(job{})
	}
	s.lookAhead(f, likely, 0)
}

// lookAhead queues what f depends on when it is used with those features.
func (s *Crates) lookAhead(f *File, features []string, depth int) {
	if depth >= aheadDepth {
		return
	}
	for _, n := range f.dependencies(features) {
		if s.ahead.news(n) && !s.ahead.add(job{n, depth + 1}) {
			return // full: the client will ask itself
		}
	}
}

// add queues j unless the queue is full.
func (a *ahead) add(j job) bool {
	select {
	case a.queue <- j:
		return true
	default:
		return false
	}
}

// news reports whether a crate, or one of the features that n asks of it, was not
// queued lately.
func (a *ahead) news(n need) bool {
	news := a.first(string(n.name))
	for _, f := range n.features {
		news = a.first(string(n.name)+"/"+f) || news
	}
	return news
}

// first reports whether key was not queued lately, and notes that it is now.
func (a *ahead) first(key string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	if now.Sub(a.recent[key]) < aheadRecent {
		return false
	}
	if len(a.recent) >= 16*aheadQueue {
		clear(a.recent)
	}
	a.recent[key] = now
	return true
}
