package upstream

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http/httpproxy"
)

// newClient returns a client for the given origins and without HTTP proxies.
func newClient(t *testing.T, origins ...string) *Client {
	t.Helper()
	return newClientFor(t, Config{Origins: origins})
}

func newClientFor(t *testing.T, conf Config) *Client {
	t.Helper()
	conf.Proxy = &httpproxy.Config{}
	c, err := New(conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func serve(t *testing.T, h http.HandlerFunc) string {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

var text = Kind{Name: "text", MaxExpanded: 1 << 20}

func TestGet(t *testing.T) {
	var got http.Header
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		got = r.Header
		if r.Header.Get("If-None-Match") == `"v1"` {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		w.Header().Set("ETag", `"v1"`)
		w.Header().Set("Cache-Control", "public, max-age=600")
		w.Header().Set("Set-Cookie", "a=b")
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		io.WriteString(z, "hello")
		z.Close()
	})
	c := newClientFor(t, Config{Origins: []string{url}, UserAgent: "pkgswarm/1 (contact)"})
	a, err := c.Get(t.Context(), Request{URL: url + "/x", Kind: text, Header: http.Header{"Cookie": {"a"}, "Authorization": {"b"}, "Accept": {"text/plain"}}})
	if err != nil {
		t.Fatal(err)
	}
	if string(a.Body) != "hello" || a.Validators.ETag != `"v1"` || a.MaxAge != 10*time.Minute {
		t.Errorf("Get = %q, %+v, max age %v", a.Body, a.Validators, a.MaxAge)
	}
	if got.Get("Cookie") != "" || got.Get("Authorization") != "" { // SEC-33
		t.Errorf("credentials of the caller's header were sent: %v", got)
	}
	if got.Get("User-Agent") != "pkgswarm/1 (contact)" || got.Get("Accept") != "text/plain" {
		t.Errorf("header sent: %v", got)
	}
	a, err = c.Get(t.Context(), Request{URL: url + "/x", Kind: text, Validators: a.Validators})
	if err != nil || !a.NotModified || len(a.Body) != 0 {
		t.Errorf("conditional Get = %+v, %v, want not modified", a, err)
	}
}

// TestClasses holds which answer is which class of error, and that the text of
// an error is printable and short.
func TestClasses(t *testing.T) {
	for _, tt := range []struct {
		status int
		class  error
	}{
		{404, ErrNotFound}, {410, ErrNotFound}, {401, ErrRefused}, {403, ErrRefused}, {451, ErrRefused},
		{400, ErrRefused}, {408, ErrUnreachable}, {429, ErrUnreachable}, {500, ErrUnreachable}, {503, ErrUnreachable},
		{204, ErrBadAnswer}, {206, ErrBadAnswer}, {304, ErrBadAnswer}, {300, ErrBadAnswer},
	} {
		url := serve(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			w.WriteHeader(tt.status)
			if tt.status != 204 && tt.status != 304 {
				io.WriteString(w, "not found: \x1b[31mx@v1\u202e\nsecond\n\nthird")
			}
		})
		_, err := newClient(t, url).Get(t.Context(), Request{URL: url + "/x", Kind: text})
		var e *Error
		if !errors.As(err, &e) || !errors.Is(err, tt.class) || e.Status != tt.status {
			t.Errorf("%d: %v, want class %v", tt.status, err, tt.class)
			continue
		}
		if e.Detail != "" && e.Detail != "not found: [31mx@v1 second" {
			t.Errorf("%d: detail %q", tt.status, e.Detail)
		}
		if errors.Is(err, fs.ErrNotExist) != (tt.class == ErrNotFound) {
			t.Errorf("%d: errors.Is(%v, fs.ErrNotExist)", tt.status, err)
		}
	}
}

// SEC-30: redirects lead to configured origins only.
func TestRedirects(t *testing.T) {
	var touched atomic.Int32
	other := serve(t, func(w http.ResponseWriter, r *http.Request) { touched.Add(1); io.WriteString(w, "stolen") })
	var target string
	hops := 0
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/end":
			io.WriteString(w, "right")
		case r.URL.Path == "/hop" && hops > 1:
			hops--
			http.Redirect(w, r, "/hop", http.StatusFound)
		case r.URL.Path == "/hop":
			http.Redirect(w, r, "/end", http.StatusTemporaryRedirect)
		default:
			w.Header().Set("Location", target)
			w.WriteHeader(http.StatusFound)
		}
	})
	dir := t.TempDir()
	os.WriteFile(filepath.Join(dir, "f"), []byte("secret"), 0o600)
	for _, target = range []string{
		other + "/x", strings.Replace(url, "127.0.0.1", "127.0.0.2", 1), "http://169.254.169.254/latest/meta-data",
		"http://localhost:1/", "file://" + dir + "/f", "gopher://127.0.0.1/", strings.Replace(url, "http://", "http://u:p@", 1) + "/end",
		url + "/start", // itself, without end
		"http://[::1]:7070/go/", "//169.254.169.254/", "ftp://x/",
	} {
		c := newClient(t, url)
		a, err := c.Get(t.Context(), Request{URL: url + "/start", Kind: text})
		if err == nil || errors.Is(err, ErrNotFound) || errors.Is(err, ErrUnreachable) {
			t.Errorf("redirect to %s: %+v, %v, want a refusal", target, a, err)
		}
	}
	if n := touched.Load(); n != 0 {
		t.Errorf("the other server was asked %d times", n)
	}
	c := newClient(t, url)
	hops = maxRedirects
	if a, err := c.Get(t.Context(), Request{URL: url + "/hop", Kind: text}); err != nil || string(a.Body) != "right" {
		t.Errorf("%d redirects: %+v, %v", maxRedirects, a, err)
	}
	hops = maxRedirects + 1
	if _, err := c.Get(t.Context(), Request{URL: url + "/hop?", Kind: text}); !errors.Is(err, ErrRefused) {
		t.Errorf("%d redirects: %v, want refused", maxRedirects+1, err)
	}
	if _, err := newClient(t, url).Get(t.Context(), Request{URL: other, Kind: text}); !errors.Is(err, ErrRefused) {
		t.Errorf("host that is not configured: %v, want refused", err)
	}
}

