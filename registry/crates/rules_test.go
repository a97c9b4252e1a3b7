package crates

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pkgswarm/pkgswarm/internal/filecache"
	"github.com/pkgswarm/pkgswarm/registry"
	"github.com/pkgswarm/pkgswarm/registry/policy"
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
		s := New(Config{Index: base, Upstream: u, Fetcher: direct{}, Cache: cache, NoAhead: true,
			Rules: policy.Rules{Block: []string{"Foo@1.0.0"}, Cooldown: policy.Duration(3 * day)}})
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
		time.Sleep(3 * day)
		index(old + young)
		s.c.DryRun = true
		index(blocked + old + young)
	})
}
