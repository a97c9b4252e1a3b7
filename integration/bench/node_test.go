package bench

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/internal/cargoupstream"
	"github.com/pkgswarm/pkgswarm/internal/node"
)

// madeUp returns a registry with a crate of each size, "crate" and its number.
func madeUp(b testing.TB, sizes ...int) *cargoupstream.Server {
	up := cargoupstream.New(b)
	r := rand.NewChaCha8([32]byte{1})
	for i, n := range sizes {
		data := make([]byte, n)
		r.Read(data)
		up.Add(b, fmt.Sprintf("crate%d", i), "1.0.0", data)
	}
	return up
}

func crate(i int) string { return fmt.Sprintf("/cargo/dl/crate%d/1.0.0/download", i) }

func cargoNode(b testing.TB, up *cargoupstream.Server, c node.Config) *node.Node {
	c.CargoUpstream, c.GoUpstream, c.SumDB = up.Index(), "off", "off"
	return startNode(b, c)
}

// get reads an answer and returns the time to its first byte and in all.
func get(b testing.TB, url string) (first, all time.Duration) {
	b.Helper()
	start := time.Now()
	resp, err := http.Get(url)
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	r := bufio.NewReader(resp.Body)
	if _, err := r.Peek(1); err != nil || resp.StatusCode != 200 {
		b.Fatalf("%s: %s %v", url, resp.Status, err)
	}
	first = time.Since(start)
	if _, err := io.Copy(io.Discard, r); err != nil {
		b.Fatal(err)
	}
	return first, time.Since(start)
}

// BenchmarkCrateWarm is goals P1 (index) and P3 (1 MB and 50 MB), against a Go
// file server and nginx with the same files.
func BenchmarkCrateWarm(b *testing.B) {
	sizes := []int{1 << 20, 50 << 20}
	up := madeUp(b, sizes...)
	n := cargoNode(b, up, node.Config{})
	dir := b.TempDir()
	for i := range sizes {
		resp, err := http.Get(n.URL() + crate(i))
		if err != nil {
			b.Fatal(err)
		}
		data, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err := os.WriteFile(filepath.Join(dir, strconv.Itoa(i)), data, 0o644); err != nil {
			b.Fatal(err)
		}
	}
	resp, err := http.Get(n.URL() + "/cargo/cr/at/crate0")
	if err != nil {
		b.Fatal(err)
	}
	index, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	os.WriteFile(filepath.Join(dir, "index"), index, 0o644)
	os.Chmod(dir, 0o755)
	servers := []struct{ name, addr string }{
		{"pkgswarm", n.Addr().String()},
		{"FileServer", serve(b, http.FileServer(http.Dir(dir)))},
		{"nginx", nginx(b, dir)},
	}
	for _, f := range []struct {
		name, ours, theirs string
		bytes              int64
	}{
		{"index", "/cargo/cr/at/crate0", "/index", 0},
		{"1MB", crate(0), "/0", 1 << 20},
		{"50MB", crate(1), "/1", 50 << 20},
	} {
		for _, s := range servers {
			if s.addr == "" {
				continue
			}
			b.Run(f.name+"/"+s.name, func(b *testing.B) {
				b.SetBytes(f.bytes)
				path := f.theirs
				if s.name == "pkgswarm" {
					path = f.ours
				}
				load(b, s.addr, path)
			})
		}
	}
}

// BenchmarkCrateCold is goal P5 for crates: the time to the first byte of what the
// upstream, 20 ms away, has, above that of asking it directly.
func BenchmarkCrateCold(b *testing.B) {
	const delay = 20 * time.Millisecond
	sizes := make([]int, 8)
	for i := range sizes {
		sizes[i] = 20 << 20
	}
	up := madeUp(b, sizes...)
	up.Delay(delay)
	var firsts, index []time.Duration
	for round := 0; b.Loop(); round++ {
		i := round % len(sizes)
		if i == 0 {
			b.StopTimer()
			n := cargoNode(b, up, node.Config{})
			b.StartTimer()
			baseURL = n.URL()
			get(b, baseURL+"/cargo/cr/at/crate0") // the node knows the upstream's config.json then
			get(b, baseURL+crate(0))
			continue
		}
		f, _ := get(b, baseURL+fmt.Sprintf("/cargo/cr/at/crate%d", i))
		index = append(index, f-delay)
		f, _ = get(b, baseURL+crate(i))
		firsts = append(firsts, f-delay)
	}
	report(b, index, "index")
	report(b, firsts, "first-byte")
}