// SEC-30: the address counts, not the name.
func TestMayConnect(t *testing.T) {
	c := newClientFor(t, Config{
		Origins:       []string{"http://127.0.0.1:80", "http://localhost:80", "https://proxy.corp.example", "http://169.254.1.1", "http://[::1]:70"},
		PublicOrigins: []string{"https://registry.example"},
	})
	for _, tt := range []struct {
		host, addr string
		want       bool
	}{
		{"127.0.0.1", "127.0.0.1:80", true},
		{"::1", "[::1]:70", true},
		{"localhost", "127.0.0.1:80", true},
		{"localhost", "[::1]:80", true},
		{"169.254.1.1", "169.254.1.1:80", true},
		{"proxy.corp.example", "10.1.2.3:443", true},
		{"proxy.corp.example", "[fd00::1]:443", true},
		{"proxy.corp.example", "127.0.0.1:443", false},
		{"proxy.corp.example", "[::ffff:127.0.0.1]:443", false},
		{"proxy.corp.example", "169.254.169.254:443", false},
		{"proxy.corp.example", "[fe80::1%eth0]:443", false},
		{"proxy.corp.example", "0.0.0.0:443", false},
		{"proxy.corp.example", "224.0.0.1:443", false},
		{"registry.example", "93.184.216.34:443", true},
		{"Registry.Example", "10.1.2.3:443", false},
		{"registry.example", "100.64.0.1:443", false},
		{"registry.example", "127.0.0.1:443", false},
	} {
		if got := c.mayConnect(tt.host, tt.addr); got != tt.want {
			t.Errorf("mayConnect(%s, %s) = %v, want %v", tt.host, tt.addr, got, tt.want)
		}
	}
}

