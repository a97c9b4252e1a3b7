package crates

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pkgswarm/pkgswarm/internal/filecache"
	"github.com/pkgswarm/pkgswarm/registry"
	"github.com/pkgswarm/pkgswarm/registry/artifact"
	"github.com/pkgswarm/pkgswarm/registry/fetch"
	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

// A fakeUpstream answers from a map of paths.
type fakeUpstream struct {
	mu      sync.Mutex
	files   map[string]string
	err     error         // of every request, if set
	wait    time.Duration // before each answer
	asked   map[string]int
	origins []string
	scopes  []upstream.Scope
}

const base = "https://index.example/"

func (u *fakeUpstream) get(ctx context.Context, r upstream.Request) (string, error) {
	u.mu.Lock()
	if u.asked == nil {
		u.asked = map[string]int{}
	}
	u.asked[r.URL]++
	body, ok := u.files[strings.TrimPrefix(r.URL, base)]
	err, wait := u.err, u.wait
	u.mu.Unlock()
	select {
	case <-time.After(wait):
	case <-ctx.Done():
		return "", ctx.Err()
	}
	if err != nil {
		return "", err
	}
	if !ok {
		return "", &upstream.Error{URL: r.URL, Class: upstream.ErrNotFound, Status: 404}
	}
	return body, nil
}

func (u *fakeUpstream) Get(ctx context.Context, r upstream.Request) (*upstream.Answer, error) {
	body, err := u.get(ctx, r)
	if err != nil {
		return nil, err
	}
	v := upstream.Validators{ETag: fmt.Sprintf(`"%x"`, sha256.Sum256([]byte(body)))}
	if r.Validators.ETag == v.ETag {
		return &upstream.Answer{NotModified: true, Validators: v}, nil
	}
	return &upstream.Answer{Body: []byte(body), Validators: v}, nil
}

func (u *fakeUpstream) Open(ctx context.Context, r upstream.Request) (*upstream.Stream, error) {
	body, err := u.get(ctx, r)
	if err != nil {
		return nil, err
	}
	return &upstream.Stream{ReadCloser: io.NopCloser(strings.NewReader(body)), Size: int64(len(body))}, nil
}

func (u *fakeUpstream) AddScope(s upstream.Scope) error {
	u.scopes = append(u.scopes, s)
	return nil
}
func (u *fakeUpstream) AddNamed(url, _ string) error { u.origins = append(u.origins, url); return nil }

func (u *fakeUpstream) count(path string) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.asked[base+path]
}

func (u *fakeUpstream) set(f func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	f()
}

// direct is a Fetcher without store or peers.
type direct struct{}

func (direct) Stored([]artifact.Digest) (*fetch.Body, error) { return nil, artifact.ErrNotFound }
func (direct) Fetch(ctx context.Context, a *fetch.Artifact) (*fetch.Body, error) {
	if a.Upstream == nil {
		return nil, fetch.ErrUnavailable
	}
	d, err := a.Upstream(ctx)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(d)
	if err != nil {
		return nil, err
	}
	for _, want := range a.Known {
		if err = want.Verify(bytes.NewReader(b), int64(len(b))); err == nil {
			return &fetch.Body{Content: bytes.NewReader(b), Size: int64(len(b))}, nil
		}
	}
	return nil, &fetch.BadBytesError{Name: a.Name, Err: err}
}

func indexLine(name, vers, crate string, deps ...string) string {
	var ds []string
	for _, d := range deps {
		ds = append(ds, fmt.Sprintf(`{"name":%q,"req":"*","kind":"normal","optional":%v}`, strings.TrimPrefix(d, "?"), strings.HasPrefix(d, "?")))
	}
	return fmt.Sprintf(`{"name":%q,"vers":%q,"deps":[%s],"cksum":"%x","features":{},"yanked":false}`+"\n", name, vers, strings.Join(ds, ","), sha256.Sum256([]byte(crate)))
}

func newCrates(t *testing.T, u *fakeUpstream, dir string) *Crates {
	cache, err := filecache.Open(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cache.Close() })
	c := Config{Index: base, Fetcher: direct{}, Cache: cache, NoAhead: true}
	if u != nil {
		c.Upstream = u
	}
	return New(c)
}

func wantBody(t *testing.T, s *Crates, name registry.CrateName, want string, stale bool) {
	t.Helper()
	f, err := s.Index(t.Context(), name)
	if err != nil || string(f.Body) != want || f.Stale != stale {
		t.Errorf("Index(%s) = %+v, %v; want %q, stale %v", name, f, err, want, stale)
	}
}

