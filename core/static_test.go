package core_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/core/merkle"
	"github.com/pkgswarm/pkgswarm/internal/vectors"
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

// TestStaticLimits does to a static core of the reference's vectors what its limits
// were found by, as far as there is such a call here: what the reference refuses is
// refused, and the content that it takes is taken.
func TestStaticLimits(t *testing.T) {
	var v struct {
		Limits []struct {
			Name   string
			Result struct {
				Error, VerificationError, Key string
				Length                        uint64
			}
		}
	}
	vectors.Load(t, "static-cores.json", &v)
	nb := merkle.NewBatch(merkle.Tree{})
	var blocks [][]byte
	for i := range 11 {
		blocks = append(blocks, fmt.Appendf(nil, "block %d", i))
		nb.Append(blocks[i])
	}
	wrong := append([][]byte{[]byte("another one")}, blocks[1:]...)
	appending := func(sig []byte, blocks [][]byte) func(*core.Core) error {
		return func(c *core.Core) error { _, err := c.AppendSigned(sig, blocks...); return err }
	}
	full := func(then func(*core.Core) error) func(*core.Core) error {
		return func(c *core.Core) error {
			if _, err := c.AppendSigned(nil, blocks...); err != nil {
				t.Fatal(err)
			}
			return then(c)
		}
	}
	do := map[string]func(*core.Core) error{
		"plain append":                                              func(c *core.Core) error { _, err := c.Append(blocks...); return err },
		"append with signature, right content":                      appending(make([]byte, 64), blocks),
		"append with signature, wrong content":                      appending(make([]byte, 64), wrong),
		"append of a part of the blocks":                            appending(nil, blocks[:5]),
		"append after the end, with signature":                      full(appending(make([]byte, 64), [][]byte{[]byte("more")})),
		"commit of a named session, with an empty signature":        appending(nil, blocks),
		"commit of wrong content, with an empty signature":          appending(nil, wrong),
		"a named session cannot hold a part of the prologue either": appending(nil, blocks[3:]),
		"truncate": full(func(c *core.Core) error { return c.Truncate(5) }),
	}
	seen := 0
	for _, limit := range v.Limits {
		if limit.Name == "a version 0 static manifest cannot be replicated" {
			m := core.StaticManifest(nb.Tree.Hash(), 11)
			m.Version = 0
			if got := m.Key().Hex(); got != limit.Result.Key && m.VerifyTree(m.Key(), nb.Tree, nil) == nil {
				t.Errorf("%s: key %s is vouched for", limit.Name, got)
			}
			continue
		}
		f := do[limit.Name]
		if f == nil {
			continue
		}
		seen++
		s := openStore(t, vfs.NewMem())
		c, err := s.Create(core.StaticManifest(nb.Tree.Hash(), nb.Tree.Length))
		if err != nil {
			t.Fatal(err)
		}
		if err := f(c); (err != nil) != (limit.Result.Error != "") {
			t.Errorf("%s: %v, the reference: %q", limit.Name, err, limit.Result.Error)
		}
		if n := c.Length(); n != 0 && n != 11 {
			t.Errorf("%s: the core has %d blocks then", limit.Name, n)
		}
		s.Close()
	}
	if seen != len(do) {
		t.Errorf("the file has %d of %d limits", seen, len(do))
	}
}
