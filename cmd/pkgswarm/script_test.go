package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/internal/testenv"
	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	if code, ok := standIn(os.Args); ok { // run has started us in place of cargo
		os.Exit(code)
	}
	testscript.Main(m, map[string]func(){
		"pkgswarm": main,
	})
}

// TestScripts runs the real main on the scripts in testdata, each in a directory
// and a home of its own.
func TestScripts(t *testing.T) { runScripts(t, "testdata") }

// TestRealClients runs the scripts that need cargo, go and shells.
func TestRealClients(t *testing.T) {
	for _, tool := range []string{"cargo", "go", "bash", "zsh", "fish"} {
		testenv.Need(t, tool)
	}
	runScripts(t, "testdata/real")
}

func runScripts(t *testing.T, dir string) {
	upstreams, grow, _ := startUpstreams(t)
	rustup := os.Getenv("RUSTUP_HOME")
	if home, err := os.UserHomeDir(); rustup == "" && err == nil {
		rustup = filepath.Join(home, ".rustup") // where cargo may be rustup's
	}
	cache := os.Getenv("GOCACHE") // shared: it would take long to compile the library anew
	if dir, err := os.UserCacheDir(); cache == "" && err == nil {
		cache = filepath.Join(dir, "go-build")
	}
	testscript.Run(t, testscript.Params{
		Dir: dir,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"capture":  capture,
			"exits":    exits,
			"grow":     grow,
			"key":      key,
			"waitfor":  waitFor,
			"waitnode": waitNode,

			"background": background,
			"interrupt":  interrupt,
		},
		Setup: func(env *testscript.Env) error {
			home := env.WorkDir + "/home"
			env.Vars = append(env.Vars, upstreams...)
			env.Setenv("HOME", home)
			env.Setenv("RUSTUP_HOME", rustup)
			env.Setenv("XDG_CONFIG_HOME", home+"/.config")
			env.Setenv("XDG_CACHE_HOME", home+"/.cache")
			env.Setenv("XDG_STATE_HOME", home+"/.local/state")
			env.Setenv("CARGO_HOME", home+"/.cargo")
			env.Setenv("GOCACHE", cache)
			env.Setenv("GOFLAGS", "-modcacherw")
			return os.MkdirAll(home, 0o755)
		},
	})
}

// exits CODE COMMAND... checks the exit code of a command.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND...")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		code = e.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if fmt.Sprint(code) != args[0] {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
}

// capture FILE REGEXP NAME sets an environment variable to what the first group of the
// expression matches.
func capture(ts *testscript.TestScript, _ bool, args []string) {
	m := regexp.MustCompile(args[1]).FindStringSubmatch(ts.ReadFile(args[0]))
	if m == nil {
		ts.Fatalf("%s does not match %s", args[0], args[1])
	}
	ts.Setenv(args[2], m[1])
}

// key FILE NAME sets an environment variable to the key of a JSON object.
func key(ts *testscript.TestScript, _ bool, args []string) {
	var v struct{ Key string }
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &v))
	ts.Setenv(args[1], v.Key)
}

// background FILE COMMAND... starts a command whose output goes to FILE, and which
// the script ends with interrupt.
func background(ts *testscript.TestScript, _ bool, args []string) {
	out, err := os.Create(ts.MkAbs(args[0]))
	ts.Check(err)
	cmd := exec.Command(args[1], args[2:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = ts.MkAbs("."), out, os.Stderr
	cmd.Env = os.Environ()
	for _, name := range []string{"HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "CARGO_HOME",
		"PKGSWARM_CONFIG", "PKGSWARM_CARGO_UPSTREAM", "PKGSWARM_GO_UPSTREAM", "PKGSWARM_SUMDB"} {
		cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
	}
	ts.Check(cmd.Start())
	done := make(chan error, 1)
	go func() { done <- errors.Join(cmd.Wait(), out.Close()) }()
	running[ts] = func() error {
		cmd.Process.Signal(os.Interrupt)
		select {
		case err := <-done:
			return err
		case <-time.After(15 * time.Second):
			cmd.Process.Kill()
			return errors.New("it does not stop when interrupted")
		}
	}
	ts.Defer(func() { cmd.Process.Kill() })
}

// running has the background command of each script.
var running = map[*testscript.TestScript]func() error{}

// interrupt ends the background command, which must exit with 0.
func interrupt(ts *testscript.TestScript, _ bool, _ []string) {
	ts.Check(running[ts]())
}

// waitfor FILE ADDR WS waits until the first line of FILE tells where a command
// listens, and sets environment variables to its addresses.
func waitFor(ts *testscript.TestScript, _ bool, args []string) {
	for range 500 {
		var v struct{ Listen []string }
		line, _, _ := strings.Cut(ts.ReadFile(args[0]), "\n")
		if json.Unmarshal([]byte(line), &v) == nil && len(v.Listen) == 2 {
			ts.Setenv(args[1], v.Listen[0])
			ts.Setenv(args[2], v.Listen[1])
			return
		}
		time.Sleep(20 * time.Millisecond) // another process's start cannot be faked
	}
	ts.Fatalf("%s does not say where it listens", args[0])
}

// waitnode FILE URL waits until FILE has the lines of a node that is ready, and sets
// an environment variable to its address.
func waitNode(ts *testscript.TestScript, _ bool, args []string) {
	for range 500 {
		first, rest, _ := strings.Cut(ts.ReadFile(args[0]), "\n")
		if _, url, ok := strings.Cut(first, " is ready at "); ok && strings.Contains(rest, "  peers ") {
			ts.Setenv(args[1], url)
			ts.Setenv(args[1]+"_ADDR", strings.TrimPrefix(url, "http://"))
			return
		}
		time.Sleep(20 * time.Millisecond) // another process's start cannot be faked
	}
	ts.Fatalf("%s: the node is not ready", args[0])
}
