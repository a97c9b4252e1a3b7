package feed

import (
	"context"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/mmcdole/gofeed"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
)

type registry map[pkglog.Header]*Log

func (r registry) Log(_ context.Context, h pkglog.Header) (*Log, error) {
	if l := r[h]; l != nil {
		return l, nil
	}
	return nil, fs.ErrNotExist
}

func (r registry) Recent(context.Context, int) (logs []*Log, err error) {
	for _, l := range r {
		logs = append(logs, l)
	}
	return logs, nil
}

func testRegistry(t *testing.T) registry {
	t.Helper()
	r := make(registry)
	add := func(h pkglog.Header, events ...pkglog.Event) {
		s := pkglog.NewState(h)
		blocks := [][]byte{h.Encode()}
		for _, e := range events {
			b, err := s.Append(e)
			if err != nil {
				t.Fatal(err)
			}
			blocks = append(blocks, b)
		}
		l, err := Fold(h, core.Key{1}, time.Unix(1800000000, 0).UTC(), blocks)
		if err != nil {
			t.Fatal(err)
		}
		r[h] = l
	}
	add(pkglog.Header{Ecosystem: pkglog.Cargo, Package: "serde"},
		pkglog.Event{Kind: pkglog.Published, Line: []byte(`{"name":"serde","vers":"1.0.0","yanked":false,"pubtime":"2024-01-02T03:04:05Z"}`)},
		pkglog.Event{Kind: pkglog.Changed, Line: []byte(`{"name":"serde","vers":"1.0.0","yanked":true}`)},
		pkglog.Event{Kind: pkglog.Published, Position: 1, Line: []byte(`{"name":"serde","vers":"1.0.1<script>]]>\u202e\u001b[31m"}`)},
		pkglog.Event{Kind: pkglog.Removed, Position: 0},
	)
	add(pkglog.Header{Ecosystem: pkglog.Go, Package: "github.com/Azure/x"},
		pkglog.Event{Kind: pkglog.Published, Module: &pkglog.ModuleVersion{Version: "v1.2.3", Time: 1600000000, Info: []byte("{}"), Mod: []byte("module x")}},
	)
	return r
}

func get(t *testing.T, h http.Handler, path, etag string) *httptest.ResponseRecorder {
	t.Helper()
	req := httptest.NewRequest("GET", path, nil)
	if etag != "" {
		req.Header.Set("If-None-Match", etag)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	return w
}

func TestFeeds(t *testing.T) {
	h := Handler(testRegistry(t))
	tests := []struct {
		path   string
		titles []string
	}{
		{"/cargo/serde.atom", []string{"serde 1.0.0 removed", "serde 1.0.1<script>]]>[31m published", "serde 1.0.0 yanked", "serde 1.0.0 published"}},
		{"/cargo/Serde.atom", []string{"serde 1.0.0 removed", "serde 1.0.1<script>]]>[31m published", "serde 1.0.0 yanked", "serde 1.0.0 published"}},
		{"/go/github.com/!azure/x.atom", []string{"github.com/Azure/x v1.2.3 published"}},
	}
	for _, tt := range tests {
		w := get(t, h, tt.path, "")
		if w.Code != 200 {
			t.Fatalf("%s: status %d", tt.path, w.Code)
		}
		f, err := gofeed.NewParser().ParseString(w.Body.String())
		if err != nil {
			t.Fatalf("%s: %v\n%s", tt.path, err, w.Body)
		}
		var got []string
		for _, i := range f.Items {
			got = append(got, i.Title)
			if !strings.HasPrefix(i.GUID, "urn:pkgswarm:") {
				t.Errorf("%s: id %q", tt.path, i.GUID)
			}
		}
		if strings.Join(got, "\n") != strings.Join(tt.titles, "\n") {
			t.Errorf("%s: items %q, want %q", tt.path, got, tt.titles)
		}
		// RFC 4287, 4.2.6: an id is absolute.
		if id := "<id>urn:pkgswarm:feeds" + strings.ToLower(tt.path) + "</id>"; !strings.Contains(w.Body.String(), id) {
			t.Errorf("%s: no %s in\n%s", tt.path, id, w.Body)
		}
		if strings.Contains(w.Body.String(), "<script>") { // SEC-52
			t.Errorf("%s: markup in\n%s", tt.path, w.Body)
		}
		if again := get(t, h, tt.path, w.Header().Get("ETag")); again.Code != http.StatusNotModified {
			t.Errorf("%s: status %d for the same tag", tt.path, again.Code)
		}
	}
	if w := get(t, h, "/registry.atom", ""); w.Code != 200 || strings.Count(w.Body.String(), "<entry>") != 5 {
		t.Errorf("registry: status %d\n%s", w.Code, w.Body)
	}
	for _, p := range []string{"/", "/cargo/none.atom", "/cargo/..%2f.atom", "/go/github.com/Azure/x.atom", "/npm/x.atom", "/cargo/serde", "/cargo/a/b.atom"} {
		if w := get(t, h, p, ""); w.Code != 404 {
			t.Errorf("%s: status %d", p, w.Code)
		}
	}
	if w := httptest.NewRecorder(); true {
		h.ServeHTTP(w, httptest.NewRequest("POST", "/registry.atom", nil))
		if w.Code != http.StatusMethodNotAllowed {
			t.Errorf("POST: status %d", w.Code)
		}
	}
}
