package main

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/internal/testenv"
	"github.com/spf13/cobra"
)

// A matrixRow says how a command is called rightly, and which ways to fail it has.
// The words STORE, FREE and TAKEN in its arguments stand for a data directory, an
// address that is free, and one that is taken; OUT for a file that is not there.
type matrixRow struct {
	args  string
	store bool   // it takes the store for itself
	port  string // more arguments, with which it listens at TAKEN
	net   string // other arguments, with which it waits for an upstream or a peer
	home  bool   // it writes to its user's directories where nothing else is said
}

// matrix has a row for every command; TestMatrixIsWhole holds that.
var matrix = map[string]matrixRow{
	"bee del":       {args: "STORE colours apple", store: true},
	"bee get":       {args: "STORE colours apple", store: true},
	"bee history":   {args: "STORE colours", store: true},
	"bee list":      {args: "STORE colours", store: true},
	"bee put":       {args: "STORE colours apple red", store: true, home: true},
	"bundle export": {args: "STORE --no-lan --out OUT bar@1.0.0", store: true, net: "STORE --no-lan --out OUT bar@1.0.0", home: true},
	"bundle import": {args: "STORE bundle", store: true, home: true},
	"config show":   {},
	"core append":   {args: "STORE notes text", store: true},
	"core cat":      {args: "STORE notes", store: true},
	"core clone":    {args: "STORE KEY --peer FREE", store: true, port: "", net: "STORE KEY --peer PEER --timeout 1m", home: true},
	"core info":     {args: "STORE notes", store: true},
	"core new":      {args: "STORE --name other", store: true, home: true},
	"core serve":    {args: "STORE notes --listen FREE", store: true, port: "STORE notes --listen TAKEN"},
	"core static":   {args: "STORE text"},
	"core truncate": {args: "STORE notes 0", store: true},
	"core verify":   {args: "STORE", store: true},
	"deny":          {},
	"doctor":        {},
	"gc":            {args: "STORE", store: true},
	"import cargo":  {args: "STORE crate:bar --index UP", store: true, net: "STORE crate:bar --index UP"},
	"import go":     {args: "STORE module:a.test/foo --goproxy UP", store: true, net: "STORE module:a.test/foo --goproxy UP --sumdb SUMKEY"},
	"key backup":    {args: "--passphrase-file text OUT"},
	"key new":       {home: true},
	"key restore":   {args: "--passphrase-file text text"},
	"key rotate":    {args: "STORE", store: true},
	"key show":      {},
	"peers":         {},
	"prefetch":      {args: "STORE --no-lan bar@1.0.0", store: true, net: "STORE --no-lan bar@1.0.0", home: true},
	"run":           {args: "STORE --no-lan -- true", store: true, port: "STORE2 --no-lan --listen TAKEN -- true", home: true},
	"serve":         {args: "STORE --no-lan --listen FREE", store: true, port: "STORE2 --no-lan --listen TAKEN", home: true},
	"setup":         {args: "--print"},
	"status":        {},
	"verify":        {args: "STORE", store: true},
	"version":       {},
	"why":           {args: "STORE --listen FREE bar@1.0.0", store: true},
}

// runnable returns the commands that do something, by their names after pkgswarm.
func runnable(t *testing.T) map[string]*cobra.Command {
	t.Helper()
	m := make(map[string]*cobra.Command)
	visible(newRoot(&streams{strings.NewReader(""), &bytes.Buffer{}, &bytes.Buffer{}}), func(cmd *cobra.Command) {
		name := strings.TrimPrefix(cmd.CommandPath(), "pkgswarm ")
		if cmd.Runnable() && !cmd.HasSubCommands() && cmd.Name() != "help" && !strings.HasPrefix(name, "completion") {
			m[name] = cmd
		}
	})
	return m
}

func TestMatrixIsWhole(t *testing.T) {
	cmds := runnable(t)
	for name, cmd := range cmds {
		row, ok := matrix[name]
		if !ok {
			t.Errorf("%s has no row", name)
		}
		if takesStore := cmd.Flag("data") != nil && name != "doctor" && name != "core static" && !strings.HasPrefix(name, "key ") || name == "key rotate"; takesStore != row.store {
			t.Errorf("%s has --data: %t; its row says %t of the store", name, takesStore, row.store)
		}
		if json := cmd.Flag("json") != nil; !json && !slices.Contains([]string{"serve", "run", "key backup", "core cat"}, name) {
			t.Errorf("%s prints results and has no --json", name)
		}
	}
	for name := range matrix {
		if cmds[name] == nil {
			t.Errorf("there is no command %s", name)
		}
	}
}

// A bench is what the commands of the matrix work on.
type bench struct {
	dir, taken string
	stop       func() // makes the upstreams unreachable
	words      map[string]string
}

