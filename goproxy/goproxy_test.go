package goproxy_test

import (
	"bytes"

	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/goproxy"
	"github.com/pkgswarm/pkgswarm/internal/goupstream"
)

// TestRequests is a script of requests: what is asked, and what is answered.
func TestRequests(t *testing.T) {
	m := newMirror(t, someModules(t), mirrorConfig{})
	for _, tt := range []struct {
		path   string
		status int
		body   string // contained in the body
	}{
		{"/example.com/a/@v/list", 200, "v1.0.0\nv1.1.0\nv1.2.0-rc.1\n"},
		{"/example.com/a/@v/v1.0.0.info", 200, `"Version":"v1.0.0"`},
		{"/example.com/a/@v/v1.0.0.mod", 200, "module example.com/a\n"},
		{"/example.com/a/@v/v1.0.0.zip", 200, "PK\x03\x04"},
		{"/example.com/a/v2/@v/v2.0.0.mod", 200, "module example.com/a/v2\n"},
		{"/example.com/old/@v/v2.0.0+incompatible.mod", 200, "module example.com/old\n"},
		{"/example.com/old/@v/v2.0.0+incompatible.zip", 200, "PK"},
		{"/example.com/untagged/@latest", 200, "v0.0.0-20240506070809-abcdefabcdef"},
		{"/example.com/untagged/@v/list", 200, ""},
		{"/example.com/untagged/@v/master.info", 200, `"Origin":{"VCS":"git"}`},
		{"/example.com/untagged/@v/v0.0.0-20240506070809-abcdefabcdef.zip", 200, "PK"},
		// SEC-40: "!" and its encoding are the same; SEC-41: case matters.
		{"/example.com/%21upper/b/@v/v0.1.0.mod", 200, "module example.com/Upper/b\n"},
		{"/example.com/!upper/b/@v/v0.1.0.mod", 200, "module example.com/Upper/b\n"},
		{"/example.com/upper/b/@v/v0.1.0.mod", 404, "not found"},
		{"/example.com/Upper/b/@v/v0.1.0.mod", 404, "not found"},
		{"/example.com/!Upper/b/@v/v0.1.0.mod", 404, "not found"},
		{"/example.com/%2521upper/b/@v/v0.1.0.mod", 404, "not found"},
		{"/example.com/a/@v/v9.0.0.info", 404, "not found"},
		{"/example.com/a/@v/v9.0.0.mod", 404, "not found"},
		{"/example.com/a/@v/v9.0.0.zip", 404, "not found"},
		{"/example.com/none/@v/list", 404, "not found"},
		{"/example.com/none/@latest", 404, "not found"},
		{"/example.com/a/@v/v1.0.mod", 404, "not found"},
		{"/example.com/a/@v/master.zip", 404, "not found"},
		{"/example.com/a/@v/v1.0.0.ziphash", 404, "not found"},
		{"/example.com/a/@v/v1.0.0", 404, "not found"},
		{"/example.com/a/@v/", 400, "not clean"},
		{"/example.com/a/@v/x/list", 404, "not found"},
		{"/example.com/a", 404, "not found"},
		{"/", 400, "not clean"},
		{"/@v/list", 404, "not found"},
		{"/example.com%2fa/@v/list", 400, "encoded slash"},
		{"/example.com%5Ca/@v/list", 400, "unexpected character"},
		{"/example.com/../a/@v/list", 400, "not clean"},
		{"/example.com/%2e%2e/a/@v/list", 400, "not clean"},
		{"/example.com//a/@v/list", 400, "not clean"},
		{"/example.com/%00/@v/list", 400, "unexpected"},
		{"/example.com/%0a/@v/list", 400, "unexpected"},
		{"/example.com/%ff/@v/list", 400, "unexpected"},
		{"/" + strings.Repeat("x", 9000) + "/@v/list", 400, "too long"},

		{"/sumdb/sum.test/supported", 200, ""},
		{"/sumdb/other.test/supported", 404, "not proxied"},
		{"/sumdb/sum.test/latest", 200, "go.sum database tree\n"},
		{"/sumdb/sum.test/lookup/example.com/a@v1.0.0", 200, "example.com/a v1.0.0/go.mod h1:"},
		{"/sumdb/sum.test/lookup/example.com/%21upper/b@v0.1.0", 200, "example.com/Upper/b v0.1.0 h1:"},
		{"/sumdb/sum.test/lookup/example.com/none@v1.0.0", 404, "not found"},
		{"/sumdb/sum.test/lookup/example.com/a", 404, "not found"},
		{"/sumdb/sum.test/lookup/example.com/a@master", 404, "not found"},
		{"/sumdb/sum.test/tile/8/0/000", 200, ""},
		{"/sumdb/sum.test/tile/8/0/x999/000", 404, "not found"},
		{"/sumdb/sum.test/tile/8/0/000/x", 404, "not found"},
		{"/sumdb/sum.test/tile/9", 404, "not found"},
		{"/sumdb/sum.test/other", 404, "not found"},
		{"/sumdb/sum.test", 404, "not found"},
	} {
		a := m.get(t, tt.path)
		if a.status != tt.status || !strings.Contains(a.body, tt.body) || a.err != nil {
			t.Errorf("GET %.80s: %d %.200q, %v, want %d %q", tt.path, a.status, a.body, a.err, tt.status, tt.body)
		}
		if ct := a.header.Get("Content-Type"); a.status != 200 && !strings.HasPrefix(ct, "text/plain") {
			t.Errorf("GET %.80s: error of type %q", tt.path, ct)
		}
		if n := a.header.Get("X-Content-Type-Options"); n != "nosniff" {
			t.Errorf("GET %.80s: no nosniff", tt.path)
		}
	}
	if a := m.do(t, "POST", "/example.com/a/@v/list"); a.status != 405 {
		t.Errorf("POST: %d, want 405", a.status)
	}
}

