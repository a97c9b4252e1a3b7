package bench

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/internal/goupstream"
	"github.com/pkgswarm/pkgswarm/internal/node"
	"github.com/pkgswarm/pkgswarm/internal/testenv"
)

// startNode runs a node in this process until the benchmark ends.
func startNode(b testing.TB, c node.Config) *node.Node {
	b.Helper()
	dir := b.TempDir()
	c.Listen, c.Data, c.State = "127.0.0.1:0", filepath.Join(dir, "data"), filepath.Join(dir, "state")
	n, err := node.Open(c)
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	b.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			b.Error(err)
		}
		n.Close()
	})
	return n
}

// goUpstream has one module with a 1 MB zip.
func goUpstream(b testing.TB) *goupstream.Server {
	up := goupstream.New(b)
	noise := make([]byte, 1<<20)
	x := uint32(1)
	for i := range noise {
		x = x*1664525 + 1013904223
		noise[i] = byte(x >> 24)
	}
	up.Add(b, "example.com/a", "v1.0.0", map[string]string{"go.mod": "module example.com/a\n\ngo 1.21\n", "noise": string(noise)})
	up.PutLatest("example.com/a", []byte(`{"Version":"v1.0.0","Time":"2024-05-06T07:08:09Z"}`))
	return up
}

var goFiles = []struct{ name, path string }{
	{"info", "/example.com/a/@v/v1.0.0.info"},
	{"mod", "/example.com/a/@v/v1.0.0.mod"},
	{"list", "/example.com/a/@v/list"},
	{"latest", "/example.com/a/@latest"},
	{"zip", "/example.com/a/@v/v1.0.0.zip"},
}

// BenchmarkGoWarm is goals P1, P2 and P3: answers that a node holds, against a Go
// file server and nginx with the same files.
func BenchmarkGoWarm(b *testing.B) {
	up := goUpstream(b)
	n := startNode(b, node.Config{GoUpstream: up.URL, SumDB: up.Key, CargoUpstream: "sparse+" + up.URL + "/"})
	dir := b.TempDir()
	for _, f := range goFiles {
		resp, err := http.Get(n.URL() + "/go" + f.path)
		if err != nil {
			b.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != 200 {
			b.Fatalf("%s: %s %v %s", f.path, resp.Status, err, body)
		}
		name := filepath.Join(dir, filepath.FromSlash(f.path))
		os.MkdirAll(filepath.Dir(name), 0o755)
		if err := os.WriteFile(name, body, 0o644); err != nil {
			b.Fatal(err)
		}
	}
	files := serve(b, http.FileServer(http.Dir(dir)))
	ngx := nginx(b, dir)
	for _, f := range goFiles {
		b.Run(f.name+"/node", func(b *testing.B) { load(b, n.Addr().String(), "/go"+f.path) })
		b.Run(f.name+"/fileserver", func(b *testing.B) { load(b, files, f.path) })
		if ngx != "" {
			b.Run(f.name+"/nginx", func(b *testing.B) { load(b, ngx, f.path) })
		}
	}
}

// away is the upstream's distance in the benchmarks of cold answers.
const away = 20 * time.Millisecond

// BenchmarkGoCold is goal P5: an .info that the node does not have, and the first
// byte of such a zip of 50 MB, against asking the upstream, 20 ms away.
func BenchmarkGoCold(b *testing.B) {
	up := goupstream.New(b)
	noise := make([]byte, 50<<20)
	rand.NewChaCha8([32]byte{}).Read(noise)
	const versions = 1000
	up.Add(b, "example.com/a", "v1.0.0", map[string]string{"go.mod": "module example.com/a\n"})
	for i := range versions {
		up.Put("example.com/a", fmt.Sprintf("v1.1.%d.info", i), fmt.Appendf(nil, `{"Version":"v1.1.%d","Time":"2024-05-06T07:08:09Z"}`, i))
	}
	for i := range 20 {
		up.Add(b, fmt.Sprintf("example.com/big%d", i), "v1.0.0", map[string]string{"go.mod": fmt.Sprintf("module example.com/big%d\n", i), "noise": string(noise)})
		up.Record(b, fmt.Sprintf("example.com/big%d", i), "v1.0.0")
	}
	up.Tamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		time.Sleep(away)
		next.ServeHTTP(w, r)
	})
	for _, via := range []string{"direct", "node"} {
		b.Run("info/"+via, func(b *testing.B) {
			base := up.URL
			if via == "node" {
				base = startNode(b, node.Config{GoUpstream: up.URL, SumDB: up.Key, CargoUpstream: "sparse+" + up.URL + "/"}).URL() + "/go"
			}
			firstByte(b, base+"/example.com/a/@v/v1.0.0.info") // connections are open
			b.ResetTimer()
			for i := range b.N {
				firstByte(b, fmt.Sprintf("%s/example.com/a/@v/v1.1.%d.info", base, i%versions))
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/1000/float64(b.N), "ms/op")
		})
		b.Run("zip/"+via, func(b *testing.B) {
			base := up.URL
			if via == "node" {
				base = startNode(b, node.Config{GoUpstream: up.URL, SumDB: up.Key, CargoUpstream: "sparse+" + up.URL + "/"}).URL() + "/go"
			}
			firstByte(b, base+"/example.com/a/@v/v1.0.0.zip")
			var waited time.Duration
			for i := range b.N {
				url := fmt.Sprintf("%s/example.com/big%d/@v/v1.0.0.zip", base, i%20)
				waited += firstByte(b, url)
				if via == "node" {
					untilStored(b, url)
				}
			}
			b.ReportMetric(float64(waited.Microseconds())/1000/float64(b.N), "ms/first-byte")
		})
	}
}

