package goproxy

import (
	"errors"
	"net/url"
	"strings"
	"testing"

	"golang.org/x/mod/module"
)

// FuzzPaths: whatever the path, it is refused with a 4xx or names a module in its one
// canonical form. SEC-8, SEC-40
func FuzzPaths(f *testing.F) {
	for _, p := range []string{
		"/example.com/a/@v/list", "/example.com/%21upper/@v/v1.0.0.info", "/example.com/a/@latest", "/example.com/a/@v/v2.0.0+incompatible.zip",
		"/sumdb/sum.test/lookup/example.com/a@v1.0.0", "/sumdb/sum.test/tile/8/0/x001/234.p/5", "/a/../b/@v/list", "/%2e%2e/@v/list", "/@v/@v/list",
	} {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		u, err := url.ParseRequestURI(raw)
		if err != nil || !strings.HasPrefix(raw, "/") {
			return
		}
		clean, err := cleanPath(u)
		if err != nil {
			checkRefusal(t, raw, err)
			return
		}
		p, err := parsePath(clean)
		if err != nil {
			checkRefusal(t, raw, err)
		} else {
			checkModule(t, raw, p.module)
			if strings.ContainsAny(p.version, "/\\\x00") || strings.Contains(p.version, "..") && strings.Contains(p.version, "/") {
				t.Errorf("%q: version %q", raw, p.version)
			}
		}
		_, file, err := parseSumPath(clean)
		if err != nil {
			checkRefusal(t, raw, err)
			return
		}
		if rest, ok := strings.CutPrefix(file, "lookup/"); ok {
			if m, err := parseLookup(rest); err != nil {
				checkRefusal(t, raw, err)
			} else {
				checkModule(t, raw, m.Path)
			}
		}
	})
}

func checkRefusal(t *testing.T, raw string, err error) {
	t.Helper()
	var refusal *requestError
	if !errors.As(err, &refusal) || refusal.status != 400 && refusal.status != 404 {
		t.Errorf("%q: %v is no refusal", raw, err)
	}
	if m := message(refusal.status, err); strings.ContainsAny(strings.TrimSuffix(m, "\n"), "\x1b\n\r\x00") {
		t.Errorf("%q: message %q", raw, m) // SEC-52
	}
}

func checkModule(t *testing.T, raw, path string) {
	t.Helper()
	esc, err := module.EscapePath(path)
	if err != nil {
		t.Errorf("%q: module %q: %v", raw, path, err)
	}
	if back, err := module.UnescapePath(esc); err != nil || back != path {
		t.Errorf("%q: module %q has another form", raw, path)
	}
}
