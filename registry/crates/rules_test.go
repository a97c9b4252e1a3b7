package crates

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pkgswarm/pkgswarm/internal/filecache"
	"github.com/pkgswarm/pkgswarm/registry"
	"github.com/pkgswarm/pkgswarm/registry/policy"
	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

// The policy decides the same for the index and for a .crate.
func TestRules(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const day = 24 * time.Hour
		line := func(vers string, age time.Duration) string {
			return fmt.Sprintf(`{"name":"Foo","vers":%q,"deps":[],"cksum":%q,"features":{},"yanked":false,"pubtime":%q,"unknown":[1]}`+"\n",
				vers, strings.Repeat("ab", 32), time.Now().UTC().Add(-age).Format(time.RFC3339))
		}
		blocked, old, young := line("1.0.0", 90*day), line("1.1.0", 30*day), line("1.2.0", day)
		u := &fakeUpstream{files: map[string]string{"3/f/foo": blocked + old + young}}
		cache, err := filecache.Open(t.TempDir(), 0)
		if err != nil {
			t.Fatal(err)
		}
		defer cache.Close()
		var logged bytes.Buffer
		s := New(Config{Index: base, Upstream: u, Fetcher: direct{}, Cache: cache, NoAhead: true,
			Logger: slog.New(slog.NewTextHandler(&logged, nil)),
			Rules:  policy.Rules{Block: []string{"Foo@1.0.0"}, Cooldown: policy.Duration(3 * day)}})
		index := func(want string) {
			t.Helper()
			f, err := s.Index(t.Context(), registry.CrateName("foo"))
			if err != nil || string(f.Body) != want {
				t.Errorf("Index = %q, %v, want %q", f.Body, err, want)
			}
		}
		index(old)
		for vers, refused := range map[string]bool{"1.0.0": true, "1.1.0": false, "1.2.0": true} {
			var r *policy.Refusal
			if _, err := s.Crate(t.Context(), registry.CrateName("foo"), vers); errors.As(err, &r) != refused {
				t.Errorf("Crate %s: %v, refused should be %v", vers, err, refused)
			}
		}
		for vers, rule := range map[string]string{"1.0.0": "block", "1.1.0": "", "1.2.0": "cooldown", "9.9.9": ""} {
			if r := s.Refused(registry.CrateName("foo"), vers); (r == nil) != (rule == "") || r != nil && r.Rule != rule {
				t.Errorf("Refused %s: %v, want rule %q", vers, r, rule)
			}
		}
		index(old) // REL-17: what is hidden is told once
		for _, vers := range []string{"1.0.0", "1.2.0"} {
			if n := strings.Count(logged.String(), "hidden by the policy\" crate=Foo version="+vers+" rule="); n != 1 {
				t.Errorf("%d lines say that %s is hidden, want 1:\n%s", n, vers, logged.String())
			}
		}
		if strings.Contains(logged.String(), "1.1.0") {
			t.Errorf("the log names what is not hidden:\n%s", logged.String())
		}
		time.Sleep(3 * day)
		index(old + young)
		s.c.DryRun = true
		index(blocked + old + young)
	})
}

// REL-17: an upstream that is down is told of once per interval, not once per file.
func TestStaleToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := &fakeUpstream{files: map[string]string{}}
		const files = 50
		for i := range files {
			name := fmt.Sprintf("foo%02d", i)
			u.files["fo/o"+name[3:4]+"/"+name] = fmt.Sprintf(`{"name":%q,"vers":"1.0.0","deps":[],"cksum":%q,"features":{},"yanked":false}`+"\n", name, strings.Repeat("ab", 32))
		}
		cache, err := filecache.Open(t.TempDir(), 0)
		if err != nil {
			t.Fatal(err)
		}
		defer cache.Close()
		var logged bytes.Buffer
		s := New(Config{Index: base, Upstream: u, Fetcher: direct{}, Cache: cache, NoAhead: true, Logger: slog.New(slog.NewTextHandler(&logged, nil))})
		all := func(stale bool) {
			t.Helper()
			for i := range files {
				f, err := s.Index(t.Context(), registry.CrateName(fmt.Sprintf("foo%02d", i)))
				if err != nil || f.Stale != stale {
					t.Fatalf("file %d: %v, stale %v, want %v", i, err, f != nil && f.Stale, stale)
				}
			}
		}
		all(false)
		time.Sleep(DefaultTTL + time.Second)
		u.err = &upstream.Error{URL: base, Class: upstream.ErrUnreachable}
		for want := 1; want <= 3; want++ {
			all(true)
			all(true)
			if n := strings.Count(logged.String(), "upstream failed"); n != want {
				t.Fatalf("%d lines after %d intervals:\n%.500s", n, want, logged.String())
			}
			time.Sleep(tellEvery)
		}
	})
}
