package crates

import (
	"fmt"
	"strings"
	"testing"

	"github.com/pkgswarm/pkgswarm/registry"
)

// TestMemoryBounded fills the memory with files that are large in bytes, and
// with files that are large in lines. SEC-20, SEC-44
func TestMemoryBounded(t *testing.T) {
	m := newMemory()
	for _, size := range []struct{ line, lines int }{{500_000, 3}, {1, 3000}} {
		for i := range 300 {
			name := registry.CrateName(fmt.Sprintf("crate%d", i))
			body := strings.Repeat(fmt.Sprintf(`{"name":%q,"vers":"1.0.0","cksum":"%064d","x":%q}`+"\n", name, 0, strings.Repeat("x", size.line)), size.lines)
			f, err := newFile(name, []byte(body))
			if err != nil {
				t.Fatal(err)
			}
			m.put(name, f)
			if got, ok := m.get(name); !ok || got != f {
				t.Fatalf("%s, of %d bytes, is not kept", name, f.cost)
			}
			if m.bytes > memoryBytes {
				t.Fatalf("%d bytes in memory, more than %d", m.bytes, memoryBytes)
			}
		}
	}
	if _, ok := m.get("crate0"); ok {
		t.Error("the file longest unused is still there")
	}
	for _, name := range m.names() {
		m.remove(name)
	}
	if m.bytes != 0 || len(m.names()) != 0 {
		t.Errorf("empty memory counts %d bytes", m.bytes)
	}
}

// A file that grows too large drops the older one of its name, which is no
// longer what the upstream has.
func TestMemoryTooLarge(t *testing.T) {
	m := newMemory()
	m.put("foo", &File{cost: 1000})
	m.put("foo", &File{cost: 3000})
	if m.bytes != 3000 {
		t.Errorf("%d bytes after a replacement, want 3000", m.bytes)
	}
	m.put("foo", &File{cost: memoryEach + 1})
	if _, ok := m.peek("foo"); ok || m.bytes != 0 {
		t.Errorf("kept: %v, %d bytes", ok, m.bytes)
	}
}