// untilStored waits until the node is done with a zip, so that its work on one
// does not count for the next.
func untilStored(b *testing.B, url string) {
	b.Helper()
	for {
		resp, err := http.Head(url)
		if err != nil {
			b.Fatal(err)
		}
		resp.Body.Close()
		if resp.Header.Get("Pkgswarm-Source") == "disk" {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// firstByte reads the answer at url and returns how long its first byte took.
func firstByte(b *testing.B, url string) time.Duration {
	b.Helper()
	start := time.Now()
	resp, err := http.Get(url)
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	var one [1]byte
	_, err = io.ReadFull(resp.Body, one[:])
	d := time.Since(start)
	if err != nil || resp.StatusCode != 200 {
		b.Fatalf("%s: %s, %v", url, resp.Status, err)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		b.Fatalf("%s: %v", url, err)
	}
	return d
}

// BenchmarkGoModDownload is goal P4: go mod download of the modules in this
// machine's cache, warm, through a node, a Go file server and file://. The rounds
// are interleaved; the medians and the node's ratio to file:// are reported.
func BenchmarkGoModDownload(b *testing.B) {
	testenv.Need(b, "go")
	out, err := exec.Command("go", "env", "GOMODCACHE").Output()
	if err != nil {
		b.Fatal(err)
	}
	cache := filepath.Join(strings.TrimSpace(string(out)), "cache", "download")
	up := goupstream.New(b)
	up.AddCache(cache)
	n := startNode(b, node.Config{GoUpstream: up.URL, SumDB: up.Key, CargoUpstream: "sparse+" + up.URL + "/"})
	root, err := testenv.Root()
	if err != nil {
		b.Fatal(err)
	}
	proxies := []struct{ name, url string }{
		{"node", n.URL() + "/go"},
		{"file", "file://" + cache},
		{"fileserver", "http://" + serve(b, http.FileServer(http.Dir(cache)))},
	}
	download := func(proxy string) time.Duration {
		dir := b.TempDir()
		for _, name := range []string{"go.mod", "go.sum"} {
			text, err := os.ReadFile(filepath.Join(root, name))
			if err != nil {
				b.Fatal(err)
			}
			os.WriteFile(filepath.Join(dir, name), text, 0o644)
		}
		cmd := exec.Command("go", "mod", "download")
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOMODCACHE="+filepath.Join(dir, "modcache"), "GOPROXY="+proxy, "GOSUMDB=off", "GOFLAGS=-modcacherw", "GOENV=off", "NO_PROXY=127.0.0.1")
		start := time.Now()
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("go mod download from %s: %v\n%s", proxy, err, out)
		}
		return time.Since(start)
	}
	download(proxies[0].url) // warms the node
	times := map[string][]time.Duration{}
	for b.Loop() {
		for _, p := range proxies {
			times[p.name] = append(times[p.name], download(p.url))
		}
	}
	median := func(name string) float64 {
		slices.Sort(times[name])
		return times[name][len(times[name])/2].Seconds()
	}
	for _, p := range proxies {
		b.ReportMetric(median(p.name), p.name+"-s")
	}
	b.ReportMetric(median("node")/median("file"), "node/file")
}
