package crates

import (
	"bytes"
	"compress/gzip"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/pkgswarm/pkgswarm/registry"
	"golang.org/x/mod/semver"
)

const minGzip = 1 << 10 // bytes from which compression pays

// Gzip returns the body compressed, or nil if that does not pay.
func (f *File) Gzip() []byte {
	f.gzipOnce.Do(func() {
		if len(f.Body) < minGzip {
			return
		}
		var b bytes.Buffer
		z, _ := gzip.NewWriterLevel(&b, gzip.BestSpeed) // the level is valid
		z.Write(f.Body)
		z.Close()
		if b.Len() < len(f.Body) {
			f.gzipped = b.Bytes()
		}
	})
	return f.gzipped
}

// preferred orders lines: the higher version is greater, but a yanked one is
// less than any that is not. The order of lines in a file means nothing.
func preferred(a, b registry.CargoLine) int {
	if a.Yanked != b.Yanked {
		if a.Yanked {
			return -1
		}
		return 1
	}
	return semver.Compare("v"+a.Vers, "v"+b.Vers)
}

// A Match is a crate that a search has found.
type Match struct {
	Name       string
	MaxVersion string
}

const maxNames = 1 << 20 // names that a search knows of

// A nameList has the names of all crates of which an index file is held.
type nameList struct {
	once sync.Once

	mu    sync.Mutex
	names map[registry.CrateName]bool // nil until somebody searches
}

// add notes a name, once somebody has searched.
func (l *nameList) add(name registry.CrateName) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.names != nil && len(l.names) < maxNames {
		l.names[name] = true
	}
}

// names returns the names of crates of which an index file is in memory or on disk.
// The first call looks through the disk.
func (s *Crates) names() []registry.CrateName {
	l := &s.known
	l.once.Do(func() {
		l.mu.Lock()
		l.names = make(map[registry.CrateName]bool)
		l.mu.Unlock()
		s.c.Cache.Keys(indexKey, func(key string) bool {
			if name, ok := strings.CutSuffix(strings.TrimPrefix(key, indexKey), s.key("")); ok {
				l.add(registry.CrateName(name))
			}
			return true
		})
		for _, name := range s.memory.names() {
			l.add(name)
		}
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Keys(l.names))
}

// Search returns crates that are held and whose names contain q, best matches first,
// at most limit of them, and how many there are.
func (s *Crates) Search(q string, limit int) ([]Match, int) {
	q = strings.ToLower(strings.TrimSpace(q))
	var found []registry.CrateName
	for _, name := range s.names() {
		if strings.Contains(string(name), q) {
			found = append(found, name)
		}
	}
	slices.SortFunc(found, func(a, b registry.CrateName) int {
		if ea, eb := string(a) == q, string(b) == q; ea != eb {
			if ea {
				return -1
			}
			return 1
		}
		return strings.Compare(string(a), string(b))
	})
	var ms []Match
	for _, name := range found[:min(limit, len(found))] {
		f, ok := s.memory.peek(name)
		if !ok {
			var err error
			if f, err = s.held(name); err != nil {
				continue // gone since
			}
		}
		if f, err := s.allowed(name, f); err == nil && len(f.Lines) > 0 {
			l := slices.MaxFunc(f.Lines, preferred)
			ms = append(ms, Match{Name: l.Name, MaxVersion: l.Vers})
		}
	}
	return ms, len(found)
}