// SEC-30: a configured upstream that names another does not lead the node to where
// it is not itself.
func TestAddNamed(t *testing.T) {
	const corp, public, local, near = "https://corp.example/index/", "https://registry.example/", "http://127.0.0.1:80/", "http://169.254.1.1/"
	for _, tt := range []struct {
		url, by string
		want    bool
	}{
		{"https://dl.example", public, true},
		{"https://10.1.2.3", public, false},
		{"https://100.64.1.1", public, false},
		{"https://10.1.2.3", corp, true},
		{"https://127.0.0.1", corp, false},
		{"http://[::ffff:127.0.0.1]:7070", corp, false},
		{"http://[::1]", corp, false},
		{"http://0.0.0.0", corp, false},
		{"http://localhost:7070", corp, false},
		{"http://a.LOCALHOST.", corp, false},
		{"http://169.254.169.254", corp, false},
		{"http://[fe80::1%25eth0]", corp, false},
		{"http://224.0.0.1", corp, false},
		{"file:///etc", corp, false},
		{"http://127.0.0.1:90", local, true},
		{"http://169.254.169.254", local, true},
		{"http://169.254.169.254", near, true},
		{"http://127.0.0.1", near, false},
		{"gopher://dl.example", corp, false},
		{"https://u:p@dl.example", corp, false},
	} {
		c := newClientFor(t, Config{Origins: []string{corp, local, near}, PublicOrigins: []string{public}})
		if err := c.AddNamed(tt.url, tt.by); (err == nil) != tt.want {
			t.Errorf("%s named by %s: %v, want ok %v", tt.url, tt.by, err, tt.want)
		}
		if tt.by == public && tt.want && c.mayConnect("dl.example", "10.1.2.3:443") {
			t.Errorf("%s, named by a public registry, may be at a private address", tt.url)
		}
	}
}

// SEC-33: credentials go to exactly the URL they are configured for.
func TestCredentials(t *testing.T) {
	scopes := []Scope{
		{"https://h.example/registry", "narrow"},
		{"https://h.example", "host"},
		{"https://h.example:444/", "port"},
	}
	c := newClientFor(t, Config{Scopes: scopes})
	for _, tt := range []struct{ url, want string }{
		{"https://h.example/registry", "narrow"},
		{"https://h.example/registry/a/b", "narrow"},
		{"https://h.example/registry.git", "host"},
		{"https://h.example/registry/../x", ""},
		{"https://h.example/registry/%2e%2e/x", ""},
		{"https://h.example/registry%2fx", ""},
		{"https://h.example/registry//x", ""},
		{"https://h.example/other", "host"},
		{"https://H.example:443/registry", "narrow"},
		{"https://h.example:444/registry", "port"},
		{"https://h.example:445/registry", ""},
		{"http://h.example/registry", ""},
		{"https://h.example.evil/registry", ""},
		{"https://x@h.example/registry", "narrow"},
	} {
		req, err := http.NewRequest("GET", tt.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		c.setCredentials(req)
		if got := req.Header.Get("Authorization"); got != tt.want {
			t.Errorf("%s: Authorization %q, want %q", tt.url, got, tt.want)
		}
	}
	if _, err := New(Config{Scopes: []Scope{{"http://h.example/", "x"}}}); err == nil {
		t.Error("credentials over plain http were accepted")
	}
	if s := fmt.Sprintf("%v %+v %#v", scopes[0], scopes[0], scopes[0]); strings.Contains(s, "narrow") {
		t.Errorf("a printed scope shows its secret: %s", s) // SEC-57
	}
}

// SEC-33: a redirect to another configured host takes no credentials along.
func TestRedirectCredentials(t *testing.T) {
	var got string
	b := serve(t, func(w http.ResponseWriter, r *http.Request) {
		got = r.Header.Get("Authorization") + r.Header.Get("Referer")
		io.WriteString(w, "x")
	})
	a := serve(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, b+"/y", http.StatusFound) })
	c := newClientFor(t, Config{Origins: []string{a, b}, Scopes: []Scope{{a, "secret"}}})
	if _, err := c.Get(t.Context(), Request{URL: a + "/x", Kind: text}); err != nil || got != "" {
		t.Errorf("redirected request sent %q, %v", got, err)
	}
}

