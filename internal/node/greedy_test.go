package node

import (
	"bytes"
	"crypto/ed25519"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/core/merkle"
	"github.com/pkgswarm/pkgswarm/internal/compact"
	"github.com/pkgswarm/pkgswarm/swarm/protomux"
	"github.com/pkgswarm/pkgswarm/swarm/secretstream"
)

// A greedy peer asks for the first blocks of a core over and over, and keeps
// nothing. It speaks hypercore/alpha as far as that takes.
type greedy struct {
	key core.Key
	got *atomic.Int64 // bytes
	mux *protomux.Mux
	ch  *protomux.Channel
	ids uint64
}

// Numbers of messages, see package replicate.
const (
	syncMessage    = 0
	requestMessage = 1
	dataMessage    = 3
)

// newGreedy connects to addr.
func newGreedy(t *testing.T, i byte, addr string, key core.Key, got *atomic.Int64) *greedy {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	s, err := secretstream.Client(t.Context(), c, secretstream.Config{Key: ed25519.NewKeyFromSeed(bytes.Repeat([]byte{i, 1}, 16))})
	if err != nil {
		t.Fatal(err)
	}
	g := &greedy{key: key, got: got, mux: protomux.New(s)}
	hash := core.Capability(key, s.HandshakeHash(), true)
	dk := key.Discovery()
	if g.ch, err = g.mux.Open("hypercore/alpha", dk[:], append([]byte{1}, hash[:]...), g); err != nil {
		t.Fatal(err)
	}
	return g
}

func (g *greedy) Opened([]byte) error {
	const downloading = 4
	if err := g.ch.Send(syncMessage, []byte{downloading, 0, 0, 0}); err != nil {
		return err
	}
	for range 64 {
		if err := g.ask(); err != nil {
			return err
		}
	}
	return nil
}

func (g *greedy) ask() error {
	g.ids++
	r := merkle.Request{Block: &merkle.BlockRequest{Index: g.ids % 64, Nodes: 7}}
	return g.ch.Send(requestMessage, r.AppendMessage(nil, g.ids, 0))
}

func (g *greedy) Message(kind int, payload []byte) error {
	if kind != dataMessage {
		return nil
	}
	if p, _ := merkle.DecodeProof(compact.NewDecoder(payload)); p.Block != nil {
		g.got.Add(int64(len(p.Block.Value)))
	}
	return g.ask()
}

func (g *greedy) Closed() {}

// TestGreedyPeers: 50 peers take all that they can get, and the node sends them no
// more than is configured while a local build gets its answers in time. SEC-28
func TestGreedyPeers(t *testing.T) {
	const peers, limit, size = 50, 8 << 20, 8 << 20
	if testing.Short() {
		t.Skip("takes 3 s")
	}
	u := newRegistry(t, size, 50_000)
	conf := config(t, u, t.TempDir())
	conf.Limits.Upload = limit
	n := start(t, conf)
	n.fetchAll(t, u)
	tree, err := core.HashStatic(bytes.NewReader(u.crates["crate00"]), size)
	if err != nil {
		t.Fatal(err)
	}
	var got atomic.Int64
	var runs sync.WaitGroup
	var all []*greedy
	defer func() {
		for _, g := range all {
			g.mux.Close(nil)
		}
		runs.Wait()
	}()
	begin := time.Now()
	for i := range peers {
		g := newGreedy(t, byte(i), n.SwarmAddr(), tree.Key(), &got)
		runs.Go(func() { g.mux.Run() })
		all = append(all, g)
	}
	var took []time.Duration
	for time.Since(begin) < 3*time.Second {
		start := time.Now()
		if err := n.fetch(u, "crate01"); err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	sent, most := float64(got.Load()), limit*time.Since(begin).Seconds()+limit/10+peers<<16
	t.Logf("%d answers, the median after %v, the slowest after %v; %.0f bytes were sent, %.0f might have been", len(took), took[len(took)/2], took[len(took)-1], sent, most)
	if sent > most || sent < most/4 {
		t.Errorf("%.0f bytes were sent, want at most %.0f and not much less", sent, most)
	}
	if p90 := took[len(took)*9/10]; p90 > 250*time.Millisecond {
		t.Errorf("9 of 10 local answers came within %v", p90)
	}
	if connected := len(n.swarm.Peers()); connected != peers {
		t.Errorf("%d peers are connected, want %d", connected, peers)
	}
}
