package node

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/swarm"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	for _, k := range []string{"GOPROXY", "GOSUMDB", "GOPRIVATE", "GONOPROXY", "GONOSUMDB"} {
		os.Unsetenv(k)
	}
	os.Setenv("GOENV", "off")
	os.Setenv("CARGO_HOME", "/nonexistent")
	goleak.VerifyTestMain(m, leaks...)
}

// leaks are what damaged databases may leave: Pebble loses an iterator, and with it
// the goroutine of its file cache, when a table turns out to be damaged.
var leaks = []goleak.Option{
	goleak.IgnoreAnyFunction("github.com/cockroachdb/pebble/v2/internal/genericcache.(*shard[...]).releaseLoop"),
}

// A cargoRegistry is an upstream that counts downloads.
type cargoRegistry struct {
	*httptest.Server
	crates map[string][]byte // by name; each has the one version 1.0.0

	mu    sync.Mutex
	asked map[string]int // downloads by name
	delay time.Duration  // before a download is answered
	down  atomic.Bool    // everything is 503
	block chan struct{}  // if set, downloads stop after half until it is closed
}

func newRegistry(t testing.TB, sizes ...int) *cargoRegistry {
	u := &cargoRegistry{crates: map[string][]byte{}, asked: map[string]int{}}
	r := rand.New(rand.NewPCG(1, 2))
	for i, size := range sizes {
		b := make([]byte, size)
		for j := range b {
			b[j] = byte(r.Uint32())
		}
		u.crates[fmt.Sprintf("crate%02d", i)] = b
	}
	mux := http.NewServeMux()
	u.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u.down.Load() {
			http.Error(w, "down", http.StatusServiceUnavailable)
			return
		}
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(u.Close)
	mux.HandleFunc("/index/config.json", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `{"dl":"%s/dl"}`, u.URL)
	})
	mux.HandleFunc("/index/{a}/{b}/{name}", func(w http.ResponseWriter, r *http.Request) {
		b, ok := u.crates[r.PathValue("name")]
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "text/plain")
		fmt.Fprintf(w, `{"name":%q,"vers":"1.0.0","deps":[],"cksum":"%x","features":{},"yanked":false}`+"\n", r.PathValue("name"), sha256.Sum256(b))
	})
	mux.HandleFunc("/dl/{name}/1.0.0/download", u.download)
	return u
}

func (u *cargoRegistry) download(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	u.mu.Lock()
	u.asked[name]++
	delay, block := u.delay, u.block
	u.mu.Unlock()
	b := u.crates[name]
	select {
	case <-time.After(delay):
	case <-r.Context().Done():
		return
	}
	w.Header().Set("Content-Length", fmt.Sprint(len(b)))
	w.Header().Set("Content-Type", "application/gzip")
	if block != nil {
		w.Write(b[:len(b)/2])
		w.(http.Flusher).Flush()
		select {
		case <-block:
		case <-r.Context().Done():
			return
		}
		b = b[len(b)/2:]
	}
	w.Write(b)
}

func (u *cargoRegistry) downloads() (n int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, k := range u.asked {
		n += k
	}
	return n
}

// A testNode is a running node.
type testNode struct {
	*Node
	cancel context.CancelFunc
	done   chan error
	once   sync.Once
}