func TestIndexRevalidated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v1 := indexLine("foo", "1.0.0", "a")
		v2 := v1 + indexLine("foo", "1.1.0", "b")
		u := &fakeUpstream{files: map[string]string{"3/f/foo": v1}}
		dir := t.TempDir()
		s := newCrates(t, u, dir)
		wantBody(t, s, "foo", v1, false)
		wantBody(t, s, "foo", v1, false)
		if n := u.count("3/f/foo"); n != 1 {
			t.Errorf("asked %d times for a fresh file", n)
		}
		etag := func() string { f, _ := s.Index(t.Context(), "foo"); return f.ETag }
		first := etag()
		time.Sleep(DefaultTTL + time.Second)
		wantBody(t, s, "foo", v1, false) // 304
		if etag() != first || u.count("3/f/foo") != 2 {
			t.Errorf("ETag %s, was %s; asked %d times", etag(), first, u.count("3/f/foo"))
		}
		u.set(func() { u.files["3/f/foo"] = v2 })
		time.Sleep(DefaultTTL + time.Second)
		wantBody(t, s, "foo", v2, false)

		// The upstream fails: the old copy, also after a restart. REL-9
		u.set(func() { u.err = &upstream.Error{Class: upstream.ErrUnreachable} })
		time.Sleep(DefaultTTL + time.Second)
		wantBody(t, s, "foo", v2, true)
		s = newCrates(t, u, dir)
		wantBody(t, s, "foo", v2, true)
		wantBody(t, newCrates(t, nil, dir), "foo", v2, true) // offline

		// It has spoken: the crate is gone.
		u.set(func() { u.err = nil; delete(u.files, "3/f/foo") })
		if _, err := s.Index(t.Context(), "foo"); !errors.Is(err, upstream.ErrNotFound) {
			t.Errorf("Index of a removed crate: %v", err)
		}
		u.set(func() { u.err = &upstream.Error{Class: upstream.ErrUnreachable} })
		if _, err := s.Index(t.Context(), "foo"); errors.Is(err, upstream.ErrNotFound) || err == nil {
			t.Errorf("absence derived from a failure: %v", err) // SEC-35
		}
	})
}

func TestClockSetBack(t *testing.T) { // REL-10
	f := &File{checked: time.Now().Add(365 * 24 * time.Hour)}
	if f.fresh(time.Hour) {
		t.Error("a file from the future is fresh")
	}
}

func TestBadIndexNotKept(t *testing.T) { // SEC-7, SEC-35
	synctest.Test(t, func(t *testing.T) {
		good := indexLine("foo", "1.0.0", "a")
		u := &fakeUpstream{files: map[string]string{"3/f/foo": indexLine("bar", "1.0.0", "a")}}
		s := newCrates(t, u, t.TempDir())
		if _, err := s.Index(t.Context(), "foo"); !errors.Is(err, upstream.ErrBadAnswer) {
			t.Errorf("Index = %v, want ErrBadAnswer", err)
		}
		u.set(func() { u.files["3/f/foo"] = good })
		wantBody(t, s, "foo", good, false)
		u.set(func() { u.files["3/f/foo"] = "<html>" })
		time.Sleep(DefaultTTL + time.Second)
		wantBody(t, s, "foo", good, true)
	})
}

func TestOneQuestionForAll(t *testing.T) { // REL-9
	synctest.Test(t, func(t *testing.T) {
		u := &fakeUpstream{files: map[string]string{"3/f/foo": indexLine("foo", "1.0.0", "a")}, wait: time.Second}
		s := newCrates(t, u, t.TempDir())
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				ctx := t.Context()
				if i == 0 { // the first one leaves
					var cancel func()
					ctx, cancel = context.WithTimeout(ctx, 10*time.Millisecond)
					defer cancel()
				}
				if _, err := s.Index(ctx, "foo"); (err != nil) != (i == 0) {
					t.Errorf("client %d: %v", i, err)
				}
			})
			time.Sleep(time.Millisecond)
		}
		wg.Wait()
		if n := u.count("3/f/foo"); n != 1 {
			t.Errorf("asked %d times", n)
		}
		u.set(func() { u.wait = time.Hour })
		start := time.Now()
		if _, err := s.Index(t.Context(), "bar"); !errors.Is(err, upstream.ErrUnreachable) || time.Since(start) > 10*time.Second {
			t.Errorf("hanging upstream: %v after %v", err, time.Since(start))
		}
		time.Sleep(time.Minute)
	})
}

func crateBody(t *testing.T, s *Crates, name registry.CrateName, version string) (string, error) {
	t.Helper()
	b, err := s.Crate(t.Context(), name, version)
	if err != nil {
		return "", err
	}
	got, err := io.ReadAll(b.Content)
	return string(got), err
}

