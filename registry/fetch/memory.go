package fetch

import (
	"bytes"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/pkgswarm/pkgswarm/registry/artifact"
)

// A budget is a number of bytes that may still be used.
type budget struct{ left atomic.Int64 }

func (b *budget) take(n int64) bool {
	if b.left.Add(-n) < 0 {
		b.left.Add(n)
		return false
	}
	return true
}

// A memoryFile is a Writer for files that cannot be stored.
type memoryFile struct {
	budget *budget

	mu    sync.RWMutex // guards buf; what was written does not change
	buf   []byte
	taken int64 // bytes of the budget in use
}

func (m *memoryFile) Write(p []byte) (int, error) {
	if !m.budget.take(int64(len(p))) {
		return 0, fmt.Errorf("%w: nor is there memory to pass them through", artifact.ErrNoSpace)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.taken += int64(len(p))
	m.buf = append(m.buf, p...)
	return len(p), nil
}

func (m *memoryFile) ReadAt(p []byte, off int64) (int, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return bytes.NewReader(m.buf).ReadAt(p, off)
}

func (m *memoryFile) Size() int64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return int64(len(m.buf))
}

func (m *memoryFile) Verify(d artifact.Digest) error { return d.Verify(m, m.Size()) }

// SetOrigin does nothing: what is not stored has no record.
func (m *memoryFile) SetOrigin(string, ...string) {}

// Commit refuses: there was no room when the file began.
func (m *memoryFile) Commit(artifact.Digest, bool) (artifact.Info, error) {
	return artifact.Info{}, artifact.ErrNoSpace
}

func (m *memoryFile) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.budget.left.Add(m.taken)
	m.taken, m.buf = 0, nil
	return nil
}

// create makes a file in the store or, when that has no room, in memory.
func (f *Fetcher) create(size int64) (Writer, error) {
	w, err := f.c.Store.Create(size)
	if err != nil {
		f.log.Debug("artifact passes through without being stored", "err", err)
		return &memoryFile{budget: &f.memory}, nil
	}
	return w, nil
}

// toMemory returns a memory file with the bytes of w.
func (f *Fetcher) toMemory(w Writer) (*memoryFile, error) {
	m := &memoryFile{budget: &f.memory}
	if _, err := io.Copy(m, io.NewSectionReader(w, 0, w.Size())); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}
