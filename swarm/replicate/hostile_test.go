package replicate

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/core/merkle"
	"github.com/pkgswarm/pkgswarm/internal/compact"
)

// onData returns an alteration of data messages.
func onData(f func(p *merkle.Proof)) func(int, []byte) [][]byte {
	return func(kind int, b []byte) [][]byte {
		if kind != msgData {
			return [][]byte{b}
		}
		p, id := merkle.DecodeProof(compact.NewDecoder(bytes.Clone(b)))
		f(p)
		return [][]byte{p.AppendMessage(nil, id)}
	}
}

func onSync(f func(m *syncMessage)) func(int, []byte) [][]byte {
	return func(kind int, b []byte) [][]byte {
		if kind != msgSync {
			return [][]byte{b}
		}
		m := decodeSync(compact.NewDecoder(b))
		f(&m)
		return [][]byte{m.append(nil)}
	}
}

// TestLiars downloads from one liar and one honest peer. // SEC-1 SEC-20 SEC-22
func TestLiars(t *testing.T) {
	w := singleWriter(1)
	w.appendN(300, 100)
	for _, c := range []struct {
		name  string
		fault Fault // of the liar; empty if it is not dropped
		alter func(kind int, b []byte) [][]byte
	}{
		{"block", FaultProof, onData(func(p *merkle.Proof) {
			if p.Block != nil {
				p.Block.Value[3] ^= 1
			}
		})},
		{"longer block", FaultProof, onData(func(p *merkle.Proof) {
			if p.Block != nil {
				p.Block.Value = append(p.Block.Value, 0)
			}
		})},
		{"node of a path", FaultProof, onData(func(p *merkle.Proof) {
			if p.Block != nil && len(p.Block.Nodes) > 0 {
				p.Block.Nodes[0].Hash[0] ^= 1
			}
		})},
		{"size in a path", FaultProof, onData(func(p *merkle.Proof) {
			if p.Block != nil && len(p.Block.Nodes) > 0 {
				p.Block.Nodes[0].Size++
			}
		})},
		{"missing node", FaultUnasked, onData(func(p *merkle.Proof) {
			if p.Block != nil && len(p.Block.Nodes) > 0 {
				p.Block.Nodes = p.Block.Nodes[:len(p.Block.Nodes)-1]
			}
		})},
		{"node out of place", FaultProof, onData(func(p *merkle.Proof) {
			if p.Block != nil && len(p.Block.Nodes) > 0 {
				p.Block.Nodes[0].Index += 4
			}
		})},
		{"signature", FaultProof, onData(func(p *merkle.Proof) {
			if p.Upgrade != nil {
				p.Upgrade.Signature = bytes.Clone(p.Upgrade.Signature)
				p.Upgrade.Signature[9] ^= 1
			}
		})},
		{"upgrade node", FaultProof, onData(func(p *merkle.Proof) {
			if p.Upgrade != nil {
				p.Upgrade.Nodes[0].Hash[5] ^= 1
			}
		})},
		{"another block", FaultUnasked, onData(func(p *merkle.Proof) {
			if p.Block != nil {
				p.Block.Index ^= 1
			}
		})},
		{"another fork in data", FaultUnasked, onData(func(p *merkle.Proof) { p.Fork++ })},
		{"another manifest", FaultProof, func(kind int, b []byte) [][]byte {
			return onData(func(p *merkle.Proof) {
				if p.Upgrade != nil {
					m := core.SingleSigner(core.PublicKey{7})
					p.Manifest = m.Encode()
				}
			})(kind, b)
		}},
		{"length 2^50", "", onSync(func(m *syncMessage) { m.length, m.canUpgrade = 1<<50, true })},
		{"length 2^53-1", FaultMessage, onSync(func(m *syncMessage) { m.length = compact.MaxUint })},
		{"longer by one", "", onSync(func(m *syncMessage) { m.length++ })},
		{"fork 7", "", onSync(func(m *syncMessage) { m.fork = 7 })},
		{"cut messages", FaultMessage, func(kind int, b []byte) [][]byte { return [][]byte{b[:len(b)-1]} }},
		{"noise", FaultMessage, func(kind int, b []byte) [][]byte { return [][]byte{bytes.Repeat([]byte{0xff}, 40)} }},
		{"endless ranges", FaultFlood, repeated(msgRange, 400_000)},
		{"range of 2^53", FaultMessage, func(kind int, b []byte) [][]byte {
			if kind == msgRange {
				b = rangeMessage{start: 1, length: compact.MaxUint}.append(nil)
			}
			return [][]byte{b}
		}},
		{"has everything but gives nothing", "", func(kind int, b []byte) [][]byte {
			if kind == msgData {
				return nil
			}
			return [][]byte{b}
		}},
		{"data twice", FaultUnasked, func(kind int, b []byte) [][]byte { return [][]byte{b, b}[:1+kind/msgData%2] }},
		{"data a hundred times", FaultUnasked, func(kind int, b []byte) [][]byte {
			if kind != msgData {
				return [][]byte{b}
			}
			return slices.Repeat([][]byte{b}, 100)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			simulate(t, func(t *testing.T, ctx context.Context) {
				liar, honest, b := newNode(t, 1, w), newNode(t, 2, w), newNode(t, 3)
				// The liar is nearer.
				l1 := (&link{delay: 5 * time.Millisecond, alter: c.alter}).connect(ctx, liar, b)
				l2 := (&link{delay: 20 * time.Millisecond, rate: 1e6}).connect(ctx, honest, b)
				s, got := b.open(w.key, SessionOptions{})
				deadline, cancel := context.WithTimeout(ctx, 30*time.Second)
				defer cancel()
				for got.Tree().Length < 300 {
					if _, err := s.Update(deadline); err != nil {
						t.Fatal(err)
					}
				}
				if err := s.Download(deadline, 0, 300); err != nil {
					b.dump()
					t.Fatal(err)
				}
				sameBlocks(t, got, w)
				if got.Tree().Hash() != w.Tree().Hash() || got.Tree().Length != 300 {
					t.Error("another tree")
				}
				time.Sleep(headTimeout + time.Minute)
				l1.cut()
				l2.cut()
				var fault *PeerError
				switch errors.As(l1.errB, &fault); {
				case c.fault == "" && fault != nil:
					t.Errorf("dropped: %v", fault)
				case c.fault != "" && (fault == nil || fault.Fault != c.fault):
					t.Errorf("ended with %v, want %s", l1.errB, c.fault)
				}
				if !errors.Is(l2.errB, errCut) {
					t.Errorf("the honest peer was dropped: %v", l2.errB)
				}
				if len(b.conflict()) > 0 {
					t.Error("false evidence of two histories")
				}
			})
		})
	}
}

