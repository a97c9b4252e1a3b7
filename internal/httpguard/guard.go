// Package httpguard is what stands between the network and the handlers of a
// node's HTTP listener: it refuses requests that no honest client of a mirror
// makes, before any handler sees them, and bounds what a client may hold.
//
//   - Framing: a GET or HEAD with a body, methods other than GET, HEAD and POST,
//     the absolute form of a target, and ambiguous paths (an encoded slash, dot
//     segments, backslashes, control characters, invalid UTF-8) are 400 and end
//     the connection. What net/http refuses by itself is left to it.
//   - Host: only the names the node is known by, else 421, so that a foreign
//     name that resolves to this machine (DNS rebinding) reaches nothing.
//   - Browsers: a request with a foreign Origin, or that a browser marks as sent
//     by another site, is 403. Opening the dashboard from a link is allowed.
//   - Slow clients: see [Listen].
//   - HTTP/2 without TLS, where a client of this machine asks for it: see [Upgrades].
//   - Panics are contained, logged and counted.
package httpguard

import (
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"runtime/debug"
	"strconv"
	"strings"
	"unicode/utf8"
)

// MaxRanges is the largest number of byte ranges of a request that are honoured;
// a request for more gets the whole file.
const MaxRanges = 16

// Config configures a guard.
type Config struct {
	// Hosts are the values of the Host header that are accepted, in lower case,
	// with the port unless it is the default of the scheme.
	Hosts []string
	// AnyAddress accepts any IP address with one of Ports as Host. It is for
	// listeners off loopback: an address cannot be rebound, unlike a name.
	AnyAddress bool
	Ports      []uint16
	// Pages are paths that a browser may open from another site's link.
	Pages []string
	// Upgrades takes the connections of clients that ask for HTTP/2 without TLS; nil:
	// they stay with HTTP/1.1. It is for listeners on loopback: what stands between
	// other clients and the node need not understand what it passes on.
	Upgrades *Upgrades
	// Panicked is called for each panic of a handler; may be nil.
	Panicked func()
	Logger   *slog.Logger // nil discards
}

type guard struct {
	Config
	next  http.Handler
	hosts map[string]bool
	pages map[string]bool
	// streams has a place for each request under way over HTTP/2: where a connection
	// may have many, the number of connections bounds nothing.
	streams chan struct{}
}

// New returns next behind a guard.
func New(c Config, next http.Handler) http.Handler {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	g := &guard{Config: c, next: next, hosts: set(c.Hosts), pages: set(c.Pages), streams: make(chan struct{}, share())}
	return g
}

func set(names []string) map[string]bool {
	m := make(map[string]bool, len(names))
	for _, n := range names {
		m[strings.ToLower(n)] = true
	}
	return m
}

// LoopbackHosts returns the Host values of a listener on loopback with that port.
func LoopbackHosts(port uint16) []string {
	p := ":" + strconv.Itoa(int(port))
	hosts := []string{"localhost" + p, "127.0.0.1" + p, "[::1]" + p}
	if port == 80 {
		hosts = append(hosts, "localhost", "127.0.0.1", "[::1]")
	}
	return hosts
}

// Header values, made once.
var (
	nosniff    = []string{"nosniff"}
	sameOrigin = []string{"same-origin"}
)

func (g *guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		if p != http.ErrAbortHandler { // REL-16
			g.Logger.Error("panic in a request", "panic", p, "stack", string(debug.Stack()))
			if g.Panicked != nil {
				g.Panicked()
			}
			p = http.ErrAbortHandler // the answer may have begun: it must not look complete
		}
		panic(p)
	}()
	h := w.Header()
	h["X-Content-Type-Options"] = nosniff
	h["Cross-Origin-Resource-Policy"] = sameOrigin
	status, reason := g.judge(r)
	if status != 0 {
		if status == http.StatusBadRequest {
			h.Set("Connection", "close")
		}
		http.Error(w, reason, status)
		return
	}
	if r.ProtoMajor == 2 {
		select {
		case g.streams <- struct{}{}:
			defer func() { <-g.streams }()
		case <-r.Context().Done():
			panic(http.ErrAbortHandler)
		}
		sw := newStreamWriter(w)
		defer sw.end()
		w = sw
	}
	if g.Upgrades != nil && g.Upgrades.take(w, r) {
		return
	}
	if v := r.Header["Range"]; len(v) > 0 && strings.Count(v[0], ",") >= MaxRanges {
		r.Header.Del("Range")
	}
	g.next.ServeHTTP(w, r)
}