func TestCrate(t *testing.T) {
	u := &fakeUpstream{files: map[string]string{
		"config.json": `{"dl":"` + base + `dl/{prefix}/{crate}-{version}","api":"https://evil.example"}`,
		"my/cr/mycrate": indexLine("MyCrate", "1.0.0", "one") + indexLine("MyCrate", "1.1.0+b", "two") +
			indexLine("MyCrate", "2.0.0", "other") + indexLine("MyCrate", "2.0.0", "three"),
		"dl/My/Cr/MyCrate-1.0.0":   "one",
		"dl/My/Cr/MyCrate-1.1.0+b": "two",
		"dl/My/Cr/MyCrate-2.0.0":   "other", // the older of two lines
	}}
	s := newCrates(t, u, t.TempDir())
	for version, want := range map[string]string{"1.0.0": "one", "1.1.0+b": "two", "2.0.0": "other"} {
		if got, err := crateBody(t, s, "mycrate", version); err != nil || got != want {
			t.Errorf("Crate(%s) = %q, %v; want %q", version, got, err, want)
		}
	}
	if u.count("config.json") != 1 || len(u.origins) == 0 || u.origins[0] != "https://index.example" {
		t.Errorf("config.json asked %d times, origins %v", u.count("config.json"), u.origins)
	}
	if _, err := crateBody(t, s, "mycrate", "3.0.0"); !errors.Is(err, ErrNoVersion) || !errors.Is(err, upstream.ErrNotFound) {
		t.Errorf("Crate of no version: %v", err)
	}
	u.set(func() { u.files["dl/My/Cr/MyCrate-1.0.0"] = "onE" })
	if _, err := crateBody(t, s, "mycrate", "1.0.0"); err == nil {
		t.Error("wrong bytes were taken")
	}
}

// TestCrateNotFalselyAbsent: a registry without config.json, or one that fails,
// is no absence of the crate.
func TestCrateNotFalselyAbsent(t *testing.T) {
	dir := t.TempDir()
	u := &fakeUpstream{files: map[string]string{"3/f/foo": indexLine("foo", "1.0.0", "a")}}
	s := newCrates(t, u, dir)
	if _, err := crateBody(t, s, "foo", "1.0.0"); errors.Is(err, upstream.ErrNotFound) || err == nil {
		t.Errorf("no config.json: %v", err)
	}
	u.set(func() { u.err = &upstream.Error{Class: upstream.ErrUnreachable} })
	s = newCrates(t, u, dir)
	s.c.TTL = time.Nanosecond
	if _, err := crateBody(t, s, "foo", "9.0.0"); errors.Is(err, upstream.ErrNotFound) || err == nil {
		t.Errorf("a version newer than our copy while the upstream fails: %v", err)
	}
}

// TestFetchAhead counts round trips of a client that asks for one file at a time.
func TestFetchAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := &fakeUpstream{files: map[string]string{}, wait: 50 * time.Millisecond}
		const width, depth = 4, 4
		var names []string
		for d := range depth {
			for w := range width {
				var deps []string
				if d+1 < depth {
					for k := range width {
						deps = append(deps, fmt.Sprintf("crate%d%d", d+1, k))
					}
				}
				n := fmt.Sprintf("crate%d%d", d, w)
				names = append(names, n)
				u.files[registry.CrateName(n).IndexPath()] = indexLine(n, "1.0.0", n, deps...)
			}
		}
		s := newCrates(t, u, t.TempDir())
		s.c.NoAhead = false
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { s.Run(ctx); close(done) }()
		start := time.Now()
		for _, n := range names {
			if _, err := s.Index(t.Context(), registry.CrateName(n)); err != nil {
				t.Error(err)
			}
		}
		if d := time.Since(start); d > 400*time.Millisecond {
			t.Errorf("%d files one by one took %v at 50 ms each", len(names), d)
		}
		for _, n := range names {
			if c := u.count(registry.CrateName(n).IndexPath()); c != 1 {
				t.Errorf("%s was asked for %d times", n, c)
			}
		}
		cancel()
		<-done
		synctest.Wait() // what was begun is kept on disk
	})
}

