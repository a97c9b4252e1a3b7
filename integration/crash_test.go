package integration

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/internal/cargoupstream"
	"github.com/pkgswarm/pkgswarm/internal/node"
	"github.com/pkgswarm/pkgswarm/internal/testenv"
)

// childEnv holds the configuration of a node that this test program runs when it
// is started again.
const childEnv = "PKGSWARM_TEST_NODE"

func TestMain(m *testing.M) {
	if c := os.Getenv(childEnv); c != "" {
		if err := runChild(c); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	code := m.Run()
	for _, dir := range sharedDirs {
		if err := os.RemoveAll(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

var (
	sharedMu   sync.Mutex
	sharedDirs []string // made by sharedDir
)

// sharedDir returns a new directory for what several tests use. It is removed after
// the last one.
func sharedDir() (string, error) {
	dir, err := os.MkdirTemp("", "pkgswarm-test-")
	sharedMu.Lock()
	defer sharedMu.Unlock()
	if err == nil {
		sharedDirs = append(sharedDirs, dir)
	}
	return dir, err
}

// runChild runs a node until its standard input ends.
func runChild(config string) error {
	var c node.Config
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		return err
	}
	n, err := node.Open(c)
	if err != nil {
		return err
	}
	if err := node.RecordCrashes(c.Data); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { io.Copy(io.Discard, os.Stdin); cancel() }()
	fmt.Println(n.URL())
	return errors.Join(n.Run(ctx), n.Close())
}

// A nodeProcess is a node in a process of its own.
type nodeProcess struct {
	cmd    *exec.Cmd
	stdin  io.Closer
	stderr bytes.Buffer
	url    string
	ready  time.Duration // from the start
}

func startProcess(t testing.TB, dir string, c node.Config) *nodeProcess {
	t.Helper()
	return startLimited(t, dir, c, "")
}

// startLimited starts a process after a shell command such as ulimit.
func startLimited(t testing.TB, dir string, c node.Config, limit string) *nodeProcess {
	t.Helper()
	p, err := tryProcess(t, dir, c, limit)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func tryProcess(t testing.TB, dir string, c node.Config, limit string) (*nodeProcess, error) {
	c.Listen, c.Data, c.State = "127.0.0.1:0", filepath.Join(dir, "data"), filepath.Join(dir, "state")
	b, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	p := &nodeProcess{cmd: exec.Command(os.Args[0])}
	if limit != "" {
		p.cmd = exec.Command("sh", "-c", limit+`; exec "$0"`, os.Args[0])
	}
	p.cmd.Env = append(os.Environ(), childEnv+"="+string(b), "GOENV=off", "GOPROXY=", "GOPRIVATE=")
	p.cmd.Stderr = &p.stderr
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	t.Cleanup(p.kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		p.kill()
		return nil, fmt.Errorf("the node did not start: %w\n%s", err, p.stderr.String())
	}
	p.url, p.ready = strings.TrimSpace(line), time.Since(begin)
	return p, nil
}

// stop lets the process end.
func (p *nodeProcess) stop() {
	p.stdin.Close()
	p.cmd.Wait()
}

func (p *nodeProcess) kill() {
	p.cmd.Process.Kill()
	p.cmd.Wait()
}

func (p *nodeProcess) get(path string) (int, []byte, error) {
	c := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Get(p.url + path)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, b, err
}

func (p *nodeProcess) status(t testing.TB) (st node.Status) {
	t.Helper()
	_, b, err := p.get("/api/v1/status")
	if err == nil {
		err = json.Unmarshal(b, &st)
	}
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// madeUp returns a registry of n crates of random sizes up to size bytes.
func madeUp(t testing.TB, n, size int) (*cargoupstream.Server, map[string][]byte) {
	up, crates := cargoupstream.New(t), map[string][]byte{}
	r := rand.NewChaCha8([32]byte{1})
	for i := range n {
		b := make([]byte, 1+int(r.Uint64()%uint64(size)))
		r.Read(b)
		name := fmt.Sprintf("crate%03d", i)
		crates[name] = b
		up.Add(t, name, "1.0.0", b)
	}
	return up, crates
}

// onDisk counts the files of the artifact store.
func onDisk(dir string) (files, bytes int64, err error) {
	err = filepath.WalkDir(filepath.Join(dir, "data", "artifacts"), func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == "format" {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		files++
		bytes += fi.Size()
		return nil
	})
	return files, bytes, err
}

// wantTidy checks that the files on disk are those recorded.
func wantTidy(t *testing.T, dir string, st node.Status) {
	t.Helper()
	if files, bytes, err := onDisk(dir); err != nil || files != st.Store.Files || bytes != st.Store.Bytes {
		t.Errorf("%d files of %d bytes on disk, %d of %d recorded, %v", files, bytes, st.Store.Files, st.Store.Bytes, err)
	}
}

// TestSmallDisk runs a node on a file system of 24 MiB that gets full. REL-7
func TestSmallDisk(t *testing.T) {
	if runtime.GOOS != "linux" {
		testenv.Missing(t, "mounts a tmpfs, as on Linux")
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=24m,mode=700", "tmpfs", dir).CombinedOutput(); err != nil {
		testenv.Missing(t, "cannot mount a tmpfs: %v: %s", err, out)
	}
	t.Cleanup(func() { exec.Command("umount", "-l", dir).Run() })
	up, crates := madeUp(t, 40, 2_000_000)
	c := node.Config{CargoUpstream: up.Index(), GoUpstream: "off", SumDB: "off", MinFree: 4 << 20}
	p := startProcess(t, dir, c)
	all := func() {
		t.Helper()
		for name, want := range crates {
			if status, b, err := p.get("/cargo/dl/" + name + "/1.0.0/download"); err != nil || status != 200 || !bytes.Equal(b, want) {
				t.Errorf("%s: %d, %d bytes, %v", name, status, len(b), err)
			}
		}
	}
	all() // more than fits: evicts
	if st := p.status(t); st.Store.Evicted == 0 || st.Store.Files == 0 {
		t.Errorf("%d files, %d evicted", st.Store.Files, st.Store.Evicted)
	}
	// Somebody else fills the disk to the last byte.
	hog := filepath.Join(dir, "hog")
	f, err := os.Create(hog)
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := f.Write(make([]byte, 64<<10)); err != nil {
			break
		}
	}
	f.Close()
	all() // passes through
	if status, _, err := p.get("/readyz"); status != 200 {
		t.Errorf("/readyz on a full disk: %d %v", status, err)
	}
	os.Remove(hog)
	all()
	if st := p.status(t); st.Store.Files == 0 {
		out, _ := exec.Command("du", "-ak", dir).CombinedOutput()
		t.Errorf("nothing is stored after there is room again: %+v\n%s", st.Store, out)
	}
	p.kill()
	p = startProcess(t, dir, c)
	wantTidy(t, dir, p.status(t))
	all()
}

// TestFewDescriptors gives a node 128 descriptors and holds more connections than
// that, idle, while good requests come. REL-8
func TestFewDescriptors(t *testing.T) {
	if runtime.GOOS == "windows" {
		testenv.Missing(t, "no ulimit on Windows")
	}
	up, crates := madeUp(t, 60, 100_000)
	p := startLimited(t, t.TempDir(), node.Config{CargoUpstream: up.Index(), GoUpstream: "off", SumDB: "off", SwarmListen: "127.0.0.1:0"}, "ulimit -n 128")
	addr := strings.TrimPrefix(p.url, "http://")
	swarmAddr := p.status(t).Swarm.Listen[0]
	var idle []net.Conn
	for i := range 300 {
		to := addr
		if i%2 == 0 {
			to = swarmAddr
		}
		if c, err := net.Dial("tcp", to); err == nil {
			idle = append(idle, c)
		}
	}
	var wg sync.WaitGroup
	for name, want := range crates {
		wg.Go(func() {
			if status, b, err := p.get("/cargo/dl/" + name + "/1.0.0/download"); err != nil || status != 200 || !bytes.Equal(b, want) {
				t.Errorf("%s: %d, %d bytes, %v", name, status, len(b), err)
			}
		})
	}
	wg.Wait()
	for _, c := range idle {
		c.Close()
	}
	if status, _, err := p.get("/readyz"); status != 200 {
		t.Errorf("/readyz afterwards: %d %v", status, err)
	}
}

// getStatus gets a URL, whatever the status.
func getStatus(t testing.TB, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}
