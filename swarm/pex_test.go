package swarm_test

import (
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pkgswarm/pkgswarm/internal/compact"
	"github.com/pkgswarm/pkgswarm/swarm"
	"github.com/pkgswarm/pkgswarm/swarm/protomux"
	"github.com/pkgswarm/pkgswarm/swarm/secretstream"
)

// Nodes that know one peer learn of the others from it, and stay connected when it
// leaves.
func TestPeerExchange(t *testing.T) {
	const n = 5
	bubbleOf(t, n, func(i int) swarm.Config {
		c := swarm.Config{PeerExchange: true, Advertise: 1}
		if i > 0 {
			c.Peers = []string{address(0)}
		}
		return c
	}, func(m *memNet, nodes []*swarm.Swarm) {
		time.Sleep(time.Minute)
		for i, s := range nodes {
			if got := len(s.Peers()); got != n-1 {
				t.Errorf("node %d has %d peers, want %d", i, got, n-1)
			}
		}
	})
}

// Without it nobody is told of anybody.
func TestNoPeerExchange(t *testing.T) {
	bubbleOf(t, 3, func(i int) swarm.Config {
		c := swarm.Config{PeerExchange: i > 0, Advertise: 1}
		if i > 0 {
			c.Peers = []string{address(0)}
		}
		return c
	}, func(m *memNet, nodes []*swarm.Swarm) {
		time.Sleep(time.Minute)
		if got := len(nodes[1].Peers()); got != 1 {
			t.Errorf("%d peers, want 1", got)
		}
	})
}

// A hostile is a peer that speaks the protocols by hand.
type hostile struct {
	mux *protomux.Mux
	ch  *protomux.Channel
	end chan error
}

// hostilePeer connects to s from an address and opens the exchange.
func hostilePeer(t *testing.T, s *swarm.Swarm, seed byte, from string, port uint64) *hostile {
	t.Helper()
	return hostileKey(t, s, key(seed), from, port)
}

// hostileKey is hostilePeer with an identity.
func hostileKey(t *testing.T, s *swarm.Swarm, k ed25519.PrivateKey, from string, port uint64) *hostile {
	t.Helper()
	x, y := net.Pipe()
	s.Serve(pipeConn{y, from})
	stream, err := secretstream.Client(context.Background(), x, secretstream.Config{Key: k})
	if err != nil {
		t.Fatal(err)
	}
	h := &hostile{mux: protomux.New(stream), end: make(chan error, 1)}
	hs := compact.AppendUint(compact.AppendUint(nil, 1), port)
	if h.ch, err = h.mux.Open("pkgswarm/pex", nil, hs, mute{}); err != nil {
		t.Fatal(err)
	}
	go func() { h.end <- h.mux.Run() }()
	return h
}

// newKey returns an identity for a number.
func newKey(i int) ed25519.PrivateKey {
	var seed [ed25519.SeedSize]byte
	binary.LittleEndian.PutUint64(seed[:], uint64(i)+1<<32)
	return ed25519.NewKeyFromSeed(seed[:])
}

// tell names peers in one message.
func (h *hostile) tell(addrs ...string) error {
	b := compact.AppendUint(nil, uint64(len(addrs)))
	for _, a := range addrs {
		ap := netip.MustParseAddrPort(a)
		b = compact.AppendBytes(b, ap.Addr().AsSlice())
		b = compact.AppendUint(b, uint64(ap.Port()))
	}
	return h.ch.Send(0, b)
}

func (h *hostile) close() {
	h.mux.Close(nil)
	<-h.end
}

// A mute ignores what arrives.
type mute struct{}

func (mute) Opened([]byte) error       { return nil }
func (mute) Message(int, []byte) error { return nil }
func (mute) Closed()                   {}

