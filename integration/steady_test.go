package integration

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/internal/goupstream"
	"github.com/pkgswarm/pkgswarm/internal/node"
	"github.com/pkgswarm/pkgswarm/internal/testenv"
)

var steadyTime = flag.Duration("steady", 15*time.Second, "how long TestSteady loads a node")

// usage is what a process holds.
type usage struct {
	at                                               time.Duration
	files, sockets, threads, goroutines, kiB, onDisk float64
}

// TestSteady loads a node with all sorts of requests, and with files that come and
// go. Once it is warm, nothing that it holds grows. REL-15
func TestSteady(t *testing.T) {
	if runtime.GOOS != "linux" {
		testenv.Missing(t, "reads /proc, as on Linux")
	}
	length := *steadyTime
	if testing.Short() {
		length = 5 * time.Second
	}
	up, crates := madeUp(t, 40, 100_000)
	g := goupstream.New(t)
	for i := range 5 {
		path := fmt.Sprintf("example.com/m%d", i)
		g.Add(t, path, "v1.0.0", map[string]string{"go.mod": "module " + path + "\n", "m.go": "package m\n" + strings.Repeat("// text\n", 9000)})
	}
	dir := t.TempDir()
	p := startProcess(t, dir, node.Config{CargoUpstream: up.Index(), GoUpstream: g.URL, SumDB: g.Key, DiskCap: 1 << 20, IndexTTL: 100 * time.Millisecond})
	round := func(n int) {
		var wg sync.WaitGroup
		for name, want := range crates {
			wg.Go(func() {
				p.get("/cargo/" + name[:2] + "/" + name[2:4] + "/" + name)
				p.get(fmt.Sprintf("/cargo/no/ne/none%s%d", name, n))
				p.get("/cargo/%zz")
				if _, b, err := p.get("/cargo/dl/" + name + "/1.0.0/download"); err != nil || !bytes.Equal(b, want) {
					t.Errorf("%s: %d bytes, %v", name, len(b), err)
				}
			})
		}
		for i := range 5 {
			wg.Go(func() {
				for _, file := range []string{"list", "v1.0.0.info", "v1.0.0.mod", "v1.0.0.zip", fmt.Sprintf("v9.0.%d.info", n)} {
					p.get(fmt.Sprintf("/go/example.com/m%d/@v/%s", i, file))
				}
			})
		}
		wg.Wait()
		for _, page := range []string{"/metrics", "/api/v1/status", "/readyz", "/"} {
			p.get(page)
		}
	}
	begin := time.Now()
	var seen []usage
	for n := 0; time.Since(begin) < length; n++ {
		round(n)
		u := p.usage(t, dir)
		if u.at = time.Since(begin); u.at > length/3 { // warm
			seen = append(seen, u)
		}
	}
	if len(seen) < 5 {
		t.Fatalf("only %d rounds in %v", len(seen), length)
	}
	for _, what := range []struct {
		name   string
		of     func(u usage) float64
		spread float64 // that is noise, whatever the length
	}{
		{"open files", func(u usage) float64 { return u.files }, 3},
		{"sockets", func(u usage) float64 { return u.sockets }, 16},       // idle connections to upstreams come and go
		{"threads", func(u usage) float64 { return u.threads }, 24},       // one more for each call that a busy disk holds up; they stay
		{"goroutines", func(u usage) float64 { return u.goroutines }, 30}, // two for each such connection
		{"KiB resident", func(u usage) float64 { return u.kiB }, 12 << 10},
		{"bytes on disk", func(u usage) float64 { return u.onDisk }, 8 << 20}, // logs of the databases, up to where they are folded
	} {
		mean, growth := trend(seen, what.of)
		t.Logf("%s: mean %.0f, %+.1f over %v", what.name, mean, growth, length*2/3)
		if growth > what.spread {
			t.Errorf("%s: %.0f, and %+.1f over %v, which is more than %.0f", what.name, mean, growth, length*2/3, what.spread)
		}
	}
}

// trend returns the mean and how much the line through the values, by least
// squares, rises from the first to the last.
func trend(seen []usage, of func(usage) float64) (mean, growth float64) {
	var meanAt, above, below float64
	for _, u := range seen {
		mean += of(u) / float64(len(seen))
		meanAt += u.at.Seconds() / float64(len(seen))
	}
	for _, u := range seen {
		d := u.at.Seconds() - meanAt
		above += d * (of(u) - mean)
		below += d * d
	}
	return mean, above / below * (seen[len(seen)-1].at - seen[0].at).Seconds()
}

// usage returns what the process holds. Connections that are just being closed are
// waited for.
func (p *nodeProcess) usage(t *testing.T, dir string) (u usage) {
	t.Helper()
	proc := fmt.Sprintf("/proc/%d/", p.cmd.Process.Pid)
	for try := range 20 {
		var files, sockets float64
		fds, err := os.ReadDir(proc + "fd")
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range fds {
			switch to, _ := os.Readlink(proc + "fd/" + fd.Name()); {
			case strings.HasPrefix(to, "socket:"):
				sockets++
			case to != "":
				files++
			}
		}
		if try == 0 || sockets < u.sockets {
			u.sockets = sockets
		}
		if try == 0 || files < u.files {
			u.files = files
		}
		runtime.Gosched()
	}
	b, err := os.ReadFile(proc + "status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		fmt.Sscanf(line, "VmRSS: %f", &u.kiB)
		fmt.Sscanf(line, "Threads: %f", &u.threads)
	}
	_, metrics, err := p.get("/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for sc := bufio.NewScanner(bytes.NewReader(metrics)); sc.Scan(); {
		fmt.Sscanf(sc.Text(), "go_goroutines %f", &u.goroutines)
	}
	filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			if fi, err := d.Info(); err == nil {
				u.onDisk += float64(fi.Size())
			}
		}
		return nil
	})
	return u
}