// The handler has its paths below a prefix, too.
func TestPrefix(t *testing.T) {
	m := newMirror(t, someModules(t), mirrorConfig{prefix: "/go/"})
	for path, status := range map[string]int{
		"/example.com/%21upper/b/@v/list": 200, "/sumdb/sum.test/supported": 200, "/go/go/example.com/%21upper/b/@v/list": 404, "/go": 404, "/go/": 400,

		"/go/example.com/%21upper/b/@v/list": 200, "/go/sumdb/sum.test/supported": 200,
		"/go/example.com/x%2fy/@v/list": 400, "/go/example.com/none/@v/list": 404,
	} {
		if a := m.get(t, path); a.status != status {
			t.Errorf("%s: %d %q, want %d", path, a.status, a.body, status)
		}
	}
	for path, want := range map[string]bool{
		"/example.com/a/@v/list": true, "/example.com/a/@latest": true, "/sumdb/x/supported": true,
		"/": false, "/cargo/config.json": false, "/api/v1/status": false,
	} {
		if got := goproxy.Handles(path); got != want {
			t.Errorf("Handles(%q) = %v", path, got)
		}
	}
}

func TestValidators(t *testing.T) {
	up := someModules(t)
	m := newMirror(t, up, mirrorConfig{})
	list := m.get(t, "/example.com/a/@v/list")
	etag := list.header.Get("ETag")
	if etag == "" || list.header.Get("Content-Length") != fmt.Sprint(len(list.body)) {
		t.Fatalf("list: header %v", list.header)
	}
	if other := newMirror(t, up, mirrorConfig{}).get(t, "/example.com/a/@v/list").header.Get("ETag"); other != etag {
		t.Errorf("ETag %s on another node, %s here", other, etag)
	}
	for _, tt := range []struct {
		method, path, header string
		status               int
		body                 string
	}{
		{"GET", "/example.com/a/@v/list", "If-None-Match: " + etag, 304, ""},
		{"GET", "/example.com/a/@v/list", "If-None-Match: W/" + etag, 304, ""},
		{"GET", "/example.com/a/@v/list", `If-None-Match: "x", ` + etag, 304, ""},
		{"GET", "/example.com/a/@v/list", "If-None-Match: *", 304, ""},
		{"GET", "/example.com/a/@v/list", `If-None-Match: "x"`, 200, list.body},
		{"HEAD", "/example.com/a/@v/list", "", 200, ""},
		{"GET", "/example.com/a/@v/v1.0.0.mod", "Range: bytes=0-5", 206, "module"},
		{"GET", "/example.com/a/@v/v1.0.0.mod", "Range: bytes=9999-", 416, ""},
	} {
		a := m.do(t, tt.method, tt.path, tt.header)
		if a.status != tt.status || tt.status != 416 && a.body != tt.body {
			t.Errorf("%s %s %s: %d %q, want %d %q", tt.method, tt.path, tt.header, a.status, a.body, tt.status, tt.body)
		}
	}
	if cc := list.header.Get("Cache-Control"); strings.Contains(cc, "immutable") {
		t.Errorf("a list is immutable: %s", cc)
	}
	for _, path := range []string{"/example.com/a/@v/v1.0.0.info", "/example.com/a/@v/v1.0.0.mod", "/example.com/a/@v/v1.0.0.zip"} {
		if cc := m.get(t, path).header.Get("Cache-Control"); !strings.Contains(cc, "immutable") {
			t.Errorf("%s: Cache-Control %q", path, cc)
		}
	}
	whole := m.get(t, "/example.com/a/@v/v1.0.0.zip")
	if part := m.get(t, "/example.com/a/@v/v1.0.0.zip", "Range: bytes=10-19"); part.status != 206 || part.body != whole.body[10:20] {
		t.Errorf("range of a stored zip: %d %q", part.status, part.body)
	}
}