// repeated sends each message of that kind n times.
func repeated(kind, n int) func(int, []byte) [][]byte {
	return func(k int, b []byte) [][]byte {
		if k != kind {
			return [][]byte{b}
		}
		return slices.Repeat([][]byte{b}, n)
	}
}

// flood sends raw messages to a node that serves c, on one connection, until it
// is dropped, and returns why.
func flood(t *testing.T, ctx context.Context, c *memCore, send func(ch Channel) error) error {
	victim, liar := newNode(t, 1, c), newNode(t, 2)
	l := (&link{delay: time.Millisecond, rate: 50e6}).connect(ctx, victim, liar)
	s, _ := liar.open(c.key, SessionOptions{})
	mustGet(t, s, 0, c.blocks[0])
	ch := l.b.channel(c.key.Discovery())
	for range 1_000_000 {
		if send(ch) != nil {
			break
		}
	}
	time.Sleep(time.Minute)
	l.cut()
	return l.errA
}

// TestFloods sends what costs the sender little. // SEC-20
func TestFloods(t *testing.T) {
	c := singleWriter(1)
	c.appendN(10, 10)
	c.clear(5, 6)
	n := uint64(0)
	for _, f := range []struct {
		name string
		want Fault
		kind int
		next func() []byte
	}{
		{"wants", FaultFlood, msgWant, func() []byte { n++; return wantMessage{start: n << 21, length: 1 << 21}.append(nil) }},
		{"bitfields", FaultFlood, msgBitfield, func() []byte {
			n++
			return bitfieldMessage{start: n << 15, words: bytes.Repeat([]byte{0x55}, 4096)}.append(nil)
		}},
		{"requests", FaultInvalid, msgRequest, func() []byte {
			n++
			return (&merkle.Request{Block: &merkle.BlockRequest{Index: 1, Nodes: 50}}).AppendMessage(nil, n+1000, 0)
		}},
		{"extensions", FaultFlood, msgExtension, func() []byte { return extensionMessage{name: "x", payload: []byte{1}}.append(nil) }},
		{"data", FaultUnasked, msgData, func() []byte { n++; return (&merkle.Proof{}).AppendMessage(nil, n+1<<30) }},
		{"refusals", FaultUnasked, msgNoData, func() []byte { n++; return noDataMessage{id: n + 1<<30}.append(nil) }},
		{"large extension", FaultMessage, msgExtension, func() []byte {
			return extensionMessage{name: "x", payload: make([]byte, maxExtension+1)}.append(nil)
		}},
		{"too many nodes", FaultMessage, msgData, func() []byte {
			return (&merkle.Proof{Hash: &merkle.HashProof{Nodes: make([]merkle.Node, merkle.MaxNodes+1)}}).AppendMessage(nil, 1)
		}},
	} {
		t.Run(f.name, func(t *testing.T) {
			simulate(t, func(t *testing.T, ctx context.Context) {
				var fault *PeerError
				if err := flood(t, ctx, c, func(ch Channel) error { return ch.Send(f.kind, f.next()) }); !errors.As(err, &fault) || fault.Fault != f.want {
					t.Errorf("ended with %v, want %s", err, f.want)
				}
			})
		})
	}
}

