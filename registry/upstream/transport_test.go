package upstream

import (
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/http/httpproxy"
)

// https means HTTP/2 where the upstream has it, and a certificate that is right.
func TestHTTP2(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/down" {
			http.Redirect(w, r, "http://"+r.Host+"/x", http.StatusFound)
			return
		}
		io.WriteString(w, r.Proto)
	}))
	s.EnableHTTP2 = true
	s.StartTLS()
	defer s.Close()
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	c := newClientFor(t, Config{Origins: []string{s.URL, "http" + strings.TrimPrefix(s.URL, "https")}, RootCAs: roots})
	if a, err := c.Get(t.Context(), Request{URL: s.URL + "/x", Kind: text}); err != nil || string(a.Body) != "HTTP/2.0" {
		t.Errorf("Get = %+v, %v, want HTTP/2.0", a, err)
	}
	if _, err := c.Get(t.Context(), Request{URL: s.URL + "/down", Kind: text}); !errors.Is(err, ErrRefused) { // SEC-30
		t.Errorf("redirect from https to http: %v, want refused", err)
	}
	c = newClient(t, s.URL)
	if _, err := c.Get(t.Context(), Request{URL: s.URL + "/x", Kind: text}); !errors.Is(err, ErrBadAnswer) {
		t.Errorf("unknown authority: %v, want bad answer", err)
	}
}

// An HTTP proxy may be where upstreams may not.
func TestHTTPProxy(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	proxy := serve(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		seen = append(seen, r.URL.String())
		mu.Unlock()
		io.WriteString(w, "through the proxy")
	})
	c, err := New(Config{Origins: []string{"http://up.example/go"}, Proxy: &httpproxy.Config{HTTPProxy: proxy}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	a, err := c.Get(t.Context(), Request{URL: "http://up.example/go/x", Kind: text})
	if err != nil || string(a.Body) != "through the proxy" || len(seen) != 1 || seen[0] != "http://up.example/go/x" {
		t.Errorf("Get = %+v, %v, proxy saw %v", a, err, seen)
	}
}

// Equal requests in a row use one connection.
func TestConnectionReused(t *testing.T) {
	conns := map[string]bool{}
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		conns[r.RemoteAddr] = true
		if r.URL.Path == "/missing" {
			http.Error(w, "no", http.StatusNotFound)
			return
		}
		io.WriteString(w, "x")
	})
	c := newClient(t, url)
	for range 10 {
		if _, err := c.Get(t.Context(), Request{URL: url + "/x", Kind: text}); err != nil {
			t.Fatal(err)
		}
		c.Get(t.Context(), Request{URL: url + "/missing", Kind: text, Fresh: true})
	}
	if len(conns) != 1 {
		t.Errorf("%d connections for requests in a row", len(conns))
	}
}
