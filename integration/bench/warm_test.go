package bench

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/internal/goupstream"
	"github.com/pkgswarm/pkgswarm/internal/node"
)

// Connections of a load: so many that the machine never waits, as it otherwise does
// for a third of the time, and as few as a build has.
const (
	many = 128
	few  = 16
)

// window is how long each side of a warm answer is asked for in a round.
const window = 300 * time.Millisecond

// goModule has one module with a zip of 1 MB.
func goModule(b testing.TB) *goupstream.Server {
	up := goupstream.New(b)
	up.Add(b, "example.com/a", "v1.0.0", map[string]string{"go.mod": "module example.com/a\n\ngo 1.21\n", "noise": string(noise(1, 1<<20))})
	up.PutLatest("example.com/a", []byte(`{"Version":"v1.0.0","Time":"2024-05-06T07:08:09Z"}`))
	return up
}

// BenchmarkWarm is goals P1, P2 and P3: answers that a node holds, against nginx
// and Go's file server with the same files and, where they are small, against what
// net/http allows.
func BenchmarkWarm(b *testing.B) {
	goUp, cargoUp := goModule(b), madeUp(b, 1<<20, 50<<20)
	n := startNode(b, node.Config{GoUpstream: goUp.URL, SumDB: goUp.Key, CargoUpstream: cargoUp.Index()})
	dir := b.TempDir()
	os.Chmod(dir, 0o755)
	files := serve(b, http.FileServer(http.Dir(dir)))
	ngx, nginxCPU := nginx(b, dir)
	const mod = "/go/example.com/a/"
	for _, f := range []struct {
		goal, what, path string
		conns            int
		bytes            float64 // of a large file
		nginx, server    float64 // what is wanted, as ratios; 0: no goal
	}{
		{"P1", ".info", mod + "@v/v1.0.0.info", many, 0, 0.45, 1.2},
		{"P1", ".info, 16 connections", mod + "@v/v1.0.0.info", few, 0, 0.45, 1.2},
		{"P1", ".mod", mod + "@v/v1.0.0.mod", many, 0, 0.45, 1.2},
		{"P1", "index file", "/cargo/cr/at/crate0", many, 0, 0.45, 1.2},
		{"P2", "@v/list", mod + "@v/list", many, 0, 0.45, 1.2},
		{"P2", "@latest", mod + "@latest", many, 0, 0.45, 1.2},
		{"P3", "1 MB zip", mod + "@v/v1.0.0.zip", few, 1 << 20, 0.9, 0},
		{"P3", "1 MB crate", crate(0), few, 1 << 20, 0.9, 0},
		{"P3", "50 MB crate", crate(1), few, 50 << 20, 0.9, 0},
	} {
		b.Run(f.what, func(b *testing.B) {
			keep(b, n.URL()+f.path, filepath.Join(dir, filepath.FromSlash(f.path)))
			unit, scale := "req", 1.0
			if f.bytes > 0 {
				unit, scale = "MB", f.bytes/1e6
			}
			perCPU := map[string][]float64{}
			party := func(name, addr, path string, others func() float64) side {
				return side{name, func() float64 {
					before := ownCPU() + others()
					answers, seconds := load(b, f.conns, addr, path)
					perCPU[name] = append(perCPU[name], scale*answers/(ownCPU()+others()-before))
					return scale * answers / seconds
				}}
			}
			none := func() float64 { return 0 }
			sides := []side{party("node", n.Addr().String(), f.path, none), party("FileServer", files, f.path, none)}
			if f.bytes == 0 {
				sides = append(sides, party("net/http", serve(b, fromMemory(b, filepath.Join(dir, filepath.FromSlash(f.path)))), f.path, none))
			}
			if ngx != "" {
				sides = append(sides, party("nginx", ngx, f.path, nginxCPU))
			}
			perSecond := turns(b, sides...)
			compare := func(unit string, figures map[string][]float64, against string, want float64) {
				if theirs := figures[against]; theirs != nil {
					add(figure{f.goal, f.what, unit, median(figures["node"]), median(theirs), against, ratio(figures["node"], theirs), "%.2fx", want, true})
				}
			}
			for _, against := range []struct {
				name string
				want float64
			}{{"nginx", f.nginx}, {"FileServer", f.server}, {"net/http", 0}} {
				compare(unit+"/s", perSecond, against.name, against.want)
				compare(unit+"/CPU s", perCPU, against.name, against.want)
			}
		})
	}
}

// keep writes the answer at url to a file, and so has the node hold it.
func keep(b testing.TB, url, name string) {
	b.Helper()
	resp, err := http.Get(url)
	if err != nil {
		b.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || resp.StatusCode != 200 {
		b.Fatalf("%s: %s %v %s", url, resp.Status, err, body)
	}
	os.MkdirAll(filepath.Dir(name), 0o755)
	if err := os.WriteFile(name, body, 0o644); err != nil {
		b.Fatal(err)
	}
}

// fromMemory answers every request with the bytes of a file and no header but the
// length: what net/http allows.
func fromMemory(b testing.TB, name string) http.Handler {
	body, err := os.ReadFile(name)
	if err != nil {
		b.Fatal(err)
	}
	length := []string{strconv.Itoa(len(body))}
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Content-Length"] = length
		w.Write(body)
	})
}
