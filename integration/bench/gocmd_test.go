package bench

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/internal/goupstream"
	"github.com/pkgswarm/pkgswarm/internal/node"
	"github.com/pkgswarm/pkgswarm/internal/testenv"
)

// downloadCache is where this machine's go keeps what it has downloaded, among it
// all that builds this module.
func downloadCache(b *testing.B) string {
	testenv.Need(b, "go")
	out, err := exec.Command("go", "env", "GOMODCACHE").Output()
	if err != nil {
		b.Fatal(err)
	}
	return filepath.Join(strings.TrimSpace(string(out)), "cache", "download")
}

// A goUser has this module's go.mod and empty caches.
type goUser struct {
	proxy, sumdb string
	noSum        bool // no go.sum either
}

// run runs go and returns the time it took, and the CPU time that it and this
// process used, in seconds.
func (u goUser) run(b *testing.B, args ...string) (wall, cpu float64) {
	b.Helper()
	root, err := testenv.Root()
	if err != nil {
		b.Fatal(err)
	}
	dir, err := os.MkdirTemp(memoryDir(), "pkgswarm-bench-")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	for _, name := range []string{"go.mod", "go.sum"} {
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			b.Fatal(err)
		}
		if name == "go.mod" || !u.noSum {
			os.WriteFile(filepath.Join(dir, name), text, 0o644)
		}
	}
	cmd := exec.Command("go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOMODCACHE="+filepath.Join(dir, "modcache"), "GOPATH="+filepath.Join(dir, "gopath"), "GOPROXY="+u.proxy, "GOSUMDB="+u.sumdb,
		"GOFLAGS=-modcacherw", "GOENV=off", "GOWORK=off", "GOTOOLCHAIN=local", "GOPRIVATE=", "GONOPROXY=", "GONOSUMDB=", "NO_PROXY=127.0.0.1")
	start, own := time.Now(), ownCPU()
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("go %s from %s: %v\n%s", strings.Join(args, " "), u.proxy, err, out)
	}
	wall = time.Since(start).Seconds()
	return wall, ownCPU() - own + (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
}

// memoryDir is where the client's caches are: in memory if that can be had, since
// a disk that others use as well takes five times as long, and not evenly.
func memoryDir() string {
	const shm = "/dev/shm"
	if fi, err := os.Stat(shm); err == nil && fi.IsDir() {
		return shm
	}
	return ""
}

// BenchmarkGoDownload is goal P4: go mod download and go mod graph with cold client
// caches, warm servers and a complete go.sum, through a node. A download, most of
// which is unpacking, is held against the go command's own file://, which needs no
// requests; both are held against nginx. What nginx takes beside file://, and what
// net/http's own file server takes beside nginx, is not ours.
func BenchmarkGoDownload(b *testing.B) {
	cache := downloadCache(b)
	up := goupstream.New(b)
	up.AddCache(cache)
	n := startNode(b, node.Config{GoUpstream: up.URL, SumDB: up.Key, CargoUpstream: "sparse+" + up.URL + "/"})
	proxies := map[string]string{
		"node":       n.URL() + "/go",
		"file://":    "file://" + cache,
		"FileServer": "http://" + serve(b, http.FileServer(http.Dir(cache))),
	}
	ngx, nginxCPU := nginx(b, cache)
	if ngx != "" {
		proxies["nginx"] = "http://" + ngx
	}
	for _, command := range []string{"graph", "download"} {
		b.Run(command, func(b *testing.B) {
			cpu := map[string][]float64{}
			var sides []side
			for name, proxy := range proxies {
				u := goUser{proxy: proxy, sumdb: "off"}
				u.run(b, "mod", command) // warms the node, and the disk cache for all
				sides = append(sides, side{name, func() float64 {
					var served float64
					if name == "nginx" {
						served = -nginxCPU()
					}
					seconds, used := u.run(b, "mod", command)
					if name == "nginx" {
						served += nginxCPU()
					}
					cpu[name] = append(cpu[name], used+served)
					return seconds
				}})
			}
			wall := turns(b, sides...)
			compare := func(what, who, against string, want float64) {
				for _, f := range []struct {
					unit    string
					figures map[string][]float64
				}{{"s", wall}, {"CPU s", cpu}} {
					if ours, theirs := f.figures[who], f.figures[against]; ours != nil && theirs != nil {
						add(figure{"P4", what, f.unit, median(ours), median(theirs), against, ratio(ours, theirs), "%.2fx", want, false})
					}
				}
			}
			what := "go mod " + command
			if command == "download" {
				compare(what, "node", "file://", 1.03)
				compare(what+" from nginx", "nginx", "file://", 0)
			}
			compare(what, "node", "nginx", 1.15)
			compare(what+" from FileServer", "FileServer", "nginx", 0)
		})
	}
}

// ownCPU returns the CPU time that this process has used, in seconds.
func ownCPU() float64 {
	var r syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &r) != nil {
		return 0
	}
	return float64(r.Utime.Nano()+r.Stime.Nano()) / 1e9
}

// BenchmarkRequests is goal P6: how many requests reach the upstream when a cold
// client downloads this module's dependencies directly, and through a cold node.
// Counts need no rounds. The document's own figures (591 requests for 173 modules:
// three each, and 72 more go.mod files) have no checksum database in them.
//
// Where a client has a complete go.sum it does not ask the database, but a node
// does: see package modules on what proving costs.
func BenchmarkRequests(b *testing.B) {
	cache := downloadCache(b)
	for b.Loop() {
		for _, c := range []struct {
			what string
			u    goUser // of the checksum database only whether
			want float64
		}{
			{"no checksum database", goUser{sumdb: "off"}, 1},
			{"no go.sum", goUser{noSum: true}, 1},
			{"complete go.sum", goUser{}, 1},
		} {
			up := goupstream.New(b)
			up.AddCache(cache)
			up.Grow(b, "other", 3000)
			if c.u.sumdb == "" {
				c.u.sumdb = up.Key
			}
			direct := c.u
			direct.proxy, direct.noSum = up.URL, true
			direct.run(b, "mod", "download") // adds the records to the database
			direct.noSum = c.u.noSum
			up.Asked()
			direct.run(b, "mod", "download")
			theirs := float64(len(up.Asked()))
			n := startNode(b, node.Config{GoUpstream: up.URL, SumDB: c.u.sumdb, CargoUpstream: "sparse+" + up.URL + "/"})
			through := c.u
			through.proxy = n.URL() + "/go"
			through.run(b, "mod", "download")
			ours := float64(len(up.Asked()))
			add(figure{"P6", "upstream requests, " + c.what, "requests", ours, theirs, "direct", ours / theirs, "%.2fx", c.want, false})
		}
	}
}
