package integration

import (
	"bytes"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/internal/cargoupstream"
	"github.com/pkgswarm/pkgswarm/internal/goupstream"
)

var killCycles = flag.Int("cycles", 60, "how often TestKilled kills a node")

// A victim is the real program, started and killed again and again.
type victim struct {
	t     *testing.T
	prog  string
	dir   string
	cargo *cargoupstream.Server
	go_   *goupstream.Server
	want  map[string][]byte // by path
	r     *rand.Rand
}

var readyLine = regexp.MustCompile(`is ready at (http://\S+)`)

// start starts the program. Without wait it does not wait until it is ready.
func (v *victim) start(diskCap string, wait bool) *nodeProcess {
	v.t.Helper()
	p := &nodeProcess{cmd: exec.Command(v.prog, "serve", "--listen", "127.0.0.1:0", "--no-lan",
		"--data", filepath.Join(v.dir, "data"), "--state", filepath.Join(v.dir, "state"), "--disk-cap", diskCap,
		"--cargo-upstream", v.cargo.Index(), "--go-upstream", v.go_.URL, "--sumdb", v.go_.Key)}
	p.cmd.Env = append(os.Environ(), "GOENV=off", "GOPROXY=", "GOPRIVATE=", "HOME="+v.dir, "CARGO_HOME="+v.dir)
	banner := &firstMatch{re: readyLine, found: make(chan string, 1)}
	p.cmd.Stderr = banner
	begin := time.Now()
	if err := p.cmd.Start(); err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(p.kill)
	if !wait {
		return p
	}
	select {
	case p.url = <-banner.found:
		p.ready = time.Since(begin)
	case <-time.After(10 * time.Second):
		p.kill()
		v.t.Fatalf("not ready after 10 s:\n%s", banner.String())
	}
	return p
}

// A firstMatch is written to, and tells of what a pattern finds there.
type firstMatch struct {
	re    *regexp.Regexp
	found chan string

	mu   sync.Mutex
	b    bytes.Buffer
	done bool
}

func (f *firstMatch) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.b.Write(p)
	if m := f.re.FindSubmatch(f.b.Bytes()); m != nil && !f.done {
		f.done = true
		f.found <- string(m[1])
	}
	return len(p), nil
}

func (f *firstMatch) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.b.String()
}

// load asks for everything at once, until the node is gone.
func (v *victim) load(p *nodeProcess) *sync.WaitGroup {
	var wg sync.WaitGroup
	for path, want := range v.want {
		wg.Go(func() {
			status, b, err := p.get(path)
			if err == nil && (status != 200 || !bytes.Equal(b, want)) {
				v.t.Errorf("%s: %d, %d bytes", path, status, len(b))
			}
		})
	}
	return &wg
}

// wantTidy checks that the files on disk are those recorded, once the node has evicted
// what is over a cap that has become smaller.
func (v *victim) wantTidy(p *nodeProcess) {
	v.t.Helper()
	for end := time.Now().Add(5 * time.Second); ; {
		st := p.status(v.t)
		files, bytes, err := onDisk(v.dir)
		if err == nil && files == st.Store.Files && bytes == st.Store.Bytes {
			return
		}
		if time.Now().After(end) {
			v.t.Errorf("%d files of %d bytes on disk, %d of %d recorded, %v", files, bytes, st.Store.Files, st.Store.Bytes, err)
			return
		}
	}
}

// wantNothingLeft looks for files that a killed process has left behind, after the
// next one has started.
func (v *victim) wantNothingLeft() {
	v.t.Helper()
	filepath.WalkDir(v.dir, func(name string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(v.dir, name)
		if err == nil && !d.IsDir() && strings.Contains(rel, "tmp") {
			v.t.Errorf("left behind: %s", rel)
		}
		return nil
	})
	if aside, _ := filepath.Glob(filepath.Join(v.dir, "data", "store", "*damaged*")); len(aside) != 0 {
		v.t.Errorf("set aside: %v", aside)
	}
}

// size returns the size of all files.
func (v *victim) size() (n int64) {
	filepath.WalkDir(v.dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			if fi, err := d.Info(); err == nil {
				n += fi.Size()
			}
		}
		return nil
	})
	return n
}

