package sumdb

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/pkgswarm/pkgswarm/internal/filecache"
	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

const dbName = "sum.test"

// A fake is a checksum database that a test can tamper with, and a Getter for it.
type fake struct {
	skey, vkey string
	ops        *sumdb.TestServer
	h          http.Handler

	mu     sync.Mutex
	asked  []string
	tamper func(path string, body []byte) []byte // nil: honest
	down   bool
}

func newFake(t testing.TB) *fake {
	skey, vkey, err := note.GenerateKey(rand.Reader, dbName)
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{skey: skey, vkey: vkey}
	f.ops = sumdb.NewTestServer(skey, gosum)
	f.h = sumdb.NewServer(f.ops)
	return f
}

func hashOf(s string) string {
	h := sha256.Sum256([]byte(s))
	return "h1:" + base64.StdEncoding.EncodeToString(h[:])
}

func gosum(path, version string) ([]byte, error) {
	if strings.Contains(path, "missing") {
		return nil, os.ErrNotExist
	}
	return fmt.Appendf(nil, "%s %s %s\n%s %s/go.mod %s\n", path, version, hashOf(path+version), path, version, hashOf(path+version+"mod")), nil
}

// Get implements Getter.
func (f *fake) Get(_ context.Context, r upstream.Request) (*upstream.Answer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	u, _ := url.Parse(r.URL)
	f.asked = append(f.asked, u.Path)
	fail := func(class error) (*upstream.Answer, error) { return nil, &upstream.Error{URL: r.URL, Class: class} }
	if f.down {
		return fail(upstream.ErrUnreachable)
	}
	w := httptest.NewRecorder()
	func() {
		defer func() {
			if recover() != nil { // TestServer's answer to a tile beyond its tree
				w.Code = 404
			}
		}()
		f.h.ServeHTTP(w, httptest.NewRequest("GET", u.Path, nil))
	}()
	body := w.Body.Bytes()
	if w.Code == 404 {
		return fail(upstream.ErrNotFound)
	}
	if w.Code != 200 {
		return fail(upstream.ErrUnreachable)
	}
	if f.tamper != nil {
		if body = f.tamper(u.Path, body); body == nil {
			return fail(upstream.ErrBadAnswer)
		}
	}
	return &upstream.Answer{Body: body}, nil
}

func (f *fake) setDown(down bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = down
}

// grow adds n records.
func (f *fake) grow(t testing.TB, name string, n int) {
	for i := range n {
		if _, err := f.ops.Lookup(context.Background(), mod(name, i)); err != nil {
			t.Fatal(err)
		}
	}
}

func mod(name string, i int) module.Version {
	return module.Version{Path: "example.com/" + name, Version: fmt.Sprintf("v1.0.%d", i)}
}

type dirs struct{ state, cache string }

