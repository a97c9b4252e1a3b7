package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/internal/cargoupstream"
	"github.com/pkgswarm/pkgswarm/internal/goupstream"
	"github.com/rogpeppe/go-internal/testscript"
)

// startUpstreams starts registries for the scripts: the crates foo, which needs
// bar, and the modules a.test/foo, which needs a.test/bar. It returns the variables
// by which pkgswarm finds them, and a command that adds records to the checksum
// database: grow NAME. stop makes them unreachable.
func startUpstreams(t *testing.T) (env []string, grow func(*testscript.TestScript, bool, []string), stop func()) {
	cargo, golang := cargoupstream.New(t), goupstream.New(t)
	cargo.Add(t, "bar", "1.0.0", makeCrate(t, "bar", "1.0.0", "", "pub fn bar() -> u8 { 1 }\n"))
	cargo.Add(t, "bar", "1.1.0", makeCrate(t, "bar", "1.1.0", "", "pub fn bar() -> u8 { 2 }\n"))
	cargo.Add(t, "young", "1.0.0", makeCrate(t, "young", "1.0.0", "", ""), `"pubtime":"2020-01-02T03:04:05Z"`)
	cargo.Add(t, "young", "1.1.0", makeCrate(t, "young", "1.1.0", "", ""), fmt.Sprintf(`"pubtime":%q`, time.Now().UTC().Format(time.RFC3339)))
	cargo.Add(t, "foo", "0.1.0", makeCrate(t, "foo", "0.1.0", "bar = \"1\"\n", "pub fn foo() -> u8 { bar::bar() }\n"),
		`"deps":[{"name":"bar","req":"^1","features":[],"optional":false,"default_features":true,"target":null,"kind":"normal"}]`)
	golang.Add(t, "a.test/bar", "v1.0.0", map[string]string{"go.mod": "module a.test/bar\n", "bar.go": "package bar\n\nconst Bar = 1\n"})
	golang.Add(t, "a.test/foo", "v1.2.0", map[string]string{
		"go.mod": "module a.test/foo\n\ngo 1.24\n\nrequire a.test/bar v1.0.0\n",
		"foo.go": "package foo\n\nimport \"a.test/bar\"\n\nconst Foo = bar.Bar\n",
	})
	golang.Add(t, "a.test/late", "v1.0.0", map[string]string{"go.mod": "module a.test/late\n", "late.go": "package late\n"})
	golang.Add(t, "a.test/young", "v1.0.0", map[string]string{"go.mod": "module a.test/young\n", "young.go": "package young\n"})
	golang.Add(t, "a.test/young", "v1.1.0", map[string]string{"go.mod": "module a.test/young\n", "young.go": "package young\n"})
	golang.Put("a.test/young", "v1.1.0.info", fmt.Appendf(nil, `{"Version":"v1.1.0","Time":%q}`, time.Now().UTC().Format(time.RFC3339)))
	golang.Grow(t, "many", 300) // more than one tile
	return []string{
			"PKGSWARM_CARGO_UPSTREAM=" + cargo.Index(),
			"PKGSWARM_GO_UPSTREAM=" + golang.URL,
			"PKGSWARM_SUMDB=" + golang.Key + " " + golang.URL + "/sumdb/" + goupstream.DBName,
			"SUMKEY=" + golang.Key,
		}, func(_ *testscript.TestScript, _ bool, args []string) { golang.Grow(t, args[0], 700) }, func() {
			cargo.Stop()
			golang.Stop()
		}
}

// makeCrate returns a .crate as cargo package makes it.
func makeCrate(t *testing.T, name, version, deps, lib string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	manifest := "[package]\nname = \"" + name + "\"\nversion = \"" + version + "\"\nedition = \"2021\"\n[dependencies]\n" + deps
	for _, f := range [][2]string{{"Cargo.toml", manifest}, {"src/lib.rs", lib}} {
		h := &tar.Header{Name: name + "-" + version + "/" + f[0], Mode: 0o644, Size: int64(len(f[1]))}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(f[1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