// TestChannelFlood opens 100 000 channels for cores that are not there, and one
// that is with the wrong capability. // SEC-20 SEC-25
func TestChannelFlood(t *testing.T) {
	simulate(t, func(t *testing.T, ctx context.Context) {
		c := singleWriter(1)
		c.appendN(1, 1)
		a, b := newNode(t, 1, c), newNode(t, 2)
		l := new(link).connect(ctx, a, b)
		for i := range 100_000 {
			var dk core.DiscoveryKey
			binary.LittleEndian.PutUint32(dk[:], uint32(i))
			if l.a.deliver(frame{number: uint64(i + 1), id: dk, kind: frameOpen, payload: make([]byte, 33)}) != nil {
				t.Fatal("dropped")
			}
			time.Sleep(time.Microsecond)
		}
		time.Sleep(time.Second)
		l.a.mu.Lock()
		open := len(l.a.incoming) + len(l.a.chans)
		l.a.mu.Unlock()
		if a.feeds() != 0 || open != 0 {
			t.Errorf("%d feeds, %d channels", a.feeds(), open)
		}
		l.a.deliver(frame{number: 200_000, id: c.key.Discovery(), kind: frameOpen, payload: make([]byte, 33)})
		time.Sleep(time.Second)
		l.cut()
		var fault *PeerError
		if !errors.As(l.errA, &fault) || fault.Fault != FaultCapability {
			t.Errorf("ended with %v", l.errA)
		}
	})
}