// config returns a configuration of a node in dir with u as its cargo upstream.
func config(t testing.TB, u *cargoRegistry, dir string) Config {
	c := Config{
		Listen: "127.0.0.1:0", Data: filepath.Join(dir, "data"), State: filepath.Join(dir, "state"),
		CargoUpstream: "sparse+" + u.URL + "/index/", GoUpstream: u.URL + "/go", SumDB: "off",
		SwarmListen: "127.0.0.1:0", PeerBudget: 3 * time.Second, // this machine may be busy
		Version: "test",
	}
	if testing.Verbose() {
		c.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return c
}

func start(t testing.TB, c Config) *testNode {
	t.Helper()
	n, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	tn := &testNode{Node: n, cancel: cancel, done: make(chan error, 1)}
	go func() { tn.done <- n.Run(ctx) }()
	t.Cleanup(func() { tn.stop(t) })
	return tn
}

func (n *testNode) stop(t testing.TB) {
	n.once.Do(func() {
		n.cancel()
		if err := errors.Join(<-n.done, n.Close()); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
}

// connect waits until n has that many peers.
func (n *testNode) waitPeers(t testing.TB, want int) {
	t.Helper()
	for range 1000 {
		if n.exchange.Connected() >= want {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%d peers after 10 s, want %d", n.exchange.Connected(), want)
}

var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true}}

func (n *testNode) get(path string) (int, []byte, error) {
	resp, err := client.Get(n.URL() + path)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, b, err
}

// fetch gets a crate through the node and checks it.
func (n *testNode) fetch(u *cargoRegistry, name string) error {
	status, b, err := n.get("/cargo/dl/" + name + "/1.0.0/download")
	if err != nil || status != 200 {
		return fmt.Errorf("%s: %d %.200q %v", name, status, b, err)
	}
	if !bytes.Equal(b, u.crates[name]) {
		return fmt.Errorf("%s: wrong bytes, %d", name, len(b))
	}
	return nil
}

func (n *testNode) fetchAll(t testing.TB, u *cargoRegistry) {
	t.Helper()
	var wg sync.WaitGroup
	for name := range u.crates {
		wg.Go(func() {
			if err := n.fetch(u, name); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	n.fetcher.Wait(t.Context())
}

var someSizes = []int{1, 1000, 65535, 65536, 65537, 300_000, 2_000_000}

// TestTwoNodes: what A has, B gets from A without a byte from the upstream.
func TestTwoNodes(t *testing.T) {
	u := newRegistry(t, someSizes...)
	a := start(t, config(t, u, t.TempDir()))
	a.fetchAll(t, u)
	before := u.downloads()
	if before != len(u.crates) {
		t.Errorf("A made %d downloads of %d crates", before, len(u.crates))
	}
	cb := config(t, u, t.TempDir())
	cb.Peers = []string{a.swarm.Addrs()[0].String()}
	b := start(t, cb)
	b.waitPeers(t, 1)
	b.fetchAll(t, u)
	if n := u.downloads() - before; n != 0 {
		t.Errorf("B made %d downloads, want none", n)
	}
	if use := b.usage.sum(); use.Peer != len(u.crates) || use.Peers != 1 {
		t.Errorf("B's usage: %v", use.String())
	}
	// With the upstream and A stopped, B has everything.
	u.down.Store(true)
	a.stop(t)
	b.fetchAll(t, u)
	dir := cb
	b.stop(t)
	dir.Offline, dir.Peers = true, nil
	start(t, dir).fetchAll(t, u)
}

// TestDamagedAtPeer: a peer does not hand out what has rotted on its disk, and
// heals. REL-4
func TestDamagedAtPeer(t *testing.T) {
	u := newRegistry(t, 300_000)
	a := start(t, config(t, u, t.TempDir()))
	a.fetchAll(t, u)
	flip(t, filepath.Join(a.c.Data, "artifacts"), u.crates["crate00"])
	cb := config(t, u, t.TempDir())
	cb.Peers = []string{a.swarm.Addrs()[0].String()}
	b := start(t, cb)
	b.waitPeers(t, 1)
	b.fetchAll(t, u)
	a.fetchAll(t, u) // from B now
	if n := u.downloads(); n != 2 {
		t.Errorf("%d downloads, want 2: A's first, and B's when A's was damaged", n)
	}
	if use := a.usage.sum(); use.Peer != 1 {
		t.Errorf("A healed from %v", use.String())
	}
}

// flip flips a bit of the file with that content below dir.
func flip(t *testing.T, dir string, content []byte) {
	t.Helper()
	done := false
	filepath.WalkDir(dir, func(name string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if b, err := os.ReadFile(name); err == nil && bytes.Equal(b, content) {
				b[len(b)/2] ^= 1
				done = os.WriteFile(name, b, 0o600) == nil
			}
		}
		return nil
	})
	if !done {
		t.Fatal("no file to damage")
	}
}

// fleet starts n nodes with one join token that all know each other.
func fleet(t testing.TB, u *cargoRegistry, n int, change ...func(*Config)) []*testNode {
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("0123456789abcdef0123456789abcdef\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var nodes []*testNode
	var addrs []string
	for range n {
		c := config(t, u, t.TempDir())
		c.FleetTokenFile = token
		c.Peers = append([]string(nil), addrs...)
		c.Listen = "127.0.0.1:0"
		for _, f := range change {
			f(&c)
		}
		nd := start(t, c)
		nodes = append(nodes, nd)
		addrs = append(addrs, nd.swarm.Addrs()[0].String())
	}
	for _, nd := range nodes {
		nd.waitPeers(t, n-1)
	}
	return nodes
}

// TestFleetFetchesOnce: ten cold nodes at once cost the upstream one download of
// each artifact. S2
func TestFleetFetchesOnce(t *testing.T) {
	u := newRegistry(t, 1000, 70_000, 300_000, 1_000_000)
	u.delay = 100 * time.Millisecond
	nodes := fleet(t, u, 10)
	var wg sync.WaitGroup
	for _, n := range nodes {
		wg.Go(func() { n.fetchAll(t, u) })
	}
	wg.Wait()
	for name, n := range u.asked {
		if n != 1 {
			t.Errorf("%s: %d downloads, want 1", name, n)
		}
	}
}

// impatience counts the members that went to the upstream because another one was
// silent for too long: they do so at once after three seconds, which on a machine that
// is busy enough is no fault of theirs.
type impatience struct {
	slog.Handler
	n *atomic.Int64
}

func (h impatience) Enabled(context.Context, slog.Level) bool { return true }
func (h impatience) WithAttrs([]slog.Attr) slog.Handler       { return h }

func (h impatience) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "err" && strings.HasSuffix(a.Value.String(), "of the lease does not answer") {
			h.n.Add(1)
		}
		return true
	})
	return nil
}

// TestFleetMemberKilled stops one of ten nodes, which is fetching, midway. REL-9, SEC-24
func TestFleetMemberKilled(t *testing.T) {
	u := newRegistry(t, 200_000)
	u.block = make(chan struct{})
	h := impatience{slog.DiscardHandler, new(atomic.Int64)}
	nodes := fleet(t, u, 10, func(c *Config) {
		c.Logger = slog.New(h)
		c.PeerBudget = time.Minute // a slow disk makes nobody go to the upstream beside the fleet
	})
	var wg sync.WaitGroup
	victim := nodes[3]
	wg.Go(func() { victim.fetch(u, "crate00") })
	await(t, "the victim fetches", func() bool { return u.downloads() > 0 })
	for _, n := range nodes {
		if n != victim {
			wg.Go(func() { n.fetchAll(t, u) })
		}
	}
	await(t, "all others wait", func() bool {
		waiting := 0
		for _, n := range nodes {
			n.fetcher.EachFlight(func(_ string, clients int) { waiting += clients })
		}
		return waiting == len(nodes)
	})
	if n := int64(u.downloads()); n > 1+h.n.Load() {
		t.Errorf("%d downloads before the kill, want 1, and %d by those who were not answered", n, h.n.Load())
	}
	// Its connections go; what it was about to do does not happen.
	victim.fetcher.Close()
	victim.cancel()
	u.mu.Lock()
	close(u.block)
	u.block = nil
	u.mu.Unlock()
	wg.Wait()
	if n := int64(u.downloads()); n > 2+h.n.Load() {
		t.Errorf("%d downloads, want 2, and %d by those who were not answered", n, h.n.Load())
	}
}

// await waits until done returns true.
func await(t testing.TB, what string, done func() bool) {
	t.Helper()
	for range 3000 {
		if done() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("after 30 s: not yet so that %s", what)
}

func TestWrongTokenNotConnected(t *testing.T) { // SEC-27
	u := newRegistry(t)
	a := fleet(t, u, 1)[0]
	c := config(t, u, t.TempDir())
	c.Peers = []string{a.swarm.Addrs()[0].String()}
	b := start(t, c)
	time.Sleep(300 * time.Millisecond)
	if a.exchange.Connected() != 0 || b.exchange.Connected() != 0 {
		t.Error("a node without the token is connected")
	}
}

// TestStopUnderLoad: answers in flight complete, nothing is left behind. REL-12
func TestStopUnderLoad(t *testing.T) {
	u := newRegistry(t, 5_000_000, 5_000_000, 5_000_000)
	u.delay = 500 * time.Millisecond
	n := start(t, config(t, u, t.TempDir()))
	if _, _, err := n.get("/cargo/cr/at/crate00"); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for name := range u.crates {
		for range 4 {
			wg.Go(func() {
				if err := n.fetch(u, name); err != nil {
					t.Error(err)
				}
			})
		}
	}
	// Each client waits for a flight, which counts its users, or has its body.
	inFlight := func() (users int) {
		n.fetcher.EachFlight(func(_ string, clients int) { users += clients })
		return users
	}
	for inFlight() < 12 {
		time.Sleep(5 * time.Millisecond)
	}
	begin := time.Now()
	n.stop(t)
	if d := time.Since(begin); d > 10*time.Second {
		t.Errorf("stopping took %v", d)
	}
	wg.Wait()
}

func TestHealthStatusMetrics(t *testing.T) { // REL-16, SEC-56
	u := newRegistry(t, 1000)
	n := start(t, config(t, u, t.TempDir()))
	n.fetchAll(t, u)
	for _, path := range []string{"/healthz", "/readyz"} {
		if status, b, err := n.get(path); status != 200 || err != nil {
			t.Errorf("%s = %d %s %v", path, status, b, err)
		}
	}
	_, b, _ := n.get("/api/v1/status")
	var st Status
	if err := json.Unmarshal(b, &st); err != nil || st.Store.Files != 1 || st.Usage.Upstream != 1 || !st.Ready || st.Swarm.Key == "" {
		t.Errorf("status = %s, %v", b, err)
	}
	_, b, _ = n.get("/metrics")
	for _, want := range []string{`pkgswarm_artifacts_total{source="upstream"} 1`, `pkgswarm_artifact_bytes_total{source="upstream"} 1000`,
		`pkgswarm_requests_total{code="2xx",front="cargo"} 1`, "pkgswarm_store_files 1", "pkgswarm_peers 0"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("no %s in the metrics", want)
		}
	}
	if strings.Contains(string(b), "crate00") {
		t.Error("a name is in the metrics")
	}
	for _, path := range []string{"/debug/pprof/", "/debug/pprof", "/debug/pprof/heap", "/debug/pprof/cmdline", "/debug/pprof/profile", "/debug/pprof/trace",
		"/debug/vars", "/debug/requests", "/debug/events", "/debug", "/.env", "/.git/config", "/server-status", "/actuator/env", "/config", "/token", "/identity",
		"/state/token", "/nothing", "/api/v1/nothing", "/api/v1/", "/api/v1/token", "/api/v1/config"} {
		if status, _, _ := n.get(path); status != 404 {
			t.Errorf("%s = %d, want 404", path, status)
		}
	}
	n.loops.start(context.Background(), "test", func(context.Context) error { panic("injected") })
	for range 100 {
		if n.loops.broken() != "" {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if status, b, _ := n.get("/readyz"); status != 503 || !strings.Contains(string(b), "test") {
		t.Errorf("/readyz with a dead worker = %d %s", status, b)
	}
}

func TestOpenErrors(t *testing.T) {
	u := newRegistry(t)
	dir := t.TempDir()
	n := start(t, config(t, u, dir))
	_, err := Open(config(t, u, dir))
	if e, ok := errors.AsType[*core.InUseError](err); !ok || e.PID != os.Getpid() {
		t.Errorf("a data directory in use: %v", err)
	}
	c := config(t, u, t.TempDir())
	c.Listen = n.Addr().String()
	_, err = Open(c)
	if _, ok := errors.AsType[*AddrInUseError](err); !ok {
		t.Errorf("an address in use: %v", err)
	}
	c = config(t, u, t.TempDir())
	c.Listen = "0.0.0.0:0"
	_, err = Open(c)
	if _, ok := errors.AsType[*ExposureError](err); !ok { // SEC-53
		t.Errorf("a listener for all without TLS: %v", err)
	}
	if runtime.GOOS != "windows" { // SEC-57
		for _, wide := range []string{"data", "state", "state/identity", "state/token"} {
			c = config(t, u, t.TempDir())
			m, err := Open(c)
			if err != nil {
				t.Fatal(err)
			}
			m.Close()
			mode := os.FileMode(0o755)
			os.Chmod(filepath.Join(filepath.Dir(c.Data), wide), mode)
			if m, err := Open(c); err == nil {
				m.Close()
				t.Errorf("%s of mode %v was accepted", wide, mode)
			}
		}
	}
}

// TestGuarded: what is not for us does not reach a front end. SEC-50, SEC-51
func TestGuarded(t *testing.T) {
	u := newRegistry(t, 10)
	n := start(t, config(t, u, t.TempDir()))
	_, port, _ := net.SplitHostPort(n.Addr().String())
	for _, c := range []struct {
		host, header, value string
		want                int
	}{
		{"", "", "", 200},
		{"localhost:" + port, "", "", 200},
		{"evil.example:" + port, "", "", 421},
		{"", "Origin", "https://evil.example", 403},
		{"", "Sec-Fetch-Site", "cross-site", 403},
	} {
		r, _ := http.NewRequest("GET", n.URL()+"/cargo/config.json", nil)
		if c.host != "" {
			r.Host = c.host
		}
		if c.header != "" {
			r.Header.Set(c.header, c.value)
		}
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != c.want {
			t.Errorf("%+v: %d", c, resp.StatusCode)
		}
		if host := r.Host; resp.StatusCode == 200 && !strings.Contains(string(b), "http://"+host+"/cargo/dl") { // SEC-34
			t.Errorf("%+v: config.json is %s", c, b)
		}
	}
}

func TestToken(t *testing.T) { // SEC-53
	u := newRegistry(t, 10)
	c := config(t, u, t.TempDir())
	c.TokenFile = filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(c.TokenFile, []byte("sesame-sesame-sesame\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	n := start(t, c)
	for auth, want := range map[string]int{"": 401, "wrong": 401, "sesame-sesame-sesame": 200, "Bearer sesame-sesame-sesame": 200,
		"Basic eDpzZXNhbWUtc2VzYW1lLXNlc2FtZQ==": 200, "Basic eDpzZXNhbWU=": 401} {
		r, _ := http.NewRequest("GET", n.URL()+"/cargo/config.json", nil)
		if auth != "" {
			r.Header.Set("Authorization", auth)
		}
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("Authorization: %q = %d, want %d", auth, resp.StatusCode, want)
		}
	}
}

func TestBanner(t *testing.T) {
	u := newRegistry(t)
	c := config(t, u, t.TempDir())
	c.LAN = true
	n := start(t, c)
	b := n.Banner()
	if lines := strings.Count(b, "\n"); lines > 10 || !strings.Contains(b, n.URL()) || !strings.Contains(b, c.Data) || !strings.Contains(b, "local network") {
		t.Errorf("banner of %d lines:\n%s", lines, b)
	}
}

func TestUsageString(t *testing.T) {
	for _, c := range []struct {
		u    Usage
		want string
	}{
		{Usage{Artifacts: 212, Bytes: 31_400_000, Peer: 188, Peers: 7, Disk: 20, Upstream: 4},
			"212 artifacts 31 MB: 188 from 7 peers, 20 from disk, 4 from upstream; all verified"},
		{Usage{Artifacts: 1, Bytes: 900, Disk: 1}, "1 artifact 900 B: 1 from disk; all verified"},
		{Usage{Failed: 3}, "0 artifacts; 3 failed"},
		{Usage{Artifacts: 1, Upstream: 1, Failed: 1}, "1 artifact 0 B: 1 from upstream; all verified; 1 failed"},
	} {
		if got := c.u.String(); got != c.want {
			t.Errorf("%+v = %q, want %q", c.u, got, c.want)
		}
	}
}

// TestPublicURL: config.json leads clients to the node by the name that they use,
// and through the proxy in front of it where they came by that. SEC-34
func TestPublicURL(t *testing.T) {
	u := newRegistry(t)
	c := config(t, u, t.TempDir())
	c.PublicURL = "https://mirror.example/swarm/"
	n := start(t, c)
	for host, want := range map[string]string{
		n.Addr().String(): n.URL() + "/cargo/dl",
		"mirror.example":  "https://mirror.example/swarm/cargo/dl",
		"other.example":   "",
	} {
		req, _ := http.NewRequest("GET", n.URL()+"/cargo/config.json", nil)
		req.Host = host
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		var got struct{ DL string }
		json.NewDecoder(resp.Body).Decode(&got)
		resp.Body.Close()
		if got.DL != want {
			t.Errorf("dl for Host %s = %q, want %q", host, got.DL, want)
		}
	}
	for _, bad := range []string{"mirror.example", "ftp://mirror.example", "https://u:p@mirror.example", "https://"} {
		c := config(t, u, t.TempDir())
		c.PublicURL = bad
		if n, err := Open(c); err == nil {
			n.Close()
			t.Errorf("public URL %s was accepted", bad)
		}
	}
}

// TestDamagedState: what cannot be made anew is an error that says what to do. REL-5
func TestDamagedState(t *testing.T) {
	u := newRegistry(t)
	conf := config(t, u, t.TempDir())
	n := start(t, conf)
	n.stop(t)
	for _, name := range []string{"identity", "token"} {
		path := filepath.Join(conf.State, name)
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, bad := range []string{"", "garbage\n\x00", strings.Repeat("x", 10000)} {
			os.WriteFile(path, []byte(bad), 0o600)
			n, err := Open(conf)
			if err == nil {
				n.Close()
				t.Errorf("%s with %.10q: the node starts", name, bad)
			} else if !strings.Contains(err.Error(), path) {
				t.Errorf("%s with %.10q: %v, which does not name the file", name, bad, err)
			}
		}
		for _, mode := range []os.FileMode{0o700, 0o755} { // chmod would not help
			if err := errors.Join(os.Remove(path), os.Mkdir(path, mode)); err != nil {
				t.Fatal(err)
			}
			n, err := Open(conf)
			if err == nil {
				n.Close()
			}
			if err == nil || !strings.Contains(err.Error(), path+" is no file: restore it, or move it away") {
				t.Errorf("a directory of mode %v in place of %s: %v", mode, name, err)
			}
		}
		os.Remove(path)
		os.WriteFile(path, good, 0o600)
	}
	start(t, conf)
}

// TestAfterCrash: a start after a panic in the database makes it anew from the files,
// one after any other panic does not, and both keep the report. REL-5
func TestAfterCrash(t *testing.T) {
	u := newRegistry(t, 1000, 70_000)
	conf := config(t, u, t.TempDir())
	n := start(t, conf)
	n.fetchAll(t, u)
	n.stop(t)
	asides := 0
	for _, c := range []struct {
		report string
		aside  int
	}{
		{"", 0},
		{"panic: our own\n\ngoroutine 1 [running]:\nmain.main()\n", 0},
		{"panic: pebble: invariant violation\n\ngoroutine 7 [running]:\ngithub.com/cockroachdb/pebble/v2/internal/compact.(*Iter).Next(0x1)\n", 1},
	} {
		name := crashFile(conf.Data)
		if err := os.WriteFile(name, []byte(c.report), 0o600); err != nil {
			t.Fatal(err)
		}
		os.Remove(name + ".last")
		n := start(t, conf)
		found, _ := filepath.Glob(filepath.Join(conf.Data, "store", "*.damaged-*"))
		if asides += c.aside; len(found) != asides {
			t.Errorf("%.30q: set aside %v, want %d", c.report, found, asides)
		}
		if b, _ := os.ReadFile(name + ".last"); string(b) != c.report {
			t.Errorf("%.30q: the report is %q", c.report, b)
		}
		before := u.downloads()
		for n.artifacts.Stats().Files < 2 {
			time.Sleep(time.Millisecond)
		}
		n.fetchAll(t, u)
		if got := u.downloads() - before; got != 0 {
			t.Errorf("%.30q: %d downloads", c.report, got)
		}
		n.stop(t)
	}
}

// TestDashboard: the page and its files come with a policy that forbids inline
// script, and the page has none. SEC-51
func TestDashboard(t *testing.T) {
	n := start(t, config(t, newRegistry(t), t.TempDir()))
	for path, want := range map[string]string{"/": "text/html", "/dashboard/style.css": "text/css", "/dashboard/dashboard.js": "text/javascript"} {
		resp, err := client.Get(n.URL() + path)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		csp := resp.Header.Get("Content-Security-Policy")
		if resp.StatusCode != 200 || !strings.HasPrefix(resp.Header.Get("Content-Type"), want) || !strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") {
			t.Errorf("%s = %d %v", path, resp.StatusCode, resp.Header)
		}
		for _, bad := range []string{"<script>", "style=", "onclick", "onload", "innerHTML", "http://", "https://"} {
			if strings.Contains(string(b), bad) {
				t.Errorf("%s has %q", path, bad)
			}
		}
	}
	if status, _, _ := n.get("/dashboard/index.html"); status != 404 {
		t.Errorf("/dashboard/index.html = %d", status)
	}
}

// TestTopicsNameNoPackages: what a node announces is fixed before it knows of any
// package, and fetching adds no announcement. SEC-63
func TestTopicsNameNoPackages(t *testing.T) {
	sizes := make([]int, 50)
	for i := range sizes {
		sizes[i] = 100 + i
	}
	u := newRegistry(t, sizes...)
	n := start(t, config(t, u, t.TempDir()))
	before := n.topics()
	n.fetchAll(t, u)
	want := []swarm.TopicID{swarm.NamedTopic("cargo"), swarm.NamedTopic("go")}
	if !slices.Equal(before, want) || !slices.Equal(n.topics(), want) {
		t.Errorf("topics %x, then %x; want the two public ones", before, n.topics())
	}
}