// SEC-24: what a peer names is dialled only if it is no nearer than the peer.
func TestPeerExchangeScope(t *testing.T) {
	for _, from := range []string{"10.1.1.1:9", "8.8.8.8:9", "[2001:db8::1]:9"} {
		bubbleOf(t, 1, func(int) swarm.Config { return swarm.Config{PeerExchange: true} }, func(m *memNet, nodes []*swarm.Swarm) {
			h := hostilePeer(t, nodes[0], 77, from, 7071)
			defer h.close()
			h.tell("127.0.0.1:7070", "169.254.169.254:80", "[::1]:7070", "[::ffff:127.0.0.1]:22", "[fe80::1]:80", "224.0.0.251:5353", "0.0.0.0:80", "255.255.255.255:1")
			if strings.HasPrefix(from, "8.") {
				h.tell("10.0.0.1:80", "192.168.1.1:80", "100.64.0.1:80", "[fd00::1]:80")
			}
			time.Sleep(time.Hour)
			m.mu.Lock()
			defer m.mu.Unlock()
			if len(m.dials) > 0 {
				t.Errorf("a peer at %s made us dial %v", from, m.dials)
			}
		})
	}
}

// SEC-26: 200 hostile peers that name addresses where nobody speaks neither keep us
// from the configured peer nor make us dial much.
func TestHostileDiscovery(t *testing.T) {
	bubbleOf(t, 2, func(i int) swarm.Config {
		c := swarm.Config{PeerExchange: true, MaxIn: 300}
		if i == 0 {
			c.Peers = []string{address(7)}
		}
		return c
	}, func(m *memNet, nodes []*swarm.Swarm) {
		m.mu.Lock()
		m.silent = true
		m.mu.Unlock()
		s := nodes[0]
		var all []*hostile
		for i := range 200 {
			h := hostilePeer(t, s, byte(20+i), fmt.Sprintf("10.1.%d.1:9", i), 7071)
			all = append(all, h)
			var addrs []string
			for k := range 100 {
				addrs = append(addrs, fmt.Sprintf("10.%d.%d.2:80", 10+k, i))
			}
			h.tell(addrs...)
		}
		time.Sleep(5 * time.Minute)
		m.mu.Lock()
		before := 0
		for _, n := range m.dials {
			before += n
		}
		m.mu.Unlock()
		if before > 1200 {
			t.Errorf("%d dials in 5 minutes for what hostile peers told", before)
		}
		// The configured peer comes late.
		m.mu.Lock()
		m.nodes[address(7)] = nodes[1]
		m.mu.Unlock()
		start := time.Now()
		for !s.Connected(nodes[1].Key()) && time.Since(start) < 5*time.Minute {
			time.Sleep(time.Second)
		}
		if d := time.Since(start); d > 90*time.Second {
			t.Errorf("the configured peer is connected after %v", d)
		}
		for _, h := range all {
			h.close()
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, c := range m.theirs {
			c.Close()
		}
	})
}

// A malformed message is the end of a connection, and a ban.
func TestPeerExchangeMalformed(t *testing.T) {
	for name, message := range map[string][]byte{
		"empty":           {},
		"count too large": {0xfe, 0xff, 0xff, 0xff, 0x00},
		"5 bytes of IP":   {1, 5, 1, 2, 3, 4, 5, 80},
		"port 0":          {1, 4, 1, 2, 3, 4, 0, 0},
		"129 peers":       append([]byte{129}, strings.Repeat("\x04\x01\x02\x03\x04\x50", 129)...),
	} {
		bubbleOf(t, 1, func(int) swarm.Config { return swarm.Config{PeerExchange: true} }, func(m *memNet, nodes []*swarm.Swarm) {
			h := hostilePeer(t, nodes[0], 77, "10.1.1.1:9", 0)
			h.ch.Send(0, message)
			synctest.Wait()
			time.Sleep(time.Second)
			if len(nodes[0].Peers()) != 0 {
				t.Errorf("%s: the peer is still connected", name)
			}
			h.close()
			if err := h.ch.Send(0, nil); !errors.Is(err, protomux.ErrClosed) {
				t.Errorf("%s: send after the end: %v", name, err)
			}
		})
	}
}
