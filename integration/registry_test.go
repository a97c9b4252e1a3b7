package integration

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/internal/cargoupstream"
	"github.com/pkgswarm/pkgswarm/internal/goupstream"
	"github.com/pkgswarm/pkgswarm/internal/node"
	"github.com/pkgswarm/pkgswarm/internal/testenv"
	"github.com/pkgswarm/pkgswarm/registry/artifact"
)

var program struct {
	sync.Once
	path string
	out  []byte
	err  error
}

// buildProgram builds the command once.
func buildProgram(t testing.TB) string {
	t.Helper()
	program.Do(func() {
		dir, err := sharedDir()
		if err != nil {
			program.err = err
			return
		}
		program.path = filepath.Join(dir, "pkgswarm")
		cmd := exec.Command("go", "build", "-o", program.path, "github.com/pkgswarm/pkgswarm/cmd/pkgswarm")
		program.out, program.err = cmd.CombinedOutput()
	})
	if program.err != nil {
		t.Fatalf("go build: %v\n%s", program.err, program.out)
	}
	return program.path
}

// An operator runs the command in directories of its own.
type operator struct {
	t    testing.TB
	prog string
	dir  string
	key  core.Key
}

func newOperator(t testing.TB) *operator {
	t.Helper()
	o := &operator{t: t, prog: buildProgram(t), dir: t.TempDir()}
	o.key = parseKey(t, strings.TrimSpace(o.run("key", "new")))
	return o
}

func (o *operator) command(ctx context.Context, args ...string) *exec.Cmd {
	args = append(args, "--data", filepath.Join(o.dir, "data"), "--state", filepath.Join(o.dir, "state"))
	cmd := exec.CommandContext(ctx, o.prog, args...)
	cmd.Env = append(os.Environ(), "PKGSWARM_CONFIG=", "NO_PROXY=127.0.0.1", "no_proxy=127.0.0.1")
	return cmd
}

func (o *operator) run(args ...string) string {
	o.t.Helper()
	var out, errs bytes.Buffer
	cmd := o.command(o.t.Context(), args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		o.t.Fatalf("pkgswarm %s: %v\n%s%s", strings.Join(args, " "), err, &out, &errs)
	}
	return out.String()
}

var seedingAt = regexp.MustCompile(`seeding registry \S+ on (\S+)`)

// watch runs the import that args say with --watch, and returns the address at
// which it seeds.
func (o *operator) watch(args ...string) (addr string, stop func()) {
	o.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := o.command(ctx, slices.Insert(slices.Clone(args), 2, "--watch", "--every", "1h", "--swarm-listen", "127.0.0.1:0")...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	stderr, err := cmd.StderrPipe()
	if err != nil {
		o.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		o.t.Fatal(err)
	}
	lines := bufio.NewScanner(stderr)
	var said []string
	for addr == "" && lines.Scan() {
		said = append(said, lines.Text())
		if m := seedingAt.FindStringSubmatch(lines.Text()); m != nil {
			addr = m[1]
		}
	}
	go io.Copy(io.Discard, stderr)
	stop = sync.OnceFunc(func() {
		cancel()
		cmd.Wait()
	})
	o.t.Cleanup(stop)
	if addr == "" {
		o.t.Fatalf("pkgswarm %s: no address in %q", strings.Join(args, " "), said)
	}
	return addr, stop
}

func httpGet(t testing.TB, url string) []byte {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%s: %s, %v\n%s", url, resp.Status, err, b)
	}
	return b
}

// crateNames returns the names that a Cargo.lock takes from a registry.
func crateNames(lock string) []string {
	var names []string
	for _, p := range strings.Split(lock, "[[package]]")[1:] {
		if strings.Contains(p, "\nsource = ") {
			_, rest, _ := strings.Cut(p, `name = "`)
			name, _, _ := strings.Cut(rest, `"`)
			names = append(names, strings.ToLower(name))
		}
	}
	return names
}

func cratePath(name string) string {
	switch len(name) {
	case 1:
		return "1/" + name
	case 2:
		return "2/" + name
	case 3:
		return "3/" + name[:1] + "/" + name
	}
	return name[:2] + "/" + name[2:4] + "/" + name
}

