//go:build linux

package integration

import (
	"bytes"
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/internal/cargoupstream"
	"github.com/pkgswarm/pkgswarm/internal/goupstream"
	"github.com/pkgswarm/pkgswarm/internal/machines"
	"github.com/pkgswarm/pkgswarm/internal/testenv"
)

// home is where the user of a computer is at home; no such user is on this machine.
const home = "/home" + "/ana"

// A computer is a machine with a user at an empty home, who has cargo, go and a
// small project in both languages, and whose registries are those of the test.
type computer struct {
	*machines.Machine
	t   testing.TB
	env []string
}

// registries are the upstreams of computers.
type registries struct {
	cargo *cargoupstream.Server
	mods  *goupstream.Server
}

// project is what users of computers build, with its lock files.
type project map[string]string

// newProject returns a project of a few small crates and a module, as cargo and go
// lock it.
func newProject(t testing.TB, r registries) project {
	t.Helper()
	c := newCargoClient(t, r.cargo.Index(), false)
	p := project{
		"Cargo.toml":  "[package]\nname = \"sample\"\nversion = \"0.1.0\"\nedition = \"2021\"\n\n[dependencies]\nbitflags = \"2\"\ncfg-if = \"1\"\nitoa = \"1\"\nmemchr = \"2\"\nryu = \"1\"\nsmallvec = \"1\"\n",
		"src/main.rs": "fn main() { println!(\"{}\", itoa::Buffer::new().format(42)) }\n",
	}
	for name, text := range p {
		c.write(name, text)
	}
	c.run("fetch")
	p["Cargo.lock"] = c.lock()
	for _, name := range []string{"go.mod", "go.sum", "sample.go"} {
		p[name] = string(c.testdata(name))
	}
	return p
}

// newComputer starts a computer that is set up for registries and reaches none.
func newComputer(t testing.TB, n *machines.Network, name string, r registries, p project) *computer {
	t.Helper()
	goCache, goRoot := goEnv(t, "GOCACHE"), goEnv(t, "GOROOT")
	dir := t.TempDir()
	for file, text := range p {
		file = filepath.Join(dir, "sample", file)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	m := n.Start(machines.Config{Name: name, Mounts: []machines.Mount{
		{From: dir, To: home},
		{From: goCache, To: goCache}, // compiling everything anew is not what is tested
		{To: "/tmp"},
	}})
	c := &computer{Machine: m, t: t}
	cargo, err := filepath.EvalSymlinks(testenv.Need(t, "cargo"))
	if err != nil {
		t.Fatal(err)
	}
	c.env = []string{
		"HOME=" + home, "USER=ana", "LANG=C.UTF-8", "TERM=xterm", "COLUMNS=80",
		"PATH=" + strings.Join([]string{home + "/go/bin", goRoot + "/bin", filepath.Dir(testenv.Need(t, "cargo")), "/usr/local/bin", "/usr/bin", "/bin"}, ":"),
		"GOCACHE=" + goCache, "GOFLAGS=-trimpath -modcacherw", "GOTOOLCHAIN=local", "CGO_ENABLED=0",
	}
	if filepath.Base(cargo) == "rustup" {
		c.env = append(c.env, "RUSTUP_HOME="+rustupHome(t))
	}
	c.configure(r)
	return c
}

// configure has cargo and go, and by them the node, ask the test's registries, as a
// company's machine is set up for its own.
func (c *computer) configure(r registries) {
	c.t.Helper()
	c.env = append(c.env, "PKGSWARM_CARGO_UPSTREAM="+r.cargo.Index(), "PKGSWARM_INDEX="+r.cargo.Index())
	c.run("go", "env", "-w", "GOPROXY="+r.mods.URL, "GOSUMDB="+r.mods.Key)
	c.env = append(c.env, "PKGSWARM_GOPROXY="+r.mods.URL, "PKGSWARM_SUMDB="+r.mods.Key)
}

// reach makes the registries reachable, through the computer's loopback interface;
// without, it is as if they were down.
func (c *computer) reach(r registries) *computer {
	c.t.Helper()
	for _, addr := range []string{r.cargo.URL, r.mods.URL} {
		u, err := url.Parse(addr)
		if err != nil {
			c.t.Fatal(err)
		}
		c.Forward(u.Host)
	}
	return c
}

func rustupHome(t testing.TB) string {
	if dir := os.Getenv("RUSTUP_HOME"); dir != "" {
		return dir
	}
	dir, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, ".rustup")
}

