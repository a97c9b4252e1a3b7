package synthetic

import (
	"bytes"
	"encoding/json"
	"io"
	"testing"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"
	"golang.org/x/mod/sumdb/dirhash"
)

func TestCargoLooksReal(t *testing.T) {
	c := Cargo{Crates: 3000, Seed: 1}
	lines, size, most := 0, 0, 0
	for i := range c.Crates {
		k := c.Crate(i)
		if again := c.Crate(i); !bytes.Equal(again.File(), k.File()) {
			t.Fatalf("crate %d differs from itself", i)
		}
		for _, l := range k.Lines {
			if !json.Valid(l) {
				t.Fatalf("not JSON: %s", l)
			}
			size += len(l)
		}
		lines += len(k.Lines)
		most = max(most, len(k.Lines))
	}
	if mean := lines / c.Crates; mean < 6 || mean > 10 {
		t.Errorf("%d versions a crate in the mean", mean)
	}
	if mean := size / lines; mean < 600 || mean > 1300 {
		t.Errorf("%d bytes a line in the mean", mean)
	}
	if most < 100 {
		t.Errorf("no crate has more than %d versions", most)
	}
	t.Logf("%d crates, %d lines, %d bytes, %d a line, at most %d versions", c.Crates, lines, size, size/lines, most)
}

func TestModulesLookReal(t *testing.T) {
	m := Modules{Modules: 3000, Seed: 1}
	versions, size, most := 0, 0, 0
	for i := range m.Modules {
		k := m.Module(i)
		if n, ok := m.Number(k.Path); !ok || n != i || len(k.Versions) != m.Versions(i) {
			t.Fatalf("module %d, %s of %d versions, is number %d, %v", i, k.Path, len(k.Versions), n, ok)
		}
		if err := module.CheckPath(k.Path); err != nil {
			t.Fatal(err)
		}
		for j, v := range k.Versions {
			if f, err := modfile.Parse("go.mod", v.Mod, nil); err != nil || f.Module.Mod.Path != k.Path {
				t.Fatalf("go.mod of %s@%s: %v", k.Path, v.Version, err)
			}
			if hash, err := dirhash.Hash1([]string{"go.mod"}, func(string) (io.ReadCloser, error) {
				return io.NopCloser(bytes.NewReader(v.Mod)), nil
			}); err != nil || hash != v.ModHash {
				t.Fatalf("hash of the go.mod of %s@%s is %s, %v", k.Path, v.Version, hash, err)
			}
			if !json.Valid(v.Info) || j > 0 && semver.Compare(k.Versions[j-1].Version, v.Version) >= 0 {
				t.Fatalf("%s@%s: %s", k.Path, v.Version, v.Info)
			}
			size += len(v.Mod)
		}
		versions += len(k.Versions)
		most = max(most, len(k.Versions))
	}
	if mean := versions / m.Modules; mean < 7 || mean > 13 {
		t.Errorf("%d versions a module in the mean", mean)
	}
	if mean := size / versions; mean < 500 || mean > 2000 {
		t.Errorf("%d bytes a go.mod in the mean", mean)
	}
	t.Logf("%d modules, %d versions, %d bytes a go.mod, at most %d versions", m.Modules, versions, size/versions, most)
}