func TestNetrc(t *testing.T) {
	file := filepath.Join(t.TempDir(), "netrc")
	for _, tt := range []struct {
		text string
		want []Scope
		bad  bool
	}{
		{"machine a.example login u password p\nmachine b.example\n  login v\n  password q\ndefault login x password y\n",
			[]Scope{{"https://a.example", Basic("u", "p")}, {"https://b.example", Basic("v", "q")}}, false},
		{"machine", nil, true},
		{"machine a%zz login u password p\nmachine b.example login v password q\n", []Scope{{"https://b.example", Basic("v", "q")}}, false},
		{"", nil, false},
	} {
		os.WriteFile(file, []byte(tt.text), 0o600)
		got, err := Netrc(file)
		if fmt.Sprint(got) != fmt.Sprint(tt.want) || (err != nil) != tt.bad {
			t.Errorf("Netrc(%q) = %v, %v, want %v", tt.text, got, err, tt.want)
		}
		for i := range got {
			if got[i].Authorization != tt.want[i].Authorization {
				t.Errorf("Netrc(%q)[%d]: wrong credentials", tt.text, i)
			}
		}
	}
	url, s, err := SplitUserinfo("https://u:p@h.example/go")
	if err != nil || url != "https://h.example/go" || s.URL != url || s.Authorization != Basic("u", "p") {
		t.Errorf("SplitUserinfo = %q, %v, %v", url, s, err)
	}
}

// pipeClient returns a client whose connections end in-process at answer, for
// use in a synctest bubble.
func pipeClient(t *testing.T, answer func(conn net.Conn, r *http.Request)) *Client {
	return pipeClientFor(t, Config{}, answer)
}

func pipeClientFor(t *testing.T, conf Config, answer func(conn net.Conn, r *http.Request)) *Client {
	conf.Origins = []string{"http://up.example", "http://other.example"}
	c := newClientFor(t, conf)
	c.http.Transport.(*http.Transport).DialContext = func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go func() {
			defer theirs.Close()
			br := bufio.NewReader(theirs)
			for {
				r, err := http.ReadRequest(br)
				if err != nil {
					return
				}
				answer(theirs, r)
			}
		}()
		return ours, nil
	}
	return c
}

const ok = "HTTP/1.1 200 OK\r\n"

// SEC-31: what contradicts itself or has no end is an error, of the right class.
func TestBadFraming(t *testing.T) {
	bomb := func() string {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		z.Write(make([]byte, 2<<20))
		z.Close()
		return b.String()
	}()
	for name, raw := range map[string]string{
		"endless":           ok + "Transfer-Encoding: chunked\r\n\r\n" + strings.Repeat("40000\r\n"+strings.Repeat("x", 0x40000)+"\r\n", 5),
		"too long":          ok + "Content-Length: 1048577\r\n\r\n",
		"gzip bomb":         ok + fmt.Sprintf("Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n", len(bomb)) + bomb,
		"gzip of nothing":   ok + "Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
		"cut gzip":          ok + fmt.Sprintf("Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n", len(bomb)-9) + bomb[:len(bomb)-9],
		"encoded twice":     ok + "Content-Encoding: gzip\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
		"unknown encoding":  ok + "Content-Encoding: br\r\nContent-Length: 3\r\n\r\nabc",
		"two lengths":       ok + "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
		"negative length":   ok + "Content-Length: -3\r\n\r\nabc",
		"absurd length":     ok + "Content-Length: 99999999999999999999\r\n\r\nabc",
		"cut chunked":       ok + "Transfer-Encoding: chunked\r\n\r\n5\r\nab",
		"bad chunk":         ok + "Transfer-Encoding: chunked\r\n\r\nzz\r\nab\r\n",
		"cut":               ok + "Content-Length: 10\r\n\r\nabc",
		"no length":         ok + "Connection: close\r\n\r\nabc",
		"4 MiB of headers":  ok + strings.Repeat("X-A: "+strings.Repeat("y", 1000)+"\r\n", 4096) + "Content-Length: 1\r\n\r\na",
		"20000 interim":     strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 20000) + ok + "Content-Length: 1\r\n\r\na",
		"not HTTP":          "SSH-2.0-OpenSSH_9.6\r\n\r\n",
		"web page":          ok + "Content-Type: text/html\r\nContent-Length: 3\r\n\r\nabc",
		"disguised page":    ok + "Content-Type: text/plain\r\nContent-Length: 16\r\n\r\n\n <!doctype html>",
		"empty":             ok + "Content-Length: 0\r\n\r\n",
		"redirect to where": "HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n",
	} {
		synctest.Test(t, func(t *testing.T) {
			c := pipeClient(t, func(conn net.Conn, r *http.Request) {
				io.WriteString(conn, raw)
				conn.Close()
			})
			defer c.Close()
			start := time.Now()
			a, err := c.Get(t.Context(), Request{URL: "http://up.example/x", Kind: text})
			if !errors.Is(err, ErrBadAnswer) {
				t.Errorf("%s: Get = %+.50v, %v, want bad answer", name, a, err)
			}
			if d := time.Since(start); d > 10*time.Second {
				t.Errorf("%s: took %v", name, d)
			}
		})
	}
}

