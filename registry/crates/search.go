package crates

import (
	"bytes"
	"compress/gzip"
	"slices"
	"strings"

	"github.com/pkgswarm/pkgswarm/registry"
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

// A Match is a crate that a search has found.
type Match struct {
	Name       string
	MaxVersion string
}

// Search returns crates held in memory whose names contain q, best matches
// first, at most limit of them, and how many there are.
func (s *Crates) Search(q string, limit int) ([]Match, int) {
	q = strings.ToLower(strings.TrimSpace(q))
	var found []registry.CrateName
	for _, name := range s.memory.Keys() {
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
		f, ok := s.memory.Peek(name)
		if !ok || len(f.Lines) == 0 {
			continue
		}
		m := Match{Name: f.Lines[0].Name, MaxVersion: f.Lines[len(f.Lines)-1].Vers}
		for i := len(f.Lines) - 1; i >= 0; i-- {
			if !f.Lines[i].Yanked {
				m.MaxVersion = f.Lines[i].Vers
				break
			}
		}
		ms = append(ms, m)
	}
	return ms, len(found)
}
