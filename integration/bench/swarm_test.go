package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/internal/node"
)

// BenchmarkFromPeer is goal P8: files of 10 KB from a peer, and what asking costs
// when no peer has the file and the upstream answers at once.
func BenchmarkFromPeer(b *testing.B) {
	const n = 400
	up := madeUp(b, slicesOf(n, 10<<10)...)
	a := cargoNode(b, up, node.Config{SwarmListen: "127.0.0.1:0"})
	for i := range n / 2 {
		get(b, a.URL()+crate(i))
	}
	var hits, misses, direct []time.Duration
	for b.Loop() {
		c := cargoNode(b, up, node.Config{Peers: []string{a.SwarmAddr()}, PeerBudget: time.Second})
		alone := cargoNode(b, up, node.Config{})
		for len(c.Status().Swarm.Peers) == 0 {
			time.Sleep(time.Millisecond)
		}
		for i := range n { // the index is not what is measured
			get(b, c.URL()+"/cargo/"+indexPath(i))
			get(b, alone.URL()+"/cargo/"+indexPath(i))
		}
		for i := range n {
			if _, d := get(b, c.URL()+crate(i)); i < n/2 {
				hits = append(hits, d)
			} else {
				misses = append(misses, d)
				_, d := get(b, alone.URL()+crate(i))
				direct = append(direct, d)
			}
		}
		if got := c.Status().Usage.Peer; got != n/2 {
			b.Errorf("%d from peers, want %d", got, n/2)
		}
	}
	p50, p99 := percentile(hits, 50), percentile(hits, 99)
	add(figure{"P8", "10 KB from a peer, p50", "ms", p50, 0, "", p50, "%.1f ms", 15, false})
	add(figure{"P8", "10 KB from a peer, p99", "ms", p99, 0, "", p99, "%.1f ms", 50, false})
	for _, p := range []int{50, 99} {
		ours, theirs := percentile(misses, p), percentile(direct, p)
		add(figure{"P8", fmt.Sprintf("10 KB that no peer has, p%d", p), "ms", ours, theirs, "no peers", ours - theirs, "+%.1f ms", 20, false})
	}
}

// BenchmarkFleet is goal S2: the upstream's downloads when 8 cold members of a
// fleet want the same artifacts at once.
func BenchmarkFleet(b *testing.B) {
	const members, artifacts = 8, 20
	up := madeUp(b, slicesOf(artifacts, 200<<10)...)
	up.Delay(20 * time.Millisecond)
	token := filepath.Join(b.TempDir(), "token")
	if err := os.WriteFile(token, []byte("0123456789abcdef0123456789abcdef"), 0o600); err != nil {
		b.Fatal(err)
	}
	var each []float64
	for b.Loop() {
		for range rounds {
			var nodes []*node.Node
			var addrs []string
			var stops []func()
			for range members {
				n, stop := runNode(b, node.Config{CargoUpstream: up.Index(), GoUpstream: "off", SumDB: "off",
					SwarmListen: "127.0.0.1:0", Peers: slices.Clone(addrs), FleetTokenFile: token})
				nodes, addrs, stops = append(nodes, n), append(addrs, n.SwarmAddr()), append(stops, stop)
			}
			for _, n := range nodes {
				for len(n.Status().Swarm.Peers) < members-1 {
					time.Sleep(time.Millisecond)
				}
			}
			up.Reset()
			var wg sync.WaitGroup
			for _, n := range nodes {
				for i := range artifacts {
					wg.Go(func() { get(b, n.URL()+crate(i)) })
				}
			}
			wg.Wait()
			total := 0
			for _, k := range up.Downloads() {
				total += k
			}
			each = append(each, float64(total)/artifacts)
			for _, stop := range stops {
				stop()
			}
		}
	}
	for what, n := range map[string]float64{"middle": median(each), "worst": slices.Max(each)} {
		add(figure{"S2", "a file that 8 cold nodes want, " + what + " round", "downloads", n, 1, "ideal", n, "%.2fx", 1, false})
	}
}