// TestAnnouncementsAreSmall announces everything there could be. // SEC-20
func TestAnnouncementsAreSmall(t *testing.T) {
	simulate(t, func(t *testing.T, ctx context.Context) {
		c := singleWriter(1)
		c.appendN(3, 10)
		a, b := newNode(t, 1, c), newNode(t, 2)
		l := (&link{delay: time.Millisecond, alter: onSync(func(m *syncMessage) { m.length = 1 << 50 })}).connect(ctx, a, b)
		s, _ := b.open(c.key, SessionOptions{})
		time.Sleep(time.Second)
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		ch := l.a.channel(c.key.Discovery())
		for i := range uint64(3000) {
			ch.Send(msgRange, rangeMessage{start: i << 40, length: 1 << 39}.append(nil))
			ch.Send(msgBitfield, bitfieldMessage{start: i << 30, words: bytes.Repeat([]byte{0xaa}, 1<<15)}.append(nil))
			time.Sleep(10 * time.Millisecond)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 8<<20 {
			t.Errorf("memory grew by %d bytes", grown)
		}
		s.Close()
		l.cut()
	})
}

// history returns a core of that many blocks, of which the first common ones are
// those of every other history of the key.
func history(common, length int, salt string) *memCore {
	w := singleWriter(1)
	for i := range length {
		block := fmt.Sprintf("block %d", i)
		if i >= common {
			block += salt
		}
		w.append([]byte(block))
	}
	return w
}

// TestTwoHistories connects peers with histories that disagree, and with some
// that do not, in all sorts of lengths, also with a restart between. None may be
// missed, none may be false. SEC-13
func TestTwoHistories(t *testing.T) {
	runs := 200
	if testing.Short() {
		runs = 60
	}
	for seed := range uint64(runs) {
		rng := rand.New(rand.NewPCG(seed, 13))
		common := rng.IntN(12)
		x := history(common, common+1+rng.IntN(20), " of x")
		y := history(common, common+1+rng.IntN(20), " of y")
		agree := seed/4%4 == 3
		if agree {
			y = history(common, common+1+rng.IntN(20), " of x")
			short := min(int(x.Tree().Length), int(y.Tree().Length))
			if common > short {
				agree = false
			}
		}
		simulate(t, func(t *testing.T, ctx context.Context) {
			a, b := newNode(t, 1, x), newNode(t, 2, y)
			reader := newNode(t, 3)
			delay := func() time.Duration { return time.Duration(1+rng.IntN(50)) * time.Millisecond }
			s, _ := reader.open(x.key, SessionOptions{})
			switch seed % 4 {
			case 0: // both at once
				la := (&link{delay: delay()}).connect(ctx, a, reader)
				lb := (&link{delay: delay()}).connect(ctx, b, reader)
				defer la.cut()
				defer lb.cut()
			case 1: // one after the other
				la := (&link{delay: delay()}).connect(ctx, a, reader)
				s.Update(ctx)
				la.cut()
				lb := (&link{delay: delay()}).connect(ctx, reader, b)
				defer lb.cut()
			case 2: // writers that meet, one of them reading
				as, _ := a.open(x.key, SessionOptions{})
				defer as.Close()
				la := (&link{delay: delay()}).connect(ctx, a, b)
				defer la.cut()
			case 3: // the reader is started again after the first
				la := (&link{delay: delay()}).connect(ctx, a, reader)
				s.Update(ctx)
				s.Download(ctx, 0, rng.Uint64N(s.Length()+1))
				s.Close()
				reader.r.Close()
				la.cut()
				reader = newNode(t, 3, reader.cores[x.key.Discovery()])
				s, _ = reader.open(x.key, SessionOptions{})
				lb := (&link{delay: delay()}).connect(ctx, b, reader)
				defer lb.cut()
			}
			time.Sleep(30 * time.Second)
			n := a
			if seed%4 != 2 {
				n = reader
			}
			found := n.conflict()
			if seed%2 == 1 && !agree && len(found) == 0 && lacksRoots(reader, x, y) {
				return // nobody is left who could show the longer history from the fork on
			}
			if (len(found) == 0) != agree {
				t.Errorf("seed %d: %d and %d blocks, %d in common: %d conflicts, agree %v",
					seed, x.Tree().Length, y.Tree().Length, common, len(found), agree)
			}
			for _, e := range found {
				back, err := core.DecodeEvidence(e.Encode())
				if err != nil || back.Verify() != nil {
					t.Errorf("seed %d: evidence does not convince: %v", seed, err)
				}
			}
			if !agree && seed%4 < 2 {
				if _, err := s.Get(ctx, 0); !errors.Is(err, ErrConflict) {
					t.Errorf("seed %d: Get = %v, want ErrConflict", seed, err)
				}
			}
			s.Close()
		})
	}
}

// TestAbsurdLength: a signed head of 2^50 blocks is passed over, whether its peer
// comes first or last, and is no second history either; the history that goes on
// is followed. SEC-15
func TestAbsurdLength(t *testing.T) {
	for _, first := range []string{"absurd", "good"} {
		t.Run(first+" first", func(t *testing.T) {
			simulate(t, func(t *testing.T, ctx context.Context) {
				good, absurd := history(5, 5, ""), history(3, 3, "")
				const length = 1 << 50
				root := merkle.Node{Index: length - 1, Size: 1 << 50, Hash: merkle.Hash{1}}
				absurd.tree = merkle.Tree{Length: length, Roots: []merkle.Node{root}}
				absurd.nodes[root.Index] = root
				absurd.sign(absurd.tree)

				a, b, reader := newNode(t, 1, absurd), newNode(t, 2, good), newNode(t, 3)
				s, c := reader.open(good.key, SessionOptions{NoReorg: true, MaxLength: 1 << 42})
				defer s.Close()
				peers := []*node{a, b}
				if first == "good" {
					peers = []*node{b, a}
				}
				for _, p := range peers {
					defer (&link{delay: time.Millisecond}).connect(ctx, reader, p).cut()
					time.Sleep(time.Minute)
				}
				good.append([]byte("and on"))
				if b, err := s.Get(ctx, 5); err != nil || string(b) != "and on" {
					t.Errorf("block 5 is %q, %v", b, err)
				}
				if n := c.Tree().Length; n != 6 || len(reader.conflict()) > 0 {
					t.Errorf("%d blocks, conflicts %v", n, reader.conflict())
				}
			})
		})
	}
}

// lacksRoots says whether the reader's replica cannot compute its own tree hash
// at the length of the shorter history.
func lacksRoots(reader *node, x, y *memCore) bool {
	c := reader.cores[x.key.Discovery()]
	_, err := c.TreeAt(min(x.Tree().Length, y.Tree().Length))
	return err != nil
}

// TestForgedEvidence changes every byte of evidence. // SEC-13
func TestForgedEvidence(t *testing.T) {
	x, y := history(3, 5, "x"), history(3, 7, "y")
	px, _ := x.Prove(merkle.Request{Upgrade: &merkle.UpgradeRequest{Length: 5}})
	py, _ := y.Prove(merkle.Request{Upgrade: &merkle.UpgradeRequest{Length: 5}})
	e := core.Evidence{Key: x.key, Manifest: x.manifest.Encode(), A: px.AppendMessage(nil, 0), B: py.AppendMessage(nil, 0)}
	if err := e.Verify(); err != nil {
		t.Fatal(err)
	}
	same := e
	same.B = same.A
	if same.Verify() == nil {
		t.Error("one history twice convinces")
	}
	b := e.Encode()
	for i := range b {
		bad := bytes.Clone(b)
		bad[i] ^= 1
		f, err := core.DecodeEvidence(bad)
		if err == nil && f.Verify() == nil && !harmless(f, &e) {
			t.Errorf("evidence with byte %d changed convinces", i)
		}
	}
}

// harmless says whether a and b prove the same: the request ids inside differ.
func harmless(a, b *core.Evidence) bool {
	strip := func(m []byte) string {
		p, _ := merkle.DecodeProof(compact.NewDecoder(m))
		if p.Upgrade != nil && len(p.Upgrade.Signature) > 0 {
			p.Upgrade.Signature = p.Upgrade.Signature[:66] // what follows is not looked at
		}
		p.Upgrade.Length += p.Upgrade.Start
		return string(p.AppendMessage(nil, 0))
	}
	return a.Key == b.Key && strip(a.A) == strip(b.A) && strip(a.B) == strip(b.B)
}
