//go:build unix

package integration

import (
	"bufio"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/internal/testenv"
)

// readmeCommands returns the commands that README opens with.
func readmeCommands(t *testing.T) []string {
	b, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	var commands []string
	for line := range strings.Lines(string(b)) {
		if c, ok := strings.CutPrefix(line, "    "); ok {
			commands = append(commands, strings.TrimSpace(c))
		} else if len(commands) > 0 {
			break
		}
	}
	if len(commands) != 2 {
		t.Fatalf("README opens with %q, want two commands", commands)
	}
	return commands
}

// TestReadme does what README says, in a fresh clone with an empty home and module
// cache: the first command runs the mirror. The second one is what runs this test.
func TestReadme(t *testing.T) {
	if testing.Short() {
		t.Skip("downloads all modules")
	}
	testenv.Need(t, "git")
	commands := readmeCommands(t)
	if commands[1] != "go test ./..." {
		t.Errorf("the second command is %q", commands[1])
	}
	dir, home := t.TempDir(), t.TempDir()
	clone := filepath.Join(dir, "clone")
	if out, err := exec.Command("git", "clone", "-q", "--depth=1", "file://"+absolute(t, ".."), clone).CombinedOutput(); err != nil {
		t.Fatalf("git clone: %v\n%s", err, out)
	}
	cmd := exec.Command("sh", "-c", "exec "+commands[0])
	cmd.Dir = clone
	cmd.Env = append(os.Environ(), "HOME="+home, "GOMODCACHE="+filepath.Join(dir, "mod"), "GOFLAGS=-modcacherw",
		"XDG_CONFIG_HOME=", "XDG_CACHE_HOME=", "XDG_STATE_HOME=", "CARGO_HOME="+filepath.Join(home, ".cargo"), "GOCACHE="+goCache(t),
		"PKGSWARM_LISTEN=127.0.0.1:0", "PKGSWARM_LAN=false") // other nodes may run on this machine
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill := time.AfterFunc(10*time.Minute, func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	defer kill.Stop()
	defer syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)

	url := ""
	lines := bufio.NewScanner(stderr)
	for url == "" && lines.Scan() {
		if _, after, ok := strings.Cut(lines.Text(), "is ready at "); ok {
			url = strings.Fields(after)[0]
		}
	}
	if url == "" {
		t.Fatalf("%s ends without being ready: %v", commands[0], cmd.Wait())
	}
	resp, err := http.Get(url + "/readyz")
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("readyz = %v, %v", resp, err)
	} else {
		resp.Body.Close()
	}
	syscall.Kill(-cmd.Process.Pid, syscall.SIGINT)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "pkgswarm:") {
			t.Errorf("interrupted, it says %q", lines.Text())
		}
	}
	cmd.Wait() // go run ends with 1 when it is interrupted, whatever the program says
	if _, err := http.Get(url + "/readyz"); err == nil {
		t.Error("interrupted, it still answers")
	}
}

func absolute(t *testing.T, path string) string {
	abs, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return abs
}

// goCache returns the build cache that is in use: compiling everything anew is not
// what is tested.
func goCache(t *testing.T) string {
	out, err := exec.Command("go", "env", "GOCACHE").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}