func newBench(t *testing.T) *bench {
	vars, _, stop := startUpstreams(t)
	b := &bench{dir: t.TempDir(), stop: stop}
	t.Chdir(b.dir)
	for _, v := range vars {
		name, value, _ := strings.Cut(v, "=")
		t.Setenv(name, value)
	}
	home := filepath.Join(b.dir, "home")
	b.home(t, home)
	t.Setenv("PATH", os.Getenv("PATH"))
	for name, text := range map[string]string{"text": "correct horse battery\n", "bad.toml": "listen = [\n"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	b.taken = l.Addr().String()
	b.words = map[string]string{
		"STORE": "--data d", "STORE2": "--data d2", "FREE": "127.0.0.1:0", "TAKEN": b.taken, "PEER": b.taken, "OUT": "out", "KEY": strings.Repeat("y", 52), "UP": "http://127.0.0.1:1/", "SUMKEY": os.Getenv("SUMKEY"),
	}
	for _, args := range []string{
		"core new --data d --name notes", "bee put --data d colours apple red", "prefetch --data d --no-lan bar@1.0.0",
		"bundle export --data d --no-lan --out bundle bar@1.0.0", "key new",
	} {
		if code, out := runTest(t, strings.Fields(args)...); code != 0 {
			t.Fatalf("%s: exit code %d\n%s", args, code, out)
		}
	}
	return b
}

// home makes dir the home of the commands that follow.
func (b *bench) home(t *testing.T, dir string) {
	t.Helper()
	t.Setenv("HOME", dir)
	for name, sub := range map[string]string{"XDG_CACHE_HOME": ".cache", "XDG_STATE_HOME": ".local/state", "XDG_CONFIG_HOME": ".config", "CARGO_HOME": ".cargo"} {
		t.Setenv(name, filepath.Join(dir, sub))
	}
	t.Setenv("GOENV", "off")
}

// args returns a command line of the matrix.
func (b *bench) args(name, rest string) []string {
	args := strings.Fields(name)
	for _, word := range strings.Fields(rest) {
		if w, ok := b.words[word]; ok {
			args = append(args, strings.Fields(w)...)
			continue
		}
		args = append(args, word)
	}
	return args
}

// check runs a command and checks its exit code, and that it says what to do.
func (b *bench) check(t *testing.T, want int, hint bool, args []string) {
	t.Helper()
	code, out := runTest(t, args...)
	if code != want {
		t.Errorf("pkgswarm %s: exit code %d, want %d\n%s", strings.Join(args, " "), code, want, out)
	}
	if hint && !strings.Contains(out, "\nhint: ") {
		t.Errorf("pkgswarm %s: no hint:\n%s", strings.Join(args, " "), out)
	}
	if strings.Contains(out, "\x1b") {
		t.Errorf("pkgswarm %s: escape sequences where there is no terminal: %q", strings.Join(args, " "), out)
	}
}

func TestWrongUsage(t *testing.T) {
	b := newBench(t)
	for name, row := range matrix {
		b.check(t, exitUsage, true, append(strings.Fields(name), "--no-such-flag"))
		b.check(t, exitUsage, true, b.args(name, "--config bad.toml "+row.args))
		b.check(t, exitUsage, true, b.args(name, "--config missing.toml "+row.args))
		t.Setenv("PKGSWARM_CONFIG", "bad.toml")
		b.check(t, exitUsage, true, b.args(name, row.args))
		t.Setenv("PKGSWARM_CONFIG", "")
		if row.args == "" { // it takes no arguments, or at most the name of a command
			b.check(t, exitUsage, true, append(strings.Fields(name), "one", "two"))
		}
	}
}

func TestStoreInUse(t *testing.T) {
	b := newBench(t)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	serve := serveInBackground(t, ctx, "--data", "d", "--listen", "127.0.0.1:0", "--no-lan", "--offline")
	for name, row := range matrix {
		if row.store {
			b.check(t, exitInUse, true, b.args(name, row.args))
		}
	}
	stop()
	if code := <-serve; code != 0 {
		t.Errorf("serve: exit code %d", code)
	}
}

// serveInBackground runs a node and returns where its exit code comes.
func serveInBackground(t *testing.T, ctx context.Context, args ...string) <-chan int {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan int, 1)
	go func() {
		done <- run(ctx, append([]string{"serve"}, args...), strings.NewReader(""), w, w)
		w.Close()
	}()
	buf := make([]byte, 1<<16)
	for out := ""; !strings.Contains(out, "  peers "); {
		n, err := r.Read(buf)
		if err != nil {
			t.Fatalf("serve: %v\n%s", err, out)
		}
		out += string(buf[:n])
	}
	return done
}

