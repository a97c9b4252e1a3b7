package catalog

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/core/merkle"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
)

func crate(name string) pkglog.Header {
	return pkglog.Header{Ecosystem: pkglog.Cargo, Package: name}
}

func TestPackageKeys(t *testing.T) {
	tests := []struct {
		h   pkglog.Header
		key string
	}{
		{crate("serde"), "cargo/serde"},
		{pkglog.Header{Ecosystem: pkglog.Go, Package: "github.com/Azure/azure-sdk"}, "go/github.com/!azure/azure-sdk"},
	}
	for _, tt := range tests {
		key, err := PackageKey(tt.h)
		if err != nil || key != tt.key {
			t.Errorf("key of %v is %q, %v; want %q", tt.h, key, err, tt.key)
		}
		if h, ok := ParsePackageKey(tt.key); !ok || h != tt.h {
			t.Errorf("package of %q is %v, %v; want %v", tt.key, h, ok, tt.h)
		}
	}
	for _, key := range []string{"", "!head", "cargo", "cargo/", "cargo/Serde", "go/github.com/Azure", "npm/left-pad", "go/../x"} {
		if h, ok := ParsePackageKey(key); ok {
			t.Errorf("%q is the key of %v", key, h)
		}
	}
}

func TestEntryExample(t *testing.T) { // of the package comment
	e := Entry{Log: core.Key{1}, Length: 3, TreeHash: merkle.Hash{2}, Time: time.Unix(1700000000, 0).UTC()}
	want := slices.Concat([]byte{1}, e.Log[:], []byte{3}, e.TreeHash[:], []byte{0xfe, 0x00, 0xf1, 0x53, 0x65})
	if got := e.Encode(); !bytes.Equal(got, want) {
		t.Errorf("entry is %x, want %x", got, want)
	}
	for _, bad := range [][]byte{nil, want[:len(want)-1], append(slices.Clone(want), 0), append([]byte{2}, want[1:]...), slices.Replace(slices.Clone(want), 33, 34, 0)} {
		if _, err := DecodeEntry(bad); !errors.Is(err, ErrMalformed) {
			t.Errorf("entry %x: %v, want malformed", bad, err)
		}
	}
}

// FuzzValues: what decodes encodes back to the same bytes. SEC-8
func FuzzValues(f *testing.F) {
	f.Add(Entry{Length: 1}.Encode())
	f.Add(Head{Cargo: 250000}.Encode())
	f.Add(newSuccessor(core.Key{1}, NewOperator(Seed{2})).encode())
	f.Add(Predecessor{Length: 3}.encode())
	f.Add((&Memorized{}).encode())
	f.Add(NewSeed().text())
	f.Fuzz(func(t *testing.T, b []byte) {
		if e, err := DecodeEntry(b); err == nil && !bytes.Equal(e.Encode(), b) {
			t.Errorf("entry %x has two forms", b)
		}
		if h, err := DecodeHead(b); err == nil && !bytes.Equal(h.Encode(), b) {
			t.Errorf("heartbeat %x has two forms", b)
		}
		if p, err := decodePredecessor(b); err == nil && !bytes.Equal(p.encode(), b) {
			t.Errorf("predecessor %x has two forms", b)
		}
		if s, err := parseSeed(b); err == nil && !bytes.Equal(bytes.ToLower(b), s.text()) && !bytes.Equal(append(bytes.ToLower(b), '\n'), s.text()) {
			t.Errorf("seed has two forms")
		}
		verifySuccessor(core.Key{1}, b)
		decodeMemorized(b)
	})
}

// TestSuccessorSignatures: a successor needs its own quorum's signatures over
// exactly this step. SEC-9, SEC-17
func TestSuccessorSignatures(t *testing.T) {
	old := core.Key{1}
	next := NewOperators(2, Seed{1}, Seed{2}, Seed{3})
	good := newSuccessor(old, next)
	if got, err := verifySuccessor(old, good.encode()); err != nil || got != next.RegistryKey() {
		t.Fatalf("successor is %s, %v", got.Short(), err)
	}
	one := newSuccessor(old, NewOperator(Seed{1}))
	staticManifest := core.StaticManifest(merkle.Hash{1}, 1)
	bad := map[string]successor{
		"no signature":       {good.manifest, nil},
		"one of two":         {good.manifest, append([]byte{1}, good.signatures[1:66]...)},
		"the same twice":     {good.manifest, slices.Concat([]byte{2}, good.signatures[1:66], good.signatures[1:66])},
		"of another step":    newSuccessor(core.Key{2}, next),
		"of another catalog": {one.manifest, append([]byte{1}, good.signatures[1:66]...)},
		"trailing bytes":     {good.manifest, append(slices.Clone(good.signatures), 0)},
		"core of nobody":     {staticManifest.Encode(), []byte{0}},
	}
	for name, s := range bad {
		if _, err := verifySuccessor(old, s.encode()); !errors.Is(err, ErrSuccession) {
			t.Errorf("%s: %v, want %v", name, err, ErrSuccession)
		}
	}
}

