package swarm_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/goleak"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/swarm"
	"github.com/pkgswarm/pkgswarm/swarm/replicate"
	"github.com/pkgswarm/pkgswarm/swarm/transport"
)

// programs are what the test program does instead of testing, by the environment
// variable that asks for it and holds the argument.
var programs = map[string]func(arg string, in io.Reader, out io.Writer) error{}

// serveSource is such a program: it serves a core of so many blocks as long as until
// runs, and writes the core's key and the address first.
func serveSource(dir string, blocks int, out io.Writer, until func()) error {
	store, err := core.OpenStore(dir, core.Options{NoSync: true})
	if err != nil {
		return err
	}
	defer store.Close()
	c, err := store.Named("source")
	if err != nil {
		return err
	}
	defer c.Close()
	for i := range blocks {
		if _, err := c.AppendLazy(fmt.Appendf(nil, "block %d", i)); err != nil {
			return err
		}
	}
	s, err := swarm.New(swarm.Config{Key: key(1), Open: swarm.FromStore(store), Listen: []string{"127.0.0.1:0"}})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	fmt.Fprintln(out, c.Key(), s.Addrs()[0])
	until()
	cancel()
	return <-done
}

func TestMain(m *testing.M) {
	for name, run := range programs {
		if arg := os.Getenv(name); arg != "" {
			if err := run(arg, os.Stdin, os.Stdout); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			return
		}
	}
	goleak.VerifyTestMain(m)
}

func key(i byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{i}, 32))
}

// A node is a swarm with a store.
type node struct {
	*swarm.Swarm
	store *core.Store
	stop  func()
}

// start runs a node until the test ends.
func start(t *testing.T, c swarm.Config) *node {
	t.Helper()
	store, err := core.OpenStore("store", core.Options{FS: vfs.NewMem(), NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	if c.Open == nil {
		c.Open = swarm.FromStore(store)
	}
	s, err := swarm.New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	n := &node{s, store, sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		store.Close()
	})}
	t.Cleanup(n.stop)
	return n
}

func (n *node) addr() string { return n.Addrs()[0].String() }