// TestKilled kills the program while it serves, stores and evicts, while it starts
// and, as each start writes a table of the database and every fourth merges them,
// while it compacts. It starts again at once, has what it had, leaves nothing behind,
// and serves the right bytes. REL-2
func TestKilled(t *testing.T) {
	const modules = 10
	cycles := *killCycles
	if testing.Short() {
		cycles = 5
	}
	v := &victim{t: t, prog: buildProgram(t), dir: memoryDir(t), go_: goupstream.New(t), want: map[string][]byte{}}
	var crates map[string][]byte
	v.cargo, crates = madeUp(t, 60, 300_000)
	for name, b := range crates {
		v.want["/cargo/dl/"+name+"/1.0.0/download"] = b
	}
	for i := range modules {
		path := fmt.Sprintf("example.com/m%d", i)
		text := strings.Repeat(fmt.Sprintf("// %d\n", i), 5000)
		v.go_.Add(t, path, "v1.0.0", map[string]string{"go.mod": "module " + path + "\n", "m.go": "package m\n" + text})
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	v.r = rand.New(rand.NewPCG(seed, 0))
	p := v.start("6MB", true)
	for i := range modules {
		for _, file := range []string{"list", "v1.0.0.info", "v1.0.0.mod", "v1.0.0.zip"} {
			path := fmt.Sprintf("/go/example.com/m%d/@v/%s", i, file)
			status, b, err := p.get(path)
			if err != nil || status != 200 {
				t.Fatalf("%s: %d %v", path, status, err)
			}
			v.want[path] = b
		}
	}
	p.kill()
	var starts []time.Duration
	var steady int64 // bytes on disk after a quarter of the cycles
	had := int64(0)
	for cycle := range cycles {
		// In every other four cycles there is room for all, and nothing may be missing.
		diskCap, all := "6MB", cycle%8 < 4
		if all {
			diskCap = "100MB"
		}
		for v.r.IntN(3) == 0 {
			p := v.start(diskCap, false)
			time.Sleep(time.Duration(v.r.IntN(80)) * time.Millisecond)
			p.kill()
		}
		p := v.start(diskCap, true)
		starts = append(starts, p.ready)
		st := p.status(t)
		if st.Store.Files < had {
			t.Errorf("cycle %d: %d files, had %d before the kill", cycle, st.Store.Files, had)
		}
		v.wantTidy(p)
		v.wantNothingLeft()
		wg := v.load(p)
		switch {
		case all && cycle%4 == 1: // what is stored now is stored for good
			wg.Wait()
			for st = p.status(t); st.Fetching > 0; st = p.status(t) {
			}
			if had = st.Store.Files; had != int64(len(crates)+modules) {
				t.Errorf("cycle %d: %d files of %d crates and %d modules", cycle, had, len(crates), modules)
			}
		case all && cycle%4 == 3:
			had = 0 // what follows evicts
			fallthrough
		default:
			time.Sleep(time.Duration(v.r.IntN(200)) * time.Millisecond)
		}
		p.kill()
		wg.Wait()
		if cycle == cycles/4 {
			steady = v.size()
		}
		if t.Failed() {
			t.Fatalf("cycle %d", cycle)
		}
	}
	p = v.start("6MB", true)
	v.load(p).Wait()
	p.kill()
	p = v.start("6MB", true)
	st := p.status(t)
	for end := time.Now().Add(10 * time.Second); st.Store.Bytes > 6_000_000 && time.Now().Before(end); {
		st = p.status(t) // what was being served was not evicted before
	}
	if st.Store.Damaged != 0 || st.Store.Bytes > 6_000_000 || st.Usage.Failed != 0 {
		t.Errorf("at the end: %+v", st.Store)
	}
	size := v.size()
	slices.Sort(starts)
	t.Logf("%d cycles, ready after %v (median), %v (most), %d bytes on disk", cycles, starts[len(starts)/2], starts[len(starts)-1], size)
	if late := starts[len(starts)*19/20]; late > 2*time.Second { // but for moments in which the machine is busy
		t.Errorf("one start in twenty takes %v or more", late)
	}
	if size > max(steady, 12<<20)+8<<20 {
		t.Errorf("%d bytes on disk, %d after a quarter of the time", size, steady)
	}
}

// memoryDir returns a directory in memory where the system has one: what a killed
// process leaves does not depend on the disk, but the time for that does.
func memoryDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "pkgswarm-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