// Held files are answered without the upstream, others not: Disable-Module-Fetch.
func TestDisableModuleFetch(t *testing.T) {
	up := someModules(t)
	m := newMirror(t, up, mirrorConfig{})
	paths := []string{"/example.com/a/@v/list", "/example.com/a/@v/v1.0.0.info", "/example.com/a/@v/v1.0.0.mod", "/example.com/a/@v/v1.0.0.zip"}
	for _, p := range paths {
		if a := m.get(t, p, "Disable-Module-Fetch: true"); a.status != 404 {
			t.Errorf("%s, not held: %d %q", p, a.status, a.body)
		}
	}
	for _, p := range up.Asked() {
		if !strings.HasPrefix(p, "/sumdb/") { // the zip's record may be looked up
			t.Errorf("the upstream was asked for %s", p)
		}
	}
	for _, p := range paths {
		m.get(t, p)
	}
	up.Asked()
	for _, p := range paths {
		if a := m.get(t, p, "Disable-Module-Fetch: true"); a.status != 200 {
			t.Errorf("%s, held: %d %q", p, a.status, a.body)
		}
	}
	if asked := up.Asked(); len(asked) > 0 {
		t.Errorf("the upstream was asked for %v", asked)
	}
}

// P6: a cold node asks its upstream for each thing once.
func TestRequestsOnce(t *testing.T) {
	up := someModules(t)
	m := newMirror(t, up, mirrorConfig{})
	var wg sync.WaitGroup
	for range 50 { // REL-9: N equal requests cost one
		for _, p := range []string{"list", "v1.0.0.info", "v1.0.0.mod", "v1.0.0.zip"} {
			wg.Go(func() {
				if a := m.get(t, "/example.com/a/@v/"+p); a.status != 200 || a.err != nil {
					t.Errorf("%s: %d %v", p, a.status, a.err)
				}
			})
		}
	}
	wg.Wait()
	asked := up.Asked()
	slices.Sort(asked)
	want := []string{
		"/example.com/a/@v/list", "/example.com/a/@v/v1.0.0.info", "/example.com/a/@v/v1.0.0.mod", "/example.com/a/@v/v1.0.0.zip",
		"/sumdb/sum.test/lookup/example.com/a@v1.0.0", "/sumdb/sum.test/supported",
	}
	tiles := slices.DeleteFunc(slices.Clone(asked), func(p string) bool { return !strings.Contains(p, "/tile/") })
	rest := slices.DeleteFunc(asked, func(p string) bool { return strings.Contains(p, "/tile/") })
	if !slices.Equal(rest, want) {
		t.Errorf("asked for %v, want %v", rest, want)
	}
	if len(slices.Compact(slices.Clone(tiles))) != len(tiles) {
		t.Errorf("a tile was asked for twice: %v", tiles)
	}
}