func TestPortTaken(t *testing.T) {
	b := newBench(t)
	for name, row := range matrix {
		if row.port != "" {
			b.check(t, exitInUse, true, b.args(name, row.port))
		}
	}
}

// Commands that wait for others end with 130 when they are interrupted, and leave
// nothing half done.
func TestInterrupted(t *testing.T) {
	b := newBench(t)
	for name, row := range matrix {
		if row.net == "" {
			continue
		}
		ctx, interrupt := context.WithCancel(t.Context())
		silent := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			interrupt()
			<-r.Context().Done()
		}))
		b.words["UP"] = silent.URL + "/"
		t.Setenv("PKGSWARM_CARGO_UPSTREAM", "sparse+"+silent.URL+"/")
		t.Setenv("PKGSWARM_GO_UPSTREAM", silent.URL)
		t.Setenv("PKGSWARM_SUMDB", "off")
		b.words["STORE"] = "--data interrupted"
		peer := acceptAnd(t, interrupt)
		b.words["PEER"] = peer
		var out bytes.Buffer
		args := b.args(name, row.net)
		start := time.Now()
		code := run(ctx, args, strings.NewReader(""), &out, &out)
		if code != exitInterrupted || time.Since(start) > 9*time.Second {
			t.Errorf("pkgswarm %s: exit code %d after %v, want %d\n%s", strings.Join(args, " "), code, time.Since(start), exitInterrupted, out.String())
		}
		if _, err := os.Stat("out"); err == nil {
			t.Errorf("pkgswarm %s has left a file", strings.Join(args, " "))
		}
		silent.CloseClientConnections()
		silent.Close()
		interrupt()
	}
}

// acceptAnd returns the address of a listener that calls f for a connection and
// never answers it.
func acceptAnd(t *testing.T, f func()) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
			f()
		}
	}()
	return l.Addr().String()
}

// Without an upstream, what is asked of it is named, and what is here is used.
func TestNoUpstream(t *testing.T) {
	b := newBench(t)
	b.stop()
	for _, c := range []struct {
		want int
		args string
	}{
		{0, "prefetch --data d --no-lan bar@1.0.0"},
		{exitPartly, "prefetch --data d --no-lan bar@1.0.0 foo@0.1.0"},
		{exitPartly, "prefetch --data e --no-lan bar@1.0.0"},
		{0, "bundle export --data d --no-lan --out here bar@1.0.0"},
		{exitPartly, "bundle export --data d --no-lan --out there bar@1.0.0 foo@0.1.0"},
		{exitPartly, "bundle export --data d --no-lan --out none foo@0.1.0"},
		{0, "run --data d --no-lan -- true"},
		{0, "verify --data d"},
		{exitPartly, "import cargo --data f crate:bar --index http://127.0.0.1:1/"},
		{exitPartly, "import go --data f module:a.test/foo --goproxy http://127.0.0.1:1 --sumdb SUMKEY"},
		{exitUnreachable, "core clone --data f KEY --peer 127.0.0.1:1 --timeout 1s"},
		{exitUnreachable, "status --url http://127.0.0.1:1"},
		{exitUnreachable, "peers --url http://127.0.0.1:1"},
		{exitUnreachable, "why --url http://127.0.0.1:1 bar@1.0.0"},
		{exitUnreachable, "prefetch --url http://127.0.0.1:1 bar@1.0.0"},
		{exitUnreachable, "bundle export --url http://127.0.0.1:1 --out x bar@1.0.0"},
	} {
		b.check(t, c.want, c.want == exitUnreachable, b.args("", c.args))
	}
}

// A home that cannot be written to is named, with what to do; commands that write
// nothing there do not mind.
func TestReadOnlyHome(t *testing.T) {
	b := newBench(t)
	b.home(t, readOnly(t))
	for name, row := range matrix {
		args := b.args(name, strings.ReplaceAll(row.args, "STORE", ""))
		if row.home {
			b.check(t, exitFailed, true, args)
		}
	}
	for _, args := range []string{"version", "config show", "setup --print", "verify --data d", "gc --data d", "core info --data d notes",
		"prefetch --data d --state s --no-lan bar@1.0.0", "run --data d --state s --no-lan -- true", "why --data d --state s --listen 127.0.0.1:0 bar@1.0.0"} {
		b.check(t, 0, false, strings.Fields(args))
	}
}

// readOnly returns a directory in which nobody, root included, can make a file.
func readOnly(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if os.Getuid() == 0 { // for whom permissions do not count
		dir = "/sys"
	} else if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "pkgswarm-test"), 0o700); err == nil {
		os.Remove(filepath.Join(dir, "pkgswarm-test"))
		testenv.Missing(t, "no directory here is read-only")
	}
	return dir
}