// SEC-31: what an answer may have around its body, at the limit and one over.
func TestAnswerLimits(t *testing.T) {
	interim := func(n int) string {
		return strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", n) + ok + "Content-Length: 1\r\n\r\na"
	}
	headers := func(n int) string {
		h := ok + "Content-Length: 1\r\nX-A: "
		return h + strings.Repeat("y", n-len(h)-4) + "\r\n\r\na"
	}
	body := func(n int) string {
		return ok + fmt.Sprintf("Content-Length: %d\r\n\r\n", n) + strings.Repeat("x", n)
	}
	packed := func(n int) string {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		z.Write(bytes.Repeat([]byte("x"), n))
		z.Close()
		return ok + fmt.Sprintf("Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s", b.Len(), b.Bytes())
	}
	for name, tt := range map[string]struct {
		raw  string
		want bool
	}{
		"10 interim":        {interim(maxInterim), true},
		"11 interim":        {interim(maxInterim + 1), false},
		"64 KiB of headers": {headers(maxHeaderBytes), true},
		"65 KiB of headers": {headers(maxHeaderBytes + 1<<10), false},
		"body":              {body(int(text.MaxExpanded)), true},
		"body + 1":          {body(int(text.MaxExpanded) + 1), false},
		"packed body":       {packed(int(text.MaxExpanded)), true},
		"packed body + 1":   {packed(int(text.MaxExpanded) + 1), false},
	} {
		synctest.Test(t, func(t *testing.T) {
			c := pipeClient(t, func(conn net.Conn, r *http.Request) {
				io.WriteString(conn, tt.raw)
				conn.Close()
			})
			defer c.Close()
			_, err := c.Get(t.Context(), Request{URL: "http://up.example/x", Kind: text})
			if (err == nil) != tt.want || err != nil && !errors.Is(err, ErrBadAnswer) {
				t.Errorf("%s: %v, want ok %v", name, err, tt.want)
			}
		})
	}
}

// Section 9 of the requirements: what each kind of file may have.
func TestKinds(t *testing.T) {
	for _, tt := range []struct {
		k    Kind
		most int64
	}{
		{IndexFile, 32 << 20}, {ModuleList, 32 << 20}, {Crate, 64 << 20}, {ModuleFile, 16 << 20}, {ModuleZip, 500 << 20},
	} {
		if tt.k.MaxExpanded != tt.most || tt.k.maxPacked() > tt.most {
			t.Errorf("%s: %d bytes, %d packed, want %d", tt.k.Name, tt.k.MaxExpanded, tt.k.maxPacked(), tt.most)
		}
	}
}

// SEC-35: failures are remembered in bounded number, the latest ones.
func TestFailuresBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		c := pipeClient(t, func(conn net.Conn, r *http.Request) {
			asked++
			io.WriteString(conn, "HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")
		})
		defer c.Close()
		get := func(i int) { c.Get(t.Context(), Request{URL: fmt.Sprintf("http://up.example/%d", i), Kind: text}) }
		for i := range maxRemembered + 1 {
			get(i)
		}
		asked = 0
		for _, i := range []int{maxRemembered, maxRemembered / 2, 1} {
			if get(i); asked != 0 {
				t.Errorf("absence %d of %d is not remembered", i, maxRemembered+1)
			}
		}
		if get(0); asked != 1 {
			t.Errorf("more than %d absences are remembered", maxRemembered)
		}
	})
}