// REL-9: what is held is served while the upstream is down, also by a node that
// was restarted; the rest fails soon, and not as absent.
func TestUpstreamDown(t *testing.T) {
	up := someModules(t)
	dir := t.TempDir()
	m := newMirror(t, up, mirrorConfig{dir: dir, ttl: time.Nanosecond})
	paths := []string{
		"/example.com/a/@v/list", "/example.com/a/@v/v1.0.0.info", "/example.com/a/@v/v1.0.0.mod", "/example.com/a/@v/v1.0.0.zip",
		"/example.com/untagged/@latest", "/example.com/untagged/@v/master.info", "/sumdb/sum.test/latest",
		"/sumdb/sum.test/lookup/example.com/a@v1.0.0", "/sumdb/sum.test/supported",
	}
	before := map[string]string{}
	for _, p := range paths {
		a := m.get(t, p)
		if a.status != 200 {
			t.Fatalf("%s: %d %s", p, a.status, a.body)
		}
		before[p] = a.body
	}
	up.Stop()
	for restart := range 2 {
		for _, p := range paths {
			a := m.get(t, p)
			if a.status != 200 || a.body != before[p] {
				t.Errorf("restart %d: %s: %d %.100q, want what it was", restart, p, a.status, a.body)
			}
			changing := strings.HasSuffix(p, "list") || strings.HasSuffix(p, "@latest") || strings.Contains(p, "master")
			if stale := a.header.Get("Pkgswarm-Stale") == "true"; stale != changing {
				t.Errorf("restart %d: %s: stale is %v", restart, p, stale)
			}
		}
		start := time.Now()
		for _, p := range []string{
			"/example.com/a/@v/v1.1.0.info", "/example.com/a/@v/v1.1.0.mod", "/example.com/a/@v/v1.1.0.zip",
			"/example.com/none/@v/list", "/example.com/none/@latest", "/sumdb/sum.test/lookup/example.com/none@v1.0.0",
		} {
			if a := m.get(t, p); a.status != 504 {
				t.Errorf("restart %d: %s: %d %.200q, want 504", restart, p, a.status, a.body)
			}
		}
		if d := time.Since(start); d > 10*time.Second {
			t.Errorf("failures took %v", d)
		}
		m.stop()
		m = newMirror(t, up, mirrorConfig{dir: dir, ttl: time.Nanosecond})
	}
}

// The statuses that make go's "," and "|" behave: an upstream's failure is never
// an absence.
func TestStatuses(t *testing.T) {
	for _, tt := range []struct {
		name   string
		tamper goupstream.Tamper
		status int
	}{
		{"404", status(404), 404}, {"410", status(410), 404}, {"403", status(403), 403}, {"401", status(401), 403},
		{"429", status(429), 504}, {"500", status(500), 504}, {"503", status(503), 504},
		{"page", func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			w.Header().Set("Content-Type", "text/html")
			io.WriteString(w, "<html>sign in</html>")
		}, 502},
		{"empty", func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			w.Header().Set("Content-Length", "0")
		}, 502},
		{"reset", func(http.ResponseWriter, *http.Request, http.Handler) { panic(http.ErrAbortHandler) }, 504},
		{"elsewhere", func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			http.Redirect(w, r, "http://169.254.169.254/", http.StatusFound)
		}, 403},
	} {
		t.Run(tt.name, func(t *testing.T) {
			up := someModules(t)
			m := newMirror(t, up, mirrorConfig{})
			if a := m.get(t, "/sumdb/sum.test/lookup/example.com/a@v1.0.0"); a.status != 200 {
				t.Fatal(a)
			}
			up.Tamper(onlyModules(tt.tamper))
			for _, file := range []string{"/@v/v1.0.0.info", "/@v/v1.0.0.mod", "/@v/v1.0.0.zip", "/@latest"} {
				a := m.get(t, "/example.com/a"+file)
				if a.err != nil && tt.status != 404 {
					continue // a broken connection is not an absence either
				}
				if a.status != tt.status {
					t.Errorf("%s: %d %q, want %d", file, a.status, a.body, tt.status)
				}
				if strings.ContainsAny(a.body, "\x1b<") {
					t.Errorf("%s: body %q", file, a.body)
				}
			}
		})
	}
}

func status(code int) goupstream.Tamper {
	return func(w http.ResponseWriter, r *http.Request, _ http.Handler) { http.Error(w, "\x1b[31mno", code) }
}

// onlyModules leaves the checksum database alone.
func onlyModules(f goupstream.Tamper) goupstream.Tamper {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.HasPrefix(r.URL.Path, "/sumdb/") {
			next.ServeHTTP(w, r)
			return
		}
		f(w, r, next)
	}
}