var baseURL string // of BenchmarkCrateCold's node

// report reports the middle and the 99th percentile of d in milliseconds.
func report(b *testing.B, d []time.Duration, what string) {
	if len(d) == 0 {
		return
	}
	slices.Sort(d)
	b.ReportMetric(float64(d[len(d)/2].Microseconds())/1000, what+"-p50-ms")
	b.ReportMetric(float64(d[len(d)*99/100].Microseconds())/1000, what+"-p99-ms")
}

// BenchmarkFromPeer is goal P8: 10 KB artifacts from a peer, and what a miss costs
// that no peer has, with the upstream's answer at once.
func BenchmarkFromPeer(b *testing.B) {
	const n = 400
	sizes := make([]int, n)
	for i := range sizes {
		sizes[i] = 10 << 10
	}
	up := madeUp(b, sizes...)
	a := cargoNode(b, up, node.Config{SwarmListen: "127.0.0.1:0"})
	for i := range n / 2 {
		get(b, a.URL()+crate(i))
	}
	var hits, misses, direct []time.Duration
	for b.Loop() {
		b.StopTimer()
		c := cargoNode(b, up, node.Config{Peers: []string{a.SwarmAddr()}, PeerBudget: time.Second})
		alone := cargoNode(b, up, node.Config{})
		for len(c.Status().Swarm.Peers) == 0 {
			time.Sleep(time.Millisecond)
		}
		for i := range n { // the index is not what is measured
			get(b, c.URL()+fmt.Sprintf("/cargo/%s", indexPath(i)))
			get(b, alone.URL()+fmt.Sprintf("/cargo/%s", indexPath(i)))
		}
		b.StartTimer()
		for i := range n {
			if _, d := get(b, c.URL()+crate(i)); i < n/2 {
				hits = append(hits, d)
			} else {
				misses = append(misses, d)
				_, d := get(b, alone.URL()+crate(i))
				direct = append(direct, d)
			}
		}
		if got := c.Status().Usage.Peer; got != n/2 {
			b.Errorf("%d from peers, want %d", got, n/2)
		}
	}
	report(b, hits, "hit")
	report(b, misses, "miss")
	report(b, direct, "no-peer")
}

func indexPath(i int) string { return fmt.Sprintf("cr/at/crate%d", i) }

// BenchmarkFleet is goal S2: the upstream's downloads when 8 cold members of a
// fleet want the same artifacts at once.
func BenchmarkFleet(b *testing.B) {
	const members, artifacts = 8, 20
	sizes := make([]int, artifacts)
	for i := range sizes {
		sizes[i] = 200 << 10
	}
	up := madeUp(b, sizes...)
	up.Delay(20 * time.Millisecond)
	token := filepath.Join(b.TempDir(), "token")
	if err := os.WriteFile(token, []byte("0123456789abcdef0123456789abcdef"), 0o600); err != nil {
		b.Fatal(err)
	}
	total := 0
	for b.Loop() {
		b.StopTimer()
		var nodes []*node.Node
		var addrs []string
		for range members {
			n := cargoNode(b, up, node.Config{SwarmListen: "127.0.0.1:0", Peers: slices.Clone(addrs), FleetTokenFile: token})
			nodes, addrs = append(nodes, n), append(addrs, n.SwarmAddr())
		}
		for _, n := range nodes {
			for len(n.Status().Swarm.Peers) < members-1 {
				time.Sleep(time.Millisecond)
			}
		}
		up.Reset()
		b.StartTimer()
		var wg sync.WaitGroup
		for _, n := range nodes {
			for i := range artifacts {
				wg.Go(func() { get(b, n.URL()+crate(i)) })
			}
		}
		wg.Wait()
		for _, k := range up.Downloads() {
			total += k
		}
	}
	b.ReportMetric(float64(total)/float64(b.N*artifacts), "downloads/artifact")
}

