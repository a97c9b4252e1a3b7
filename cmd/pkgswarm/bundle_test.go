package main

import (
	"bytes"
	"crypto/sha256"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pkgswarm/pkgswarm/registry/bundle"
)

// runTest runs a command line and returns its exit code and what it printed.
func runTest(t *testing.T, args ...string) (code int, out string) {
	t.Helper()
	var b bytes.Buffer
	code = run(t.Context(), args, strings.NewReader(""), &b, &b)
	return code, b.String()
}

// stored returns the names of the files in a data directory's store.
func stored(t *testing.T, dir string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "artifacts", "??", "*"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range paths {
		names = append(names, filepath.Base(p))
	}
	return names
}

// SEC-1, SEC-4: in a bundle of which one file is altered, nothing that the checksum
// database or an index line proves is taken with other bytes.
func TestHostileBundle(t *testing.T) {
	vars, _, _ := startUpstreams(t)
	for _, v := range vars {
		name, value, _ := strings.Cut(v, "=")
		t.Setenv(name, value)
	}
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	honest := at("honest")
	if code, out := runTest(t, "bundle", "export", "--out", honest, "--data", at("d"), "--state", at("s"), "--no-lan", "bar@1.0.0", "a.test/foo@v1.2.0"); code != 0 {
		t.Fatalf("export: exit code %d\n%s", code, out)
	}
	right := stored(t, at("d"))
	b, err := os.ReadFile(honest)
	if err != nil {
		t.Fatal(err)
	}
	r, err := bundle.Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	for i, altered := range r.Manifest.Files {
		id := alter(t, r, altered.Path, at("altered"))
		data, state := at(strings.Repeat("x", i+1)), at(strings.Repeat("y", i+1))
		code, out := runTest(t, "bundle", "import", "--id", id, "--data", data, "--state", state, at("altered"))
		proven := !strings.HasPrefix(altered.Path, "cargo/3/") && !strings.HasSuffix(altered.Path, ".info")
		if proven && code != exitPartly {
			t.Errorf("%s altered: exit code %d\n%s", altered.Path, code, out)
		}
		for _, name := range stored(t, data) {
			if !slices.Contains(right, name) {
				t.Errorf("%s altered: %s is in the store\n%s", altered.Path, name, out)
			}
		}
	}
}

// alter writes r with one byte of the file at path changed, and hashes to match, and
// returns the ID.
func alter(t *testing.T, r *bundle.Reader, path, out string) string {
	t.Helper()
	m := *r.Manifest
	m.Files = slices.Clone(m.Files)
	files := make(map[string][]byte)
	for i, f := range m.Files {
		b, err := r.Read(f.Path)
		if err != nil {
			t.Fatal(err)
		}
		if f.Path == path {
			b[len(b)/2] ^= 1
			m.Files[i].Sum = sha256.Sum256(b)
		}
		files[f.Path] = b
	}
	w, err := os.Create(out)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	id, err := bundle.Write(w, &m, func(f bundle.File) (io.ReadCloser, error) { return closer(files[f.Path]), nil })
	if err != nil {
		t.Fatal(err)
	}
	return id.String()
}
