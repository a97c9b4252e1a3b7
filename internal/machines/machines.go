//go:build linux

// Package machines makes small computers for tests out of Linux namespaces: what
// containers are, without an engine. Each machine has a network interface,
// processes and a root directory of its own; those of one [Network] reach each
// other, by name, and nothing else. Nothing of the host changes, and all of it is
// gone when the test ends, however it ends.
//
// A machine's root is a copy on write of a directory, or of the host's: a computer
// with the host's programs whose user finds an empty home.
//
// It takes root and iproute2. Without, the test is skipped, or fails under CI=true.
package machines

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pkgswarm/pkgswarm/internal/testenv"
)

// A Network is a local network. Its methods are for one goroutine.
type Network struct {
	t      testing.TB
	dir    string
	tools  map[string]string // paths of programs
	hub    *holder
	hosts  string // file, shared by all machines
	number int    // of the machine added last
}

// New returns a network without machines.
func New(t testing.TB) *Network {
	t.Helper()
	if os.Getuid() != 0 {
		testenv.Missing(t, "root, for namespaces")
	}
	n := &Network{t: t, dir: t.TempDir(), tools: map[string]string{}}
	for _, tool := range []string{"ip", "mount", "nsenter", "setpriv", "chroot"} {
		n.tools[tool] = testenv.Need(t, tool)
	}
	n.hosts = filepath.Join(n.dir, "hosts")
	if err := os.WriteFile(n.hosts, []byte("127.0.0.1 localhost\n::1 localhost\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var err error
	if n.hub, err = hold(unix.CLONE_NEWNET, ""); err != nil {
		testenv.Missing(t, "namespaces: %v", err)
	}
	t.Cleanup(n.hub.release)
	n.hub.run(t, "ip link add hub type bridge && ip link set hub up")
	return n
}

// A Config describes a machine.
type Config struct {
	Name    string
	Aliases []string // further names

	Root     string  // directory, of which its root is a copy on write; empty: the host's
	Mounts   []Mount // on top of it, in that order
	ReadOnly bool    // what is not mounted cannot be written

	Share *Machine // whose network it uses in place of one of its own
}

// A Mount is a directory or file of the host at a place of a machine, or, with no
// From, an empty directory in memory.
type Mount struct {
	From, To string
	ReadOnly bool
}

// A Machine is a running one.
type Machine struct {
	Name string
	Addr string // IPv4

	n    *Network
	t    testing.TB
	root string // as seen in its mount namespace
	h    *holder
}

// Start starts a machine, which runs until the test ends or Stop.
func (n *Network) Start(c Config) *Machine {
	n.t.Helper()
	dir := filepath.Join(n.dir, c.Name)
	m := &Machine{Name: c.Name, n: n, t: n.t, root: filepath.Join(dir, "root")}
	for _, d := range []string{"root", "upper", "work"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			n.t.Fatal(err)
		}
	}
	flags := uintptr(unix.CLONE_NEWNET)
	var enter *holder
	if c.Share != nil {
		flags, enter = 0, c.Share.h
	}
	var err error
	if m.h, err = holdIn(enter, flags|unix.CLONE_NEWNS|unix.CLONE_NEWPID, n.mounts(c, dir, m.root)); err != nil {
		n.t.Fatalf("machine %s: %v", c.Name, err)
	}
	n.t.Cleanup(m.Stop)
	if c.Share != nil {
		m.Addr = c.Share.Addr
	} else {
		n.number++
		m.Addr = fmt.Sprintf("10.78.0.%d", n.number)
		n.connect(m)
	}
	n.name(m.Addr, append([]string{c.Name}, c.Aliases...))
	return m
}

// mounts returns the script that makes a machine's root.
func (n *Network) mounts(c Config, dir, root string) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("mount --make-rprivate /")
	lower := c.Root
	if lower == "" {
		lower = "/"
	}
	line("mount -t overlay overlay -o lowerdir=%[3]s,upperdir=%[1]s/upper,workdir=%[1]s/work %[2]s", dir, root, lower)
	line("mkdir -p %[1]s/proc %[1]s/dev %[1]s/etc && touch %[1]s/etc/hosts", root)
	for _, m := range c.Mounts {
		if info, err := os.Stat(m.From); err == nil && !info.IsDir() {
			line("mkdir -p %[1]s && touch %[2]s", filepath.Dir(root+m.To), root+m.To)
		} else {
			line("mkdir -p %s", root+m.To)
		}
	}
	if c.ReadOnly {
		line("mount -o remount,bind,ro %s", root)
	}
	line("mount -t proc proc %s/proc", root)
	line("mount --rbind /dev %s/dev", root)
	line("mount --bind %s %s/etc/hosts", n.hosts, root)
	for _, m := range c.Mounts {
		if m.From == "" {
			line("mount -t tmpfs -o mode=1777 tmpfs %s", root+m.To)
			continue
		}
		line("mount --bind %s %s", m.From, root+m.To)
		if m.ReadOnly {
			line("mount -o remount,bind,ro %s", root+m.To)
		}
	}
	return b.String()
}

// connect gives a machine an interface with its address.
func (n *Network) connect(m *Machine) {
	port := fmt.Sprintf("port%d", n.number)
	n.hub.run(n.t, fmt.Sprintf("ip link add %[1]s type veth peer name eth0 netns %[2]d && ip link set %[1]s master hub up", port, m.h.pid()))
	m.h.run(n.t, fmt.Sprintf("ip link set lo up && ip addr add %s/24 dev eth0 && ip link set eth0 up && ip route add 224.0.0.0/4 dev eth0", m.Addr))
}

