package swarm_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/internal/testenv"
	"github.com/pkgswarm/pkgswarm/swarm"
	"github.com/pkgswarm/pkgswarm/swarm/replicate"
)

// netnsNode is the environment variable that makes the test program a node of
// TestNetworks; its value names the node's core.
const netnsNode = "PKGSWARM_TEST_NETNS_NODE"

func init() { programs[netnsNode] = runNetnsNode }

// runNetnsNode runs a node that finds its peers on the local network. It writes its
// core's key, then answers commands, a line each: "fetch KEY" and "peers".
func runNetnsNode(name string, in io.Reader, out io.Writer) error {
	store, err := core.OpenStore("store", core.Options{FS: vfs.NewMem(), NoSync: true})
	if err != nil {
		return err
	}
	defer store.Close()
	c, err := store.Named(name)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err = c.Append([]byte("core of " + name)); err != nil {
		return err
	}
	key, err := swarm.Identity("identity")
	if err != nil {
		return err
	}
	s, err := swarm.New(swarm.Config{
		Key: key, Open: swarm.FromStore(store), Listen: []string{":0"},
		LAN: true, Topics: []swarm.TopicID{swarm.NamedTopic("test of networks")}, PeerExchange: true,
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	fmt.Fprintln(out, c.Key())
	for lines := bufio.NewScanner(in); lines.Scan(); {
		switch f := strings.Fields(lines.Text()); f[0] {
		case "fetch":
			fmt.Fprintln(out, fetchFirst(ctx, store, s, f[1]))
		case "peers":
			fmt.Fprintln(out, len(s.Peers()))
		}
	}
	cancel()
	return <-done
}

// fetchFirst returns the first block of a core, from whatever peer there is.
func fetchFirst(ctx context.Context, store *core.Store, s *swarm.Swarm, key string) string {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	k, err := core.ParseKey(key)
	if err != nil {
		return err.Error()
	}
	c, err := store.Open(k)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	sess, err := s.Open(c, replicate.SessionOptions{})
	if err != nil {
		return err.Error()
	}
	defer sess.Close()
	b, err := sess.Get(ctx, 0)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// A host is a node in a network namespace of its own.
type host struct {
	t    *testing.T
	name string
	in   io.WriteCloser
	out  *bufio.Scanner
	key  string
}

// startHost runs a node in a namespace until the test ends.
func startHost(t *testing.T, ns, name string) *host {
	t.Helper()
	cmd := exec.Command("ip", "netns", "exec", ns, os.Args[0])
	cmd.Env = append(os.Environ(), netnsNode+"="+name)
	cmd.Dir, cmd.Stderr = t.TempDir(), os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("host %s: %v", name, err)
		}
	})
	h := &host{t: t, name: name, in: in, out: bufio.NewScanner(out)}
	h.key = h.line()
	return h
}

func (h *host) line() string {
	h.t.Helper()
	if !h.out.Scan() {
		h.t.Fatalf("host %s has ended", h.name)
	}
	return h.out.Text()
}

func (h *host) ask(format string, args ...any) string {
	h.t.Helper()
	fmt.Fprintf(h.in, format+"\n", args...)
	return h.line()
}

// fetches checks that h gets the core of from.
func (h *host) fetches(from *host) {
	h.t.Helper()
	if got := h.ask("fetch %s", from.key); got != "core of "+from.name {
		h.t.Fatalf("%s gets from %s: %s", h.name, from.name, got)
	}
}

// A network makes namespaces and what connects them.
type network struct {
	t      *testing.T
	prefix string
}

func newNetwork(t *testing.T) *network {
	if _, err := exec.LookPath("ip"); err != nil || runtime.GOOS != "linux" || os.Getuid() != 0 {
		testenv.Missing(t, "network namespaces need root, Linux and iproute2")
	}
	n := &network{t, fmt.Sprintf("psw%d", os.Getpid()%100000)}
	if out, err := exec.Command("ip", "netns", "add", n.ns("probe")).CombinedOutput(); err != nil {
		testenv.Missing(t, "no network namespaces here: %s", out)
	}
	exec.Command("ip", "netns", "del", n.ns("probe")).Run()
	return n
}

func (n *network) ns(name string) string { return n.prefix + name }

func (n *network) ip(args ...string) {
	n.t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		n.t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// add makes a namespace.
func (n *network) add(name string) {
	n.ip("netns", "add", n.ns(name))
	n.t.Cleanup(func() { exec.Command("ip", "netns", "del", n.ns(name)).Run() })
	n.ip("-n", n.ns(name), "link", "set", "lo", "up")
}

// lan makes a local network number i in the namespace of a router, which has its
// address 1, and hosts in namespaces of their own, with addresses from 2.
func (n *network) lan(router string, i int, hosts ...string) {
	r, bridge := n.ns(router), "br"+strconv.Itoa(i)
	n.ip("-n", r, "link", "add", bridge, "type", "bridge")
	n.ip("-n", r, "addr", "add", fmt.Sprintf("10.77.%d.1/24", i), "dev", bridge)
	n.ip("-n", r, "link", "set", bridge, "up")
	for k, h := range hosts {
		n.add(h)
		port := fmt.Sprintf("v%d%d", i, k)
		n.ip("-n", r, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", n.ns(h))
		n.ip("-n", r, "link", "set", port, "master", bridge, "up")
		n.ip("-n", n.ns(h), "addr", "add", fmt.Sprintf("10.77.%d.%d/24", i, k+2), "dev", "eth0")
		n.ip("-n", n.ns(h), "link", "set", "eth0", "up")
		n.ip("-n", n.ns(h), "route", "add", "default", "via", fmt.Sprintf("10.77.%d.1", i))
	}
}

// Two hosts on a local network find each other with no address given. Two networks
// that do not know of each other become one when a node joins both.
func TestNetworks(t *testing.T) {
	n := newNetwork(t)
	n.add("r")
	n.lan("r", 1, "a1", "a2")
	n.lan("r", 2, "b1", "b2")
	a1, b1 := startHost(t, n.ns("a1"), "a1"), startHost(t, n.ns("b1"), "b1")
	a2, b2 := startHost(t, n.ns("a2"), "a2"), startHost(t, n.ns("b2"), "b2")
	a2.fetches(a1)
	a1.fetches(a2)
	b2.fetches(b1)
	for _, h := range []*host{a1, a2, b1, b2} {
		if got := h.ask("peers"); got != "1" {
			t.Errorf("%s has %s peers before the networks meet, want 1", h.name, got)
		}
	}
	n.ip("netns", "exec", n.ns("r"), "sysctl", "-qw", "net.ipv4.ip_forward=1")
	r := startHost(t, n.ns("r"), "r")
	a1.fetches(r)
	a1.fetches(b1) // who told of it is r, which does not have the core
	b2.fetches(a2)
}
