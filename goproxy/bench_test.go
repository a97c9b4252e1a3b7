package goproxy_test

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

// BenchmarkServe answers from what is held, without the network: a list, an
// .info, a proven .mod, a zip and a record of the checksum database.
func BenchmarkServe(b *testing.B) {
	m := newMirror(b, someModules(b), mirrorConfig{})
	for _, v := range []struct{ name, path string }{
		{"list", "/example.com/a/@v/list"},
		{"info", "/example.com/a/@v/v1.0.0.info"},
		{"mod", "/example.com/a/@v/v1.0.0.mod"},
		{"zip", "/example.com/a/@v/v1.0.0.zip"},
		{"lookup", "/sumdb/sum.test/lookup/example.com/a@v1.0.0"},
	} {
		b.Run(v.name, func(b *testing.B) {
			if a := m.get(b, v.path); a.status != 200 {
				b.Fatalf("GET %s: %d %s", v.path, a.status, a.body)
			}
			r := httptest.NewRequest("GET", v.path, nil)
			b.ReportAllocs()
			for b.Loop() {
				w := discard{header: http.Header{}}
				m.Handler.ServeHTTP(&w, r)
				if w.status >= 400 {
					b.Fatal(w.status)
				}
			}
		})
	}
}

// discard is a client that only looks at the status.
type discard struct {
	header http.Header
	status int
}

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }
func (d *discard) WriteHeader(status int)      { d.status = status }