// TestRegistryCargo: an operator imports real crates; a seeder and then a fresh
// node behind it serve them to the real cargo with the upstream stopped, and a
// program in JavaScript reads them that knows the registry key and an address.
func TestRegistryCargo(t *testing.T) {
	if testing.Short() {
		t.Skip("runs cargo")
	}
	up := realCrates(t)
	direct := newCargoClient(t, up.Index(), false)
	direct.run("fetch")
	names := crateNames(direct.lock())
	files := make(map[string][]byte)
	index := strings.TrimPrefix(up.Index(), "sparse+")
	for _, n := range names {
		files[n] = httpGet(t, index+cratePath(n))
	}

	o := newOperator(t)
	source := []string{"import", "cargo", filepath.Join(direct.dir, "Cargo.lock"), "--index", up.Index(), "--artifacts"}
	t.Log(o.run(source...))
	again := o.run(source...)
	if !strings.Contains(again, " 0 changed") || !strings.Contains(again, " 0 blocks signed") {
		t.Errorf("a second run signed something: %s", again)
	}
	addr, stopOperator := o.watch(source...)
	up.Stop()

	a := mirrorNode(t, o.key, addr)
	_, urlC := signedNode(t, up, nil, o.key, addr)
	ca := newCargoClient(t, urlC, true)
	ca.run("fetch", "--locked")
	waitMirrored(t, a, len(files))
	stopOperator()

	// Nobody has asked the mirror for anything.
	b, urlB := signedNode(t, up, nil, o.key, a.SwarmAddr())
	cb := newCargoClient(t, urlB, false)
	cb.run("fetch")
	if cb.lock() != direct.lock() {
		t.Error("Cargo.lock differs from the upstream's")
	}
	for n, want := range files {
		if got := httpGet(t, strings.TrimPrefix(urlB, "sparse+")+cratePath(n)); !bytes.Equal(got, want) {
			t.Errorf("index file of %s differs from the upstream's", n)
		}
	}
	cb.write("Cargo.toml", "[package]\nname = \"sample\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[dependencies]\nitoa = \"1\"\n")
	cb.write("src/main.rs", `fn main() { println!("{}", itoa::Buffer::new().format(42)) }`)
	if out := cb.run("run", "-q"); !strings.Contains(out, "42") {
		t.Errorf("cargo run: %s", out)
	}
	if feed := string(httpGet(t, b.URL()+"/feeds/cargo/serde.atom")); !strings.Contains(feed, "serde 1.0.") {
		t.Errorf("feed of serde:\n%.500s", feed)
	}
	if feed := string(httpGet(t, b.URL()+"/feeds/registry.atom")); strings.Count(feed, "<entry>") < 50 {
		t.Errorf("feed of the registry:\n%.500s", feed)
	}
	checkSignedWhy(t, b, o.key)
	t.Run("JavaScript", func(t *testing.T) { testRegistryJS(t, o.key, a.SwarmAddr(), files) })
}

// checkSignedWhy checks the chain from a crate's bytes, which came from a peer, to
// what the operator has signed.
func checkSignedWhy(t *testing.T, n *runningNode, key core.Key) {
	t.Helper()
	var y node.Why
	if err := json.Unmarshal(httpGet(t, n.URL()+"/api/v1/why/cargo/serde@1.0.229"), &y); err != nil {
		t.Fatal(err)
	}
	if !y.Proven || y.File == nil || y.File.Source != artifact.FromPeers || len(y.File.From) == 0 || len(y.Problems) > 0 {
		t.Errorf("why serde: %+v, file %+v", y, y.File)
	}
	s := y.Signed
	if s == nil {
		t.Fatal("why serde: nothing signed")
	}
	if s.Catalog != key || s.Block == 0 || s.Block >= s.Length || s.Event != "published" && s.Event != "changed" ||
		s.CatalogLength == 0 || s.Digest != y.File.SHA256 || s.Time.IsZero() || s.Stale {
		t.Errorf("why serde: signed %+v", s)
	}
}

// signedNode runs a node whose index comes from an operator's catalog.
func signedNode(t testing.TB, up *cargoupstream.Server, goUp *goupstream.Server, key core.Key, peer string) (*runningNode, string) {
	t.Helper()
	c := node.Config{
		Registries: []core.Key{key}, Peers: []string{peer}, SwarmListen: "127.0.0.1:0", PeerBudget: 5 * time.Second,
		GoUpstream: "off", SumDB: "off",
	}
	if up != nil {
		c.CargoUpstream = up.Index()
	}
	if goUp != nil {
		c.GoUpstream, c.SumDB, c.CargoUpstream = goUp.URL, goUp.Key, "sparse+"+goUp.URL+"/"
	}
	n := startNode(t, t.TempDir(), c)
	n.waitPeers(1)
	for n.Status().Registries[0].Length == 0 { // it would ask the upstream
		time.Sleep(10 * time.Millisecond)
	}
	return n, "sparse+" + n.URL() + "/cargo/"
}

// mirrorNode runs a node that holds all of a registry, and knows no upstream.
func mirrorNode(t testing.TB, key core.Key, peer string) *runningNode {
	t.Helper()
	return startNode(t, t.TempDir(), node.Config{
		Registries: []core.Key{key}, Mirror: node.Mirror{Logs: true, Files: "all"},
		Peers: []string{peer}, SwarmListen: "127.0.0.1:0",
		Offline: true, CargoUpstream: "sparse+http://127.0.0.1:1/", GoUpstream: "off", SumDB: "off",
	})
}

