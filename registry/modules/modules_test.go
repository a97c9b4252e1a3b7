package modules

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/dirhash"

	"github.com/pkgswarm/pkgswarm/internal/filecache"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
	"github.com/pkgswarm/pkgswarm/registry/policy"
	"github.com/pkgswarm/pkgswarm/registry/sumdb"
	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A fake is an upstream that answers from a map, by path.
type fake struct {
	mu    sync.Mutex
	files map[string]string
	asked []string
	fail  error // class of every answer
}

func (f *fake) Get(_ context.Context, r upstream.Request) (*upstream.Answer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, path, _ := strings.Cut(strings.TrimPrefix(r.URL, "http://"), "/")
	f.asked = append(f.asked, path)
	if f.fail != nil {
		return nil, &upstream.Error{URL: r.URL, Class: f.fail}
	}
	body, ok := f.files[path]
	if !ok {
		return nil, &upstream.Error{URL: r.URL, Class: upstream.ErrNotFound}
	}
	if r.Validators.ETag == body {
		return &upstream.Answer{NotModified: true, Validators: r.Validators}, nil
	}
	return &upstream.Answer{Body: []byte(body), Validators: upstream.Validators{ETag: body}}, nil
}

func (f *fake) Open(context.Context, upstream.Request) (*upstream.Stream, error) {
	return nil, errors.New("no zips here")
}

func (f *fake) took() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	asked := f.asked
	f.asked = nil
	return asked
}

func newModules(t *testing.T, f *fake, c Config) *Modules {
	t.Helper()
	cache, err := filecache.Open(t.TempDir(), 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cache.Close() })
	c.Upstream, c.Cache = f, cache
	if c.Proxies == nil {
		c.Proxies = List{{URL: "http://up"}}
	}
	return New(c)
}

func TestParseList(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want string
		bad  bool
	}{
		{"https://a,https://b/x/|direct", "[{https://a false} {https://b/x true} {direct false}]", false},
		{"https://a|https://b", "[{https://a true} {https://b false}]", false},
		{"a.example", "[{https://a.example false}]", false},
		{" https://a , ,https://b", "[{https://a false} {https://b false}]", false},
		{"off,https://a", "[{off false}]", false},
		{"direct", "[{direct false}]", false},
		{"file:///x", "[{file:///x false}]", false},
		{"", "[]", false},
		{"https://u:p@a/x", "[{https://a/x false}]", false},
		{"https://u:p@%zz", "[]", true},
	} {
		list, scopes, err := ParseList(tt.in)
		if got := fmt.Sprint([]Entry(list)); got != tt.want || (err != nil) != tt.bad {
			t.Errorf("ParseList(%q) = %s, %v, want %s", tt.in, got, err, tt.want)
		}
		if strings.Contains(fmt.Sprint(list, scopes, err), "p@") { // SEC-57
			t.Errorf("ParseList(%q) shows the password: %v %v %v", tt.in, list, scopes, err)
		}
		if strings.Contains(tt.in, "@a") != (len(scopes) == 1) {
			t.Errorf("ParseList(%q): scopes %v", tt.in, scopes)
		}
	}
}

// A proxy that another may stand in for does not get to use up a client's patience.
func TestHurry(t *testing.T) {
	for _, tt := range []struct {
		list  string
		hurry []bool
	}{
		{"http://a|http://b", []bool{true, false}},
		{"http://a|http://b|direct", []bool{true, false}},
		{"http://a,http://b", []bool{false}}, // b is asked only if a knows that there is none
		{"http://a", []bool{false}},
	} {
		list, _, err := ParseList(tt.list)
		if err != nil {
			t.Fatal(err)
		}
		var got []bool
		list.Try(t.Context(), func(_ string, hurry bool) error {
			got = append(got, hurry)
			return upstream.ErrUnreachable
		})
		if !slices.Equal(got, tt.hurry) {
			t.Errorf("%s: hurry %v, want %v", tt.list, got, tt.hurry)
		}
	}
	if k := kind(upstream.ModuleInfo, true); k.FirstByte*2 > DefaultPatience {
		t.Errorf("a proxy in a hurry may take %v of %v", k.FirstByte, DefaultPatience)
	}
}

