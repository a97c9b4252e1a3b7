package integration

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/pkgswarm/pkgswarm/internal/testenv"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
)

// TestPackageLogJS folds logs with events of all kinds, in all forms of payload,
// in JavaScript, by any Node.
func TestPackageLogJS(t *testing.T) {
	if testing.Short() {
		t.Skip("starts Node")
	}
	js := testenv.StartNode(t, "pkglog.mjs")
	type folded struct {
		Package, File string
		Versions      []struct{ Version, Info, Mod string }
		Artifacts     []struct{ Version, Digest string }
	}
	fold := func(blocks [][]byte) (f folded) {
		t.Helper()
		var texts []string
		for _, b := range blocks {
			texts = append(texts, hex.EncodeToString(b))
		}
		js.MustCall(t, "fold", texts, &f)
		return f
	}
	long := func(seed uint64) []byte { // compresses well, by zstd only
		r := rand.New(rand.NewPCG(seed, 1))
		var b []byte
		for range 400 {
			b = fmt.Appendf(b, "word%d ", r.IntN(50))
		}
		return b
	}
	line := func(i int) []byte {
		return fmt.Appendf(nil, `{"name":"foo","vers":"0.%d.0","text":%q}`, i, long(uint64(i)))
	}

	cargo := newLog(t, pkglog.Header{Ecosystem: pkglog.Cargo, Package: "foo"})
	for i := range 6 {
		cargo.append(pkglog.Event{Kind: pkglog.Published, Position: i, Line: line(i)})
	}
	cargo.append(
		pkglog.Event{Kind: pkglog.Published, Position: 2, Line: []byte(`{"name":"foo","vers":"0.1.5"}`)},
		pkglog.Event{Kind: pkglog.Changed, Position: 1, Line: line(9)},
		pkglog.Event{Kind: pkglog.Removed, Position: 3},
		pkglog.Event{Kind: pkglog.Reordered, Order: []pkglog.Run{{First: 3, Count: 3}, {First: 0, Count: 3}}},
		pkglog.Event{Kind: pkglog.HasArtifact, Version: "0.1.5", Artifact: pkglog.Artifact{Digest: [32]byte{7}}},
	)
	f := fold(cargo.blocks)
	if file, err := hex.DecodeString(f.File); err != nil || !bytes.Equal(file, cargo.state.IndexFile()) || f.Package != "foo" {
		t.Errorf("index file of %s is\n%s\nwant\n%s", f.Package, file, cargo.state.IndexFile())
	}
	if len(f.Artifacts) != 1 || f.Artifacts[0].Version != "0.1.5" || f.Artifacts[0].Digest[:2] != "07" {
		t.Errorf("artifacts %+v", f.Artifacts)
	}
	if !cargo.has(1) {
		t.Error("no payload is compressed by zstd")
	}

	mod := newLog(t, pkglog.Header{Ecosystem: pkglog.Go, Package: "example.com/m"})
	for i := range 4 {
		mod.append(pkglog.Event{Kind: pkglog.Published, Module: &pkglog.ModuleVersion{
			Version: fmt.Sprintf("v1.%d.0", i), Info: []byte("{}"), Mod: long(uint64(i)),
		}})
	}
	mod.append(pkglog.Event{Kind: pkglog.Removed, Version: "v1.2.0"})
	f = fold(mod.blocks)
	for _, v := range f.Versions {
		want := mod.state.Module(v.Version)
		if want == nil || v.Mod != hex.EncodeToString(want.Mod) || v.Info != hex.EncodeToString(want.Info) {
			t.Errorf("version %s differs", v.Version)
		}
	}
	if len(f.Versions) != 3 {
		t.Errorf("%d versions, want 3", len(f.Versions))
	}
}

// A packageLog is a log that is being written.
type packageLog struct {
	t      *testing.T
	state  *pkglog.State
	blocks [][]byte
}

func newLog(t *testing.T, h pkglog.Header) *packageLog {
	return &packageLog{t: t, state: pkglog.NewState(h), blocks: [][]byte{h.Encode()}}
}

func (l *packageLog) append(events ...pkglog.Event) {
	l.t.Helper()
	for _, e := range events {
		b, err := l.state.Append(e)
		if err != nil {
			l.t.Fatal(err)
		}
		l.blocks = append(l.blocks, b)
	}
}

// has reports whether a line published at the end has a payload of that form.
func (l *packageLog) has(form byte) bool {
	for _, b := range l.blocks[1:] {
		if b[0] == 1 && b[1] == 0 && b[2] == form {
			return true
		}
	}
	return false
}
