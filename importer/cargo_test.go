package importer

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pkgswarm/pkgswarm/internal/cargoupstream"
	"github.com/pkgswarm/pkgswarm/registry"
	"github.com/pkgswarm/pkgswarm/registry/artifact"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

func write(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestSparseIndex(t *testing.T) {
	up := cargoupstream.New(t)
	up.Add(t, "serde", "1.0.0", []byte("one"))
	up.Add(t, "libc", "0.2.0", []byte("two"))
	var conditional []string
	up.Tamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Header.Get("If-None-Match") != "" {
			conditional = append(conditional, r.URL.Path)
		}
		next.ServeHTTP(w, r)
	})
	names, problems := SortCrates([]string{"Serde", "libc", "serde", "no-such", "../x"})
	if !slices.Equal(names, []string{"libc", "no-such", "serde"}) || len(problems) != 1 {
		t.Fatalf("names %v, problems %v", names, problems)
	}
	n := openNode(t, t.TempDir(), func(c *Config) { c.Workers = 1 })
	src := &SparseIndex{Client: newClient(t, up.URL), URL: up.URL + "/index/", Names: names}
	sum := n.run(t, src)
	if sum.Changed != 2 || len(n.problems) != 1 || n.problems[0].Package != "no-such" {
		t.Errorf("%+v, problems %v", sum, n.problems)
	}
	before := n.head()
	if sum := n.run(t, src); sum.Events != 0 || n.head() != before || len(conditional) != 2 {
		t.Errorf("second run %+v, conditional %v", sum, conditional)
	}
	up.Add(t, "serde", "1.0.1", []byte("three"))
	if sum := n.run(t, src); sum.Events != 1 {
		t.Errorf("run with a new version %+v", sum)
	}
	up.Tamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		http.Error(w, "broken", http.StatusInternalServerError)
	})
	before = n.head()
	if sum := n.run(t, src); sum.Events != 0 || sum.Problems != 3 || n.head() != before {
		t.Errorf("with a broken upstream %+v", sum)
	}
}

// TestUnreachable: an upstream that is down ends the run, not each package of a
// registry one after the other.
func TestUnreachable(t *testing.T) {
	up := cargoupstream.New(t)
	src := &SparseIndex{Client: newClient(t, up.URL), URL: up.URL + "/index/"}
	for i := range 1000 {
		src.Names = append(src.Names, fmt.Sprintf("crate-%04d", i))
	}
	up.Stop()
	n := openNode(t, t.TempDir(), nil)
	sum, err := n.importer.Run(t.Context(), src)
	if !errors.Is(err, ErrSource) || !errors.Is(err, upstream.ErrUnreachable) || sum.Problems >= 100 {
		t.Errorf("run ended with %v after %d problems", err, sum.Problems)
	}
}

// TestCargoHome: a cache adds what is missing and changes nothing that is newer.
func TestCargoHome(t *testing.T) {
	lineOf := func(vers string, yanked bool) string {
		return fmt.Sprintf(`{"name":"foo","vers":%q,"deps":[],"cksum":%q,"features":{},"yanked":%v}`, vers, strings.Repeat("a", 64), yanked)
	}
	home := t.TempDir()
	b := cacheFile([]byte(lineOf("0.1.0", false)), []byte(lineOf("0.2.0", false)))
	cache := filepath.Join(home, "registry", "index", "index.example-0123", ".cache", "3", "f", "foo")
	write(t, cache, b)
	homes, err := OpenCargoHome(home)
	if err != nil || len(homes) != 1 || !IsCargoHome(home) {
		t.Fatalf("homes %v, %v", homes, err)
	}
	up := t.TempDir()
	write(t, filepath.Join(up, "3", "f", "foo"), []byte(lineOf("0.1.0", true)+"\n"))
	n := openNode(t, t.TempDir(), nil)
	n.run(t, cargoDir(t, up))
	if sum := n.run(t, homes[0]); sum.Events != 1 || len(n.problems) != 0 {
		t.Errorf("%+v, problems %v", sum, n.problems)
	}
	if got, want := string(n.fold(t, crate("foo")).IndexFile()), lineOf("0.1.0", true)+"\n"+lineOf("0.2.0", false)+"\n"; got != want {
		t.Errorf("signed\n%s\nwant\n%s", got, want)
	}
	for cut := range len(b) {
		if _, err := parseCached(b[:cut]); err == nil && !bytes.HasSuffix(b[:cut], []byte("}\x00")) && cut > 15 {
			t.Errorf("file cut at %d of %d accepted", cut, len(b))
		}
	}
}

// cacheFile returns what cargo keeps of the lines of a crate.
func cacheFile(lines ...[]byte) []byte {
	b := binary.LittleEndian.AppendUint32([]byte{3}, 2)
	b = append(b, "etag: \"x\"\x00"...)
	for i, l := range lines {
		b = fmt.Appendf(b, "0.%d.0\x00%s\x00", i+1, l)
	}
	return b
}

func FuzzParseCached(f *testing.F) {
	f.Add([]byte("\x03\x02\x00\x00\x00etag: x\x001.0.0\x00{}\x00"))
	f.Fuzz(func(t *testing.T, b []byte) { parseCached(b) }) // SEC-8
}