func TestDependencies(t *testing.T) {
	f, err := newFile("foo", []byte(
		indexLine("foo", "0.1.0", "a", "ancient")+
			indexLine("foo", "1.0.0", "b", "old")+
			indexLine("foo", "2.1.0", "d", "new", "two", "?maybe", "bad name")+
			indexLine("foo", "2.0.0", "c", "two", "?opt")+
			indexLine("foo", "1.10.0-rc.1", "r", "older")+
			indexLine("foo", "1.9.0", "o", "old")+
			indexLine("foo", "1.10.0", "p", "old")+
			indexLine("foo", "1.2.0", "q", "backport")+
			strings.Replace(indexLine("foo", "3.0.0", "e", "yanked"), `"yanked":false`, `"yanked":true`, 1)))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ features, want string }{
		{"default", "new two old"},
		{"maybe", "new two maybe old"},
	} {
		var names []string
		for _, n := range f.dependencies([]string{test.features}) {
			names = append(names, string(n.name))
		}
		if got := strings.Join(names, " "); got != test.want {
			t.Errorf("dependencies with feature %s: %s, want %s", test.features, got, test.want)
		}
	}
}

func TestLineNeeds(t *testing.T) {
	line := `{"deps":[
		{"name":"plain","features":["std"]},
		{"name":"alias","package":"Real","optional":true,"default_features":false,"kind":"build"},
		{"name":"weak","optional":true},
		{"name":"implied","optional":true},
		{"name":"test","kind":"dev"},
		{"name":"foreign","registry":"https://elsewhere.example/"}],
		"features":{"default":["a"],"loop":["loop"]},
		"features2":{"a":["dep:alias","weak?/x","plain/y"],"b":["weak/z"]}}`
	for features, want := range map[string]string{
		"":            "[{plain [std default]}]",
		"default":     "[{plain [std y default]} {real []}]",
		"b":           "[{plain [std default]} {weak [z default]}]",
		"default b":   "[{plain [std y default]} {real []} {weak [z x default]}]",
		"implied":     "[{plain [std default]} {implied [default]}]",
		"loop":        "[{plain [std default]}]",
		"none":        "[{plain [std default]}]",
		"weak?/x":     "[{plain [std default]}]",
		"dep:implied": "[{plain [std default]} {implied [default]}]",
	} {
		if got := fmt.Sprint(lineNeeds([]byte(line), strings.Fields(features))); got != want {
			t.Errorf("features %q: %s, want %s", features, got, want)
		}
	}
	if n := lineNeeds([]byte(`{"deps":5}`), nil); n != nil {
		t.Errorf("needs of a line that does not decode: %v", n)
	}
}

func TestSearch(t *testing.T) {
	u := &fakeUpstream{files: map[string]string{
		"se/rd/serde":      indexLine("serde", "1.0.0", "a"),
		"se/rd/serde_json": indexLine("serde_json", "1.0.0", "a") + indexLine("serde_json", "1.0.1", "b"),
		"3/f/foo":          indexLine("foo", "1.10.0", "a") + indexLine("foo", "1.9.0", "b") + strings.Replace(indexLine("foo", "2.0.0", "c"), `"yanked":false`, `"yanked":true`, 1),
	}}
	dir := t.TempDir()
	s := newCrates(t, u, dir)
	if _, total := s.Search("", 10); total != 0 {
		t.Errorf("%d crates are held", total)
	}
	for _, n := range []registry.CrateName{"foo", "serde_json", "serde"} {
		s.Index(t.Context(), n)
	}
	if _, total := s.Search("", 10); total != 3 {
		t.Errorf("%d crates are held", total)
	}
	s = newCrates(t, nil, dir) // another process: nothing is in memory
	ms, total := s.Search("Serde", 10)
	if total != 2 || len(ms) != 2 || ms[0].Name != "serde" || ms[1].MaxVersion != "1.0.1" {
		t.Errorf("Search = %v, %d", ms, total)
	}
	// Neither the order of lines nor yanked ones decide.
	if ms, _ := s.Search("foo", 10); len(ms) != 1 || ms[0].MaxVersion != "1.10.0" {
		t.Errorf("Search(foo) = %v", ms)
	}
}

func FuzzDecodeFile(f *testing.F) { // SEC-8
	file, _ := newFile("foo", []byte(indexLine("foo", "1.0.0", "a")))
	f.Add(file.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if f, err := decodeFile("foo", b); err == nil {
			if g, err := decodeFile("foo", f.encode()); err != nil || !bytes.Equal(f.Body, g.Body) {
				t.Errorf("%q does not survive encoding: %v", b, err)
			}
		}
	})
}

