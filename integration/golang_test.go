package integration

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/internal/goupstream"
	"github.com/pkgswarm/pkgswarm/internal/node"
	"github.com/pkgswarm/pkgswarm/internal/testenv"
)

// A goClient is a copy of this module in the hands of a user with caches of
// their own: some hundred real modules to get.
type goClient struct {
	t   testing.TB
	dir string
	env []string
}

func goEnv(t testing.TB, name string) string {
	t.Helper()
	testenv.Need(t, "go")
	out, err := exec.Command("go", "env", name).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// newGoClient returns a user of a proxy list. Without goSum the user has no
// go.sum yet, and asks the checksum database about everything.
func newGoClient(t testing.TB, goproxy, gosumdb string, goSum bool) *goClient {
	t.Helper()
	root, err := testenv.Root()
	if err != nil {
		t.Fatal(err)
	}
	home := t.TempDir()
	c := &goClient{t: t, dir: filepath.Join(home, "src")}
	c.env = append(os.Environ(),
		"HOME="+home, "GOPATH="+filepath.Join(home, "go"), "GOMODCACHE="+filepath.Join(home, "modcache"), "GOCACHE="+goEnv(t, "GOCACHE"),
		"GOENV=off", "GOWORK=off", "GOFLAGS=-mod=mod -modcacherw -trimpath -buildvcs=false", "GOTOOLCHAIN=local", "CGO_ENABLED=0",
		"GOPROXY="+goproxy, "GOSUMDB="+gosumdb, "GOPRIVATE=", "GONOPROXY=", "GONOSUMDB=", "GOINSECURE=", "NO_PROXY=127.0.0.1",
	)
	for _, name := range []string{"go.mod", "go.sum", "internal", "registry", "core", "swarm", "bee"} {
		if name == "go.sum" && !goSum {
			continue
		}
		if err := copyTree(filepath.Join(root, name), filepath.Join(c.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// copyTree copies a file, or the Go source and what it embeds below a directory.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil || strings.HasSuffix(path, "_test.go") {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o755)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		dst := filepath.Join(to, rel)
		if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
			return err
		}
		return os.WriteFile(dst, b, 0o644)
	})
}

func (c *goClient) run(args ...string) string {
	c.t.Helper()
	cmd := exec.Command("go", args...)
	cmd.Dir, cmd.Env = c.dir, c.env
	out, err := cmd.CombinedOutput()
	if err != nil {
		c.t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (c *goClient) goSum() string {
	c.t.Helper()
	b, err := os.ReadFile(filepath.Join(c.dir, "go.sum"))
	if err != nil {
		c.t.Fatal(err)
	}
	return string(b)
}

// A runningNode is a node in this process.
type runningNode struct {
	*node.Node
	stop func()
}

func startNode(t testing.TB, dir string, c node.Config) *runningNode {
	t.Helper()
	c.Listen, c.Data, c.State = "127.0.0.1:0", filepath.Join(dir, "data"), filepath.Join(dir, "state")
	n, err := node.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	stopped := false
	r := &runningNode{Node: n}
	r.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(r.stop)
	return r
}

// realModules is an upstream of what this machine's go has downloaded to build
// this module.
func realModules(t testing.TB) *goupstream.Server {
	t.Helper()
	cache := filepath.Join(goEnv(t, "GOMODCACHE"), "cache", "download")
	if _, err := os.Stat(cache); err != nil {
		testenv.Missing(t, "no module download cache: %v", err)
	}
	up := goupstream.New(t)
	up.AddCache(cache)
	return up
}

// TestRealModules downloads and builds this module's dependencies through a
// node: go.sum is byte-identical, a cold node asks its upstream no more than go
// itself would, and afterwards it needs no upstream.
func TestRealModules(t *testing.T) {
	if testing.Short() {
		t.Skip("downloads a hundred modules several times")
	}
	up := realModules(t)
	up.Grow(t, "other", 3000)
	work := func(c *goClient) string {
		t.Helper()
		c.run("mod", "download")
		c.run("build", "./registry/sumdb", "./swarm/secretstream")
		return c.goSum()
	}
	want := work(newGoClient(t, up.URL, up.Key, false)) // adds the records to the database
	up.Asked()
	newGoClient(t, up.URL, up.Key, false).run("mod", "download")
	direct := kinds(up.Asked())
	withSum := work(newGoClient(t, up.URL, up.Key, true))
	directWithSum := kinds(up.Asked())

	dir := t.TempDir()
	config := node.Config{GoUpstream: up.URL, SumDB: up.Key, CargoUpstream: "sparse+" + up.URL + "/"}
	n := startNode(t, dir, config)
	start := time.Now()
	if got := work(newGoClient(t, n.URL()+"/go", up.Key, false)); got != want {
		t.Errorf("go.sum through the node differs:\n%s\nwant\n%s", got, want)
	}
	t.Logf("cold: %v", time.Since(start))
	cold := kinds(up.Asked())
	t.Logf("P6: upstream requests without go.sum: direct %v; through a cold node %v", direct, cold)
	if cold.total() > direct.total() {
		t.Errorf("a cold node made %d upstream requests, go itself %d", cold.total(), direct.total())
	}
	if got := work(newGoClient(t, n.URL(), up.Key, true)); got != withSum {
		t.Errorf("go.sum changed:\n%s", got)
	}
	t.Logf("P6: upstream requests with go.sum: direct %v; warm node %v", directWithSum, kinds(up.Asked()))

	up.Stop()
	n.stop()
	n = startNode(t, dir, config)
	if got := work(newGoClient(t, n.URL()+"/go", up.Key, false)); got != want {
		t.Errorf("go.sum with the upstream stopped differs:\n%s", got)
	}
}

// TestRealModulesFromPeer: what one node has built, another builds without a byte
// of an artifact from the upstream, and then without the upstream at all.
func TestRealModulesFromPeer(t *testing.T) {
	if testing.Short() {
		t.Skip("downloads a hundred modules several times")
	}
	up := realModules(t)
	config := node.Config{GoUpstream: up.URL, SumDB: up.Key, CargoUpstream: "sparse+" + up.URL + "/", PeerBudget: 5 * time.Second} // this machine may be busy
	ca := config
	ca.SwarmListen = "127.0.0.1:0"
	a := startNode(t, t.TempDir(), ca)
	first := newGoClient(t, a.URL()+"/go", up.Key, false)
	first.run("mod", "download")
	up.Asked()

	dir := t.TempDir()
	cb := config
	cb.Peers = []string{a.SwarmAddr()}
	b := startNode(t, dir, cb)
	b.waitPeers(1)
	second := newGoClient(t, b.URL()+"/go", up.Key, false)
	second.run("mod", "download")
	if second.goSum() != first.goSum() {
		t.Error("go.sum differs")
	}
	asked := kinds(up.Asked())
	t.Logf("the second node asked the upstream %v", asked)
	if asked["zip"] > 0 {
		t.Errorf("%d zips came from the upstream", asked["zip"])
	}
	if use := b.Status().Usage; use.Peer == 0 || use.Upstream > 0 || use.Failed > 0 {
		t.Errorf("the second node's artifacts: %+v", use)
	}

	up.Stop()
	b.stop()
	cb.Peers = nil
	b = startNode(t, dir, cb)
	third := newGoClient(t, b.URL(), up.Key, false)
	third.run("mod", "download")
	if third.goSum() != first.goSum() {
		t.Error("go.sum differs with the upstream stopped")
	}
	third.run("build", "./registry/sumdb")
}

// TestGoQueries: what go asks beside the files of versions is answered as without
// the mirror, on a second node, and with the upstream stopped.
func TestGoQueries(t *testing.T) {
	up := goupstream.New(t)
	for _, v := range []string{"v1.0.0", "v1.1.0", "v1.2.0-rc.1"} {
		up.Add(t, "example.com/m", v, map[string]string{"go.mod": "module example.com/m\n", "m.go": "package m // " + v + "\n"})
	}
	const pseudo = "v0.0.0-20240102030405-abcdefabcdef"
	up.Add(t, "example.com/Untagged", pseudo, map[string]string{"go.mod": "module example.com/Untagged\n", "u.go": "package u\n"})
	up.PutLatest("example.com/Untagged", []byte(`{"Version":"`+pseudo+`","Time":"2024-01-02T03:04:05Z"}`))
	up.Put("example.com/Untagged", "list", nil)
	up.AddToolchain(t, "go1.99.0", "a newer go")
	up.Put("example.com/m", "main.info", []byte(`{"Version":"v1.1.0","Time":"2023-11-14T22:13:20Z"}`))
	use := func(goproxy string) string {
		t.Helper()
		c := newPrivateUser(t, goproxy, up.Key)
		if err := os.Remove(filepath.Join(c.dir, "main.go")); err != nil {
			t.Fatal(err)
		}
		said := c.run("list", "-m", "-versions", "example.com/m")
		said += c.run("list", "-m", "-json", "example.com/m@latest")
		c.run("get", "example.com/m@latest", "example.com/Untagged@latest")
		c.run("get", "example.com/m@main")
		c.run("mod", "download", "all")
		c.env = append(c.env, "GOTOOLCHAIN=go1.99.0") // a switch, proven by the checksum database
		said += c.run("version")
		said = strings.ReplaceAll(said, c.dir, "DIR")
		said = strings.ReplaceAll(said, filepath.Dir(c.dir), "HOME")
		return said + read(t, filepath.Join(c.dir, "go.mod")) + c.goSum()
	}
	want := use(up.URL)
	if !strings.Contains(want, "v1.0.0 v1.1.0 v1.2.0-rc.1") || !strings.Contains(want, pseudo) || !strings.Contains(want, "a newer go\n") {
		t.Fatalf("without the mirror:\n%s", want)
	}
	conf := node.Config{GoUpstream: up.URL, SumDB: up.Key, CargoUpstream: "sparse+" + up.URL + "/", PeerBudget: 5 * time.Second}
	ca := conf
	ca.SwarmListen = "127.0.0.1:0"
	a := startNode(t, t.TempDir(), ca)
	if got := use(a.URL() + "/go"); got != want {
		t.Errorf("through a node:\n%s\nwant\n%s", got, want)
	}
	conf.Peers = []string{a.SwarmAddr()}
	b := startNode(t, t.TempDir(), conf)
	b.waitPeers(1)
	up.Asked()
	if got := use(b.URL() + "/go"); got != want {
		t.Errorf("through the second node:\n%s\nwant\n%s", got, want)
	}
	if asked := kinds(up.Asked()); asked["zip"] > 0 {
		t.Errorf("the second node asked the upstream %v", asked)
	}
	up.Stop()
	if got := use(b.URL() + "/go"); got != want {
		t.Errorf("with the upstream stopped:\n%s\nwant\n%s", got, want)
	}
}

// requests counts requests by kind.
type requests map[string]int

func kinds(paths []string) requests {
	r := requests{}
	for _, p := range paths {
		switch {
		case strings.HasPrefix(p, "/sumdb/"):
			r[strings.Split(p, "/")[3]]++
		default:
			r[strings.TrimPrefix(filepath.Ext(p), ".")]++
		}
	}
	return r
}

func (r requests) total() (n int) {
	for _, k := range r {
		n += k
	}
	return n
}

func (r requests) String() string { return fmt.Sprintf("%d %v", r.total(), map[string]int(r)) }
