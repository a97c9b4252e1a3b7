package integration

import (
	"compress/gzip"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/internal/cargoupstream"
	"github.com/pkgswarm/pkgswarm/internal/goupstream"
	"github.com/pkgswarm/pkgswarm/internal/node"
	"github.com/pkgswarm/pkgswarm/internal/testenv"
)

// A cargoClient is a package in the hands of a user with a CARGO_HOME of their
// own, which is used through a registry.
type cargoClient struct {
	t    testing.TB
	home string
	dir  string
	args []string // that replace crates.io by the registry
	env  []string
}

// newCargoClient returns a user of the package in integration/testdata/sample, of
// some two hundred real crates, through the registry at index. Without lock the
// user has no Cargo.lock yet.
func newCargoClient(t testing.TB, index string, lock bool) *cargoClient {
	t.Helper()
	testenv.Need(t, "cargo")
	tmp := t.TempDir()
	c := &cargoClient{t: t, home: filepath.Join(tmp, "home"), dir: filepath.Join(tmp, "src")}
	for _, name := range []string{"Cargo.toml", "Cargo.lock", "src/main.rs"} {
		if name == "Cargo.lock" && !lock {
			continue
		}
		c.write(name, string(c.testdata(name)))
	}
	c.use(index)
	c.env = append(os.Environ(), "CARGO_HOME="+c.home, "CARGO_TERM_COLOR=never", "RUSTC_WRAPPER=", "NO_PROXY=127.0.0.1", "no_proxy=127.0.0.1",
		"CARGO_NET_RETRY=0", "CARGO_TARGET_DIR="+filepath.Join(tmp, "target"))
	return c
}

func (c *cargoClient) testdata(name string) []byte {
	c.t.Helper()
	root, err := testenv.Root()
	if err != nil {
		c.t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(root, "integration", "testdata", "sample", name))
	if err != nil {
		c.t.Fatal(err)
	}
	return b
}

func (c *cargoClient) write(name, text string) {
	c.t.Helper()
	name = filepath.Join(c.dir, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		c.t.Fatal(err)
	}
}

// use makes c a user of another registry.
func (c *cargoClient) use(index string) {
	c.args = nil
	if index != "" {
		c.args = []string{"--config", `source.crates-io.replace-with="m"`, "--config", fmt.Sprintf(`registries.m.index=%q`, index)}
	}
}