// TestToken: where the index says that downloads want a token, it goes to where the
// index says that they are, as cargo sends it, and nowhere else. SEC-33
func TestToken(t *testing.T) {
	for config, want := range map[string]string{
		`{"dl":"https://index.example/dl/{crate}/{version}.crate","auth-required":true}`: "https://index.example/dl",
		`{"dl":"https://index.example/api/v1/crates","auth-required":true}`:              "https://index.example/api/v1/crates",
		`{"dl":"https://index.example/dl/c-{crate}/{version}","auth-required":true}`:     "https://index.example/dl",
		`{"dl":"https://index.example/api/v1/crates"}`:                                   "",
		`{"dl":"https://cdn.example/crates"}`:                                            "",
		`{"dl":"https://cdn.example/crates","auth-required":true}`:                       "https://cdn.example/crates",
		`{"dl":"https://index.example:444/x/{prefix}/{crate}","auth-required":true}`:     "https://index.example:444/x",
	} {
		u := &fakeUpstream{}
		s := New(Config{Index: base, Upstream: u, Token: "secret"})
		if _, err := s.parseConfig([]byte(config)); err != nil {
			t.Errorf("%s: %v", config, err)
		}
		got := ""
		for _, scope := range u.scopes {
			got += scope.URL
		}
		if got != want {
			t.Errorf("%s: the token goes to %q, want %q", config, got, want)
		}
	}
}

// TestPrivateNames: they are asked of nobody, however they are written. SEC-60
func TestPrivateNames(t *testing.T) {
	u := &fakeUpstream{files: map[string]string{}}
	s := newCrates(t, u, t.TempDir())
	s.c.Private = "Corp_*,ours"
	for name, private := range map[string]bool{"corp-lib": true, "corp_lib": true, "CORP-x": true, "ours": true, "oursx": false, "corp": false} {
		n, err := registry.ParseCrate(name)
		if err != nil {
			t.Fatal(err)
		}
		_, indexErr := s.Index(t.Context(), n)
		_, crateErr := s.Crate(t.Context(), n, "1.0.0")
		if got := errors.Is(indexErr, ErrPrivate) && errors.Is(crateErr, ErrPrivate); got != private {
			t.Errorf("%s: private is %v, want %v: %v, %v", name, got, private, indexErr, crateErr)
		}
		if asked := u.count(n.IndexPath()) > 0; asked == private {
			t.Errorf("%s: the upstream was asked: %v", name, asked)
		}
	}
}

// A split registry has operators who disagree.
type split struct{}

func (split) CrateIndex(context.Context, string) ([]byte, bool, error) {
	return nil, false, fmt.Errorf("%w: operators disagree", ErrDisputed)
}

// TestDisagreement: what operators disagree on is not for an upstream to settle.
// SEC-18
func TestDisagreement(t *testing.T) {
	u := &fakeUpstream{files: map[string]string{"3/a/abc": indexLine("abc", "1.0.0", "x")}}
	s := newCrates(t, u, t.TempDir())
	s.c.Signed = split{}
	abc, err := registry.ParseCrate("abc")
	if err != nil {
		t.Fatal(err)
	}
	_, indexErr := s.Index(t.Context(), abc)
	_, crateErr := s.Digests(t.Context(), abc, "1.0.0")
	if !errors.Is(indexErr, ErrDisputed) || !errors.Is(crateErr, ErrDisputed) {
		t.Errorf("index: %v; crate: %v", indexErr, crateErr)
	}
	if n := u.count("3/a/abc"); n != 0 {
		t.Errorf("the upstream was asked %d times", n)
	}
}

// A mute catalog does not answer.
type mute struct{}

func (mute) CrateIndex(ctx context.Context, _ string) ([]byte, bool, error) {
	<-ctx.Done()
	return nil, false, ctx.Err()
}

// TestMuteCatalog: peers that stall while a catalog is read from them cost a client
// a moment, and what nobody answers fails in time. REL-9, SEC-23
func TestMuteCatalog(t *testing.T) {
	for name, c := range map[string]struct {
		wait time.Duration // of the upstream
		want time.Duration
		ok   bool
	}{
		"upstream answers": {0, logPatience, true},
		"upstream hangs":   {time.Hour, patience, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				s := newCrates(t, &fakeUpstream{files: map[string]string{"3/a/abc": indexLine("abc", "1.0.0", "x")}, wait: c.wait}, dir)
				s.c.Signed = mute{}
				abc, _ := registry.ParseCrate("abc")
				for what, ask := range map[string]func() error{
					"index": func() error { _, err := s.Index(t.Context(), abc); return err },
					"crate": func() error { _, err := s.Digests(t.Context(), abc, "1.0.0"); return err },
				} {
					start := time.Now()
					err := ask()
					if d := time.Since(start); (err == nil) != c.ok || d > c.want {
						t.Errorf("%s: %v after %v, want ok %v within %v", what, err, d, c.ok, c.want)
					}
				}
				time.Sleep(2 * workLimit) // the work that goes on without clients
			})
		})
	}
}