// TestLengthWithChunked shows that chunks win over a length, as RFC 9112 says.
func TestLengthWithChunked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := pipeClient(t, func(conn net.Conn, r *http.Request) {
			io.WriteString(conn, ok+"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n")
		})
		defer c.Close()
		if a, err := c.Get(t.Context(), Request{URL: "http://up.example/x", Kind: text}); err == nil && string(a.Body) != "abcd" {
			t.Errorf("Get = %q", a.Body)
		}
	})
}

// REL-9: stalls before headers, inside headers and inside the body, and drips,
// each end in time.
func TestStalls(t *testing.T) {
	for name, answer := range map[string]func(conn net.Conn){
		"before headers": func(net.Conn) {},
		"inside headers": func(conn net.Conn) { io.WriteString(conn, "HTTP/1.1 200 OK\r\nX-") },
		"inside body":    func(conn net.Conn) { io.WriteString(conn, ok+"Content-Length: 10\r\n\r\nabc") },
		"inside error":   func(conn net.Conn) { io.WriteString(conn, "HTTP/1.1 503 Busy\r\nContent-Length: 10\r\n\r\nabc") },
		"drip": func(conn net.Conn) {
			io.WriteString(conn, ok+"Content-Length: 100000\r\n\r\n")
			for {
				if _, err := io.WriteString(conn, "x"); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			stop := make(chan struct{})
			c := pipeClient(t, func(conn net.Conn, r *http.Request) { answer(conn); <-stop })
			start := time.Now()
			_, err := c.Get(t.Context(), Request{URL: "http://up.example/x", Kind: text})
			if d := time.Since(start); !errors.Is(err, ErrUnreachable) || d > 20*time.Second {
				t.Errorf("%s: %v after %v, want unreachable", name, err, d)
			}
			start = time.Now()
			s, err := c.Open(t.Context(), Request{URL: "http://other.example/x", Kind: Kind{MaxExpanded: 1 << 20, Binary: true, FirstByte: time.Second}})
			if err == nil {
				_, err = io.ReadAll(s)
				s.Close()
			}
			if d := time.Since(start); !errors.Is(err, ErrUnreachable) || d > 12*time.Second {
				t.Errorf("%s: stream: %v after %v, want unreachable", name, err, d)
			}
			c.Close()
			close(stop)
			time.Sleep(2 * time.Second) // the dripping server notices
		})
	}
}

// A reader that takes its time is not a stalled upstream.
func TestSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := pipeClient(t, func(conn net.Conn, r *http.Request) {
			io.WriteString(conn, ok+"Content-Length: 4\r\n\r\nabcd")
		})
		defer c.Close()
		s, err := c.Open(t.Context(), Request{URL: "http://up.example/x", Kind: text})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		for i := range 4 {
			var b [1]byte
			if n, err := s.Read(b[:]); n != 1 {
				t.Fatalf("byte %d: %v", i, err)
			}
			time.Sleep(time.Minute)
		}
		if _, err := s.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("end: %v", err)
		}
	})
}