// source makes a core of some blocks.
func (n *node) source(t *testing.T, blocks int) *core.Core {
	t.Helper()
	c, err := n.store.Named("source")
	if err != nil {
		t.Fatal(err)
	}
	for i := range blocks {
		if _, err := c.AppendLazy(fmt.Appendf(nil, "block %d", i)); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// fetch gets all blocks of a core from peers.
func (n *node) fetch(t *testing.T, k core.Key, blocks int) {
	t.Helper()
	c, err := n.store.Open(k)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := n.Open(c, replicate.SessionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for i := range blocks {
		b, err := s.Get(ctx, uint64(i))
		if err != nil || string(b) != fmt.Sprintf("block %d", i) {
			t.Fatalf("block %d = %q, %v", i, b, err)
		}
	}
}

func TestTCP(t *testing.T) {
	a := start(t, swarm.Config{Key: key(1), Listen: []string{"127.0.0.1:0"}})
	c := a.source(t, 100)
	b := start(t, swarm.Config{Key: key(2), Listen: []string{"127.0.0.1:0"}, Peers: []string{a.addr()}})
	b.fetch(t, c.Key(), 100)
	if p := b.Peers(); len(p) != 1 || p[0].Key != a.Key() || !p[0].Dialled {
		t.Errorf("peers = %+v", p)
	}
	// What b has, it passes on.
	third := start(t, swarm.Config{Key: key(3), Peers: []string{b.addr()}})
	a.stop()
	third.fetch(t, c.Key(), 100)
}

// A name's addresses are looked up and tried, each as a peer of its own.
func TestName(t *testing.T) {
	a := start(t, swarm.Config{Key: key(1), Listen: []string{"127.0.0.1:0"}})
	c := a.source(t, 3)
	_, port, _ := net.SplitHostPort(a.addr())
	b := start(t, swarm.Config{Key: key(2), Peers: []string{"localhost:" + port}})
	b.fetch(t, c.Key(), 3)
	if p := b.Peers(); len(p) != 1 || p[0].Key != a.Key() {
		t.Errorf("peers = %+v", p)
	}
}

func TestWebSocket(t *testing.T) {
	a := start(t, swarm.Config{Key: key(1)})
	c := a.source(t, 50)
	srv := httptest.NewServer(a.Handler())
	defer srv.Close()
	b := start(t, swarm.Config{Key: key(2), Peers: []string{strings.Replace(srv.URL, "http", "ws", 1) + "/swarm"}})
	b.fetch(t, c.Key(), 50)
	b.stop()
	a.stop() // hijacked connections end with the swarm

	// SEC-51: a web page's WebSocket is refused.
	req := httptest.NewRequest("GET", "/swarm", nil)
	req.Header.Set("Origin", "http://example.com")
	w := httptest.NewRecorder()
	transport.Upgrade(w, req)
	if w.Code != 403 {
		t.Errorf("request with an Origin = %d, want 403", w.Code)
	}
}

// SEC-27: without the token, or with another one, there is no connection.
func TestPrivateSwarm(t *testing.T) {
	token := bytes.Repeat([]byte{9}, 16)
	a := start(t, swarm.Config{Key: key(1), Listen: []string{"127.0.0.1:0"}, Token: token})
	c := a.source(t, 3)
	member := start(t, swarm.Config{Key: key(2), Peers: []string{a.addr()}, Token: token})
	start(t, swarm.Config{Key: key(3), Peers: []string{a.addr()}})
	start(t, swarm.Config{Key: key(4), Peers: []string{a.addr()}, Token: bytes.Repeat([]byte{8}, 16)})
	member.fetch(t, c.Key(), 3)
	if p := a.Peers(); len(p) != 1 || p[0].Key != member.Key() {
		t.Errorf("peers = %+v, want the member alone", p)
	}
	if _, err := swarm.New(swarm.Config{Key: key(1), Token: []byte("short")}); err == nil {
		t.Error("a short token is accepted")
	}
}

// A memNet connects swarms by pipes; addresses are 10.0.0.N:1.
type memNet struct {
	mu     sync.Mutex
	nodes  map[string]*swarm.Swarm
	dials  map[string]int
	silent bool       // where no node is, somebody accepts and says nothing
	theirs []net.Conn // ends of those
}

func (m *memNet) dialer(self string) func(context.Context, transport.Address) (net.Conn, error) {
	return func(_ context.Context, a transport.Address) (net.Conn, error) {
		m.mu.Lock()
		m.dials[a.String()]++
		s, silent := m.nodes[a.String()], m.silent
		m.mu.Unlock()
		x, y := net.Pipe()
		if s == nil && silent {
			m.mu.Lock()
			m.theirs = append(m.theirs, y)
			m.mu.Unlock()
			return pipeConn{x, a.String()}, nil
		}
		if s == nil {
			return nil, fmt.Errorf("no node at %s", a)
		}
		s.Serve(pipeConn{y, self})
		return pipeConn{x, a.String()}, nil
	}
}

type pipeConn struct {
	net.Conn
	remote string
}

func (c pipeConn) RemoteAddr() net.Addr { return pipeAddr(c.remote) }

type pipeAddr string

func (pipeAddr) Network() string  { return "pipe" }
func (a pipeAddr) String() string { return string(a) }

// bubble runs n nodes in a synctest bubble, each knowing the addresses that peers
// says.
func bubble(t *testing.T, n int, peers func(i int) []string, f func(m *memNet, nodes []*swarm.Swarm)) {
	bubbleOf(t, n, func(i int) swarm.Config { return swarm.Config{Peers: peers(i)} }, f)
}

// bubbleOf is bubble with more to configure.
func bubbleOf(t *testing.T, n int, config func(i int) swarm.Config, f func(m *memNet, nodes []*swarm.Swarm)) {
	synctest.Test(t, func(t *testing.T) {
		m := &memNet{nodes: map[string]*swarm.Swarm{}, dials: map[string]int{}}
		ctx, cancel := context.WithCancel(context.Background())
		var nodes []*swarm.Swarm
		for i := range n {
			self := address(i)
			c := config(i)
			c.Key, c.Dial = key(byte(i+1)), m.dialer(self)
			s, err := swarm.New(c)
			if err != nil {
				t.Fatal(err)
			}
			m.nodes[self] = s
			nodes = append(nodes, s)
		}
		var wg sync.WaitGroup
		for _, s := range nodes {
			wg.Go(func() {
				if err := s.Run(ctx); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		f(m, nodes)
		for _, c := range m.theirs {
			c.Close()
		}
		cancel()
		wg.Wait()
	})
}

func address(i int) string { return fmt.Sprintf("10.0.0.%d:1", i+1) }

// Two nodes that dial each other at once end up with one connection.
func TestOneConnection(t *testing.T) {
	bubble(t, 2, func(i int) []string { return []string{address(1 - i)} }, func(m *memNet, nodes []*swarm.Swarm) {
		time.Sleep(5 * time.Minute)
		a, b := nodes[0].Peers(), nodes[1].Peers()
		if len(a) != 1 || len(b) != 1 || a[0].Dialled == b[0].Dialled {
			t.Errorf("peers = %+v and %+v, want one connection", a, b)
		}
		if n := m.dials[address(0)] + m.dials[address(1)]; n > 6 {
			t.Errorf("%d dials in 5 minutes", n)
		}
	})
}

// dialFirst has all others connect to the first.
func dialFirst(i int) []string {
	if i == 0 {
		return nil
	}
	return []string{address(0)}
}

// SEC-22: a banned peer stays away for a minute, then for longer.
func TestBan(t *testing.T) {
	bubble(t, 2, dialFirst, func(m *memNet, nodes []*swarm.Swarm) {
		a, b := nodes[0], nodes[1]
		for _, want := range []time.Duration{time.Minute, 2 * time.Minute, 4 * time.Minute} {
			for !a.Connected(b.Key()) {
				time.Sleep(time.Second)
			}
			start := time.Now()
			a.Ban(b.Key(), "test")
			synctest.Wait()
			for !a.Connected(b.Key()) {
				time.Sleep(time.Second)
			}
			if d := time.Since(start); d < want || d > want+3*time.Minute {
				t.Errorf("back after %v, want %v and a little", d, want)
			}
		}
		if n := a.Bans()["test"]; n != 3 || len(a.Bans()) != 1 {
			t.Errorf("bans counted: %v, want 3", a.Bans())
		}
	})
}

// served hands s a connection from addr and reports whether s kept it; silence is
// the other end's part. Section 9: connections per address, in and out.
func (m *memNet) served(s *swarm.Swarm, addr string) (kept bool) {
	x, y := net.Pipe()
	m.mu.Lock()
	m.theirs = append(m.theirs, x)
	m.mu.Unlock()
	s.Serve(pipeConn{y, addr})
	synctest.Wait()
	x.SetReadDeadline(time.Now())
	_, err := x.Read(make([]byte, 1))
	return os.IsTimeout(err)
}

// SEC-21: eight connections come from one IPv4 address, or one IPv6 /56, and no
// more; other addresses have their own eight, and the machine itself has no such cap.
func TestPerAddress(t *testing.T) {
	for _, c := range []struct {
		first string // has a verb for the number of the connection
		other string // is another address
		cap   int
	}{
		{"10.1.1.1:%d", "10.1.1.2:1", 8},
		{"[::ffff:10.1.1.1]:%d", "10.1.1.2:1", 8},
		{"[2001:db8:0:aa%02x::1]:1", "[2001:db8:0:ab00::1]:1", 8},
		{"127.0.0.1:%d", "10.1.1.2:1", 20},
	} {
		bubble(t, 1, func(int) []string { return nil }, func(m *memNet, nodes []*swarm.Swarm) {
			kept := 0
			for i := range 20 {
				if m.served(nodes[0], fmt.Sprintf(c.first, i+1)) {
					kept++
				}
			}
			if kept != c.cap {
				t.Errorf("%s: %d of 20 connections kept, want %d", c.first, kept, c.cap)
			}
			if !m.served(nodes[0], c.other) {
				t.Errorf("%s: refused as well", c.other)
			}
			time.Sleep(11 * time.Second) // they said nothing
			if !m.served(nodes[0], fmt.Sprintf(c.first, 1)) {
				t.Errorf("%s: places are not given back", c.first)
			}
		})
	}
}

// SEC-21: the caps of connections in and out hold, at the limit and one over.
func TestConnectionCaps(t *testing.T) {
	const caps = 3
	hub := func(in bool) func(i int) swarm.Config {
		return func(i int) (c swarm.Config) {
			switch {
			case i == 0 && in:
				c.MaxIn = caps
			case i == 0:
				c.MaxOut = caps
				for j := range caps + 2 {
					c.Peers = append(c.Peers, address(j+1))
				}
			case in:
				c.Peers = []string{address(0)}
			}
			return c
		}
	}
	for _, in := range []bool{true, false} {
		for _, others := range []int{caps, caps + 2} {
			bubbleOf(t, 1+others, hub(in), func(m *memNet, nodes []*swarm.Swarm) {
				time.Sleep(5 * time.Minute)
				if n := len(nodes[0].Peers()); n != caps {
					t.Errorf("in %v: %d of %d peers are connected, want %d", in, n, others, caps)
				}
			})
		}
	}
}

// SEC-22: an address is banned with the key that came from it.
func TestBanOfAddress(t *testing.T) {
	bubble(t, 2, dialFirst, func(m *memNet, nodes []*swarm.Swarm) {
		a, b := nodes[0], nodes[1]
		for !a.Connected(b.Key()) {
			time.Sleep(time.Second)
		}
		if !m.served(a, address(1)) {
			t.Error("refused before the ban")
		}
		a.Ban(b.Key(), "test")
		if m.served(a, address(1)) {
			t.Error("another key from the banned address is let in")
		}
		if !m.served(a, address(7)) {
			t.Error("another address is refused")
		}
		time.Sleep(time.Minute + time.Second)
		if !m.served(a, address(1)) {
			t.Error("refused after the ban")
		}
	})
}

// SEC-24: hints of narrower scope than where they came from are not followed.
func TestCandidates(t *testing.T) {
	s, err := swarm.New(swarm.Config{Key: key(1)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, c := range []struct {
		addr, from string
		want       bool
	}{
		{"127.0.0.1:7070", "8.8.8.8:1", false},
		{"169.254.169.254:80", "8.8.8.8:1", false},
		{"[::1]:7071", "10.0.0.1:1", false},
		{"[::ffff:127.0.0.1]:7071", "10.0.0.1:1", false},
		{"192.168.0.1:7071", "8.8.8.8:1", false},
		{"192.168.0.1:7071", "10.0.0.1:1", true},
		{"1.2.3.4:7071", "8.8.8.8:1", true},
		{"1.2.3.4:7071", "127.0.0.1:1", true},
		{"224.0.0.251:5353", "127.0.0.1:1", false},
		{"0.0.0.0:1", "", false},
		{"192.168.0.1:7071", "", true},
		{"peer.example.org:7071", "", false},
		{"ws://1.2.3.4/swarm", "8.8.8.8:1", false},
	} {
		if got := s.AddCandidate(c.addr, c.from); got != c.want {
			t.Errorf("candidate %s from %q: %v, want %v", c.addr, c.from, got, c.want)
		}
	}
}

// SEC-21: silent connections take up a bounded number of places, for 10 s.
func TestSilentConnections(t *testing.T) {
	bubble(t, 1, func(int) []string { return nil }, func(m *memNet, nodes []*swarm.Swarm) {
		s := nodes[0]
		var theirs []net.Conn
		for i := range 300 {
			x, y := net.Pipe()
			theirs = append(theirs, x)
			s.Serve(pipeConn{y, fmt.Sprintf("10.1.%d.%d:1", i/200, i%200)})
		}
		synctest.Wait()
		open := 0
		for _, c := range theirs {
			c.SetReadDeadline(time.Now())
			if _, err := c.Read(make([]byte, 1)); os.IsTimeout(err) {
				open++
			}
		}
		if open != 64 {
			t.Errorf("%d silent connections are open, want 64", open)
		}
		time.Sleep(11 * time.Second)
		x, y := net.Pipe()
		s.Serve(pipeConn{y, "10.9.9.9:1"})
		x.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := x.Read(make([]byte, 1)); !os.IsTimeout(err) {
			t.Errorf("after 10 s there is no place: %v", err)
		}
		x.Close()
		for _, c := range theirs {
			c.Close()
		}
	})
}

// SEC-57: the identity is the owner's alone.
func TestIdentity(t *testing.T) {
	path := filepath.Join(t.TempDir(), "identity")
	a, err := swarm.Identity(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := swarm.Identity(path)
	if err != nil || !a.Equal(b) {
		t.Errorf("second time: %v, or another identity", err)
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, want 0600", info.Mode())
	}
	os.Chmod(path, 0o644)
	if _, err := swarm.Identity(path); err == nil {
		t.Error("an identity that others may read is accepted")
	}
	os.Chmod(path, 0o600)
	os.WriteFile(path, []byte("junk"), 0o600)
	if _, err := swarm.Identity(path); err == nil {
		t.Error("a damaged identity is accepted")
	}
}

// A core that was truncated before a peer has heard of it is fetched like others.
func TestTruncatedSource(t *testing.T) {
	a := start(t, swarm.Config{Key: key(1), Listen: []string{"127.0.0.1:0"}})
	c := a.source(t, 100)
	if err := c.Truncate(40); err != nil {
		t.Fatal(err)
	}
	b := start(t, swarm.Config{Key: key(2), Peers: []string{a.addr()}})
	copied, err := b.store.Open(c.Key())
	if err != nil {
		t.Fatal(err)
	}
	defer copied.Close()
	sess, err := b.Open(copied, replicate.SessionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer sess.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := sess.Update(ctx); err != nil || sess.Length() != 40 {
		t.Errorf("update to length %d, %v", sess.Length(), err)
	}
	b.fetch(t, c.Key(), 40)
}
