//go:build unix

package integration

import (
	"bufio"
	"bytes"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/pkgswarm/pkgswarm/internal/testenv"
)

// readmeScripts returns the JavaScript programs in README: one that clones a core,
// and one that serves one.
func readmeScripts(t *testing.T) (clone, serve string) {
	t.Helper()
	b, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(string(b), "```js\n")
	if len(parts) != 3 {
		t.Fatalf("README has %d scripts, want 2", len(parts)-1)
	}
	clone, _, _ = strings.Cut(parts[1], "```")
	serve, _, _ = strings.Cut(parts[2], "```")
	return clone, serve
}

// TestReadmeScripts runs README's programs with the program's own peers: a core
// goes from core serve to JavaScript, and another from there to core clone.
func TestReadmeScripts(t *testing.T) {
	testenv.StartNode(t, "echo.mjs") // installs what the scripts import
	node := testenv.Need(t, "node")
	prog, dir := buildProgram(t), t.TempDir()
	if err := os.Symlink(absolute(t, "js/node_modules"), filepath.Join(dir, "node_modules")); err != nil {
		t.Fatal(err)
	}
	clone, serve := readmeScripts(t)
	for name, text := range map[string]string{"clone.mjs": clone, "serve.mjs": serve} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	command := func(name string, args ...string) *exec.Cmd {
		c := exec.Command(name, args...)
		c.Dir, c.Stderr = dir, t.Output()
		return c
	}
	run := func(in string, name string, args ...string) string {
		t.Helper()
		c := command(name, args...)
		c.Stdin = strings.NewReader(in)
		out, err := c.Output()
		if err != nil {
			t.Fatalf("%s %q: %v", name, args, err)
		}
		return string(out)
	}
	// background starts a command, and returns the first line that it prints.
	background := func(name string, args ...string) []byte {
		t.Helper()
		c := command(name, args...)
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			c.Process.Kill()
			c.Wait()
		})
		line, err := bufio.NewReader(out).ReadBytes('\n')
		if err != nil {
			t.Fatalf("%s %q: %v", name, args, err)
		}
		return bytes.TrimSpace(line)
	}

	run("", prog, "core", "new", "--name", "notes", "--data", "a")
	run("1\n2\n3\n", prog, "core", "append", "notes", "--lines", "--data", "a")
	var served struct {
		Key    string
		Listen []string
	}
	if err := json.Unmarshal(background(prog, "core", "serve", "notes", "--data", "a", "--json"), &served); err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(served.Listen[0])
	if err != nil {
		t.Fatal(err)
	}
	if got := run("", node, "clone.mjs", served.Key, port); got != "123" {
		t.Errorf("clone.mjs printed %q", got)
	}

	free := strconv.Itoa(freePort(t))
	key := string(background(node, "serve.mjs", free))
	if got := run("", prog, "core", "clone", key, "--peer", "127.0.0.1:"+free, "--data", "b", "--out", "-"); got != "onetwothree" {
		t.Errorf("core clone printed %q", got)
	}
}

// freePort returns a port that nobody listens on.
func freePort(t *testing.T) int {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}