func openDB(t testing.TB, f *fake, d *dirs) *DB {
	t.Helper()
	if d.state == "" {
		d.state = t.TempDir()
	}
	if d.cache == "" {
		d.cache = t.TempDir()
	}
	c, err := filecache.Open(d.cache, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	db, err := Open(Config{Key: f.vkey, URL: "http://sum.test", Upstream: f, StateDir: d.state, Cache: c})
	if err != nil {
		t.Fatal(err)
	}
	return db
}

func TestLookup(t *testing.T) {
	f := newFake(t)
	f.grow(t, "a", 1000)
	db := openDB(t, f, &dirs{})
	m := module.Version{Path: "example.com/Upper", Version: "v1.0.0"}
	r, err := db.Lookup(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	if r.Zip != hashOf(m.Path+m.Version) || r.Mod != hashOf(m.Path+m.Version+"mod") {
		t.Errorf("Lookup = %+v", r)
	}
	n := len(f.asked)
	if _, err := db.Lookup(t.Context(), m); err != nil || len(f.asked) != n {
		t.Errorf("second Lookup: %v, %d requests more", err, len(f.asked)-n)
	}
	if f.asked[0] != "/lookup/example.com/!upper@v1.0.0" {
		t.Errorf("asked for %s", f.asked[0])
	}
	if _, err := db.Lookup(t.Context(), mod("missing", 1)); !errors.Is(err, upstream.ErrNotFound) {
		t.Errorf("unknown module: %v, want not found", err)
	}
}

func TestInclusion(t *testing.T) { // SEC-4
	f := newFake(t)
	f.grow(t, "a", 1000)
	d := &dirs{}
	db := openDB(t, f, d)
	m := mod("a", 17)
	want, err := db.Lookup(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	n := len(f.asked)
	for _, db := range []*DB{db, openDB(t, f, d)} { // the second knows it from disk alone
		in, err := db.Inclusion(t.Context(), m)
		if err != nil || in.ID != want.ID || in.Zip != want.Zip || in.Tree.N < 1000 || len(in.Proof) == 0 {
			t.Errorf("Inclusion = %+v, %v", in, err)
		}
		if _, err := db.Inclusion(t.Context(), mod("a", 18)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Inclusion of what is not held: %v", err)
		}
	}
	if len(f.asked) != n {
		t.Errorf("%d requests for a proof of what is held", len(f.asked)-n)
	}
	// A record that somebody put into the cache is not in the tree.
	db = openDB(t, f, d)
	forged, err := tlog.FormatRecord(want.ID, bytes.ReplaceAll(want.Text, []byte(want.Zip), []byte(hashOf("forged"))))
	if err != nil {
		t.Fatal(err)
	}
	if err := db.cache.Put(db.cacheKey("lookup/example.com/a@v1.0.17"), forged); err != nil {
		t.Fatal(err)
	}
	if in, err := db.Inclusion(t.Context(), m); !errors.Is(err, ErrMismatch) {
		t.Errorf("Inclusion of a forged record = %+v, %v", in, err)
	}
}

// SEC-4: whatever the database answers, a record is proven or refused, and right
// again when the database is.
func TestLyingDatabase(t *testing.T) {
	m := mod("a", 123)
	other := func(f *fake) []byte { // a true record of another module
		w := httptest.NewRecorder()
		f.h.ServeHTTP(w, httptest.NewRequest("GET", "/lookup/example.com/a@v1.0.77", nil))
		return w.Body.Bytes()
	}
	lookups := func(change func(f *fake, id int64, text, signed []byte) []byte) func(f *fake) func(string, []byte) []byte {
		return func(f *fake) func(string, []byte) []byte {
			return func(path string, body []byte) []byte {
				if !strings.HasPrefix(path, "/lookup/") {
					return body
				}
				id, text, signed, err := tlog.ParseRecord(body)
				if err != nil {
					t.Fatal(err)
				}
				return change(f, id, text, signed)
			}
		}
	}
	tiles := func(change func(path string, body []byte) []byte) func(f *fake) func(string, []byte) []byte {
		return func(f *fake) func(string, []byte) []byte {
			return func(path string, body []byte) []byte {
				if !strings.HasPrefix(path, "/tile/") {
					return body
				}
				return change(path, bytes.Clone(body))
			}
		}
	}
	record := func(id int64, text, signed []byte) []byte {
		return fmt.Appendf(nil, "%d\n%s\n%s", id, text, signed)
	}
	for name, tamper := range map[string]func(f *fake) func(string, []byte) []byte{
		"empty answer": lookups(func(*fake, int64, []byte, []byte) []byte { return []byte{} }),
		"other module": lookups(func(f *fake, _ int64, _, _ []byte) []byte { return other(f) }),
		"other module relabelled": lookups(func(_ *fake, id int64, text, signed []byte) []byte {
			return record(id-1, text, signed)
		}),
		"changed record": lookups(func(_ *fake, id int64, text, signed []byte) []byte {
			return record(id, bytes.ReplaceAll(text, []byte("h1:"), []byte("h1:A")), signed)
		}),
		"extra lines in the record": lookups(func(_ *fake, id int64, text, signed []byte) []byte {
			return record(id, append([]byte("example.com/a v1.0.123 h1:forged=\n"), text...), signed)
		}),
		"extra lines after the record": lookups(func(_ *fake, id int64, text, signed []byte) []byte {
			return record(id, text, append([]byte("example.com/a v1.0.123 h1:forged=\n\n"), signed...))
		}),
		"record 2^63-1":   lookups(func(_ *fake, _ int64, text, signed []byte) []byte { return record(1<<63-1, text, signed) }),
		"negative record": lookups(func(_ *fake, _ int64, text, signed []byte) []byte { return record(-1, text, signed) }),
		"broken signature": lookups(func(_ *fake, id int64, text, signed []byte) []byte {
			s := bytes.Clone(signed)
			s[len(s)-10] ^= 1
			return record(id, text, s)
		}),
		"unsigned": lookups(func(_ *fake, id int64, text, signed []byte) []byte {
			s, _, _ := bytes.Cut(signed, []byte("\n\n"))
			return record(id, text, append(s, '\n'))
		}),
		"other key": lookups(func(_ *fake, id int64, text, _ []byte) []byte {
			g := newFake(t)
			g.grow(t, "a", 1000)
			signed, _ := g.ops.Signed(context.Background())
			return record(id, text, signed)
		}),
		"smaller tree": lookups(func(f *fake, id int64, text, _ []byte) []byte {
			g := &fake{ops: sumdb.NewTestServer(f.skey, gosum)}
			g.grow(t, "a", 10)
			signed, _ := g.ops.Signed(context.Background())
			return record(id, text, signed)
		}),
		"forged leaf tile": tiles(func(path string, b []byte) []byte { b[(123%256)*32%len(b)] ^= 1; return b }),
		"zero tile":        tiles(func(path string, b []byte) []byte { clear(b); return b }),
		"short tile":       tiles(func(path string, b []byte) []byte { return b[:len(b)-32] }),
		"odd tile":         tiles(func(path string, b []byte) []byte { return b[:len(b)-1] }),
		"long tile":        tiles(func(path string, b []byte) []byte { return append(b, make([]byte, 32)...) }),
		"empty tile":       tiles(func(path string, b []byte) []byte { return []byte{} }),
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.grow(t, "a", 1000)
			db := openDB(t, f, &dirs{})
			f.tamper = tamper(f)
			r, err := db.Lookup(t.Context(), m)
			if err == nil {
				t.Fatalf("believed: %+v", r)
			}
			if errors.Is(err, upstream.ErrNotFound) {
				t.Errorf("a lie became an absence: %v", err)
			}
			f.tamper = nil // SEC-35: an error is not poison
			if r, err = db.Lookup(t.Context(), m); err != nil || r.Zip != hashOf(m.Path+m.Version) {
				if name == "smaller tree" && err != nil {
					t.Fatalf("after a smaller tree of another history: %v", err)
				}
				t.Errorf("afterwards: %+v, %v", r, err)
			}
		})
	}
}

// SEC-4: a fork is refused and kept as evidence; the kept tree still binds.
func TestFork(t *testing.T) {
	f := newFake(t)
	f.grow(t, "a", 300)
	d := &dirs{}
	db := openDB(t, f, d)
	if _, err := db.Lookup(t.Context(), mod("a", 1)); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{100, 300, 1000} {
		fork := &fake{skey: f.skey, vkey: f.vkey, ops: sumdb.NewTestServer(f.skey, gosum)}
		fork.h = sumdb.NewServer(fork.ops)
		fork.grow(t, "b", size)
		db := openDB(t, fork, &dirs{state: d.state, cache: d.cache})
		if _, err := db.Lookup(t.Context(), mod("b", 7)); !errors.Is(err, ErrFork) {
			t.Errorf("fork of %d records: %v, want ErrFork", size, err)
		}
		if db.Forks() == 0 {
			t.Error("the fork was not counted")
		}
		if _, err := db.Latest(t.Context()); err != nil {
			t.Errorf("Latest: %v", err)
		}
	}
	if names, _ := filepath.Glob(filepath.Join(d.state, "sumdb", dbName, "fork-*")); len(names) < 3 {
		t.Errorf("evidence: %v", names)
	}
	if _, err := openDB(t, f, d).Lookup(t.Context(), mod("a", 299)); err != nil {
		t.Errorf("honest database after the fork: %v", err)
	}
}

// SEC-6: an old cache under a newer head does not take the head back.
func TestHeadNeverGoesBack(t *testing.T) {
	f := newFake(t)
	f.grow(t, "a", 100)
	d := &dirs{}
	db := openDB(t, f, d)
	if _, err := db.Lookup(t.Context(), mod("a", 1)); err != nil {
		t.Fatal(err)
	}
	oldTree, old := db.head.load()
	oldCache := &dirs{state: d.state, cache: t.TempDir()}
	if err := os.CopyFS(oldCache.cache, os.DirFS(d.cache)); err != nil {
		t.Fatal(err)
	}
	f.grow(t, "b", 500)
	if _, err := db.Lookup(t.Context(), mod("b", 499)); err != nil {
		t.Fatal(err)
	}
	head, _ := db.head.load()
	if head.N != 600 {
		t.Fatalf("kept tree has %d records, want 600", head.N)
	}
	if err := db.head.set(oldTree, old); err == nil {
		t.Error("an older tree replaced a newer one")
	}
	db = openDB(t, f, oldCache)
	if got, _ := db.head.load(); got != head {
		t.Errorf("head after restoring a cache: %d, want %d", got.N, head.N)
	}
	if _, err := db.Lookup(t.Context(), mod("a", 1)); err != nil {
		t.Errorf("look-up with the restored cache: %v", err)
	}
	path := filepath.Join(d.state, "sumdb", dbName, "latest")
	os.WriteFile(path, []byte("damaged"), 0o600)
	if _, err := Open(Config{Key: f.vkey, StateDir: d.state}); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("damaged head: %v, want an error that names the file", err)
	}
}