// SEC-3, SEC-1: wrong bytes never look complete, are never kept, and right ones
// come as soon as there are any.
func TestWrongBytes(t *testing.T) {
	for name, tt := range map[string]struct {
		change  func(b []byte) []byte
		declare bool // the right length, whatever is sent
	}{
		"name of an entry":   {func(b []byte) []byte { b[bytes.LastIndex(b, []byte("a.go"))] ^= 1; return b }, true},
		"last byte":          {func(b []byte) []byte { b[len(b)-1] ^= 1; return b }, true},
		"first byte":         {func(b []byte) []byte { b[0] ^= 1; return b }, true},
		"cut":                {func(b []byte) []byte { return b[:len(b)/2] }, true},
		"cut without length": {func(b []byte) []byte { return b[:len(b)/2] }, false},
		"other module": {func(b []byte) []byte {
			return bytes.ReplaceAll(b, []byte("example.com/a@v1.0.0"), []byte("example.com/a@v1.0.1"))
		}, true},
		"nothing": {func(b []byte) []byte { return nil }, false},
	} {
		t.Run(name, func(t *testing.T) {
			up := someModules(t)
			m := newMirror(t, up, mirrorConfig{})
			right := newMirror(t, up, mirrorConfig{}).get(t, "/example.com/a/@v/v1.0.0.zip")
			up.Tamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if !strings.HasSuffix(r.URL.Path, ".zip") {
					next.ServeHTTP(w, r)
					return
				}
				if tt.declare {
					w.Header().Set("Content-Length", fmt.Sprint(len(right.body)))
				}
				w.Write(tt.change([]byte(right.body)))
			})
			if a := m.get(t, "/example.com/a/@v/v1.0.0.zip"); a.err == nil && a.status == 200 {
				t.Fatalf("wrong bytes were served as good: %d bytes", len(a.body))
			} else if a.status == 404 {
				t.Errorf("a lie became an absence: %q", a.body)
			}
			up.Tamper(nil)
			if a := m.get(t, "/example.com/a/@v/v1.0.0.zip"); a.status != 200 || a.body != right.body {
				t.Errorf("afterwards: %d %.80q", a.status, a.body)
			}
		})
	}
}

// A large zip is streamed while it arrives, and still never completes if wrong.
func TestWrongLargeZip(t *testing.T) {
	up := goupstream.New(t)
	noise := make([]byte, 2<<20)
	x := uint32(1)
	for i := range noise {
		x = x*1664525 + 1013904223
		noise[i] = byte(x >> 24)
	}
	up.Add(t, "example.com/big", "v1.0.0", map[string]string{"go.mod": "module example.com/big\n", "noise": string(noise)})
	m := newMirror(t, up, mirrorConfig{})
	up.Tamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.HasSuffix(r.URL.Path, ".zip") {
			w = &flipper{ResponseWriter: w, at: 1 << 20}
		}
		next.ServeHTTP(w, r)
	})
	if a := m.get(t, "/example.com/big/@v/v1.0.0.zip"); a.err == nil && a.status == 200 {
		t.Errorf("wrong zip of %d bytes looked complete", len(a.body))
	}
	up.Tamper(nil)
	if a := m.get(t, "/example.com/big/@v/v1.0.0.zip"); a.err != nil || a.status != 200 {
		t.Errorf("afterwards: %d, %v", a.status, a.err)
	}
}

// A flipper changes the byte at an offset.
type flipper struct {
	http.ResponseWriter
	at int
}

func (f *flipper) Write(b []byte) (int, error) {
	if f.at >= 0 && f.at < len(b) {
		b = bytes.Clone(b)
		b[f.at] ^= 1
	}
	f.at -= len(b)
	return f.ResponseWriter.Write(b)
}

