package crates

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pkgswarm/pkgswarm/registry"
)

// ahead fetches index files that a client is about to ask for.
type ahead struct {
	queue chan job

	mu     sync.Mutex
	recent map[registry.CrateName]time.Time // when a name was last queued
}

type job struct {
	name  registry.CrateName // empty: the upstream's config.json, which names where crates are
	depth int                // steps from what a client asked for
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
						s.lookAhead(f, j.depth)
					}
				case <-ctx.Done():
					return
				}
			}
		})
	}
	return nil
}

// lookAhead queues what f depends on.
func (s *Crates) lookAhead(f *File, depth int) {
	if s.c.NoAhead || s.c.Upstream == nil || depth >= aheadDepth {
		return
	}
	if depth == 0 && s.ahead.first("") {
		select {
		case s.ahead.queue <- job{}:
		default:
		}
	}
	for _, name := range f.dependencies(depth == 0) {
		if s.ahead.first(name) {
			select {
			case s.ahead.queue <- job{name, depth + 1}:
			default:
				return // full: the client will ask itself
			}
		}
	}
}

// first reports whether name was not queued lately.
func (a *ahead) first(name registry.CrateName) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	if now.Sub(a.recent[name]) < aheadRecent {
		return false
	}
	if len(a.recent) >= 4*aheadQueue {
		clear(a.recent)
	}
	a.recent[name] = now
	return true
}

// dependencies returns what cargo is likely to ask for next: the dependencies,
// but for development, of the newest versions, each of another compatibility
// range. Optional ones are used by some: they are included for what a client has
// asked for itself.
func (f *File) dependencies(optional bool) []registry.CrateName {
	const ranges = 2
	best := make(map[string]registry.CargoLine) // of each compatibility range
	for _, l := range f.Lines {
		r := compatible(l.Vers)
		if b, ok := best[r]; !l.Yanked && (!ok || preferred(b, l) < 0) {
			best[r] = l
		}
	}
	lines := slices.SortedFunc(maps.Values(best), func(a, b registry.CargoLine) int { return preferred(b, a) })
	var names []registry.CrateName
	have := make(map[registry.CrateName]bool)
	for _, l := range lines[:min(ranges, len(lines))] {
		for _, d := range l.Deps {
			if d.Dev || d.Optional && !optional {
				continue
			}
			if n, err := registry.ParseCrate(d.Name); err == nil && !have[n] {
				have[n] = true
				names = append(names, n)
			}
		}
	}
	return names
}

// compatible returns the part of a version that a caret requirement fixes.
func compatible(version string) string {
	major, rest, _ := strings.Cut(version, ".")
	if major != "0" {
		return major
	}
	minor, _, _ := strings.Cut(rest, ".")
	return "0." + minor
}