// judge returns the status and reason of a refusal, or 0.
func (g *guard) judge(r *http.Request) (int, string) {
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		if r.ContentLength != 0 || len(r.TransferEncoding) > 0 {
			return http.StatusBadRequest, "a " + r.Method + " request has no body"
		}
	case http.MethodPost:
	case http.MethodConnect, http.MethodTrace:
		return http.StatusBadRequest, "method not supported"
	default:
		return http.StatusMethodNotAllowed, "method not supported"
	}
	if r.URL.Host != "" || r.URL.Scheme != "" || !strings.HasPrefix(r.RequestURI, "/") {
		return http.StatusBadRequest, "this is not a forward proxy"
	}
	if !cleanPath(r.URL) {
		return http.StatusBadRequest, "malformed path"
	}
	if !g.hostAllowed(r.Host) {
		return http.StatusMisdirectedRequest, "this host name is not served here"
	}
	if !g.sameSite(r) {
		return http.StatusForbidden, "requests from other sites are refused"
	}
	return 0, ""
}

// cleanPath reports whether every reader of the path understands the same by it.
func cleanPath(u *url.URL) bool {
	if u.RawPath == "" && plain(u.Path) {
		return true
	}
	esc := strings.ToLower(u.EscapedPath())
	if strings.Contains(esc, "%2f") || strings.Contains(esc, "%5c") || !utf8.ValidString(u.Path) {
		return false
	}
	for _, c := range u.Path {
		if c < 0x20 || c >= 0x7f && c < 0xa0 || c == '\\' {
			return false
		}
	}
	for seg := range strings.SplitSeq(u.Path, "/") {
		if seg == "." || seg == ".." {
			return false
		}
	}
	return true
}

// plain reports whether a path is of printable ASCII without anything that could be
// read in two ways. Nearly all are.
func plain(path string) bool {
	last := byte('/')
	for i := range len(path) {
		c := path[i]
		if c <= ' ' || c >= 0x7f || c == '\\' || c == '%' || c == '.' && last == '/' {
			return false
		}
		last = c
	}
	return true
}

func (g *guard) hostAllowed(host string) bool {
	if g.hosts[strings.ToLower(host)] {
		return true
	}
	if !g.AnyAddress {
		return false
	}
	ap, err := netip.ParseAddrPort(host)
	if err != nil {
		return false
	}
	for _, p := range g.Ports {
		if ap.Port() == p {
			return true
		}
	}
	return false
}

// sameSite reports whether the request does not come from another site's page.
func (g *guard) sameSite(r *http.Request) bool {
	if origins := r.Header["Origin"]; len(origins) > 0 {
		u, err := url.Parse(origins[0])
		if len(origins) > 1 || err != nil || !strings.EqualFold(u.Host, r.Host) || u.Scheme != "http" && u.Scheme != "https" {
			return false
		}
	}
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "same-origin", "none":
		return true
	}
	return r.Method == http.MethodGet && g.pages[r.URL.Path] && r.Header.Get("Origin") == "" &&
		r.Header.Get("Sec-Fetch-Mode") == "navigate" && r.Header.Get("Sec-Fetch-Dest") == "document"
}

// IsLoopback reports whether ln accepts connections of this machine only.
func IsLoopback(ln net.Listener) bool {
	a, ok := ln.Addr().(*net.TCPAddr)
	return !ok || a.IP.IsLoopback()
}
