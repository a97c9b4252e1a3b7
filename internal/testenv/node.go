package testenv

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// A Node is a running program of integration/js, which answers calls one line
// of JSON each: {"id":1,"method":"append","params":…} with {"id":1,"result":…}
// or {"id":1,"error":"…"} (integration/js/lib/rpc.mjs is the other half).
// Byte strings travel as [vectors.Hex] does, in hex.
//
// Its methods may be called concurrently; calls are answered one at a time.
type Node struct {
	cmd    *exec.Cmd
	stderr *bytes.Buffer

	mu  sync.Mutex // guards what follows
	in  io.WriteCloser
	out *bufio.Reader
	id  int
}

// StartNode runs a script of integration/js, such as "bee.mjs", until the test
// ends. The pinned packages are installed when they are missing or out of date.
func StartNode(t testing.TB, script string, args ...string) *Node {
	t.Helper()
	node := Need(t, "node")
	Need(t, "npm")
	n, err := NewNode(node, script, args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Errorf("%s: %v", script, err)
		}
	})
	return n
}

// NewNode is StartNode for callers that are no test, such as benchmarks: they
// close it themselves. node is the path of the executable.
func NewNode(node, script string, args ...string) (*Node, error) {
	dir, err := InstallJS()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(node, append([]string{filepath.Join(dir, script)}, args...)...)
	cmd.Dir = dir
	n := &Node{cmd: cmd, stderr: new(bytes.Buffer)}
	cmd.Stderr = n.stderr
	if n.in, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	n.out = bufio.NewReaderSize(out, 1<<16)
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return n, nil
}

// Call runs a method of the script and decodes its result, unless that is nil.
// An exception there is an error here.
func (n *Node) Call(method string, params, result any) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.id++
	req, err := json.Marshal(struct {
		ID     int    `json:"id"`
		Method string `json:"method"`
		Params any    `json:"params"`
	}{n.id, method, params})
	if err != nil {
		return err
	}
	if _, err := n.in.Write(append(req, '\n')); err != nil {
		return fmt.Errorf("call %s: %w", method, n.died(err))
	}
	line, err := n.out.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("call %s: %w", method, n.died(err))
	}
	var answer struct {
		ID     int
		Error  *string
		Result json.RawMessage
	}
	if err := json.Unmarshal(line, &answer); err != nil {
		return fmt.Errorf("call %s: answer %.200q: %w", method, line, err)
	}
	switch {
	case answer.ID != n.id:
		return fmt.Errorf("call %s: answer to call %d, want %d", method, answer.ID, n.id)
	case answer.Error != nil:
		return fmt.Errorf("call %s: %s", method, *answer.Error)
	case result == nil || len(answer.Result) == 0:
		return nil
	}
	return json.Unmarshal(answer.Result, result)
}

// MustCall is Call for tests: an error ends the test.
func (n *Node) MustCall(t testing.TB, method string, params, result any) {
	t.Helper()
	if err := n.Call(method, params, result); err != nil {
		t.Fatal(err)
	}
}

// Process returns the process, for its id and resource usage.
func (n *Node) Process() *exec.Cmd { return n.cmd }

// Close ends the program by closing its standard input and waits for it.
func (n *Node) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.in.Close()
	if err := n.cmd.Wait(); err != nil {
		return fmt.Errorf("%w: %s", err, n.stderr)
	}
	return nil
}

// died explains a broken pipe by what the program said last.
func (n *Node) died(err error) error {
	n.in.Close()
	n.cmd.Wait()
	return fmt.Errorf("%w: %s", err, n.stderr)
}

var install struct {
	sync.Mutex
	dir string
}

// InstallJS makes sure that the packages which integration/js/package-lock.json
// pins are installed, and returns the directory integration/js. Test binaries
// that run at the same time may all call it.
func InstallJS() (string, error) {
	install.Lock()
	defer install.Unlock()
	if install.dir != "" {
		return install.dir, nil
	}
	root, err := Root()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(root, "integration", "js")
	lock, err := os.ReadFile(filepath.Join(dir, "package-lock.json"))
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(lock)
	want := hex.EncodeToString(sum[:])
	if !installed(dir, want) {
		if err := npmCI(dir, want); err != nil {
			return "", fmt.Errorf("install integration/js: %w", err)
		}
	}
	install.dir = dir
	return dir, nil
}

// stamp is a file in node_modules that holds the hash of the lock file which
// the packages beside it were installed from.
const stamp = ".pkgswarm-lock-sha256"

func installed(dir, want string) bool {
	have, err := os.ReadFile(filepath.Join(dir, "node_modules", stamp))
	return err == nil && string(have) == want
}

// npmCI installs into a directory of its own, which then becomes node_modules
// by one rename: whoever is first wins, and nobody sees half an installation.
func npmCI(dir, sum string) error {
	tmp, err := os.MkdirTemp(dir, "node_modules.tmp-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	for _, name := range []string{"package.json", "package-lock.json", ".npmrc"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(tmp, name), b, 0o644); err != nil {
			return err
		}
	}
	cmd := exec.Command("npm", "ci", "--no-audit", "--no-fund")
	cmd.Dir = tmp
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("npm ci: %w: %s", err, out)
	}
	modules := filepath.Join(tmp, "node_modules")
	if err := os.WriteFile(filepath.Join(modules, stamp), []byte(sum), 0o644); err != nil {
		return err
	}
	dest := filepath.Join(dir, "node_modules")
	if err := os.Rename(modules, dest); err == nil || installed(dir, sum) {
		return nil
	}
	// What stands there is out of date: out of the way with it.
	os.Rename(dest, filepath.Join(tmp, "old"))
	if err := os.Rename(modules, dest); err != nil && !installed(dir, sum) {
		return err
	}
	return nil
}
