package replicate

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"time"
)

// TestGarbledPeer downloads from an honest peer and from one whose messages get
// lost, come twice, in another order or with a byte changed, at random: the
// download completes right, and no faster peer than the honest one is needed for
// it. REL-11, SEC-1
func TestGarbledPeer(t *testing.T) { randomly(t, 400, garbledPeer) }

func garbledPeer(t *testing.T, seed uint64) {
	simulate(t, func(t *testing.T, ctx context.Context) {
		rng := rand.New(rand.NewPCG(seed, 3))
		w := singleWriter(1)
		w.appendN(100+rng.IntN(200), 1000)
		odd, honest, reader := newNode(t, 1, w), newNode(t, 2, w), newNode(t, 3)
		var held [][]byte // kept back, by a kind that only one message has
		heldKind := -1
		often := rng.Float64() * 0.2
		garble := func(kind int, b []byte) [][]byte { // called by one goroutine
			out := [][]byte{b}
			if kind == heldKind {
				out, held, heldKind = append(out, held...), nil, -1
			}
			if rng.Float64() > often {
				return out
			}
			switch rng.IntN(4) {
			case 0:
				return out[1:]
			case 1:
				return append(out, b)
			case 2:
				if heldKind < 0 {
					held, heldKind = [][]byte{bytes.Clone(b)}, kind
					return out[1:]
				}
			case 3:
				if len(b) > 0 {
					c := bytes.Clone(b)
					c[rng.IntN(len(c))] ^= 1 << rng.IntN(8)
					out[0] = c
				}
			}
			return out
		}
		l := (&link{delay: time.Millisecond, alter: garble}).connect(ctx, odd, reader)
		h := (&link{delay: 20 * time.Millisecond, rate: 50e3}).connect(ctx, honest, reader)
		s, c := reader.open(w.key, SessionOptions{AllowPush: rng.IntN(2) == 0})
		for c.Tree().Length < w.Tree().Length {
			if _, err := s.Update(ctx); err != nil {
				t.Fatal(err)
			}
		}
		start := time.Now()
		if err := s.Download(ctx, 0, ^uint64(0)); err != nil {
			t.Fatal(err)
		}
		sameBlocks(t, c, w)
		if d, alone := time.Since(start), time.Duration(w.Tree().Length)*1200*time.Second/50_000; d > 2*alone+12*time.Second {
			t.Errorf("took %v; the honest peer alone takes %v", d, alone)
		}
		if n := len(reader.conflict()); n > 0 {
			t.Errorf("%d false conflicts", n)
		}
		s.Close()
		l.cut()
		h.cut()
		for _, err := range []error{h.errA, h.errB} {
			if _, dropped := errors.AsType[*PeerError](err); dropped {
				t.Errorf("the honest peer was dropped: %v", err)
			}
		}
	})
}
