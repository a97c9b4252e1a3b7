package node

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/pkgswarm/pkgswarm/registry"
)

// TestPathEncodings: whatever a path holds that has more than one reading is 400 on
// every route, what is no name is a 4xx, and neither reaches an upstream. SEC-40
func TestPathEncodings(t *testing.T) {
	u := newRegistry(t, 10)
	var asked []string
	inner := u.Server.Config.Handler
	u.Server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u.mu.Lock()
		asked = append(asked, r.RequestURI)
		u.mu.Unlock()
		inner.ServeHTTP(w, r)
	})
	c := config(t, u, t.TempDir())
	c.GoUpstream = u.URL
	n := start(t, c)
	sums, _, _ := strings.Cut(registry.GoSumDB, "+")
	routes := []string{
		"/cargo/%s", "/cargo/cr/at/%s", "/cargo/dl/%s/1.0.0/download", "/cargo/dl/crate00/%s/download", "/cargo/api/v1/crates/%s",
		"/go/%s/@v/list", "/go/example.com/%s/@latest", "/go/example.com/a/@v/%s.info", "/go/example.com/a/@v/%s.zip",
		"/%s/@v/list", "/example.com/%s/@v/v1.0.0.mod", "/go/sumdb/%s/supported", "/go/sumdb/" + sums + "/lookup/%s", "/go/sumdb/" + sums + "/tile/8/0/%s",
		"/registries/%s/config.json", "/api/v1/%s", "/feed/%s", "/%s",
	}
	ambiguous := []string{"..%2fetc", "a%2fb", "%2e%2e", "a%2F..%2f..%2fb", "a%5cb", "..\\..\\b", "%00", "a%00b", "a%01", "a%7f", "a%0d%0aX-Y:z", "%ff", "%c0%ae%c0%ae", "%ed%a0%80", "..", "a/../b", "./a"}
	odd := []string{"a//b", "a%20b", "%252e%252e", "..%252f..%252fb", "a%23b", "a%253fb", "caf%c3%a9", "%e2%80%ae", strings.Repeat("a", 5000), "CON", "a:b", "a;b", "%25", "-x", "!A", "a%21%21b"}
	for _, route := range routes {
		for i, part := range append(ambiguous, odd...) {
			path := fmt.Sprintf(route, part)
			status := rawStatus(t, n.Addr().String(), path)
			dots := strings.HasSuffix(path, "...info") || strings.HasSuffix(path, "...zip") || strings.Contains(path, "/%2e%2e.") // a name, if an odd one
			if i < len(ambiguous) && status != 400 && !dots || status < 400 || status >= 500 {
				t.Errorf("GET %s: %d", path, status)
			}
		}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, uri := range asked {
		for _, part := range []string{"%2f", "%5c", "%2e", "%00", "%ff", "//", "..", "?"} {
			if strings.Contains(strings.ToLower(uri), part) && !strings.Contains(uri, "..%252f..%252fb") {
				t.Errorf("the upstream was asked for %s", uri)
			}
		}
	}
}

// rawStatus asks for a path as it is written.
func rawStatus(t *testing.T, addr, path string) int {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", path, addr)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("GET %.100s: %v", path, err)
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}