// Changing answers are kept for a while, then revalidated; a clock set back does
// not keep them for longer (REL-10).
func TestTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{files: map[string]string{"m.test/@v/list": "v1.0.0\n", "m.test/@v/v1.0.0.info": `{"Version":"v1.0.0"}`}}
		m := newModules(t, f, Config{})
		get := func(want string) {
			t.Helper()
			if l, err := m.List(t.Context(), "m.test"); err != nil || string(l.Body) != want {
				t.Errorf("List = %q, %v, want %q", l.Body, err, want)
			}
		}
		get("v1.0.0\n")
		time.Sleep(DefaultTTL - 1)
		get("v1.0.0\n")
		if n := len(f.took()); n != 1 {
			t.Errorf("asked %d times within the TTL", n)
		}
		f.files["m.test/@v/list"] = "v1.0.0\nv1.1.0\n"
		time.Sleep(time.Nanosecond)
		get("v1.0.0\nv1.1.0\n")
		time.Sleep(DefaultTTL)
		get("v1.0.0\nv1.1.0\n") // not modified
		if n := len(f.took()); n != 2 {
			t.Errorf("asked %d times after the TTL, want 2", n)
		}
		f.fail = upstream.ErrUnreachable
		time.Sleep(DefaultTTL)
		get("v1.0.0\nv1.1.0\n")
		l, _ := m.List(t.Context(), "m.test")
		if !l.Stale {
			t.Error("a list from before the upstream went down is not stale")
		}
		f.fail = upstream.ErrNotFound
		if _, err := m.List(t.Context(), "m.test"); !errors.Is(err, upstream.ErrNotFound) {
			t.Errorf("removed module: %v", err)
		}
		f.fail = upstream.ErrUnreachable
		if l, err := m.List(t.Context(), "m.test"); err == nil {
			t.Errorf("a removed list came back: %q", l.Body)
		}
		now := time.Now()
		if file := newFile(nil, upstream.Validators{}, now.Add(time.Hour), false); file.fresh(DefaultTTL, now) {
			t.Error("an answer from the future is fresh")
		}
	})
}

func TestChecks(t *testing.T) {
	for _, tt := range []struct {
		name  string
		check func([]byte) error
		body  string
		ok    bool
	}{
		{"list", checkList, "", true}, {"list", checkList, "\n", true}, {"list", checkList, "v1.0.0", true},
		{"list", checkList, "v1.0.0 2020-01-01T00:00:00Z\n", true}, {"list", checkList, "hello\n", false}, {"list", checkList, "odd\nv1.0.0\n", true},
		{"info", checkInfo("v1.0.0"), `{"Version":"v1.0.0","New":[1]}`, true}, {"info", checkInfo("v1.0.0"), `{"Version":"v1.0.1"}`, false},
		{"info", checkInfo("v1.0.0"), `{`, false}, {"info", checkInfo("v1.0.0"), strings.Repeat("[", 200_000), false},
		{"query", checkInfo(""), `{"Version":"v1.0.0"}`, true}, {"query", checkInfo(""), `{"Version":"master"}`, false}, {"query", checkInfo(""), `{}`, false},
		{"mod", checkMod, "module x\n", true}, {"mod", checkMod, "", false}, {"mod", checkMod, "mod", false},
	} {
		if err := tt.check([]byte(tt.body)); (err == nil) != tt.ok {
			t.Errorf("%s %.40q: %v", tt.name, tt.body, err)
		}
	}
}

