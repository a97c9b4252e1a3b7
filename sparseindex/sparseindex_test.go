package sparseindex

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/pkgswarm/pkgswarm/registry"
	"github.com/pkgswarm/pkgswarm/registry/artifact"
	"github.com/pkgswarm/pkgswarm/registry/crates"
	"github.com/pkgswarm/pkgswarm/registry/fetch"
	"github.com/pkgswarm/pkgswarm/registry/policy"
	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

// fakeIndex answers for the crates serde and MyCrate; other names are errors by name.
type fakeIndex struct{}

var serde = strings.Repeat(`{"name":"serde","vers":"1.0.0","x":"y"}`+"\n", 100)

var serdeFile = &crates.File{Body: []byte(serde), ETag: `"abc"`}

var byName = map[registry.CrateName]error{
	"unreachable": &upstream.Error{Class: upstream.ErrUnreachable},
	"throttled":   &upstream.Error{Class: upstream.ErrUnreachable, Status: 429, RetryAfter: 3e9},
	"refused":     &upstream.Error{Class: upstream.ErrRefused, Status: 403},
	"bad":         &upstream.Error{Class: upstream.ErrBadAnswer},
	"wrong":       &fetch.BadBytesError{Name: "wrong", Err: errors.New("hash")},
	"offline":     fmt.Errorf("x: %w", fetch.ErrUnavailable),
	"stalled":     fmt.Errorf("x: %w", fetch.ErrStalled),
	"withdrawn":   &artifact.WithdrawnError{Reason: "malware"},
	"blocked":     &policy.Refusal{Name: "blocked", Rule: "block", Reason: "policy"},
	"broken":      errors.New("disk on fire\x1b[2J"),
	"gone":        &upstream.Error{Class: upstream.ErrNotFound, Status: 404, Detail: "x"},
}

func (fakeIndex) Index(_ context.Context, name registry.CrateName) (*crates.File, error) {
	switch {
	case name == "serde":
		return serdeFile, nil
	case name == "stale":
		return &crates.File{Body: []byte("{}"), ETag: `"s"`, Stale: true}, nil
	case byName[name] != nil:
		return nil, byName[name]
	}
	return nil, &upstream.Error{Class: upstream.ErrNotFound}
}

func (fakeIndex) Crate(_ context.Context, name registry.CrateName, version string) (*fetch.Body, error) {
	switch name {
	case "serde":
		return &fetch.Body{Content: strings.NewReader("crate bytes " + version), Size: 17}, nil
	case "streamed":
		return &fetch.Body{Stream: strings.NewReader("streamed"), Size: 8}, nil
	case "cut":
		return &fetch.Body{Stream: io.MultiReader(strings.NewReader("half"), errReader{}), Size: 8}, nil
	case "cutchunked":
		return &fetch.Body{Stream: io.MultiReader(strings.NewReader("half"), errReader{}), Size: -1}, nil
	}
	if err := byName[name]; err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("%s: %w", name, crates.ErrNoVersion)
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errors.New("mismatch") }

func (fakeIndex) Search(q string, limit int) ([]crates.Match, int) {
	return []crates.Match{{Name: "serde", MaxVersion: "1.0.0"}}[:min(limit, 1)], 7
}

func newServer(t *testing.T) *httptest.Server {
	h := New(Config{
		Index:   fakeIndex{},
		Prefix:  "/cargo/",
		BaseURL: func(r *http.Request) string { return "http://" + r.Host + "/cargo" },
	})
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv
}