func FuzzParseFeeds(f *testing.F) {
	f.Add([]byte(`{"Path":"a","Version":"v1.0.0","Timestamp":"x"}`))
	f.Add([]byte(`<rss xmlns:crates="x"><channel><item><title>New crate version published: foo v1.0</title></item></channel></rss>`))
	f.Fuzz(func(t *testing.T, b []byte) { // SEC-8
		parseFeed(b)
		names, _ := parseUpdates(b)
		for _, n := range names {
			if _, err := registry.ParseCrate(n); err != nil {
				t.Errorf("feed names the crate %q", n)
			}
		}
	})
}

func TestParseUpdates(t *testing.T) {
	names, err := parseUpdates([]byte(`<?xml version="1.0"?><rss version="2.0" xmlns:crates="https://example.org/crates"><channel><title>x</title>
<item><title>New crate version published: Foo v1.0.0</title><crates:name>Foo</crates:name><crates:version>1.0.0</crates:version></item>
<item><title>New crate version published: bar v0.1.0</title></item></channel></rss>`))
	if err != nil || !slices.Equal(names, []string{"bar", "foo"}) {
		t.Errorf("names %v, %v", names, err)
	}
}

// tarball makes a .crate of entries.
func tarball(t testing.TB, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, h := range entries {
		h.Mode = 0o644
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			io.CopyN(w, zeros{}, h.Size)
		}
	}
	w.Close()
	z.Close()
	return b.Bytes()
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// TestHarmfulCrates: archives with links, devices, paths out of the directory,
// names that meet, and bombs are not seeded. SEC-43
func TestHarmfulCrates(t *testing.T) {
	good := tarball(t, tar.Header{Name: "foo-1.0.0/Cargo.toml", Size: 10}, tar.Header{Name: "foo-1.0.0/src/", Typeflag: tar.TypeDir}, tar.Header{Name: "foo-1.0.0/src/lib.rs", Size: 5})
	if err := inspectCrate(io.NewSectionReader(bytes.NewReader(good), 0, int64(len(good)))); err != nil {
		t.Errorf("good crate: %v", err)
	}
	bad := map[string][]byte{
		"link":            tarball(t, tar.Header{Name: "foo/a", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}),
		"hard link":       tarball(t, tar.Header{Name: "foo/a", Typeflag: tar.TypeLink, Linkname: "b"}),
		"device":          tarball(t, tar.Header{Name: "foo/a", Typeflag: tar.TypeChar}),
		"absolute":        tarball(t, tar.Header{Name: "/etc/passwd", Size: 1}),
		"climbing":        tarball(t, tar.Header{Name: "foo/../../x", Size: 1}),
		"backslash":       tarball(t, tar.Header{Name: `foo\..\x`, Size: 1}),
		"twice":           tarball(t, tar.Header{Name: "foo/a", Size: 1}, tar.Header{Name: "foo/a", Size: 1}),
		"case":            tarball(t, tar.Header{Name: "foo/A", Size: 1}, tar.Header{Name: "foo/a", Size: 1}),
		"case, directory": tarball(t, tar.Header{Name: "foo/a", Size: 1}, tar.Header{Name: "foo/A/", Typeflag: tar.TypeDir}),
		"below a file":    tarball(t, tar.Header{Name: "foo/a", Size: 1}, tar.Header{Name: "foo/A/b", Size: 1}),
		"no archive":      []byte("hello"),
	}
	if !testing.Short() {
		const frame = 3 * 512 // an entry's header and the end
		bad["bomb"] = tarball(t, tar.Header{Name: "foo/a", Size: 600 << 20})
		bad["512 MiB + 1"] = tarball(t, tar.Header{Name: "foo/a", Size: maxUnpacked - 512 + 1})
		most := tarball(t, tar.Header{Name: "foo/a", Size: maxUnpacked - frame})
		if err := inspectCrate(io.NewSectionReader(bytes.NewReader(most), 0, int64(len(most)))); err != nil {
			t.Errorf("512 MiB: %v", err)
		}
	}
	for name, b := range bad {
		if err := inspectCrate(io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b)))); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestArtifacts fetches, verifies and names files, and withdraws those of removed