// waitMirrored waits until a mirror of at least that many packages is complete.
func waitMirrored(t testing.TB, n *runningNode, packages int) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		m := n.Status().Registries[0].Mirror
		if m.State == "up to date" && m.Files.State == "up to date" && m.Held == m.Known && m.Files.Done == m.Known && int(m.Held) >= packages {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("mirror is not complete: %+v, files %+v", m, m.Files)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func testRegistryJS(t *testing.T, key core.Key, addr string, files map[string][]byte) {
	js := testenv.StartNode(t, "registry.mjs", key.String(), addr)
	var names []string
	js.MustCall(t, "list", nil, &names)
	if len(names) != len(files) {
		t.Errorf("%d packages listed, want %d", len(names), len(files))
	}
	var log struct {
		Package, File string
		Artifacts     []struct{ Version, Key, Digest string }
	}
	js.MustCall(t, "log", "cargo/serde", &log)
	if file, _ := hex.DecodeString(log.File); !bytes.Equal(file, files["serde"]) || log.Package != "serde" {
		t.Errorf("index file of %s read from JavaScript differs", log.Package)
	}
	if len(log.Artifacts) == 0 {
		t.Fatal("no artifact of serde")
	}
	var got struct {
		SHA256     string
		ByteLength int
	}
	a := log.Artifacts[0]
	js.MustCall(t, "artifact", a.Key, &got)
	if got.SHA256 != a.Digest {
		t.Errorf("artifact of serde %s hashes to %s, want %s", a.Version, got.SHA256, a.Digest)
	}
}

// TestRegistryGo: as TestRegistryCargo, with the modules that this module is
// built from and the real go. Each was proven by the checksum database before it
// was signed.
func TestRegistryGo(t *testing.T) {
	if testing.Short() {
		t.Skip("downloads a hundred modules several times")
	}
	up := realModules(t)
	direct := newGoClient(t, up.URL, up.Key, false)
	direct.run("mod", "download")
	o := newOperator(t)
	sum := completeModules(t, up, newGoClient(t, up.URL, up.Key, true).goSum())
	source := []string{"import", "go", sum, "--goproxy", up.URL, "--sumdb", up.Key, "--artifacts=lock:" + sum}
	t.Log(o.run(source...))
	if again := o.run(source...); !strings.Contains(again, " 0 blocks signed") {
		t.Errorf("a second run signed something: %s", again)
	}
	addr, stopOperator := o.watch(source...)
	up.Stop()

	m := mirrorNode(t, o.key, addr)
	a, _ := signedNode(t, nil, up, o.key, addr)
	first := newGoClient(t, a.URL()+"/go", "off", true)
	first.run("mod", "download")
	waitMirrored(t, m, 1)
	stopOperator()
	defer func() { // with a seeder that nobody has asked for anything
		c, _ := signedNode(t, nil, up, o.key, m.SwarmAddr())
		third := newGoClient(t, c.URL()+"/go", "off", false)
		third.run("mod", "download")
		if third.goSum() != direct.goSum() {
			t.Error("go.sum differs from the upstream's with a mirror as the seeder")
		}
	}()

	b, _ := signedNode(t, nil, up, o.key, a.SwarmAddr())
	second := newGoClient(t, b.URL()+"/go", "off", false)
	second.run("mod", "download")
	if second.goSum() != direct.goSum() {
		t.Error("go.sum differs from the upstream's")
	}
	second.run("build", "./registry/sumdb", "./swarm/secretstream")
}

// completeModules gives the upstream the .info files of the versions in goSum of
// which this machine's go has only the .mod, and writes a go.sum without the
// zips that it does not have.
func completeModules(t testing.TB, up *goupstream.Server, goSum string) string {
	t.Helper()
	cache := filepath.Join(goEnv(t, "GOMODCACHE"), "cache", "download")
	has := func(m module.Version, ext string) bool {
		path, _ := module.EscapePath(m.Path)
		version, _ := module.EscapeVersion(m.Version)
		_, err := os.Stat(filepath.Join(cache, path, "@v", version+ext))
		return err == nil
	}
	var kept []string
	for line := range strings.Lines(goSum) {
		f := strings.Fields(line)
		version, modOnly := strings.CutSuffix(f[1], "/go.mod")
		m := module.Version{Path: f[0], Version: version}
		if !has(m, ".info") {
			up.Put(m.Path, m.Version+".info", fmt.Appendf(nil, `{"Version":%q}`, m.Version))
		}
		if modOnly || has(m, ".zip") {
			kept = append(kept, line)
		}
	}
	path := filepath.Join(t.TempDir(), "go.sum")
	if err := os.WriteFile(path, []byte(strings.Join(kept, "")), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}