func TestRules(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		info := func(v string, age time.Duration) string {
			return fmt.Sprintf(`{"Version":%q,"Time":%q}`, v, time.Now().Add(-age).Format(time.RFC3339))
		}
		const day = 24 * time.Hour
		f := &fake{files: map[string]string{
			"m.test/@v/list": "v1.0.0\nv1.2.0\nv1.1.0\nv1.3.0\n", "m.test/@latest": info("v1.3.0", time.Hour),
			"m.test/@v/v1.0.0.info": info("v1.0.0", 30*day), "m.test/@v/v1.1.0.info": info("v1.1.0", 20*day),
			"m.test/@v/v1.2.0.info": info("v1.2.0", day), "m.test/@v/v1.3.0.info": info("v1.3.0", time.Hour),
			"m.test/@v/v1.3.0.mod": "module m.test\n", "m.test/@v/v1.1.0.mod": "module m.test\n",
		}}
		m := newModules(t, f, Config{Rules: policy.Rules{Block: []string{"m.test@v1.0.0"}, Cooldown: policy.Duration(3 * day)}})
		l, err := m.List(t.Context(), "m.test")
		if err != nil || string(l.Body) != "v1.1.0\n" {
			t.Errorf("List = %q, %v", l.Body, err)
		}
		for v, ok := range map[string]bool{"v1.0.0": false, "v1.1.0": true, "v1.2.0": false, "v1.3.0": false} {
			var r *policy.Refusal
			_, err := m.Info(t.Context(), "m.test", v)
			if ok != (err == nil) || !ok && !errors.As(err, &r) {
				t.Errorf("Info(%s): %v", v, err)
			}
		}
		var r *policy.Refusal
		if _, err := m.Mod(t.Context(), "m.test", "v1.3.0"); !errors.As(err, &r) {
			t.Errorf("Mod of a version in cooldown: %v", err)
		}
		if _, err := m.Zip(t.Context(), "m.test", "v1.3.0"); !errors.As(err, &r) {
			t.Errorf("Zip of a version in cooldown: %v", err)
		}
		if _, err := m.Latest(t.Context(), "m.test"); !errors.As(err, &r) {
			t.Errorf("Latest in cooldown: %v", err)
		}
		if _, err := m.Mod(t.Context(), "m.test", "v1.1.0"); err != nil {
			t.Errorf("Mod of an allowed version: %v", err)
		}
		m.conf.DryRun = true
		if l, err := m.List(t.Context(), "m.test"); err != nil || len(l.Body) != len(f.files["m.test/@v/list"]) {
			t.Errorf("dry run: %q, %v", l.Body, err)
		}
		time.Sleep(3 * day)
		m.conf.DryRun = false
		if l, err := m.List(t.Context(), "m.test"); err != nil || !slices.Equal(strings.Fields(string(l.Body)), []string{"v1.2.0", "v1.1.0", "v1.3.0"}) {
			t.Errorf("after the cooldown: %q, %v", l.Body, err)
		}
	})
}

// The memory holds no more than its budget.
func TestMemory(t *testing.T) {
	m := newMemory()
	body := make([]byte, 100<<10)
	for i := range 2000 {
		m.put(fmt.Sprint(i), newFile(body, upstream.Validators{}, time.Now(), true))
		m.put("same", newFile(body[:i], upstream.Validators{}, time.Now(), true))
	}
	m.put("big", newFile(make([]byte, memoryEach+1), upstream.Validators{}, time.Now(), true))
	if m.bytes > memoryBytes || m.bytes < memoryBytes/2 {
		t.Errorf("%d bytes held", m.bytes)
	}
	if _, ok := m.get("0"); ok {
		t.Error("the oldest file was kept")
	}
	if f, ok := m.get("same"); !ok || len(f.Body) != 1999 {
		t.Error("the newest file was not kept")
	}
	for m.lru.Len() > 0 {
		m.lru.RemoveOldest()
	}
	if m.bytes != 0 {
		t.Errorf("%d bytes counted in an empty memory", m.bytes)
	}
}

func FuzzDecodeFile(f *testing.F) { // SEC-8
	f.Add(newFile([]byte("body"), upstream.Validators{ETag: "e", LastModified: "l"}, time.Unix(1, 2), false).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if file, err := decodeFile(b, false); err == nil && !bytes.Equal(file.encode(), b) {
			t.Errorf("%x decodes to %+v", b, file)
		}
	})
}

func FuzzParseList(f *testing.F) { // SEC-8
	f.Add("https://a,https://b|direct")
	f.Fuzz(func(t *testing.T, s string) {
		list, _, err := ParseList(s)
		if err != nil {
			return
		}
		for _, e := range list {
			if e.URL == "" {
				t.Errorf("ParseList(%q) has an empty element", s)
			}
		}
	})
}

// A fakeCatalog is a Catalog of one module.
type fakeCatalog struct {
	st    *pkglog.State
	fresh bool
	err   error
}

func (c *fakeCatalog) Module(_ context.Context, path string) (*pkglog.State, error) {
	if c.err == nil && path != c.st.Header().Package {
		return nil, upstream.ErrNotFound
	}
	return c.st, c.err
}

func (c *fakeCatalog) Fresh() bool { return c.fresh }

// fakeSums is a checksum database that cannot be reached, or knows one hash.
type fakeSums struct {
	rec sumdb.Record
	err error
}

func (s *fakeSums) Lookup(context.Context, module.Version) (sumdb.Record, error) { return s.rec, s.err }
func (s *fakeSums) Held(module.Version) (sumdb.Record, bool)                     { return sumdb.Record{}, false }

