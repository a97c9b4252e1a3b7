//go:build unix

package integration

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/pkgswarm/pkgswarm/bee"
	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/internal/testenv"
	"github.com/pkgswarm/pkgswarm/swarm"
	"github.com/pkgswarm/pkgswarm/swarm/remotebee"
	"github.com/pkgswarm/pkgswarm/swarm/replicate"
)

// exampleScripts returns the JavaScript programs in the comment of package swarm's
// example: the one that reads and the one that serves.
func exampleScripts(t *testing.T) (read, serve string) {
	t.Helper()
	b, err := os.ReadFile("../swarm/example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	comment, _, _ := strings.Cut(string(b), "\nfunc Example() {")
	var code strings.Builder
	for line := range strings.Lines(comment) {
		if text, ok := strings.CutPrefix(line, "//\t"); ok {
			code.WriteString(text)
		}
	}
	read, serve, ok := strings.Cut(code.String(), "// serves one")
	if !ok {
		t.Fatal("the example of package swarm has no two scripts")
	}
	return read, "// serves one" + serve
}

// runSwarm runs a swarm until the test ends.
func runSwarm(t *testing.T, c swarm.Config) *swarm.Swarm {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	c.Key = key
	s, err := swarm.New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { s.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return s
}

// TestExampleScripts exchanges Hyperbees, with nothing but the packages that others
// import, with the JavaScript programs of package swarm's example, either way.
func TestExampleScripts(t *testing.T) {
	testenv.StartNode(t, "echo.mjs") // installs what the scripts import
	node, dir := testenv.Need(t, "node"), t.TempDir()
	if err := os.Symlink(absolute(t, "js/node_modules"), filepath.Join(dir, "node_modules")); err != nil {
		t.Fatal(err)
	}
	read, serve := exampleScripts(t)
	for name, text := range map[string]string{"read.mjs": read, "serve.mjs": serve} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	store, err := core.OpenStore(t.TempDir(), core.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })

	c, err := store.Named("colours")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := bee.Open(c, bee.Options{}).Put(t.Context(), []byte("apple"), []byte("red")); err != nil {
		t.Fatal(err)
	}
	server := runSwarm(t, swarm.Config{Listen: []string{"127.0.0.1:0"}})
	if _, err := server.Open(c, replicate.SessionOptions{}); err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(server.Addrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	reading := exec.Command(node, "read.mjs", c.Key().Hex(), port)
	reading.Dir, reading.Stderr = dir, t.Output()
	if out, err := reading.Output(); err != nil || string(out) != "apple red\n" {
		t.Errorf("read.mjs printed %q, %v", out, err)
	}

	free := strconv.Itoa(freePort(t))
	serving := exec.Command(node, "serve.mjs", free)
	serving.Dir, serving.Stderr = dir, t.Output()
	out, err := serving.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := serving.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		serving.Process.Kill()
		serving.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	key, err := core.ParseKey(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	replica, err := store.Open(key)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { replica.Close() })
	client := runSwarm(t, swarm.Config{Peers: []string{"127.0.0.1:" + free}})
	tree, session, err := remotebee.Open(client.Open, replica, bee.Options{}, replicate.SessionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := session.Update(t.Context()); err != nil {
		t.Fatal(err)
	}
	if e, err := tree.Get(t.Context(), []byte("apple")); err != nil || string(e.Value) != "red" {
		t.Errorf("get from serve.mjs = %q, %v", e.Value, err)
	}
}
