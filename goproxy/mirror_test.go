package goproxy_test

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http/httpproxy"

	"github.com/pkgswarm/pkgswarm/goproxy"
	"github.com/pkgswarm/pkgswarm/internal/filecache"
	"github.com/pkgswarm/pkgswarm/internal/goupstream"
	"github.com/pkgswarm/pkgswarm/registry/artifact"
	"github.com/pkgswarm/pkgswarm/registry/fetch"
	"github.com/pkgswarm/pkgswarm/registry/modules"
	"github.com/pkgswarm/pkgswarm/registry/sumdb"
	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

// A mirror is everything between a Go client and its upstream.
type mirror struct {
	URL     string
	Handler http.Handler
	Modules *modules.Modules
	Sums    *sumdb.DB

	stop func()
}

// mirrorConfig says how a mirror differs from the usual.
type mirrorConfig struct {
	prefix   string
	proxies  string // GOPROXY; empty: the upstream
	noProxy  string
	noSums   string
	noDB     bool              // no checksum database
	private  map[string]string // patterns to GOPROXY
	patience time.Duration
	ttl      time.Duration
	dir      string // of data and state; empty: a new one
	log      io.Writer
}

// newMirror starts a mirror of up on loopback. It stops with the test.
func newMirror(t testing.TB, up *goupstream.Server, c mirrorConfig) *mirror {
	t.Helper()
	if c.dir == "" {
		c.dir = t.TempDir()
	}
	if c.proxies == "" {
		c.proxies = up.URL
	}
	check := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	log := slog.New(slog.DiscardHandler)
	if c.log != nil {
		log = slog.New(slog.NewTextHandler(c.log, nil))
	}
	list, scopes, err := modules.ParseList(c.proxies)
	check(err)
	origins := list.Proxies()
	var private []modules.PrivateSource
	for patterns, proxies := range c.private {
		l, _, err := modules.ParseList(proxies)
		check(err)
		own, err := upstream.New(upstream.Config{Origins: l.Proxies(), Proxy: &httpproxy.Config{}})
		check(err)
		t.Cleanup(own.Close)
		private = append(private, modules.PrivateSource{Patterns: patterns, Proxies: l, Upstream: own})
	}
	client, err := upstream.New(upstream.Config{Origins: origins, Scopes: scopes, Proxy: &httpproxy.Config{}})
	check(err)
	cache, err := filecache.Open(filepath.Join(c.dir, "data", "go"), 0)
	check(err)
	store, err := artifact.Open(filepath.Join(c.dir, "data", "artifacts"), filepath.Join(c.dir, "data", "store"), artifact.Options{MinFree: -1})
	check(err)
	fetcher := fetch.New(fetch.Config{Store: fetch.OnDisk(store), Logger: log})
	conf := modules.Config{
		Proxies: list, Upstream: client, Zips: fetcher, Cache: cache, NoProxy: c.noProxy, NoSums: c.noSums,
		Private: private, Patience: c.patience, TTL: c.ttl, Logger: log,
	}
	m := &mirror{}
	hc := goproxy.Config{Prefix: c.prefix, Logger: log}
	if !c.noDB {
		m.Sums, err = sumdb.Open(sumdb.Config{Key: up.Key, Proxies: list.Proxies(), Upstream: client, StateDir: filepath.Join(c.dir, "state"), Cache: cache, Logger: log})
		check(err)
		conf.Sums, hc.SumDB = m.Sums, m.Sums
	}
	m.Modules = modules.New(conf)
	hc.Modules = m.Modules
	m.Handler = goproxy.New(hc)
	server := httptest.NewServer(m.Handler)
	m.URL = server.URL
	stopped := false
	m.stop = func() {
		if stopped {
			return
		}
		stopped = true
		server.Close()
		fetcher.Close()
		client.Close()
		store.Close()
		cache.Close()
	}
	t.Cleanup(m.stop)
	return m
}

// answer is an answer of a mirror.
type answer struct {
	status int
	header http.Header
	body   string
	err    error // of reading the body
}

func (m *mirror) get(t testing.TB, path string, header ...string) answer {
	t.Helper()
	return m.do(t, http.MethodGet, path, header...)
}

// do sends a request with a raw path and headers, "Name: value".
func (m *mirror) do(t testing.TB, method, path string, header ...string) answer {
	t.Helper()
	req, err := http.NewRequest(method, m.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range header {
		name, value, _ := strings.Cut(h, ": ")
		if name != "" {
			req.Header.Set(name, value)
		}
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(b), err}
}

// someModules gives an upstream modules of the usual shapes.
func someModules(t testing.TB) *goupstream.Server {
	up := goupstream.New(t)
	up.Grow(t, "a", 300)
	for _, v := range []string{"v1.0.0", "v1.1.0", "v1.2.0-rc.1"} {
		up.Add(t, "example.com/a", v, map[string]string{
			"go.mod": "module example.com/a\n\ngo 1.21\n\nrequire example.com/Upper/b v0.1.0\n",
			"a.go":   "package a\n\nimport b \"example.com/Upper/b\"\n\nconst Version = \"" + v + "\" + b.B\n",
		})
	}
	up.Add(t, "example.com/Upper/b", "v0.1.0", map[string]string{"go.mod": "module example.com/Upper/b\n", "b.go": "package b\n\nconst B = \"b\"\n"})
	up.Add(t, "example.com/a/v2", "v2.0.0", map[string]string{"go.mod": "module example.com/a/v2\n", "a.go": "package a\n"})
	up.Add(t, "example.com/old", "v2.0.0+incompatible", map[string]string{"o.go": "package old\n"})
	pseudo := "v0.0.0-20240506070809-abcdefabcdef"
	up.Add(t, "example.com/untagged", pseudo, map[string]string{"go.mod": "module example.com/untagged\n", "u.go": "package untagged\n"})
	up.PutLatest("example.com/untagged", []byte(`{"Version":"`+pseudo+`","Time":"2024-05-06T07:08:09Z"}`))
	up.Put("example.com/untagged", "master.info", []byte(`{"Version":"`+pseudo+`","Time":"2024-05-06T07:08:09Z","Origin":{"VCS":"git"}}`))
	return up
}