// A hostile or damaged cache costs requests, and convinces nobody.
func TestHostileCache(t *testing.T) {
	f := newFake(t)
	f.grow(t, "a", 1000)
	d := &dirs{}
	m := mod("a", 123)
	if _, err := openDB(t, f, d).Lookup(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	c, _ := filecache.Open(d.cache, 0)
	defer c.Close()
	db := openDB(t, f, d)
	forged := bytes.ReplaceAll(must(c.Get(db.cacheKey("lookup/example.com/a@v1.0.123"))), []byte("h1:"), []byte("h1:A"))
	c.Put(db.cacheKey("lookup/example.com/a@v1.0.123"), forged)
	if r, err := db.Lookup(t.Context(), m); err != nil || r.Zip != hashOf(m.Path+m.Version) {
		t.Errorf("forged record in the cache: %+v, %v", r, err)
	}
	db = openDB(t, f, d)
	tile := tlog.Tile{H: 8, L: 0, N: 0, W: 256}
	c.Put(db.tileKey(tile), make([]byte, 256*32))
	if r, err := db.Lookup(t.Context(), m); err != nil || r.Zip != hashOf(m.Path+m.Version) {
		t.Errorf("forged tile in the cache: %+v, %v", r, err)
	}
	db = openDB(t, f, d)
	c.Put(db.tileKey(tile), make([]byte, 256*32))
	if data, err := db.Tile(t.Context(), tile); err != nil || bytes.Equal(data, make([]byte, 256*32)) {
		t.Errorf("Tile with a forged cache: %v", err)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// A client that is served by a DB, over all sizes of trees, verifies everything
// offline, whatever it has seen before: registry-protocols.md 3.9.
func TestAnyMixOffline(t *testing.T) {
	f := newFake(t)
	d := &dirs{}
	db := openDB(t, f, d)
	var known []module.Version
	var clients []*dirs // of clients that have seen some tree
	for step := range 40 {
		name := fmt.Sprintf("s%d", step)
		n := 1 + step*step%97*(step%5) + step
		f.grow(t, name, n)
		m := mod(name, n/2)
		if _, err := db.Answer(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		known = append(known, m)
		c := &dirs{}
		if _, err := served(t, db, f, c).Lookup(t.Context(), m); err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
		clients = append(clients, c)
	}
	f.setDown(true)
	db = openDB(t, f, d) // restarted
	for i, c := range clients {
		client := served(t, db, f, c)
		for j, m := range known {
			if _, err := client.Lookup(t.Context(), m); err != nil {
				t.Fatalf("client of step %d, record of step %d: %v", i, j, err)
			}
		}
	}
}

// served returns a DB that has db for its upstream, as go would.
func served(t *testing.T, db *DB, f *fake, d *dirs) *DB {
	client := openDB(t, f, d)
	client.remote.up = getter(func(ctx context.Context, r upstream.Request) (*upstream.Answer, error) {
		u, _ := url.Parse(r.URL)
		var body []byte
		var err error
		if key, ok := strings.CutPrefix(u.Path, "/lookup/"); ok {
			path, version, _ := strings.Cut(key, "@")
			body, err = db.Answer(ctx, module.Version{Path: path, Version: version})
		} else {
			var tile tlog.Tile
			if tile, err = tlog.ParseTilePath(u.Path[1:]); err == nil {
				body, err = db.Tile(ctx, tile)
			}
		}
		if err != nil {
			return nil, err
		}
		return &upstream.Answer{Body: body}, nil
	})
	return client
}

type getter func(ctx context.Context, r upstream.Request) (*upstream.Answer, error)

func (g getter) Get(ctx context.Context, r upstream.Request) (*upstream.Answer, error) {
	return g(ctx, r)
}

func TestTiles(t *testing.T) {
	f := newFake(t)
	f.grow(t, "a", 600)
	db := openDB(t, f, &dirs{})
	for _, tt := range []struct {
		path string
		ok   bool
	}{
		{"tile/8/0/000", true}, {"tile/8/0/001", true}, {"tile/8/0/002.p/88", true}, {"tile/8/0/002.p/5", true},
		{"tile/8/1/000.p/2", true}, {"tile/8/1/000.p/1", true}, {"tile/8/data/000", true}, {"tile/8/data/002.p/88", true},
		{"tile/8/0/002.p/89", false}, {"tile/8/0/002", false}, {"tile/8/2/000.p/1", false}, {"tile/8/0/x999/999", false},
		{"tile/4/0/000", false}, {"tile/8/63/000", false},
	} {
		tile, err := tlog.ParseTilePath(tt.path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := db.Tile(t.Context(), tile)
		if !tt.ok {
			if !errors.Is(err, upstream.ErrNotFound) {
				t.Errorf("%s: %v, want not found", tt.path, err)
			}
			continue
		}
		w := httptest.NewRecorder()
		f.h.ServeHTTP(w, httptest.NewRequest("GET", "/"+tt.path, nil))
		if err != nil || !bytes.Equal(got, w.Body.Bytes()) {
			t.Errorf("%s: %d bytes, %v, want the %d of the database", tt.path, len(got), err, w.Body.Len())
		}
	}
	f.tamper = func(path string, b []byte) []byte {
		return bytes.Replace(b, []byte("example.com/a v1.0.3 h1:"), []byte("example.com/a v1.0.3 h1:A"), 1)
	}
	if _, err := db.Tile(t.Context(), must(tlog.ParseTilePath("tile/8/data/000"))); !errors.Is(err, ErrMismatch) {
		t.Errorf("forged data tile: %v, want ErrMismatch", err)
	}
}

// Equal look-ups cost one request, and simultaneous ones share their tiles.
func TestRequestsShared(t *testing.T) {
	f := newFake(t)
	f.grow(t, "a", 2000)
	db := openDB(t, f, &dirs{})
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			if _, err := db.Lookup(context.Background(), mod("a", i%20)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	count := map[string]int{}
	for _, path := range f.asked {
		if count[path]++; count[path] > 1 {
			t.Errorf("%s was asked for again", path)
		}
	}
}

// The database is asked through the first proxy that carries it.
func TestRemoteRoots(t *testing.T) {
	f := newFake(t)
	f.grow(t, "a", 10)
	for _, tt := range []struct {
		without []string // proxies that say 404
		down    []string
		want    string
	}{
		{nil, nil, "http://p1.test/go/sumdb/sum.test"},
		{[]string{"p1.test"}, nil, "http://p2.test/sumdb/sum.test"},
		{nil, []string{"p1.test"}, "http://p2.test/sumdb/sum.test"},
		{[]string{"p1.test", "p2.test"}, nil, "https://sum.test"},
	} {
		var asked string
		up := getter(func(ctx context.Context, r upstream.Request) (*upstream.Answer, error) {
			u, _ := url.Parse(r.URL)
			for _, h := range tt.without {
				if u.Host == h {
					return nil, &upstream.Error{Class: upstream.ErrNotFound}
				}
			}
			for _, h := range tt.down {
				if u.Host == h {
					return nil, &upstream.Error{Class: upstream.ErrUnreachable}
				}
			}
			base, path, _ := strings.Cut(r.URL, dbName+"/")
			if path == "supported" {
				return &upstream.Answer{}, nil
			}
			asked = base + dbName
			return f.Get(ctx, upstream.Request{URL: "http://x/" + path})
		})
		c, _ := filecache.Open(t.TempDir(), 0)
		defer c.Close()
		db := must(Open(Config{Key: f.vkey, Proxies: []string{"http://p1.test/go/", "http://p2.test"}, Upstream: up, StateDir: t.TempDir(), Cache: c}))
		if _, err := db.Lookup(t.Context(), mod("a", 1)); err != nil || asked != tt.want {
			t.Errorf("without %v, down %v: asked %s, %v, want %s", tt.without, tt.down, asked, err, tt.want)
		}
	}
}

// Who asks for each record once keeps none of them, and pays for each with one
// request: trees and tiles that were verified are not verified again. What is not
// in them is refused all the same. SEC-4
func TestNoRecords(t *testing.T) {
	f := newFake(t)
	f.grow(t, "a", 600)
	c, err := filecache.Open(t.TempDir(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	db, err := Open(Config{Key: f.vkey, URL: "http://sum.test", Upstream: f, StateDir: t.TempDir(), Cache: c, NoRecords: true})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 256 { // all that tile 0 has
		if r, err := db.Lookup(t.Context(), mod("a", i)); err != nil || r.Zip != hashOf(mod("a", i).Path+mod("a", i).Version) {
			t.Fatalf("record %d: %+v, %v", i, r, err)
		}
	}
	if n := len(f.asked); n > 256+8 {
		t.Errorf("%d requests for 256 records", n)
	}
	c.Keys("sumdb sum.test lookup/", func(key string) bool { t.Errorf("%s was kept", key); return true })

	db.records.Purge()
	for name, tamper := range map[string]func(string, []byte) []byte{
		"changed record": func(path string, body []byte) []byte { return bytes.Replace(body, []byte("h1:"), []byte("h1:A"), 1) },
		"other number":   func(path string, body []byte) []byte { return append([]byte("1"), body...) },
		"other module": func(path string, body []byte) []byte {
			w := httptest.NewRecorder()
			f.h.ServeHTTP(w, httptest.NewRequest("GET", "/lookup/example.com/a@v1.0.77", nil))
			return w.Body.Bytes()
		},
	} {
		f.tamper = tamper
		if r, err := db.Lookup(t.Context(), mod("a", 12)); !errors.Is(err, ErrMismatch) {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
}

// TestOlderTrees: an answer may come with an older tree than the kept one, as those
// of caches do. It is compared by tiles of the kept tree, which are kept, and a
// damaged one is asked for again.
func TestOlderTrees(t *testing.T) {
	f := newFake(t)
	d := &dirs{}
	var notes [][]byte // of trees that end at, before and after the ends of tiles
	for _, n := range []int{100, 156, 44, 300, 400} {
		f.grow(t, fmt.Sprint("m", len(notes)), n)
		signed, err := f.ops.Signed(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		notes = append(notes, signed)
	}
	db := openDB(t, f, d)
	if _, err := db.Lookup(t.Context(), mod("m4", 399)); err != nil {
		t.Fatal(err)
	}
	db = openDB(t, f, d)
	for i := range int64(3) {
		db.cache.Put(db.tileKey(tlog.Tile{H: tileHeight, N: i, W: 256}), make([]byte, 256*tlog.HashSize))
	}
	for i, signed := range notes {
		f.tamper = func(path string, body []byte) []byte {
			if id, text, _, err := tlog.ParseRecord(body); err == nil && strings.HasPrefix(path, "/lookup/") {
				return fmt.Appendf(nil, "%d\n%s\n%s", id, text, signed)
			}
			return body
		}
		for k := range 20 {
			if _, err := db.Lookup(t.Context(), mod(fmt.Sprint("m", i), k)); err != nil {
				t.Errorf("under tree %d: %v", i, err)
			}
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := len(f.asked); n > 100+15 {
		t.Errorf("%d requests for 101 records", n)
	}
	if db.Forks() != 0 {
		t.Errorf("%d forks", db.Forks())
	}
}
