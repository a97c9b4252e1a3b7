package replicate

import (
	"context"
	"flag"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var oneSeed = flag.Uint64("seed", 0, "run TestRandomNetwork with this seed only")

// TestRandomNetwork lets a writer append and truncate while nodes connect, lose
// each other, read, download and stop wanting the core, all at random. When the
// network is whole again, everybody must get everything. REL-11
func TestRandomNetwork(t *testing.T) {
	seeds := uint64(400)
	if testing.Short() {
		seeds = 40
	}
	if *oneSeed != 0 {
		randomNetwork(t, *oneSeed)
		return
	}
	for seed := uint64(1); seed <= seeds && !t.Failed(); seed++ {
		randomNetwork(t, seed)
	}
}

func randomNetwork(t *testing.T, seed uint64) {
	simulate(t, func(t *testing.T, ctx context.Context) {
		defer func() {
			if t.Failed() {
				t.Logf("to repeat: -run RandomNetwork -seed=%d", seed)
			}
		}()
		rng := rand.New(rand.NewPCG(seed, 7))
		w := singleWriter(1)
		w.appendN(1+rng.IntN(50), 40)
		nodes := []*node{newNode(t, 1, w), newNode(t, 2), newNode(t, 3), newNode(t, 4)}
		sessions := make([]*Session, len(nodes))
		open := func(i int) {
			if sessions[i] == nil {
				sessions[i], _ = nodes[i].open(w.key, SessionOptions{AllowPush: rng.IntN(3) == 0})
			}
		}
		links := map[[2]int]*link{}
		connect := func(i, j int) {
			if i != j && links[[2]int{min(i, j), max(i, j)}] == nil {
				l := &link{delay: time.Duration(rng.IntN(40)) * time.Millisecond}
				if rng.IntN(2) == 0 {
					l.rate = 20e3 + rng.Float64()*1e6
				}
				links[[2]int{min(i, j), max(i, j)}] = l.connect(ctx, nodes[i], nodes[j])
			}
		}
		var background sync.WaitGroup
		for range 60 {
			i, j := rng.IntN(len(nodes)), rng.IntN(len(nodes))
			switch rng.IntN(12) {
			case 0, 1:
				w.appendN(1+rng.IntN(10), rng.IntN(60))
			case 2:
				if rng.IntN(4) == 0 && w.Tree().Length > 1 {
					w.truncate(rng.Uint64N(w.Tree().Length))
					w.appendN(1+rng.IntN(5), 50)
				}
			case 3, 4, 5:
				connect(i, j)
			case 6:
				for k, l := range links {
					l.cut()
					delete(links, k)
					break
				}
			case 7:
				open(i)
			case 8:
				if i > 0 && sessions[i] != nil {
					sessions[i].Close()
					sessions[i] = nil
				}
			default:
				open(i)
				s := sessions[i]
				lo := rng.Uint64N(w.Tree().Length)
				limit := time.Duration(rng.IntN(3000)) * time.Millisecond
				kind := rng.IntN(3)
				background.Go(func() {
					ctx, cancel := context.WithTimeout(ctx, limit)
					defer cancel()
					switch kind {
					case 0:
						s.Get(ctx, lo)
					case 1:
						s.Download(ctx, lo, lo+20)
					case 2:
						s.Seek(ctx, lo*30)
					}
				})
			}
			time.Sleep(time.Duration(rng.IntN(200)) * time.Millisecond)
		}
		background.Wait()

		for i := range nodes {
			connect(0, i)
			open(i)
		}
		time.Sleep(5 * time.Second)
		final, cancel := context.WithTimeout(ctx, 2*time.Minute)
		defer cancel()
		for i, n := range nodes[1:] {
			c := n.cores[w.key.Discovery()]
			if _, err := sessions[i+1].Update(final); err != nil {
				t.Errorf("node %d: update: %v", i+2, err)
			}
			if err := sessions[i+1].Download(final, 0, ^uint64(0)); err != nil {
				t.Errorf("node %d: %v", i+2, err)
			}
			if c.Tree().Hash() != w.Tree().Hash() || c.Tree().Fork != w.Tree().Fork || c.ContiguousLength() != w.Tree().Length {
				t.Errorf("node %d: %d of %d blocks, fork %d, want %d and %d", i+2, c.ContiguousLength(), c.Tree().Length,
					c.Tree().Fork, w.Tree().Length, w.Tree().Fork)
			}
			if t.Failed() {
				n.dump()
				nodes[0].dump()
				break
			}
			sameBlocks(t, c, w)
			if len(n.conflict()) > 0 {
				t.Errorf("node %d: false evidence of two histories", i+2)
			}
		}
		for _, s := range sessions {
			if s != nil {
				s.Close()
			}
		}
		synctest.Wait()
		for _, l := range links {
			l.cut()
			for _, err := range []error{l.errA, l.errB} {
				if _, ok := err.(*PeerError); ok {
					t.Errorf("an honest peer was dropped: %v", err)
				}
			}
		}
	})
}