// SEC-35: failures are remembered by cause, and not for long; REL-9: repeated
// with pauses, and never many times.
func TestFailuresRemembered(t *testing.T) {
	for _, tt := range []struct {
		status string
		tries  int
		after  time.Duration // the right answer comes within
	}{
		{"404 Not Found", 1, 60 * time.Second},
		{"410 Gone", 1, 60 * time.Second},
		{"500 Oops", 3, 5 * time.Second},
		{"503 Busy\r\nRetry-After: 3600", 1, 5 * time.Second},
		{"503 Busy\r\nRetry-After: 1", 3, 5 * time.Second},
		{"429 Slow\r\nRetry-After: 30", 1, 60 * time.Second},
		{"403 No", 1, 5 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			asked, broken := 0, true
			c := pipeClient(t, func(conn net.Conn, r *http.Request) {
				asked++
				if broken {
					io.WriteString(conn, "HTTP/1.1 "+tt.status+"\r\nContent-Length: 0\r\n\r\n")
					return
				}
				io.WriteString(conn, ok+"Content-Length: 1\r\n\r\na")
			})
			defer c.Close()
			r := Request{URL: "http://up.example/x", Kind: text}
			for range 100 {
				if _, err := c.Get(t.Context(), r); err == nil {
					t.Fatal("no error")
				}
			}
			if asked != tt.tries {
				t.Errorf("%s: upstream asked %d times, want %d", tt.status, asked, tt.tries)
			}
			broken = false
			time.Sleep(tt.after)
			if _, err := c.Get(t.Context(), r); err != nil {
				t.Errorf("%s: %v after the fault ended: %v", tt.status, tt.after, err)
			}
		})
	}
}

// An origin that keeps failing is left alone, others are not, and it gets
// another chance.
func TestBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked, broken := 0, true
		c := pipeClient(t, func(conn net.Conn, r *http.Request) {
			if r.Host != "up.example" || !broken {
				io.WriteString(conn, ok+"Content-Length: 1\r\n\r\na")
				return
			}
			asked++
			io.WriteString(conn, "HTTP/1.1 502 Bad\r\nContent-Length: 0\r\n\r\n")
		})
		defer c.Close()
		for i := range 50 {
			if _, err := c.Get(t.Context(), Request{URL: fmt.Sprintf("http://up.example/%d", i), Kind: text}); !errors.Is(err, ErrUnreachable) {
				t.Fatalf("%d: %v", i, err)
			}
		}
		if asked > 3*breakerFailures {
			t.Errorf("asked %d times", asked)
		}
		if _, err := c.Get(t.Context(), Request{URL: "http://other.example/", Kind: text}); err != nil {
			t.Errorf("other origin: %v", err)
		}
		broken = false
		time.Sleep(breakerPause)
		if _, err := c.Get(t.Context(), Request{URL: "http://up.example/new", Kind: text}); err != nil {
			t.Errorf("after the pause: %v", err)
		}
	})
}

func TestOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		c := pipeClient(t, func(conn net.Conn, r *http.Request) {
			asked++
			io.WriteString(conn, "HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n")
		})
		defer c.Close()
		if _, err := c.Get(t.Context(), Request{URL: "http://up.example/x", Kind: text, Once: true}); err == nil || asked != 1 {
			t.Errorf("asked %d times, %v", asked, err)
		}
	})
}

// A caller that leaves neither counts against the origin nor is remembered.
func TestCallerLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		c := pipeClient(t, func(conn net.Conn, r *http.Request) {
			<-hang
			io.WriteString(conn, ok+"Content-Length: 1\r\n\r\na")
		})
		defer c.Close()
		for range 20 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if _, err := c.Get(ctx, Request{URL: "http://up.example/x", Kind: text}); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("err = %v", err)
			}
			cancel()
		}
		close(hang)
		if _, err := c.Get(t.Context(), Request{URL: "http://up.example/x", Kind: text}); err != nil {
			t.Error(err)
		}
	})
}

func TestFileOrigin(t *testing.T) {
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "secret")
	os.WriteFile(outside, []byte("secret"), 0o600)
	os.WriteFile(filepath.Join(dir, "f"), []byte("file"), 0o600)
	os.Symlink(outside, filepath.Join(dir, "link"))
	c := newClient(t, "file://"+dir)
	get := func(name string) (*Answer, error) {
		return c.Get(t.Context(), Request{URL: "file://" + name, Kind: text})
	}
	if a, err := get(dir + "/f"); err != nil || string(a.Body) != "file" {
		t.Errorf("Get = %+v, %v", a, err)
	}
	if _, err := get(dir + "/g"); !errors.Is(err, ErrNotFound) {
		t.Errorf("missing file: %v, want not found", err)
	}
	for _, name := range []string{outside, dir + "/../x", dir + "/link"} {
		if a, err := get(name); err == nil {
			t.Errorf("%s: got %q", name, a.Body)
		}
	}
}