// forget empties the user's caches.
func (c *cargoClient) forget() {
	if err := os.RemoveAll(c.home); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cargoClient) try(args ...string) (string, error) {
	cmd := exec.Command("cargo", append(append([]string(nil), c.args...), args...)...)
	cmd.Dir, cmd.Env = c.dir, c.env
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (c *cargoClient) run(args ...string) string {
	c.t.Helper()
	out, err := c.try(args...)
	if err != nil {
		c.t.Fatalf("cargo %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (c *cargoClient) lock() string {
	c.t.Helper()
	b, err := os.ReadFile(filepath.Join(c.dir, "Cargo.lock"))
	if err != nil {
		c.t.Fatal(err)
	}
	return string(b)
}

var realHome struct {
	sync.Once
	dir string
	err error
}

// realCrates returns a registry of what the ordinary cargo gets from this
// machine's ordinary registry for the sample. It is asked once; the files stay in
// the user's cache directory.
func realCrates(t testing.TB) *cargoupstream.Server {
	t.Helper()
	realHome.Do(func() {
		cache, err := os.UserCacheDir()
		if err != nil {
			cache = os.TempDir()
		}
		realHome.dir = filepath.Join(cache, "pkgswarm-test", "cargo-home")
		c := newCargoClient(t, "", true)
		c.env = append(c.env, "CARGO_HOME="+realHome.dir, "CARGO_NET_RETRY=3")
		if out, err := c.try("fetch", "--locked"); err != nil {
			realHome.err = fmt.Errorf("cargo fetch: %w\n%s", err, out)
		}
	})
	if realHome.err != nil {
		testenv.Missing(t, "the machine's cargo registry: %v", realHome.err)
	}
	up := cargoupstream.New(t)
	up.AddHome(t, realHome.dir)
	if n, _ := up.Crates(); n < 150 {
		t.Fatalf("only %d real crates", n)
	}
	return up
}

func cargoNode(t testing.TB, up *cargoupstream.Server, c node.Config) (*runningNode, string) {
	c.CargoUpstream, c.GoUpstream, c.SumDB = up.Index(), "off", "off"
	c.PeerBudget = 3 * time.Second // this machine may be busy; the default is measured elsewhere
	n := startNode(t, t.TempDir(), c)
	return n, "sparse+" + n.URL() + "/cargo/"
}

func wantNone(t *testing.T, what string, asked map[string]int) {
	t.Helper()
	if len(asked) != 0 {
		t.Errorf("%s: %d asked of the upstream, want none: %v", what, len(asked), asked)
	}
}

// TestRealCrates resolves, fetches and updates with the real cargo: Cargo.lock is
// as without the mirror, a second node gets every crate from the first, and with
// the upstream stopped both serve on.
func TestRealCrates(t *testing.T) {
	if testing.Short() {
		t.Skip("runs cargo")
	}
	up := realCrates(t)
	direct := newCargoClient(t, up.Index(), false)
	direct.run("fetch")
	up.Reset()

	a, urlA := cargoNode(t, up, node.Config{SwarmListen: "127.0.0.1:0"})
	ca := newCargoClient(t, urlA, false)
	ca.run("fetch")
	if ca.lock() != direct.lock() {
		t.Error("Cargo.lock differs from the one made without the mirror")
	}
	for path, n := range up.Downloads() {
		if n != 1 {
			t.Errorf("%s was downloaded %d times", path, n)
		}
	}
	for path, n := range up.Lookups() {
		if n != 1 {
			t.Errorf("%s was looked up %d times", path, n)
		}
	}

	up.Reset()
	b, urlB := cargoNode(t, up, node.Config{Peers: []string{a.SwarmAddr()}})
	b.waitPeers(1)
	cb := newCargoClient(t, urlB, true)
	cb.run("fetch", "--locked")
	wantNone(t, "crates through the second node", up.Downloads())

	up.Reset()
	cb.forget()
	cb.run("fetch", "--locked")
	cb.run("update", "--dry-run")
	if out := cb.run("info", "--registry", "m", "serde"); !strings.Contains(out, "serde") {
		t.Errorf("cargo info: %s", out)
	}
	if out := cb.run("search", "--registry", "m", "tokio"); !strings.Contains(out, "tokio = ") {
		t.Errorf("cargo search: %s", out)
	}
	wantNone(t, "a warm second round", up.Downloads())
	wantNone(t, "a warm second round", up.Lookups())

	up.Stop()
	a.stop()
	for _, args := range [][]string{{"fetch", "--locked"}, {"generate-lockfile"}} {
		cb.forget()
		cb.run(args...)
	}
	if cb.lock() != direct.lock() {
		t.Error("Cargo.lock made with the upstream stopped differs")
	}
}

// TestCargoBuild builds, updates and installs with what comes through a node, on a
// second node without a crate from the upstream, and there without the upstream.
func TestCargoBuild(t *testing.T) {
	if testing.Short() {
		t.Skip("runs cargo")
	}
	up := realCrates(t)
	up.Add(t, "tool", "1.0.0", packCrate(t, "tool", "1.0.0", map[string]string{
		"Cargo.toml":  "[package]\nname = \"tool\"\nversion = \"1.0.0\"\nedition = \"2021\"\n[dependencies]\nitoa = \"1\"\n",
		"src/main.rs": `fn main() { println!("{}", itoa::Buffer::new().format(7)) }`,
	}), `"deps":[{"name":"itoa","req":"^1","features":[],"optional":false,"default_features":true,"target":null,"kind":"normal"}]`)
	newUser := func(url string) *cargoClient {
		c := newCargoClient(t, url, false)
		c.write("Cargo.toml", `[package]
name = "sample"
version = "0.1.0"
edition = "2021"
[dependencies]
itoa = "1"
ryu = "1"
`)
		c.write("src/main.rs", `fn main() { println!("{}", itoa::Buffer::new().format(42)) }`)
		return c
	}
	work := func(url string) (*cargoClient, string) {
		t.Helper()
		c := newUser(url)
		if out := c.run("run", "-q"); !strings.Contains(out, "42") {
			t.Errorf("cargo run: %s", out)
		}
		lock := c.lock()
		c.run("update")
		root := t.TempDir()
		c.run("install", "tool", "--root", root, "-q")
		if out, err := exec.Command(filepath.Join(root, "bin", "tool")).CombinedOutput(); err != nil || string(out) != "7\n" {
			t.Errorf("the installed program: %s %v", out, err)
		}
		return c, lock + c.lock()
	}
	direct := newUser(up.Index())
	direct.run("generate-lockfile")
	want := direct.lock() + direct.lock()
	a, urlA := cargoNode(t, up, node.Config{SwarmListen: "127.0.0.1:0"})
	c, got := work(urlA)
	if got != want {
		t.Errorf("Cargo.lock through a node:\n%s\nwant\n%s", got, want)
	}
	b, urlB := cargoNode(t, up, node.Config{Peers: []string{a.SwarmAddr()}})
	b.waitPeers(1)
	up.Reset()
	if _, got := work(urlB); got != want {
		t.Errorf("Cargo.lock through the second node:\n%s", got)
	}
	wantNone(t, "a build on the second node", up.Downloads())
	absent(t, c)
	up.Stop()
	a.stop()
	if _, got := work(urlB); got != want {
		t.Errorf("Cargo.lock with the upstream stopped:\n%s", got)
	}
}

// absent asks for a crate that does not exist.
func absent(t *testing.T, c *cargoClient) {
	t.Helper()
	c.write("Cargo.toml", strings.Replace(read(t, filepath.Join(c.dir, "Cargo.toml")), "ryu", "no-such-crate-at-all", 1))
	out, err := c.try("fetch")
	if err == nil || !strings.Contains(out, "no matching package named `no-such-crate-at-all` found") {
		t.Errorf("a crate that does not exist: %v\n%s", err, out)
	}
}

func read(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestCargoFaults: the client gets the right bytes or an error of the right kind;
// never is a fault taken for absence. SEC-3, SEC-31, SEC-35
func TestCargoFaults(t *testing.T) {
	if testing.Short() {
		t.Skip("runs cargo")
	}
	onCrates := func(f cargoupstream.Tamper) cargoupstream.Tamper {
		return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if strings.HasPrefix(r.URL.Path, "/dl/") {
				f(w, r, next)
				return
			}
			next.ServeHTTP(w, r)
		}
	}
	status := func(code int) cargoupstream.Tamper {
		return func(w http.ResponseWriter, r *http.Request, _ http.Handler) { http.Error(w, "fault", code) }
	}
	altered := func(alter func(b []byte) []byte) cargoupstream.Tamper {
		return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			rec := &recorder{header: http.Header{}}
			next.ServeHTTP(rec, r)
			w.Header().Set("Content-Type", "application/gzip")
			w.Write(alter(rec.body))
		}
	}
	for name, tamper := range map[string]cargoupstream.Tamper{
		"index 500":      status(500),
		"index 429":      status(429),
		"crate 500":      onCrates(status(500)),
		"crate 403":      onCrates(status(403)),
		"crate web page": onCrates(altered(func([]byte) []byte { return []byte("<html>") })),
		"crate cut":      onCrates(altered(func(b []byte) []byte { return b[:len(b)-1] })),
		"crate grown":    onCrates(altered(func(b []byte) []byte { return append(b, 0) })),
		"crate flipped":  onCrates(altered(func(b []byte) []byte { b = append([]byte(nil), b...); b[len(b)-1] ^= 1; return b })),
		"index garbage":  altered(func(b []byte) []byte { return []byte("{\"garbage\":true}\n") }),
		"redirect": onCrates(func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			http.Redirect(w, r, "http://169.254.169.254/latest", http.StatusFound)
		}),
		"hang":       onCrates(func(w http.ResponseWriter, r *http.Request, _ http.Handler) { <-r.Context().Done() }),
		"index hang": func(w http.ResponseWriter, r *http.Request, _ http.Handler) { <-r.Context().Done() },
		"crate 429":  onCrates(status(429)),
		"crate drip": onCrates(goupstream.Drip),
		"index drip": goupstream.Drip,
		"index cut":  altered(func(b []byte) []byte { return b[:len(b)-5] }),
		"index gzip bomb": func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			z.Write(make([]byte, 64<<20))
			z.Close()
		},
		"crate bomb": onCrates(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			z.Write(make([]byte, 128<<20))
			z.Close()
		}),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // they wait for timeouts mostly
			up := realCrates(t)
			_, url := cargoNode(t, up, node.Config{})
			c := newCargoClient(t, url, false)
			c.write("Cargo.toml", "[package]\nname = \"sample\"\nversion = \"0.1.0\"\n[dependencies]\nitoa = \"1\"\n")
			up.Tamper(tamper)
			start := time.Now()
			out, err := c.try("fetch")
			if err == nil || strings.Contains(out, "no matching package") {
				t.Errorf("cargo fetch: %v\n%s", err, out)
			}
			if d := time.Since(start); d > 15*time.Second { // cargo asks more than once
				t.Errorf("the client waited %v", d)
			}
			up.Tamper(nil)
			for end := time.Now().Add(7 * time.Second); ; time.Sleep(500 * time.Millisecond) {
				if out, err = c.try("fetch"); err == nil {
					break
				} else if time.Now().After(end) { // failures are remembered for at most 5 s
					t.Fatalf("cargo fetch after the fault: %v\n%s", err, out)
				}
			}
		})
	}
}

// A recorder keeps an answer.
type recorder struct {
	header http.Header
	body   []byte
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) WriteHeader(int)             {}
func (r *recorder) Write(b []byte) (int, error) { r.body = append(r.body, b...); return len(b), nil }

// waitPeers waits until the node has that many peers.
func (n *runningNode) waitPeers(want int) {
	for range 1000 {
		if len(n.Status().Swarm.Peers) >= want {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}