// SEC-4: a .mod or .zip that the database does not vouch for is refused, loudly.
func TestUnproven(t *testing.T) {
	for name, tt := range map[string]struct {
		tamper goupstream.Tamper
		status int
	}{
		"refused by the database": {status(404), 403},
		"gone from the database":  {status(410), 403},
		"database down":           {status(500), 504},
		"database lies": {func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			io.WriteString(w, "7\nexample.com/a v1.0.0 h1:AAAA\n\nsigned\n")
		}, 502},
	} {
		t.Run(name, func(t *testing.T) {
			up := someModules(t)
			var log syncBuffer
			m := newMirror(t, up, mirrorConfig{log: &log})
			up.Tamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if strings.Contains(r.URL.Path, "/lookup/") {
					tt.tamper(w, r, next)
					return
				}
				next.ServeHTTP(w, r)
			})
			for _, file := range []string{"v1.0.0.mod", "v1.0.0.zip"} {
				if a := m.get(t, "/example.com/a/@v/"+file); a.status != tt.status {
					t.Errorf("%s: %d %q, want %d", file, a.status, a.body, tt.status)
				}
			}
			if a := m.get(t, "/example.com/a/@v/v1.0.0.info"); a.status != 200 {
				t.Errorf(".info, which nothing proves: %d %q", a.status, a.body)
			}
			if tt.status != 504 && !strings.Contains(log.String(), "refused") {
				t.Errorf("nothing in the log: %q", log.String())
			}
		})
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// A go.mod that differs from the database's is refused (SEC-1).
func TestForgedMod(t *testing.T) {
	up := someModules(t)
	m := newMirror(t, up, mirrorConfig{})
	up.Tamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.HasSuffix(r.URL.Path, ".mod") {
			io.WriteString(w, "module example.com/a\nrequire evil.example v1.0.0\n")
			return
		}
		next.ServeHTTP(w, r)
	})
	if a := m.get(t, "/example.com/a/@v/v1.0.0.mod"); a.status != 502 || !strings.Contains(a.body, "mismatch") {
		t.Errorf("forged go.mod: %d %q, want 502", a.status, a.body)
	}
	if a := m.get(t, "/example.com/a/@v/v1.0.0.mod", "Disable-Module-Fetch: true"); a.status != 404 {
		t.Errorf("the forged go.mod was kept: %d", a.status)
	}
}

// SEC-60, SEC-62: nobody but its own source hears of a private module.
func TestPrivate(t *testing.T) {
	public, corp := someModules(t), goupstream.New(t)
	public.Add(t, "corp.example/x", "v1.0.0", map[string]string{"go.mod": "module corp.example/x\n", "evil.go": "package x\n"})
	corp.Add(t, "corp.example/x", "v1.0.0", map[string]string{"go.mod": "module corp.example/x\n", "x.go": "package x\n"})
	m := newMirror(t, public, mirrorConfig{private: map[string]string{"corp.example": corp.URL}, noProxy: "corp.example,other.example/*", noSums: "example.com/Upper"})
	files := []string{"/@v/list", "/@v/v1.0.0.info", "/@v/v1.0.0.mod", "/@v/v1.0.0.zip", "/@latest"}
	for _, f := range files[:4] {
		if a := m.get(t, "/corp.example/x"+f); a.status != 200 || strings.Contains(a.body, "evil") {
			t.Errorf("%s: %d %q", f, a.status, a.body)
		}
	}
	for _, f := range files {
		if a := m.get(t, "/other.example/y"+f); a.status != 403 {
			t.Errorf("private without a source: %s: %d %q, want 403", f, a.status, a.body)
		}
	}
	for _, mod := range []string{"corp.example/x", "other.example/y", "example.com/!upper/b"} {
		if a := m.get(t, "/sumdb/sum.test/lookup/"+mod+"@v1.0.0"); a.status != 403 {
			t.Errorf("look-up of %s: %d %q, want 403", mod, a.status, a.body)
		}
	}
	corp.Stop()
	for _, f := range []string{"/@v/v1.1.0.info", "/@v/v1.1.0.zip", "/@latest"} {
		if a := m.get(t, "/corp.example/x"+f); a.status != 504 {
			t.Errorf("private source down: %s: %d %q, want 504", f, a.status, a.body)
		}
	}
	if a := m.get(t, "/corp.example/x/@v/v1.0.0.zip"); a.status != 200 {
		t.Errorf("private zip, held: %d %q", a.status, a.body)
	}
	for _, p := range public.Asked() {
		if strings.Contains(p, "corp.example") || strings.Contains(p, "other.example") || strings.Contains(p, "lookup") {
			t.Errorf("the public upstream was asked for %s", p)
		}
	}
	for _, f := range []string{"/@v/v0.1.0.mod", "/@v/v0.1.0.zip"} { // no checksum database, but the public proxy
		if a := m.get(t, "/example.com/!upper/b"+f); a.status != 200 {
			t.Errorf("GONOSUMDB: %s: %d %q", f, a.status, a.body)
		}
	}
}

