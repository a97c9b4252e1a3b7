package transport_test

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/pkgswarm/pkgswarm/swarm/transport"
)

func TestParse(t *testing.T) {
	for in, want := range map[string]string{
		"1.2.3.4:7071":                   "1.2.3.4:7071",
		"tcp://1.2.3.4:7071":             "1.2.3.4:7071",
		"[2001:db8::1]:7071":             "[2001:db8::1]:7071",
		"seed.example.org:7071":          "seed.example.org:7071",
		"ws://seed.example.org/swarm":    "ws://seed.example.org:80/swarm",
		"wss://seed.example.org/swarm":   "wss://seed.example.org:443/swarm",
		"wss://[2001:db8::1]:8443/swarm": "wss://[2001:db8::1]:8443/swarm",
		"":                               "",
		"1.2.3.4":                        "",
		":7071":                          "",
		"http://1.2.3.4/swarm":           "",
		"tcp://1.2.3.4:7071/path":        "",
		"ws://user:pw@1.2.3.4/swarm":     "",
		"ws:///swarm":                    "",
		"1.2.3.4:7071\n":                 "",
	} {
		a, err := transport.Parse(in)
		switch {
		case want == "" && !errors.Is(err, transport.ErrAddress):
			t.Errorf("Parse(%q) = %v, %v, want ErrAddress", in, a, err)
		case want != "" && (err != nil || a.String() != want):
			t.Errorf("Parse(%q) = %v, %v, want %s", in, a, err, want)
		}
	}
}

func TestScopeOf(t *testing.T) {
	for ip, want := range map[string]transport.Scope{
		"127.0.0.1": transport.Loopback, "127.9.9.9": transport.Loopback, "::1": transport.Loopback,
		"::ffff:127.0.0.1": transport.Loopback,
		"169.254.169.254":  transport.LinkLocal, "fe80::1": transport.LinkLocal,
		"10.0.0.1": transport.Private, "172.16.0.1": transport.Private, "192.168.0.1": transport.Private,
		"100.64.0.1": transport.Private, "fd00::1": transport.Private, "::ffff:10.0.0.1": transport.Private,
		"8.8.8.8": transport.Public, "2001:db8::1": transport.Public, "172.32.0.1": transport.Public,
		"0.0.0.0": transport.Unusable, "::": transport.Unusable, "224.0.0.1": transport.Unusable,
		"ff02::fb": transport.Unusable, "255.255.255.255": transport.Unusable,
	} {
		if got := transport.ScopeOf(netip.MustParseAddr(ip)); got != want {
			t.Errorf("ScopeOf(%s) = %v, want %v", ip, got, want)
		}
	}
}

// echo sends back what it gets.
func echo(c net.Conn) {
	defer c.Close()
	io.Copy(c, c)
}

// tryEcho sends bytes through a connection to an echo and compares.
func tryEcho(t *testing.T, c net.Conn) {
	t.Helper()
	defer c.Close()
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<14) // more than a WebSocket library's default limit
	go c.Write(sent)
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("echo: %v, or other bytes", err)
	}
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	a, err := transport.Parse(addr)
	if err != nil {
		t.Fatal(err)
	}
	c, err := transport.Dial(context.Background(), a)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestTCP(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		ln, err := net.Listen("tcp", addr)
		if err != nil && strings.Contains(addr, "::") {
			t.Logf("SKIPPED: no IPv6 here: %v", err)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		go func() {
			if c, err := ln.Accept(); err == nil {
				echo(c)
			}
		}()
		tryEcho(t, dial(t, ln.Addr().String()))
	}
}

func wsEcho(w http.ResponseWriter, r *http.Request) {
	if c, err := transport.Upgrade(w, r); err == nil {
		echo(c)
	}
}

func TestWebSocket(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(wsEcho))
	defer srv.Close()
	tryEcho(t, dial(t, "ws"+strings.TrimPrefix(srv.URL, "http")+"/swarm"))

	// SEC-51: no web page gets a connection, whatever it says about itself.
	for _, origin := range []string{"http://example.com", "null", srv.URL, "file://"} {
		req, _ := http.NewRequest("GET", srv.URL, nil)
		req.Header.Set("Origin", origin)
		req.Header.Set("Connection", "Upgrade")
		req.Header.Set("Upgrade", "websocket")
		req.Header.Set("Sec-WebSocket-Version", "13")
		req.Header.Set("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA==")
		resp, err := srv.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusForbidden {
			t.Errorf("Origin %q: %s, want 403", origin, resp.Status)
		}
	}
}

// What answers is no peer: the error says so.
func TestNoWebSocket(t *testing.T) {
	srv := httptest.NewServer(http.NotFoundHandler())
	defer srv.Close()
	a, _ := transport.Parse("ws" + strings.TrimPrefix(srv.URL, "http") + "/swarm")
	if _, err := transport.Dial(context.Background(), a); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("Dial = %v, want the status", err)
	}
}

const proxied = "PKGSWARM_TEST_PROXIED"

// TestProxied is the other process of TestHTTPProxy: net/http reads the proxy's
// address from the environment once.
func TestProxied(t *testing.T) {
	if addr := os.Getenv(proxied); addr != "" {
		tryEcho(t, dial(t, addr))
	}
}

// A WebSocket goes through the proxy that the environment names, by CONNECT.
func TestHTTPProxy(t *testing.T) {
	srv := httptest.NewTLSServer(http.HandlerFunc(wsEcho))
	defer srv.Close()
	u, _ := url.Parse(srv.URL)
	roots := filepath.Join(t.TempDir(), "roots.pem")
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	if err := os.WriteFile(roots, cert, 0o600); err != nil {
		t.Fatal(err)
	}
	var connects atomic.Int32
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect || r.Host != "example.com:443" {
			http.Error(w, "no", http.StatusBadRequest)
			return
		}
		connects.Add(1)
		up, err := net.Dial("tcp", u.Host)
		if err != nil {
			return
		}
		down, buf, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		io.WriteString(down, "HTTP/1.1 200 OK\r\n\r\n")
		go func() { io.Copy(up, buf); up.Close() }()
		io.Copy(down, up)
		down.Close()
	}))
	defer proxy.Close()
	cmd := exec.Command(os.Args[0], "-test.run=^TestProxied$", "-test.count=1")
	cmd.Env = append(os.Environ(), proxied+"=wss://example.com/swarm", "SSL_CERT_FILE="+roots, "HTTPS_PROXY="+proxy.URL, "NO_PROXY=", "no_proxy=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("through a proxy: %v: %s", err, out)
	}
	if connects.Load() != 1 {
		t.Errorf("the proxy saw %d connections, want 1", connects.Load())
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"1.2.3.4:5", "wss://a/b", "[::1%25eth0]:1", "tcp://x:y"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := transport.Parse(s)
		if err != nil {
			return
		}
		again, err := transport.Parse(a.String())
		if err != nil || again != a {
			t.Errorf("%q is %+v, printed %q, read back %+v, %v", s, a, a.String(), again, err)
		}
	})
}