// command returns a command of the user in the project's directory.
func (c *computer) command(args ...string) *exec.Cmd {
	cmd := c.Command(machines.User{Dir: home + "/sample"}, args...)
	cmd.Env = c.env
	return cmd
}

// try runs a command and returns all that it prints.
func (c *computer) try(args ...string) (string, error) {
	cmd := c.command(args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	if err := c.Start(cmd); err != nil {
		return "", err
	}
	defer context.AfterFunc(ctx, func() { cmd.Process.Kill() })()
	err := cmd.Wait()
	return out.String(), err
}

// commandLimit bounds a command on a machine that may be busy.
const commandLimit = 5 * time.Minute

func (c *computer) run(args ...string) string {
	c.t.Helper()
	out, err := c.try(args...)
	if err != nil {
		c.t.Fatalf("%s on %s: %v\n%s", strings.Join(args, " "), c.Name, err, out)
	}
	return out
}

// A service is a command that goes on until it is interrupted.
type service struct {
	c   *computer
	cmd *exec.Cmd
	err chan error

	mu  sync.Mutex
	out bytes.Buffer
}

func (s *service) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.Write(b)
}

func (s *service) output() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.String()
}

// start starts a service and waits until said is true of its output.
func (c *computer) start(said func(out string) bool, args ...string) *service {
	c.t.Helper()
	s := &service{c: c, cmd: c.command(args...), err: make(chan error, 1)}
	s.cmd.Stdout, s.cmd.Stderr = s, s
	if err := c.Start(s.cmd); err != nil {
		c.t.Fatal(err)
	}
	go func() { s.err <- s.cmd.Wait() }()
	s.wait(said)
	return s
}

// wait waits until said is true of the service's output.
func (s *service) wait(said func(out string) bool) {
	s.c.t.Helper()
	for end := time.Now().Add(commandLimit); !said(s.output()); time.Sleep(20 * time.Millisecond) {
		select {
		case err := <-s.err:
			s.c.t.Fatalf("%s on %s ends: %v\n%s", s.cmd.Args, s.c.Name, err, s.output())
		default:
		}
		if time.Now().After(end) {
			s.c.t.Fatalf("%s on %s does not say what it should:\n%s", s.cmd.Args, s.c.Name, s.output())
		}
	}
}

// stop interrupts the service, which must end in order.
func (s *service) stop() {
	s.c.t.Helper()
	s.cmd.Process.Signal(syscall.SIGINT)
	select {
	case err := <-s.err:
		if err != nil && exitCode(err) != 130 {
			s.c.t.Errorf("%s on %s: %v\n%s", s.cmd.Args, s.c.Name, err, s.output())
		}
	case <-time.After(30 * time.Second):
		s.cmd.Process.Kill()
		s.c.t.Errorf("%s on %s does not stop when interrupted\n%s", s.cmd.Args, s.c.Name, s.output())
	}
}

func exitCode(err error) int {
	if e, ok := err.(*exec.ExitError); ok {
		return e.ExitCode()
	}
	return -1
}

// installProgram installs the command in the user's home, as "go install" does.
func (c *computer) installProgram() {
	c.t.Helper()
	c.run("mkdir", "-p", home+"/go/bin")
	c.copyIn(buildProgram(c.t), home+"/go/bin/pkgswarm")
}

// copyIn copies a file of this machine to a computer.
func (c *computer) copyIn(from, to string) {
	c.t.Helper()
	f, err := os.Open(from)
	if err != nil {
		c.t.Fatal(err)
	}
	defer f.Close()
	cmd := c.command("sh", "-c", fmt.Sprintf("cat > %[1]s && chmod 755 %[1]s", to))
	cmd.Stdin = f
	if err := c.Start(cmd); err != nil {
		c.t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		c.t.Fatalf("copy %s: %v", from, err)
	}
}

// copyOut copies a file of a computer to this machine.
func (c *computer) copyOut(from, to string) {
	c.t.Helper()
	f, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		c.t.Fatal(err)
	}
	defer f.Close()
	cmd := c.command("cat", from)
	cmd.Stdout = f
	if err := c.Start(cmd); err != nil {
		c.t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		c.t.Fatalf("copy %s: %v", from, err)
	}
}