func do(t *testing.T, srv *httptest.Server, method, path string, headers ...string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequest(method, srv.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	tr := &http.Transport{DisableCompression: true}
	defer tr.CloseIdleConnections()
	resp, err := tr.RoundTrip(r)
	if err != nil { // cut off before anything was sent
		return &http.Response{StatusCode: 200}, "error: " + err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return resp, "error: " + err.Error()
	}
	return resp, string(b)
}

func TestRequests(t *testing.T) {
	srv := newServer(t)
	for _, c := range []struct {
		path   string
		want   int
		body   string // part of it
		header string // name=value that must be there
	}{
		{"/cargo/se/rd/serde", 200, serde, `Etag="abc"`},
		{"/cargo/se/rd/serde", 200, serde, "Content-Length=" + fmt.Sprint(len(serde))},
		{"/cargo/3/s/stale", 404, "", ""},
		{"/cargo/st/al/stale", 200, "{}", "Pkgswarm-Stale=true"},
		{"/cargo/dl/serde/1.0.0/download", 200, "crate bytes 1.0.0", "Cache-Control=" + immutable},
		{"/cargo/dl/Serde/1.0.0+a.b/download", 200, "crate bytes 1.0.0+a.b", ""},
		{"/cargo/dl/streamed/1.0.0/download", 200, "streamed", "Content-Length=8"},
		{"/cargo/dl/cut/1.0.0/download", 200, "error: ", ""}, // SEC-3
		{"/cargo/dl/cutchunked/1.0.0/download", 200, "error: ", ""},
		{"/cargo/dl/nosuch/1.0.0/download", 404, "no such version", ""},
		{"/cargo/api/v1/crates?q=s&per_page=10", 200, `{"crates":[{"name":"serde","max_version":"1.0.0","description":""}],"meta":{"total":7}}`, ""},
		{"/cargo/api/v1/me", 403, "read-only mirror", ""},

		// SEC-40, SEC-41
		{"/cargo/", 404, "", ""},
		{"/cargo/serde", 404, "", ""},
		{"/cargo/se/rd/Serde", 404, "", ""},
		{"/cargo/SE/RD/serde", 404, "", ""},
		{"/cargo/se/rd/serde/", 404, "", ""},
		{"/cargo/se/rd/se%72de", 200, serde, ""}, // one meaning, spelt otherwise
		{"/cargo/se/rd/serde%00", 404, "", ""},
		{"/cargo/se/rd/..%2fserde", 404, "", ""},
		{"/cargo/dl/..%2f..%2fetc/1.0.0/download", 404, "", ""},
		{"/cargo/dl/serde/..%2f1/download", 404, "", ""},
		{"/cargo/dl/serde/1.0.0%20/download", 404, "", ""},

		{"/cargo/un/re/unreachable", 504, "", ""},
		{"/cargo/th/ro/throttled", 503, "", "Retry-After=3"},
		{"/cargo/re/fu/refused", 403, "", ""},
		{"/cargo/3/b/bad", 502, "", ""},
		{"/cargo/wr/on/wrong", 502, "", ""},
		{"/cargo/of/fl/offline", 504, "", ""},
		{"/cargo/st/al/stalled", 504, "", ""},
		{"/cargo/wi/th/withdrawn", 403, "malware", ""}, // SEC-19
		{"/cargo/bl/oc/blocked", 403, "policy", ""},
		{"/cargo/br/ok/broken", 500, "internal error; see the node's log", ""},
		{"/cargo/go/ne/gone", 404, "", ""},
	} {
		resp, body := do(t, srv, "GET", c.path)
		if resp.StatusCode != c.want || !strings.Contains(body, c.body) {
			t.Errorf("GET %s = %d %.200q, want %d %.100q", c.path, resp.StatusCode, body, c.want, c.body)
		}
		if name, value, ok := strings.Cut(c.header, "="); ok && resp.Header.Get(name) != value {
			t.Errorf("GET %s: %s: %q, want %q", c.path, name, resp.Header.Get(name), value)
		}
		if strings.ContainsAny(body, "\x1b") { // SEC-52
			t.Errorf("GET %s: control characters in %q", c.path, body)
		}
	}
}

func TestConfigFollowsHost(t *testing.T) { // SEC-34
	srv := newServer(t)
	resp, body := do(t, srv, "GET", "/cargo/config.json")
	host := strings.TrimPrefix(srv.URL, "http://")
	if want := `{"dl":"http://` + host + `/cargo/dl","api":"http://` + host + `/cargo"}`; resp.StatusCode != 200 || body != want {
		t.Errorf("config.json = %d %s, want %s", resp.StatusCode, body, want)
	}
}

func TestValidators(t *testing.T) {
	srv := newServer(t)
	for tag, want := range map[string]int{
		`"abc"`: 304, `W/"abc"`: 304, `"x", W/"abc"`: 304, "*": 304, `"ab"`: 200, `abc`: 200, `"x"`: 200, `W/"x","y"`: 200,
	} {
		resp, body := do(t, srv, "GET", "/cargo/se/rd/serde", "If-None-Match", tag, "Accept-Encoding", "gzip")
		if resp.StatusCode != want || want == 304 && (body != "" || resp.Header.Get("Etag") == "") {
			t.Errorf("If-None-Match: %s = %d with %d bytes, want %d", tag, resp.StatusCode, len(body), want)
		}
	}
}

func TestGzip(t *testing.T) {
	srv := newServer(t)
	for accept, want := range map[string]bool{
		"deflate, gzip": true, "gzip;q=0.5": true, "gzip; q=0": false, "gzip;q=0.0": false, "br": false, "": false, "identity": false,
	} {
		resp, body := do(t, srv, "GET", "/cargo/se/rd/serde", "Accept-Encoding", accept)
		if got := resp.Header.Get("Content-Encoding") == "gzip"; got != want {
			t.Errorf("Accept-Encoding: %q: compressed %v, want %v", accept, got, want)
			continue
		}
		if resp.Header.Get("Vary") != "Accept-Encoding" {
			t.Errorf("no Vary")
		}
		if want {
			z, err := gzip.NewReader(strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(z); err != nil || string(b) != serde || resp.Header.Get("Etag") != `W/"abc"` {
				t.Errorf("gzip: %d bytes, %v, ETag %s", len(b), err, resp.Header.Get("Etag"))
			}
		}
	}
	resp, _ := do(t, srv, "GET", "/cargo/dl/serde/1.0.0/download", "Accept-Encoding", "gzip")
	if resp.Header.Get("Content-Encoding") != "" {
		t.Errorf("a crate is compressed")
	}
}

func TestHeadAndRanges(t *testing.T) {
	srv := newServer(t)
	for _, path := range []string{"/cargo/se/rd/serde", "/cargo/dl/serde/1.0.0/download", "/cargo/config.json", "/cargo/dl/streamed/1.0.0/download"} {
		resp, body := do(t, srv, "HEAD", path)
		if resp.StatusCode != 200 || body != "" || resp.ContentLength <= 0 {
			t.Errorf("HEAD %s = %d, %d announced, %q", path, resp.StatusCode, resp.ContentLength, body)
		}
	}
	resp, body := do(t, srv, "GET", "/cargo/dl/serde/1.0.0/download", "Range", "bytes=6-10")
	if resp.StatusCode != 206 || body != "bytes" {
		t.Errorf("range = %d %q", resp.StatusCode, body)
	}
}

func TestReadOnly(t *testing.T) { // SEC-53
	srv := newServer(t)
	for _, c := range [][2]string{
		{"PUT", "/cargo/api/v1/crates/new"}, {"DELETE", "/cargo/api/v1/crates/serde/1.0.0/yank"}, {"PUT", "/cargo/api/v1/crates/serde/owners"},
		{"POST", "/cargo/se/rd/serde"}, {"DELETE", "/cargo/dl/serde/1.0.0/download"},
	} {
		resp, body := do(t, srv, c[0], c[1])
		if resp.StatusCode != 403 || !strings.HasPrefix(body, `{"errors":[{"detail":"`) {
			t.Errorf("%s %s = %d %s", c[0], c[1], resp.StatusCode, body)
		}
	}
}

func BenchmarkIndex(b *testing.B) {
	h := New(Config{Index: fakeIndex{}, BaseURL: func(*http.Request) string { return "" }})
	r := httptest.NewRequest("GET", "/se/rd/serde", nil)
	var w discard
	b.ReportAllocs()
	for b.Loop() {
		w.header = http.Header{}
		h.ServeHTTP(&w, r)
	}
}

type discard struct {
	header http.Header
	bytes.Buffer
}

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }
func (d *discard) WriteHeader(int)             {}
