package crates

import (
	"slices"
	"sync"
	"unsafe"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/pkgswarm/pkgswarm/registry"
)

const (
	memoryBytes = 64 << 20 // of all index files in memory
	memoryEach  = 16 << 20 // of one: a larger one is read from disk each time
	memoryFiles = 1 << 20  // index files in memory; the bytes run out earlier
)

// A memory keeps recently used index files, bounded in bytes: the largest take
// megabytes, so that a number of files would bound nothing. Safe for concurrent
// use.
type memory struct {
	mu    sync.Mutex
	lru   *simplelru.LRU[registry.CrateName, *File]
	bytes int // sum of the files' costs
}

func newMemory() *memory {
	m := &memory{}
	m.lru, _ = simplelru.NewLRU(memoryFiles, func(_ registry.CrateName, f *File) { m.bytes -= f.cost }) // fails for sizes below 1 only
	return m
}

// get returns a file and marks it as used.
func (m *memory) get(name registry.CrateName) (*File, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.lru.Get(name)
}

// peek returns a file and leaves its rank.
func (m *memory) peek(name registry.CrateName) (*File, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.lru.Peek(name)
}

// put keeps f in place of an earlier file of that name, which it drops also when
// f itself is too large to be kept.
func (m *memory) put(name registry.CrateName, f *File) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lru.Remove(name)
	if f.cost > memoryEach {
		return
	}
	m.lru.Add(name, f)
	m.bytes += f.cost
	for m.bytes > memoryBytes {
		m.lru.RemoveOldest()
	}
}

func (m *memory) remove(name registry.CrateName) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lru.Remove(name)
}

// names returns the crates in memory, in no useful order.
func (m *memory) names() []registry.CrateName {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.lru.Keys())
}

// memoryCost estimates what a file of that many lines takes in memory, in bytes:
// its body, that body compressed, and the lines with the strings they own.
func memoryCost(body []byte, lines int) int {
	const (
		file  = 512 // the File and its place in the cache
		owned = 32  // short strings of a line: name, version, time
	)
	line := int(unsafe.Sizeof(registry.CargoLine{})) + owned
	return file + len(body) + len(body)/4 + lines*line
}