// versions.
func TestArtifacts(t *testing.T) {
	dir := t.TempDir()
	crates := map[string][]byte{
		"1.0.0": tarball(t, tar.Header{Name: "foo-1.0.0/a", Size: 100000}),
		"1.1.0": tarball(t, tar.Header{Name: "foo-1.1.0/a", Size: 5}),
		"1.2.0": tarball(t, tar.Header{Name: "/etc/passwd", Size: 5}),
		"1.3.0": tarball(t, tar.Header{Name: "foo-1.3.0/a", Size: 7}), // is not beside the index
	}
	var lines []string
	for _, v := range []string{"1.0.0", "1.1.0", "1.2.0", "1.3.0"} {
		sum := sha256.Sum256(crates[v])
		lines = append(lines, fmt.Sprintf(`{"name":"Foo","vers":%q,"deps":[],"cksum":"%s","features":{},"yanked":false}`, v, hex.EncodeToString(sum[:])))
		if v != "1.3.0" {
			write(t, filepath.Join(dir, "crates", "Foo-"+v+".crate"), crates[v])
		}
	}
	write(t, filepath.Join(dir, "crates", "Foo-1.1.0.crate"), []byte("other bytes"))
	index := filepath.Join(dir, "index", "3", "f", "foo")
	write(t, index, []byte(strings.Join(lines, "\n")+"\n"))
	store, err := artifact.Open(filepath.Join(dir, "artifacts"), filepath.Join(dir, "db"), artifact.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	src := cargoDir(t, dir)
	n := openNode(t, filepath.Join(dir, "operator"), func(c *Config) {
		c.Artifacts = &Artifacts{Store: store, Open: func(_ context.Context, v Version) (io.ReadCloser, error) {
			return src.Crate(v.Name, v.Version)
		}}
	})
	n.run(t, src)
	var bad []string
	for _, p := range n.problems {
		bad = append(bad, p.Version)
	}
	if want := []string{"1.1.0", "1.2.0", "1.3.0"}; !slices.Equal(bad, want) {
		t.Errorf("problems %v, want those of %v", n.problems, want)
	}
	s := n.fold(t, crate("foo"))
	if a := s.Artifacts("1.0.0"); len(a) != 1 || a[0].ByteLength != uint64(len(crates["1.0.0"])) || a[0].Digest != sha256.Sum256(crates["1.0.0"]) {
		t.Errorf("artifacts %+v", a)
	}
	if len(s.Artifacts("1.1.0"))+len(s.Artifacts("1.2.0")) != 0 {
		t.Error("bad files were named")
	}

	write(t, filepath.Join(dir, "crates", "Foo-1.1.0.crate"), crates["1.1.0"])
	if sum := n.run(t, src); sum.Events != 1 || sum.Files != 1 {
		t.Errorf("run with the right file: %+v", sum)
	}
	// A file that the log names and the store has lost comes back.
	if err := store.Remove(sha256.Sum256(crates["1.1.0"])); err != nil {
		t.Fatal(err)
	}
	if sum := n.run(t, src); sum.Events != 0 || sum.Files != 1 {
		t.Errorf("run after a file was lost: %+v", sum)
	}
	write(t, index, []byte(strings.Join(lines[1:], "\n")+"\n"))
	n.run(t, src)
	d := artifact.Digest{Alg: artifact.SHA256, Sum: sha256.Sum256(crates["1.0.0"])}
	if _, err := store.CheckShared(d); err == nil { // SEC-19
		t.Error("the file of a removed version is still seeded")
	}
	if sum := n.run(t, src); sum.Events != 0 { // and that is no reason to stop later runs
		t.Errorf("run after a removal: %+v", sum)
	}
}

// TestCacheLacksFiles: that a cache does not hold all files is counted, and no
// problem.
func TestCacheLacksFiles(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "index", "3", "f", "foo"), []byte(indexLine("foo", "1.0.0")+"\n"))
	store, err := artifact.Open(filepath.Join(dir, "artifacts"), filepath.Join(dir, "db"), artifact.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	n := openNode(t, filepath.Join(dir, "operator"), func(c *Config) {
		c.Artifacts = &Artifacts{Store: store, Open: func(context.Context, Version) (io.ReadCloser, error) { return nil, ErrNotCached }}
	})
	if sum := n.run(t, cargoDir(t, dir)); sum.NotCached != 1 || sum.Files != 0 || len(n.problems) != 0 {
		t.Errorf("%+v, problems %v", sum, n.problems)
	}
}

// indexLine returns a line of an index file.
func indexLine(name, version string) string {
	return fmt.Sprintf(`{"name":%q,"vers":%q,"deps":[],"cksum":"%064d","features":{},"yanked":false}`, name, version, 1)
}

// TestPrivateLeftOut: names that are private are not signed, and a source that is a
// whole registry removes none. SEC-60
func TestPrivateLeftOut(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "3", "f", "foo"), []byte(indexLine("foo", "1.0.0")+"\n"))
	secret := filepath.Join(dir, "co", "rp", "corp-a")
	write(t, secret, []byte(indexLine("corp-a", "1.0.0")+"\n"))
	operator := t.TempDir()
	n := openNode(t, operator, func(c *Config) { c.Private = "corp-*" })
	if sum := n.run(t, cargoDir(t, dir)); sum.Packages != 1 || sum.Private != 1 {
		t.Errorf("%+v", sum)
	}
	if head := n.catalog.Head(); head.Packages(pkglog.Cargo) != 1 {
		t.Errorf("%d crates are signed, want 1", head.Packages(pkglog.Cargo))
	}
	n.importer.c.Private = ""
	n.run(t, cargoDir(t, dir))
	n.importer.c.Private = "corp-*"
	if err := os.Remove(secret); err != nil {
		t.Fatal(err)
	}
	n.run(t, cargoDir(t, dir))
	if !n.fold(t, crate("corp-a")).Exists() {
		t.Error("what is private now was removed")
	}
}