func openCatalog(t *testing.T, dir string, op *Operator, memory *Memory) (*core.Core, *Writer) {
	t.Helper()
	s, err := core.OpenStore(dir, core.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	m, pairs := op.Catalog()
	c, err := s.Create(m, pairs...)
	if err != nil {
		t.Fatal(err)
	}
	w, err := OpenWriter(t.Context(), c, memory)
	if err != nil {
		t.Fatal(err)
	}
	return c, w
}

func newMemory(t *testing.T) *Memory {
	t.Helper()
	m, err := OpenMemory(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestQuorum: a catalog of several signers is written with enough of their seeds
// and read like any other. SEC-18
func TestQuorum(t *testing.T) {
	op := NewOperators(2, Seed{1}, Seed{2}, Seed{3})
	c, w := openCatalog(t, t.TempDir(), op, newMemory(t))
	e := Entry{Log: core.Key{9}, Length: 1, Time: time.Now()}
	if err := w.Flush(t.Context(), []Change{{Key: "cargo/serde", Entry: e}}, time.Now()); err != nil {
		t.Fatal(err)
	}
	s, err := OpenReader(c, newMemory(t), 0).Update(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.Entry(t.Context(), crate("serde")); err != nil || !got.Same(e) {
		t.Errorf("entry %+v, %v", got, err)
	}
}

// TestFlush: the heartbeat counts packages and never goes back.
func TestFlush(t *testing.T) {
	_, w := openCatalog(t, t.TempDir(), NewOperator(Seed{1}), newMemory(t))
	e := Entry{Log: core.Key{9}, Length: 1}
	now := time.Unix(1700000000, 0)
	flush := func(at time.Time, keys ...string) {
		t.Helper()
		var changes []Change
		for _, k := range keys {
			changes = append(changes, Change{Key: k, Entry: e})
		}
		if err := w.Flush(t.Context(), changes, at); err != nil {
			t.Fatal(err)
		}
	}
	flush(now, "cargo/a", "cargo/b", "go/example.com/m")
	flush(now.Add(-time.Hour), "cargo/b", "cargo/c")
	if h := w.Head(); h.Cargo != 3 || h.Go != 1 || !h.Time.Equal(now) {
		t.Errorf("head %+v", h)
	}
	if err := w.Flush(t.Context(), []Change{{Key: "npm/x", Entry: e}}, now); err == nil {
		t.Error("a key of no package was written")
	}
	var names []string
	for h, err := range w.Packages(t.Context(), pkglog.Cargo) {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Package)
	}
	if strings.Join(names, " ") != "a b c" {
		t.Errorf("packages %v", names)
	}
}

// TestDamagedMemory: a remembered head that cannot be read stops writing and
// reading, and says which file it is. REL-5
func TestDamagedMemory(t *testing.T) {
	dir := t.TempDir()
	m, err := OpenMemory(dir)
	if err != nil {
		t.Fatal(err)
	}
	c, w := openCatalog(t, t.TempDir(), NewOperator(Seed{1}), m)
	if err := w.Heartbeat(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, w.Key().String()+".head")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range b {
		bad := slices.Clone(b)
		bad[i] ^= 1
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := m.Head(w.Key()); !errors.Is(err, ErrMemory) || !strings.Contains(err.Error(), path) {
			t.Fatalf("byte %d changed: %v", i, err)
		}
	}
	if _, err := OpenWriter(t.Context(), c, m); !errors.Is(err, ErrMemory) {
		t.Errorf("writer: %v", err)
	}
	if _, err := OpenReader(c, m, 0).Update(t.Context()); !errors.Is(err, ErrMemory) {
		t.Errorf("reader: %v", err)
	}
}

func TestSeedFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if _, err := LoadSeed(dir); !errors.Is(err, ErrNoSeed) {
		t.Errorf("no seed: %v", err)
	}
	seed := NewSeed()
	if err := SaveSeed(dir, seed); err != nil {
		t.Fatal(err)
	}
	if err := SaveSeed(dir, NewSeed()); !errors.Is(err, ErrSeedExists) {
		t.Errorf("overwritten: %v", err)
	}
	if got, err := LoadSeed(dir); err != nil || got != seed {
		t.Errorf("seed read back: %v", err)
	}
	info, err := os.Stat(SeedPath(dir))
	if err != nil || info.Mode().Perm() != 0o600 { // SEC-57
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	next, err := NextSeed(dir)
	if err != nil || next == seed {
		t.Fatal(err)
	}
	if again, err := NextSeed(dir); err != nil || again != next {
		t.Errorf("a rotation that was cut short would go over to another seed: %v", err)
	}
	old, err := ReplaceSeed(dir, next)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := LoadSeedFile(old); err != nil || got != seed {
		t.Errorf("old seed: %v", err)
	}
	if got, err := LoadSeed(dir); err != nil || got != next {
		t.Errorf("new seed: %v", err)
	}
	if err := os.Chmod(SeedPath(dir), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadSeed(dir); err == nil || strings.Contains(err.Error(), string(seed.text()[30:])) { // SEC-57
		t.Errorf("a seed that others may read: %v", err)
	}
}

func TestBackup(t *testing.T) {
	seed := NewSeed()
	var b bytes.Buffer
	if err := backup(&b, seed, "correct horse", 10); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(b.Bytes(), seed.text()) || !strings.HasPrefix(b.String(), "-----BEGIN AGE ENCRYPTED FILE-----") {
		t.Errorf("backup is\n%s", &b)
	}
	if got, err := Restore(bytes.NewReader(b.Bytes()), "correct horse"); err != nil || got != seed {
		t.Errorf("restored: %v", err)
	}
	if _, err := Restore(bytes.NewReader(b.Bytes()), "wrong horse"); !errors.Is(err, ErrPassphrase) {
		t.Errorf("wrong passphrase: %v", err)
	}
	if _, err := Restore(bytes.NewReader(b.Bytes()[:b.Len()/2]), "correct horse"); err == nil {
		t.Error("half a backup was restored")
	}
}

// TestSecretsStaySecret: no way of printing shows a seed. SEC-57
func TestSecretsStaySecret(t *testing.T) {
	seed := Seed{0xab, 0xcd}
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		for _, v := range []any{seed, struct{ S Seed }{seed}} {
			if s := fmt.Sprintf(format, v); strings.Contains(s, "abcd") || strings.Contains(s, "171") || strings.Contains(s, "0xab") {
				t.Errorf("%s prints %q", format, s)
			}
		}
	}
}

// TestSkippedStep: a reader follows a chain of successors step by step only. SEC-17
func TestSkippedStep(t *testing.T) {
	dir, memory := t.TempDir(), newMemory(t)
	ops := []*Operator{NewOperator(Seed{1}), NewOperator(Seed{2}), NewOperator(Seed{3})}
	var snaps []*Snapshot
	var pred Predecessor
	for i, op := range ops {
		c, w := openCatalog(t, filepath.Join(dir, string(rune('a'+i))), op, memory)
		if i > 0 {
			if err := w.Succeed(t.Context(), pred); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Heartbeat(t.Context(), time.Now()); err != nil {
			t.Fatal(err)
		}
		if i+1 < len(ops) {
			var err error
			if pred, err = w.Retire(t.Context(), ops[i+1]); err != nil {
				t.Fatal(err)
			}
		}
		s, err := OpenReader(c, memory, 0).Update(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		snaps = append(snaps, s)
	}
	for i := range snaps {
		for j := range snaps {
			err := snaps[j].Follows(t.Context(), snaps[i])
			if follows := j == i+1; (err == nil) != follows {
				t.Errorf("catalog %d follows %d: %v", j, i, err)
			}
		}
	}
}

// TestTwoWriters: two importers with one seed and stores of their own fork; what
// the swarm finds of it stops the writer. SEC-16
func TestTwoWriters(t *testing.T) {
	memory := newMemory(t)
	a, w := openCatalog(t, t.TempDir(), NewOperator(Seed{1}), memory)
	b, other := openCatalog(t, t.TempDir(), NewOperator(Seed{1}), newMemory(t))
	for i, w := range []*Writer{w, other} {
		if err := w.Flush(t.Context(), []Change{{Key: "cargo/serde", Entry: Entry{Log: core.Key{byte(i)}, Length: 1}}}, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	last, err := memory.Head(a.Key())
	if err != nil {
		t.Fatal(err)
	}
	e, err := evidenceAgainst(b, &last.SignedHead)
	if err != nil {
		t.Fatal(err)
	}
	if err := memory.SetEvidence(e); err != nil {
		t.Fatal(err)
	}
	if err := w.Heartbeat(t.Context(), time.Now()); !errors.Is(err, ErrEquivocated) {
		t.Errorf("heartbeat: %v", err)
	}
	if _, err := OpenWriter(t.Context(), a, memory); !errors.Is(err, ErrEquivocated) {
		t.Errorf("opened again: %v", err)
	}
}
