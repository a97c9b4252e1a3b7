package modules

import (
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

const (
	memoryBytes = 64 << 20 // of all files in memory
	memoryEach  = 1 << 20  // of one file
	fileCost    = 256      // beside its body
)

// A memory keeps recently used files, bounded in bytes. Safe for concurrent use.
type memory struct {
	mu    sync.Mutex
	lru   *simplelru.LRU[string, *File]
	bytes int
}

func newMemory() *memory {
	m := &memory{}
	m.lru, _ = simplelru.NewLRU(1<<20, func(_ string, f *File) { m.bytes -= len(f.Body) + fileCost }) // fails for sizes below 1 only
	return m
}

func (m *memory) get(key string) (*File, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.lru.Get(key)
}

func (m *memory) put(key string, f *File) {
	if len(f.Body) > memoryEach {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lru.Remove(key)
	m.lru.Add(key, f)
	m.bytes += len(f.Body) + fileCost
	for m.bytes > memoryBytes {
		m.lru.RemoveOldest()
	}
}

func (m *memory) remove(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lru.Remove(key)
}