// The list of upstreams is used as GOPROXY is.
func TestUpstreamLists(t *testing.T) {
	up := someModules(t)
	other := goupstream.New(t)
	other.Add(t, "example.com/other", "v1.0.0", map[string]string{"go.mod": "module example.com/other\n"})
	broken := goupstream.New(t)
	broken.Tamper(status(500))
	for _, tt := range []struct {
		list, path string
		status     int
		body       string
	}{
		{other.URL + "," + up.URL, "/example.com/a/@v/v1.0.0.info", 200, "v1.0.0"},
		{broken.URL + "," + up.URL, "/example.com/a/@v/v1.0.0.info", 504, ""},
		{broken.URL + "|" + up.URL, "/example.com/a/@v/v1.0.0.info", 200, "v1.0.0"},
		{broken.URL + "|" + up.URL, "/example.com/none/@v/v1.0.0.info", 504, ""}, // not known to be absent
		{up.URL + "," + other.URL, "/example.com/none/@v/list", 404, "not found"},
		{up.URL + ",direct", "/example.com/none/@v/list", 404, "direct"},
		{up.URL + ",off", "/example.com/none/@v/list", 403, "off"},
		{broken.URL + "|direct", "/example.com/a/@v/list", 504, "direct"},
		{"direct", "/example.com/a/@v/list", 404, "direct"},
		{"off", "/example.com/a/@v/list", 403, "off"},
	} {
		m := newMirror(t, up, mirrorConfig{proxies: tt.list, noDB: true})
		if a := m.get(t, tt.path); a.status != tt.status || !strings.Contains(a.body, tt.body) {
			t.Errorf("GOPROXY=%s %s: %d %q, want %d %q", tt.list, tt.path, a.status, a.body, tt.status, tt.body)
		}
	}
}

// A client that leaves does not cancel what others wait for; an upstream that
// hangs costs a client its patience and no more.
func TestPatience(t *testing.T) {
	up := someModules(t)
	hang := make(chan struct{})
	var asked atomic.Int32
	up.Tamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		asked.Add(1)
		<-hang
		next.ServeHTTP(w, r)
	})
	m := newMirror(t, up, mirrorConfig{patience: 50 * time.Millisecond})
	if a := m.get(t, "/example.com/a/@v/v1.0.0.info"); a.status != 504 {
		t.Errorf("hanging upstream: %d %q, want 504", a.status, a.body)
	}
	close(hang)
	for range 100 {
		if a := m.get(t, "/example.com/a/@v/v1.0.0.info"); a.status == 200 {
			if n := asked.Load(); n != 1 {
				t.Errorf("the upstream was asked %d times", n)
			}
			return
		}
	}
	t.Error("the answer that came late was not kept")
}

// SEC-32: of an upstream's answer nothing but the body gets through.
func TestHostileHeaders(t *testing.T) {
	up := someModules(t)
	up.Tamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		for _, h := range []string{"Set-Cookie", "Access-Control-Allow-Origin", "Location", "X-Evil", "Content-Disposition", "Refresh", "Link"} {
			w.Header().Set(h, "evil")
		}
		next.ServeHTTP(w, r)
	})
	m := newMirror(t, up, mirrorConfig{})
	for _, p := range []string{"/example.com/a/@v/list", "/example.com/a/@v/v1.0.0.info", "/example.com/a/@v/v1.0.0.mod", "/example.com/a/@v/v1.0.0.zip", "/sumdb/sum.test/lookup/example.com/a@v1.0.0", "/example.com/a/@v/v9.0.0.info"} {
		a := m.get(t, p, "Authorization: Bearer x", "Cookie: a=b")
		for name, values := range a.header {
			if slices.Contains(values, "evil") {
				t.Errorf("%s: header %s came through", p, name)
			}
		}
	}
}

// SEC-44: a list of a million versions is served, in bounded memory.
func TestHugeList(t *testing.T) {
	up := goupstream.New(t)
	var b bytes.Buffer
	for i := range 1_000_000 {
		fmt.Fprintf(&b, "v1.0.%d\n", i)
	}
	up.Put("example.com/huge", "list", b.Bytes())
	up.Put("example.com/toohuge", "list", bytes.Repeat(b.Bytes(), 4))
	m := newMirror(t, up, mirrorConfig{noDB: true})
	if a := m.get(t, "/example.com/huge/@v/list"); a.status != 200 || a.body != b.String() {
		t.Errorf("a million versions: %d, %d bytes", a.status, len(a.body))
	}
	if a := m.get(t, "/example.com/toohuge/@v/list"); a.status != 502 || !strings.Contains(a.body, "larger than allowed") {
		t.Errorf("over the limit: %d %.100q", a.status, a.body)
	}
}