func TestCatalog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const mod = "module m.test\n"
		h1, err := dirhash.Hash1([]string{"go.mod"}, func(string) (io.ReadCloser, error) {
			return io.NopCloser(strings.NewReader(mod)), nil
		})
		if err != nil {
			t.Fatal(err)
		}
		sum, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(h1, "h1:"))
		if err != nil {
			t.Fatal(err)
		}
		st := pkglog.NewState(pkglog.Header{Ecosystem: pkglog.Go, Package: "m.test"})
		publish := func(v string) {
			t.Helper()
			_, err := st.Append(pkglog.Event{Kind: pkglog.Published, Module: &pkglog.ModuleVersion{
				Version: v, Time: 1, ModHash: [32]byte(sum), Info: fmt.Appendf(nil, `{"Version":%q,"By":"operator"}`, v), Mod: []byte(mod)}})
			if err != nil {
				t.Fatal(err)
			}
		}
		publish("v1.0.0")
		publish("v1.1.0")
		f := &fake{files: map[string]string{"m.test/@v/list": "v9.0.0\n", "m.test/@v/v9.0.0.info": `{"Version":"v9.0.0"}`, "other.test/@v/list": "v1.0.0\n"}}
		c, sums := &fakeCatalog{st: st, fresh: true}, &fakeSums{rec: sumdb.Record{Mod: h1}}
		m := newModules(t, f, Config{Catalog: c, Sums: sums})
		want := func(what string, file *File, err error, body string) {
			t.Helper()
			if err != nil || !strings.Contains(string(file.Body), body) {
				t.Errorf("%s = %+v, %v, want %q", what, file, err, body)
			}
		}
		list, err := m.List(t.Context(), "m.test")
		want("List", list, err, "v1.0.0\nv1.1.0\n")
		info, err := m.Info(t.Context(), "m.test", "v1.0.0")
		want("Info", info, err, "operator")
		latest, err := m.Latest(t.Context(), "m.test")
		want("Latest", latest, err, "v1.1.0")
		gomod, err := m.Mod(t.Context(), "m.test", "v1.0.0")
		want("Mod", gomod, err, mod)
		if asked := f.took(); len(asked) > 0 {
			t.Errorf("the upstream was asked for %v, which the catalog has", asked)
		}
		other, err := m.List(t.Context(), "other.test")
		want("List of a module that the catalog lacks", other, err, "v1.0.0\n")
		info, err = m.Info(t.Context(), "m.test", "v9.0.0")
		want("Info of a version that the catalog lacks", info, err, "v9.0.0")

		// SEC-11: a stale catalog does not say what is new, but does without an upstream.
		c.fresh = false
		time.Sleep(DefaultTTL)
		list, err = m.List(t.Context(), "m.test")
		want("List, stale catalog", list, err, "v9.0.0\n")
		down := newModules(t, &fake{fail: upstream.ErrUnreachable}, Config{Catalog: c, Sums: &fakeSums{err: upstream.ErrUnreachable}})
		list, err = down.List(t.Context(), "m.test")
		want("List, stale catalog, no upstream", list, err, "v1.1.0\n")
		if !list.Stale {
			t.Error("not marked as stale")
		}
		// The database cannot be reached: what the importer found in it counts.
		gomod, err = down.Mod(t.Context(), "m.test", "v1.1.0")
		want("Mod, no database", gomod, err, mod)
		sums.rec.Mod = "h1:AAAA"
		if _, err := m.Mod(t.Context(), "m.test", "v1.1.0"); err == nil {
			t.Error("the catalog's go.mod was taken against the database's word")
		}

		// SEC-19: a withdrawn version is not served, whatever is held.
		if _, err := st.Append(pkglog.Event{Kind: pkglog.Removed, Version: "v1.0.0"}); err != nil {
			t.Fatal(err)
		}
		if _, err := m.Info(t.Context(), "m.test", "v1.0.0"); !errors.Is(err, ErrWithdrawn) {
			t.Errorf("Info of a withdrawn version: %v", err)
		}
		if _, err := m.Mod(t.Context(), "m.test", "v1.0.0"); !errors.Is(err, ErrWithdrawn) {
			t.Errorf("Mod of a withdrawn version: %v", err)
		}
		if _, err := m.Zip(t.Context(), "m.test", "v1.0.0"); !errors.Is(err, ErrWithdrawn) {
			t.Errorf("Zip of a withdrawn version: %v", err)
		}
		c.err = errors.New("catalog broken")
		if _, err := m.Info(t.Context(), "m.test", "v9.0.0"); err != nil {
			t.Errorf("broken catalog: %v", err)
		}
	})
}
