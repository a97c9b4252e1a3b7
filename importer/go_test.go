package importer

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pkgswarm/pkgswarm/internal/filecache"
	"github.com/pkgswarm/pkgswarm/internal/goupstream"
	"github.com/pkgswarm/pkgswarm/registry/artifact"
	"github.com/pkgswarm/pkgswarm/registry/modules"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
	"github.com/pkgswarm/pkgswarm/registry/sumdb"
	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

// A goSide is an upstream for modules and what asks it.
type goSide struct {
	*goupstream.Server
	client *upstream.Client
	proxy  *HTTPProxy
	sums   Sums
}

func newGoSide(t *testing.T) *goSide {
	t.Helper()
	s := &goSide{Server: goupstream.New(t)}
	s.client = newClient(t, s.URL)
	s.proxy = &HTTPProxy{Client: s.client, Proxies: modules.List{{URL: s.URL}}}
	cache, err := filecache.Open(filepath.Join(t.TempDir(), "sumdb"), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	db, err := sumdb.Open(sumdb.Config{Key: s.Key, Proxies: []string{s.URL}, Upstream: s.client, StateDir: t.TempDir(), Cache: cache})
	if err != nil {
		t.Fatal(err)
	}
	s.sums = SumsOf(db)
	return s
}

func newClient(t *testing.T, url string) *upstream.Client {
	t.Helper()
	c, err := upstream.New(upstream.Config{Origins: []string{url}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func (s *goSide) source(t *testing.T, modules ...GoModule) *GoModules {
	t.Helper()
	sorted, problems := SortModules(modules)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	return &GoModules{URL: s.URL, Proxy: s.proxy, Sums: s.sums, Modules: sorted}
}

// A shortList is a proxy that has lost most of its versions.
type shortList struct{ ModuleProxy }

func (shortList) List(context.Context, string) ([]byte, error) { return []byte("v1.0.0\n"), nil }

func goModule(path string) pkglog.Header { return pkglog.Header{Ecosystem: pkglog.Go, Package: path} }

func files(path string) map[string]string {
	return map[string]string{"go.mod": "module " + path + "\n\ngo 1.21\n", "a.go": "package a\n"}
}

func TestImportModules(t *testing.T) {
	up := newGoSide(t)
	const path, pseudo = "example.com/Mixed/m", "v0.0.0-20231114221320-abcdefabcdef"
	for _, v := range []string{"v1.0.0", "v1.1.0", "v1.10.0", pseudo} {
		up.Add(t, path, v, files(path))
	}
	n := openNode(t, t.TempDir(), nil)
	src := up.source(t, GoModule{Path: path, List: true, Versions: []string{pseudo}}, GoModule{Path: "example.com/none", List: true})
	sum := n.run(t, src)
	if sum.Packages != 2 || sum.Changed != 1 || sum.Versions != 4 || len(n.problems) != 1 || n.problems[0].Package != "example.com/none" {
		t.Errorf("%+v, problems %v", sum, n.problems)
	}
	s := n.fold(t, goModule(path))
	if got, want := string(s.List()), "v1.0.0\nv1.1.0\nv1.10.0\n"; got != want {
		t.Errorf("list %q, want %q", got, want)
	}
	v := s.Module("v1.1.0")
	info, err := up.proxy.Info(t.Context(), path, "v1.1.0")
	if err != nil || !bytes.Equal(v.Info, info) || string(v.Mod) != files(path)["go.mod"] || v.Time != 1_700_000_000 || v.ModHash != HashMod(v.Mod) {
		t.Errorf("version %+v, %v", v, err)
	}
	if s.Module(pseudo) == nil {
		t.Error("the pseudo-version that was named is missing")
	}
	before := n.head()
	if sum := n.run(t, src); sum.Events != 0 || n.head() != before {
		t.Errorf("second run: %+v", sum)
	}
	up.Add(t, path, "v1.11.0", files(path))
	if sum := n.run(t, src); sum.Events != 1 {
		t.Errorf("run with a new version: %+v", sum)
	}
	// Versions that are named and signed are not looked at again, those named in
	// addition are.
	named := up.source(t, GoModule{Path: path, Versions: []string{"v1.0.0"}})
	if sum := n.run(t, named); sum.Versions != 1 || sum.Events != 0 {
		t.Errorf("run with a named version: %+v", sum)
	}
	if sum := n.run(t, named); sum.Versions != 0 || sum.Unchanged != 1 {
		t.Errorf("once more: %+v", sum)
	}
	up.Add(t, path, "v1.12.0", files(path))
	named.Modules[0].Versions = append(named.Modules[0].Versions, "v1.12.0")
	if sum := n.run(t, named); sum.Versions != 2 || sum.Events != 1 {
		t.Errorf("with another named version: %+v", sum)
	}
	// A list that has become shorter removes nothing: proxies leave versions out
	// for reasons of their own, and what the checksum database has stays true.
	shorter := up.source(t, GoModule{Path: path, List: true})
	shorter.Proxy = shortList{shorter.Proxy}
	before = n.head()
	if sum := n.run(t, shorter); sum.Events != 0 || n.head() != before || len(n.fold(t, goModule(path)).Versions()) != 6 {
		t.Errorf("run with a shorter list: %+v", sum)
	}
}

// TestUnprovenModules: what the checksum database does not prove is not signed,
// nor what is about another version.
func TestUnprovenModules(t *testing.T) {
	up := newGoSide(t)
	const path = "example.com/m"
	for i := range 6 {
		up.Add(t, path, fmt.Sprintf("v1.0.%d", i), files(path))
		up.Record(t, path, fmt.Sprintf("v1.0.%d", i))
	}
	up.Put(path, "v1.0.1.mod", []byte("module "+path+"\n\ngo 1.99\n"))
	up.Put(path, "v1.0.2.info", []byte(`{"Version":"v1.0.3","Time":"2024-01-01T00:00:00Z"}`))
	up.Put(path, "v1.0.3.info", []byte(`not json`))
	up.Tamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.HasSuffix(r.URL.Path, "lookup/"+path+"@v1.0.4") {
			http.Error(w, "not found: refused", http.StatusNotFound)
			return
		}
		next.ServeHTTP(w, r)
	})
	n := openNode(t, t.TempDir(), nil)
	sum := n.run(t, up.source(t, GoModule{Path: path, List: true}))
	var bad []string
	for _, p := range n.problems {
		bad = append(bad, p.Version)
	}
	if want := []string{"v1.0.1", "v1.0.2", "v1.0.3", "v1.0.4"}; !slices.Equal(bad, want) || sum.Problems != 4 {
		t.Errorf("problems %v, want those of %v", n.problems, want)
	}
	if got := string(n.fold(t, goModule(path)).List()); got != "v1.0.0\nv1.0.5\n" {
		t.Errorf("signed %q", got)
	}
}

func TestSortModules(t *testing.T) {
	sorted, problems := SortModules([]GoModule{
		{Path: "example.com/b", Versions: []string{"v1.0.0", "v1.0.0", "v2.0.0", "v1.0", "main"}},
		{Path: "example.com/a", List: true}, {Path: "example.com/b", List: true}, {Path: "Bad Path"},
	})
	if len(sorted) != 2 || sorted[0].Path != "example.com/a" || !sorted[1].List || !slices.Equal(sorted[1].Versions, []string{"v1.0.0"}) {
		t.Errorf("sorted %+v", sorted)
	}
	if len(problems) != 4 {
		t.Errorf("problems %v", problems)
	}
}

// TestModuleDir imports from a directory of a GOPROXY's layout, as the download
// cache is.
func TestModuleDir(t *testing.T) {
	up := newGoSide(t)
	const path = "example.com/Up/m"
	up.Add(t, path, "v1.0.0", files(path))
	up.Add(t, path, "v1.2.0", files(path))
	dir := t.TempDir()
	get := func(name string) []byte {
		resp, err := http.Get(up.URL + "/example.com/!up/m/@v/" + name)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, name := range []string{"v1.0.0.info", "v1.0.0.mod", "v1.0.0.zip", "v1.2.0.mod", "v1.2.0.zip"} {
		write(t, filepath.Join(dir, "cache", "download", "example.com", "!up", "m", "@v", name), get(name))
	}
	info := get("v1.2.0.info")
	write(t, filepath.Join(dir, "cache", "download", "example.com", "!up", "m", "@v", "v1.1.0.info"), []byte(`{"Version":"v1.1.0"}`)) // without .mod
	write(t, filepath.Join(dir, "cache", "download", "example.com", "!up", "m", "@v", "list"), []byte("v1.0.0\nv9.0.0\n"))
	d, err := OpenModuleDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	d.Missing = up.proxy
	modules, err := d.Modules()
	if err != nil || len(modules) != 1 || modules[0].Path != path || !slices.Equal(modules[0].Versions, []string{"v1.0.0", "v1.2.0"}) {
		t.Fatalf("modules %+v, %v", modules, err)
	}
	store, err := artifact.Open(t.TempDir(), t.TempDir(), artifact.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	n := openNode(t, t.TempDir(), func(c *Config) {
		c.Artifacts = &Artifacts{Store: store, Open: func(ctx context.Context, v Version) (io.ReadCloser, error) {
			return d.Zip(ctx, v.Name, v.Version)
		}}
	})
	n.run(t, &GoModules{URL: dir, Proxy: d, Sums: up.sums, Modules: modules})
	s := n.fold(t, goModule(path))
	if s.Module("v1.0.0") == nil {
		t.Error("v1.0.0 was not signed")
	}
	if v := s.Module("v1.2.0"); v == nil || string(v.Info) != string(info) {
		t.Errorf("v1.2.0, without .info in the cache: %+v, problems %v", v, n.problems)
	}
	if a := s.Artifacts("v1.0.0"); len(a) != 1 || a[0].Digest != s.Module("v1.0.0").ZipHash {
		t.Errorf("artifacts %+v, problems %v", a, n.problems)
	}
}

// TestModuleFeed: the index is followed page by page; its repeats are dropped and
// the cursor has the full precision. A run that fails begins at the same place.
func TestModuleFeed(t *testing.T) {
	up := newGoSide(t)
	type entry struct{ path, version, at string }
	var all []entry
	for i := range 10 {
		e := entry{fmt.Sprintf("example.com/m%d", i%3), fmt.Sprintf("v1.0.%d", i), fmt.Sprintf("2024-01-01T00:00:00.%06dZ", i/2)}
		up.Add(t, e.path, e.version, files(e.path))
		all = append(all, e)
	}
	down := false
	index := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if down {
			http.Error(w, "down", http.StatusServiceUnavailable)
			return
		}
		n := 0
		for _, e := range all {
			if e.at >= r.FormValue("since") && n < 4 {
				fmt.Fprintf(w, "{\"Path\":%q,\"Version\":%q,\"Timestamp\":%q}\n", e.path, e.version, e.at)
				n++
			}
		}
	}))
	defer index.Close()
	dir := t.TempDir()
	n := openNode(t, dir, nil)
	src := func() *FeedSource {
		return &FeedSource{
			Feed: &ModuleFeed{Client: newClient(t, index.URL), URL: index.URL + "/index", Limit: 4},
			Dir:  dir, URL: up.URL, Proxy: up.proxy, Sums: up.sums,
		}
	}
	if sum := n.run(t, src()); sum.Packages != 3 || sum.Versions != 10 {
		t.Errorf("first run %+v, problems %v", sum, n.problems)
	}
	all = append(all, entry{"example.com/m9", "v1.0.0", all[9].at})
	up.Add(t, "example.com/m9", "v1.0.0", files("example.com/m9"))
	if sum := n.run(t, src()); sum.Packages != 1 || sum.Events != 2 {
		t.Errorf("second run %+v", sum)
	}
	down = true
	if _, err := n.importer.Run(t.Context(), src()); err == nil {
		t.Error("a feed that is down is no error")
	}
	down = false
	if sum := n.run(t, src()); sum.Packages != 0 {
		t.Errorf("third run %+v", sum)
	}
}
