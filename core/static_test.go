package core_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/core/merkle"
)

// TestStatic spreads a file: from its holder to a second store, from there, half
// complete, to a third one.
func TestStatic(t *testing.T) {
	r := newRand(t)
	for _, size := range []int{1, core.StaticBlock - 1, core.StaticBlock, core.StaticBlock + 1, 70*core.StaticBlock + 5} {
		content := make([]byte, size)
		for i := range content {
			content[i] = byte(r.Uint32())
		}
		dir := t.TempDir()
		path := filepath.Join(dir, "a")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		tree, err := core.HashStatic(bytes.NewReader(content), int64(size))
		if err != nil {
			t.Fatal(err)
		}
		var h core.StaticHasher
		h.Write(content[:size/3])
		h.Write(content[size/3:])
		if tree2, err := h.Tree(); err != nil || tree2.Key() != tree.Key() {
			t.Fatalf("size %d: written in parts the key is another one: %v", size, err)
		}
		s1, s2, s3 := openStore(t, vfs.NewMem()), openStore(t, vfs.NewMem()), openStore(t, vfs.NewMem())
		a, err := s1.AddStatic(path, tree)
		if err != nil {
			t.Fatal(err)
		}
		b, err := s2.OpenStatic(tree.Key(), filepath.Join(dir, "b"))
		if err != nil {
			t.Fatal(err)
		}
		c, err := s3.OpenStatic(tree.Key(), filepath.Join(dir, "c"))
		if err != nil {
			t.Fatal(err)
		}
		follow(t, a, b)
		follow(t, b, c)
		n := a.Length()
		for i := range n {
			copyBlock(t, a, b, n-1-i)
			copyBlock(t, b, c, n-1-i)
		}
		got, err := os.ReadFile(filepath.Join(dir, "c"))
		if err != nil || !bytes.Equal(got, content) || c.ContiguousLength() != n {
			t.Errorf("size %d: the copy of the copy differs: %v", size, err)
		}
		if _, err := c.Append([]byte("more")); !errors.Is(err, core.ErrReadOnly) {
			t.Errorf("append to a static core = %v, want ErrReadOnly", err)
		}

		// REL-4: a damaged block is noticed, named and not served.
		got[0] ^= 1
		if err := os.WriteFile(filepath.Join(dir, "c"), got, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Prove(merkle.Request{Block: &merkle.BlockRequest{}}); err == nil {
			t.Error("a damaged block was served")
		} else if e, ok := errors.AsType[*core.DamageError](err); !ok || e.Index != 0 {
			t.Errorf("error %v, want a DamageError of block 0", err)
		}
		if c.Has(0) {
			t.Error("a damaged block is still offered")
		}
		copyBlock(t, a, c, 0)
		if got, err := os.ReadFile(filepath.Join(dir, "c")); err != nil || !bytes.Equal(got, content) {
			t.Error("the fetched block did not heal the file")
		}
		for _, s := range []*core.Store{s1, s2, s3} {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	if _, err := core.HashStatic(bytes.NewReader(nil), 0); !errors.Is(err, core.ErrEmpty) {
		t.Errorf("empty file: %v, want ErrEmpty", err)
	}
}