// name adds names of an address to the hosts file.
func (n *Network) name(addr string, names []string) {
	f, err := os.OpenFile(n.hosts, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		n.t.Fatal(err)
	}
	defer f.Close()
	if _, err := fmt.Fprintf(f, "%s %s\n", addr, strings.Join(names, " ")); err != nil {
		n.t.Fatal(err)
	}
}

// Stop ends the machine and every process on it.
func (m *Machine) Stop() { m.h.release() }

// A User is who runs a command, in which directory. The zero User is root in /.
type User struct {
	UID, GID int
	Dir      string // the machine needs a shell for other than /
	NoNew    bool   // can gain no privileges
}

// Command returns a command of a user on the machine. It is to be started with the
// machine's Run.
func (m *Machine) Command(u User, args ...string) *exec.Cmd {
	list := []string{m.n.tools["nsenter"], "--mount=" + m.h.ns("mnt")}
	if u.NoNew {
		list = append(list, m.n.tools["setpriv"], "--no-new-privs")
	}
	list = append(list, m.n.tools["chroot"], fmt.Sprintf("--userspec=%d:%d", u.UID, u.GID), "--groups=", m.root)
	if u.Dir != "" {
		list = append(list, "sh", "-c", `cd "$0" && exec "$@"`, u.Dir)
	}
	return exec.Command(list[0], append(list[1:], args...)...)
}

// Start starts a command on the machine: its process is cmd.Process, to be signalled
// and waited for as any other.
func (m *Machine) Start(cmd *exec.Cmd) error { return m.h.inside(cmd.Start) }

// Listen listens at an address of the machine.
func (m *Machine) Listen(addr string) (ln net.Listener, err error) {
	err = m.h.inside(func() error {
		ln, err = net.Listen("tcp", addr)
		return err
	})
	return ln, err
}

// Forward makes a server of this process, on a loopback address, reachable at the
// same address of the machine.
func (m *Machine) Forward(addr string) {
	m.t.Helper()
	ln, err := m.Listen(addr)
	if err != nil {
		m.t.Fatalf("listen on %s of %s: %v", addr, m.Name, err)
	}
	m.t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go pipe(conn, addr)
		}
	}()
}

// pipe connects conn to addr until either side ends.
func pipe(conn net.Conn, addr string) {
	defer conn.Close()
	to, err := net.Dial("tcp", addr)
	if err != nil {
		return // as if nobody listened
	}
	defer to.Close()
	done := make(chan struct{}, 2)
	for _, p := range [][2]net.Conn{{conn, to}, {to, conn}} {
		go func() {
			io.Copy(p[0], p[1])
			p[0].(*net.TCPConn).CloseWrite()
			done <- struct{}{}
		}()
	}
	<-done
	<-done
}

// A holder is a process that keeps namespaces alive. It ends when its standard
// input does, and so with this process; as the first process of its process
// namespace it takes all others along.
type holder struct {
	cmd *exec.Cmd
	in  io.Closer
}

func hold(flags uintptr, script string) (*holder, error) { return holdIn(nil, flags, script) }

// holdIn starts a holder of new namespaces, in the network of another one if that
// is not nil, and runs a script in them.
func holdIn(in *holder, flags uintptr, script string) (*holder, error) {
	h := &holder{cmd: exec.Command("sh", "-ec", script+"\necho ready\nexec cat >/dev/null")}
	h.cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: flags}
	var errs bytes.Buffer
	h.cmd.Stderr = &errs
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if h.in, err = h.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	start := h.cmd.Start
	if in != nil {
		start = func() error { return in.enter([]string{"net"}, h.cmd.Start) }
	}
	if err := start(); err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
		return nil, errors.Join(err, h.cmd.Wait(), errors.New(errs.String()))
	}
	return h, nil
}

func (h *holder) pid() int { return h.cmd.Process.Pid }

func (h *holder) ns(kind string) string { return "/proc/" + strconv.Itoa(h.pid()) + "/ns/" + kind }

// release ends the holder and all processes in its namespaces. The kernel reports its
// end only after that of commands which a failed test has started and not waited for.
func (h *holder) release() {
	h.in.Close()
	done := make(chan struct{})
	go func() {
		h.cmd.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(2 * time.Second):
	}
}

// run runs a script with the host's files in the holder's network.
func (h *holder) run(t testing.TB, script string) {
	t.Helper()
	cmd := exec.Command("sh", "-ec", script)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := h.enter([]string{"net"}, cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, &out)
	}
}

// inside calls f on a thread whose sockets and children are the machine's.
func (h *holder) inside(f func() error) error { return h.enter([]string{"net", "pid"}, f) }

// enter calls f on a thread in namespaces of the holder. The thread ends with the
// call: it is no use for anything else.
func (h *holder) enter(kinds []string, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked
		for _, kind := range kinds {
			if err := setns(h.ns(kind)); err != nil {
				done <- err
				return
			}
		}
		done <- f()
	}()
	return <-done
}

func setns(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), 0); err != nil {
		return fmt.Errorf("enter %s: %w", path, err)
	}
	return nil
}