// BenchmarkStart is goal N1: the time from starting the program until it is ready,
// its memory when idle, and the size of its file.
func BenchmarkStart(b *testing.B) {
	dir := b.TempDir()
	bin := filepath.Join(dir, "pkgswarm")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", bin, "./cmd/pkgswarm")
	build.Dir = "../.."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("build: %v\n%s", err, out)
	}
	fi, err := os.Stat(bin)
	if err != nil {
		b.Fatal(err)
	}
	var ready []time.Duration
	var rss []int
	for b.Loop() {
		ctx, stop := context.WithCancel(context.Background())
		cmd := exec.CommandContext(ctx, bin, "serve", "--listen", "127.0.0.1:0", "--no-lan", "--data", filepath.Join(dir, "data"), "--state", filepath.Join(dir, "state"))
		stderr, err := cmd.StderrPipe()
		if err != nil {
			b.Fatal(err)
		}
		start := time.Now()
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		line, err := bufio.NewReader(stderr).ReadString('\n')
		url := line[strings.LastIndexByte(line, ' ')+1:]
		if err != nil || !strings.Contains(line, "ready") {
			b.Fatalf("first line %q, %v", line, err)
		}
		get(b, strings.TrimSpace(url)+"/readyz")
		ready = append(ready, time.Since(start))
		b.StopTimer()
		time.Sleep(200 * time.Millisecond)
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
		if err == nil {
			rss = append(rss, field(status, "VmRSS:"))
		}
		stop()
		cmd.Wait()
		b.StartTimer()
	}
	report(b, ready, "ready")
	if len(rss) > 0 {
		slices.Sort(rss)
		b.ReportMetric(float64(rss[len(rss)/2])/1024, "idle-MB")
	}
	b.ReportMetric(float64(fi.Size())/1e6, "binary-MB")
}

// field returns the number behind a name in a file of /proc, in KiB.
func field(file []byte, name string) int {
	_, rest, _ := bytes.Cut(file, []byte(name))
	f := bytes.Fields(rest)
	if len(f) == 0 {
		return 0
	}
	n, _ := strconv.Atoi(string(f[0]))
	return n
}

// BenchmarkCargoCold is goal P7: resolving and fetching the sample's two hundred
// crates with cold caches and the upstream 50 ms away, directly and through a node.
func BenchmarkCargoCold(b *testing.B) {
	home := filepath.Join(cacheDir(), "pkgswarm-test", "cargo-home") // made by the tests in package integration
	if _, err := os.Stat(filepath.Join(home, "registry", "cache")); err != nil {
		b.Skipf("SKIPPED, NOT MEASURED: run the tests of package integration first: %v", err)
	}
	for _, through := range []string{"direct", "pkgswarm"} {
		b.Run(through, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				up := cargoupstream.New(b)
				up.AddHome(b, home)
				up.Delay(50 * time.Millisecond)
				index := up.Index()
				if through == "pkgswarm" {
					index = "sparse+" + cargoNode(b, up, node.Config{}).URL() + "/cargo/"
				}
				dir := b.TempDir()
				toml, err := os.ReadFile("../testdata/sample/Cargo.toml")
				if err != nil {
					b.Fatal(err)
				}
				os.MkdirAll(filepath.Join(dir, "src"), 0o755)
				os.WriteFile(filepath.Join(dir, "Cargo.toml"), toml, 0o644)
				os.WriteFile(filepath.Join(dir, "src", "main.rs"), []byte("fn main() {}"), 0o644)
				cmd := exec.Command("cargo", "--config", `source.crates-io.replace-with="m"`, "--config", fmt.Sprintf("registries.m.index=%q", index), "fetch")
				cmd.Dir = dir
				cmd.Env = append(os.Environ(), "CARGO_HOME="+filepath.Join(dir, "home"), "NO_PROXY=127.0.0.1")
				b.StartTimer()
				if out, err := cmd.CombinedOutput(); err != nil {
					b.Fatalf("cargo fetch: %v\n%s", err, out)
				}
			}
		})
	}
}

func cacheDir() string {
	dir, err := os.UserCacheDir()
	if err != nil {
		return os.TempDir()
	}
	return dir
}
