package core_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/core/merkle"
)

var seedFlag = flag.Uint64("seed", 0, "seed of random tests; 0 is a new one each time")

// newRand returns a random source whose seed the test prints if it fails.
func newRand(t *testing.T) *rand.Rand {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("to repeat: -seed=%d", seed)
		}
	})
	return rand.New(rand.NewPCG(seed, 0))
}

func openStore(t *testing.T, fs vfs.FS) *core.Store {
	t.Helper()
	s, err := core.OpenStore("store", core.Options{FS: fs, PrimaryKey: &[32]byte{1}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A model is what a core should be.
type model struct {
	blocks [][]byte // nil: cleared
	fork   uint64
}

func (m *model) clone() model {
	return model{append([][]byte{}, m.blocks...), m.fork}
}

func randomBlock(r *rand.Rand) []byte {
	n := r.IntN(200)
	switch r.IntN(20) {
	case 0:
		n = 0
	case 1:
		n = 20_000 // goes to a segment
	}
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// TestModel runs random operations on a core and on a slice.
func TestModel(t *testing.T) {
	r := newRand(t)
	fs := vfs.NewMem()
	s := openStore(t, fs)
	defer func() { s.Close() }()
	c, err := s.Named("model")
	if err != nil {
		t.Fatal(err)
	}
	var m model
	type snap struct {
		s *core.Snapshot
		m model
	}
	var snaps []snap
	steps := 1500
	if testing.Short() {
		steps = 400
	}
	for step := range steps {
		switch op := r.IntN(100); {
		case op < 40:
			blocks := make([][]byte, 1+r.IntN(5))
			if r.IntN(10) == 0 {
				blocks = make([][]byte, r.IntN(100))
			}
			for i := range blocks {
				blocks[i] = randomBlock(r)
			}
			appendTo := c.Append
			if r.IntN(2) == 0 {
				appendTo = c.AppendLazy
			}
			n, err := appendTo(blocks...)
			m.blocks = append(m.blocks, blocks...)
			if err != nil || n != uint64(len(m.blocks)) && len(blocks) > 0 {
				t.Fatalf("step %d: append = %d, %v, want %d", step, n, err, len(m.blocks))
			}
		case op < 48:
			n := r.IntN(len(m.blocks) + 1)
			n = max(n, len(m.blocks)-r.IntN(70))
			if err := c.Truncate(uint64(n)); err != nil {
				t.Fatalf("step %d: truncate to %d: %v", step, n, err)
			}
			m.blocks = append([][]byte{}, m.blocks[:n]...)
			m.fork++
		case op < 56:
			lo := r.IntN(len(m.blocks) + 1)
			hi := min(len(m.blocks), lo+r.IntN(80))
			if err := c.Clear(uint64(lo), uint64(hi)); err != nil {
				t.Fatalf("step %d: clear: %v", step, err)
			}
			m.blocks = append([][]byte{}, m.blocks...)
			for i := lo; i < hi; i++ {
				m.blocks[i] = nil
			}
		case op < 60 && len(snaps) < 3:
			snaps = append(snaps, snap{c.Snapshot(), m.clone()})
		case op < 64 && len(snaps) > 0:
			snaps[0].s.Close()
			snaps = snaps[1:]
		case op < 67:
			for _, sn := range snaps {
				sn.s.Close()
			}
			snaps = nil
			if err := s.Close(); err != nil {
				t.Fatalf("step %d: close: %v", step, err)
			}
			s = openStore(t, fs)
			if c, err = s.Named("model"); err != nil {
				t.Fatal(err)
			}
		}
		if step%10 == 0 {
			compare(t, step, c, m)
			for _, sn := range snaps {
				compareSnapshot(t, step, sn.s, sn.m)
			}
		}
	}
	err = c.Check(context.Background(), func(err error) bool { t.Errorf("check: %v", err); return true }, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, sn := range snaps {
		sn.s.Close()
	}
}

func compare(t *testing.T, step int, c *core.Core, m model) {
	t.Helper()
	want := merkle.NewBatch(merkle.Tree{})
	contiguous := uint64(len(m.blocks))
	full := true
	for i, b := range m.blocks {
		got, err := c.Get(context.Background(), uint64(i))
		if b == nil {
			contiguous = min(contiguous, uint64(i))
			full = false
			if !errors.Is(err, core.ErrMissing) || c.Has(uint64(i)) {
				t.Fatalf("step %d: get %d = %v, want ErrMissing", step, i, err)
			}
			continue
		}
		if err != nil || !bytes.Equal(got, b) {
			t.Fatalf("step %d: get %d: %v, or another block", step, i, err)
		}
		if full {
			want.Append(b)
		}
	}
	info := c.Info()
	if info.Length != uint64(len(m.blocks)) || info.Fork != m.fork || info.Contiguous != contiguous {
		t.Fatalf("step %d: length %d fork %d contiguous %d, want %d %d %d", step, info.Length, info.Fork, info.Contiguous, len(m.blocks), m.fork, contiguous)
	}
	if full && info.TreeHash != want.Tree.Hash() {
		t.Fatalf("step %d: tree hash differs", step)
	}
	if _, err := c.Get(context.Background(), info.Length); !errors.Is(err, core.ErrRange) {
		t.Fatalf("step %d: get past the end = %v, want ErrRange", step, err)
	}
	for from := uint64(0); from < info.Length; {
		i, err := c.NextAbsent(from, info.Length)
		if err != nil {
			t.Fatal(err)
		}
		for j := from; j < i; j++ {
			if m.blocks[j] == nil {
				t.Fatalf("step %d: next absent from %d is %d, but %d is", step, from, i, j)
			}
		}
		if i < info.Length && m.blocks[i] != nil {
			t.Fatalf("step %d: %d is not absent", step, i)
		}
		j, err := c.NextPresent(i, info.Length)
		if err != nil {
			t.Fatal(err)
		}
		for k := i; k < j; k++ {
			if m.blocks[k] != nil {
				t.Fatalf("step %d: next present from %d is %d, but %d is", step, i, j, k)
			}
		}
		from = j
	}
}

func compareSnapshot(t *testing.T, step int, s *core.Snapshot, m model) {
	t.Helper()
	if s.Length() != uint64(len(m.blocks)) {
		t.Fatalf("step %d: snapshot has %d blocks, want %d", step, s.Length(), len(m.blocks))
	}
	for i, b := range m.blocks {
		got, err := s.Get(context.Background(), uint64(i))
		if b == nil && !errors.Is(err, core.ErrMissing) {
			t.Fatalf("step %d: snapshot get %d = %v, want ErrMissing", step, i, err)
		}
		if b != nil && (err != nil || !bytes.Equal(got, b)) {
			t.Fatalf("step %d: snapshot get %d: %v, or another block", step, i, err)
		}
	}
}

// TestReplica copies a core block by block, in random order, while it grows and
// forks.
func TestReplica(t *testing.T) {
	r := newRand(t)
	src, dst := openStore(t, vfs.NewMem()), openStore(t, vfs.NewMem())
	defer src.Close()
	defer dst.Close()
	a, err := src.Named("source")
	if err != nil {
		t.Fatal(err)
	}
	b, err := dst.Open(a.Key())
	if err != nil {
		t.Fatal(err)
	}
	for round := range 30 {
		if round%7 == 6 {
			if err := a.Truncate(a.Length() - uint64(r.IntN(int(a.Length())+1))); err != nil {
				t.Fatal(err)
			}
		}
		for range r.IntN(60) {
			if _, err := a.AppendLazy(randomBlock(r)); err != nil {
				t.Fatal(err)
			}
		}
		follow(t, a, b)
		for range r.IntN(40) {
			if n := a.Length(); n > 0 {
				copyBlock(t, a, b, r.Uint64N(n))
			}
		}
	}
	for i := range a.Length() {
		copyBlock(t, a, b, i)
	}
	if x, y := a.Info(), b.Info(); x.TreeHash != y.TreeHash || y.Contiguous != x.Length || x.Fork != y.Fork {
		t.Errorf("replica is %+v, want %+v", y, x)
	}
	for i := range a.Length() {
		x, err1 := a.Get(t.Context(), i)
		y, err2 := b.Get(t.Context(), i)
		if err1 != nil || err2 != nil || !bytes.Equal(x, y) {
			t.Fatalf("block %d differs: %v, %v", i, err1, err2)
		}
	}
	b.Check(t.Context(), func(err error) bool { t.Errorf("check: %v", err); return true }, nil)
}

// follow brings b to the head of a.
func follow(t *testing.T, a, b *core.Core) {
	t.Helper()
	at, bt := a.Tree(), b.Tree()
	if at.Fork != bt.Fork {
		reorg(t, a, b)
		return
	}
	if at.Length == bt.Length {
		return
	}
	p, err := a.Prove(merkle.Request{Fork: at.Fork, Upgrade: &merkle.UpgradeRequest{Start: bt.Length, Length: at.Length - bt.Length}, Manifest: true})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := b.Apply(p); err != nil || !got.Upgraded || got.Length != at.Length {
		t.Fatalf("upgrade from %d to %d: %+v, %v", bt.Length, at.Length, got, err)
	}
}

func reorg(t *testing.T, a, b *core.Core) {
	t.Helper()
	at := a.Tree()
	if at.Length == 0 {
		return // nothing can be proven of an empty core
	}
	p, err := a.Prove(merkle.Request{Fork: at.Fork, Upgrade: &merkle.UpgradeRequest{Length: at.Length}, Manifest: true})
	if err != nil {
		t.Fatal(err)
	}
	g, err := b.BeginReorg(p)
	if err != nil {
		t.Fatal(err)
	}
	for want, ok := g.Want(); ok; want, ok = g.Want() {
		p, err := a.Prove(merkle.Request{Fork: at.Fork, Hash: &merkle.HashRequest{Index: 2 * want.Start, Nodes: want.Nodes}})
		if err != nil {
			t.Fatal(err)
		}
		if err := b.UpdateReorg(g, p); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.FinishReorg(g); err != nil {
		t.Fatal(err)
	}
	if b.TreeHash() != a.TreeHash() || b.Fork() != at.Fork {
		t.Fatalf("reorganised to length %d fork %d, want %d, %d", b.Length(), b.Fork(), at.Length, at.Fork)
	}
}

func copyBlock(t *testing.T, a, b *core.Core, i uint64) {
	t.Helper()
	if a.Fork() != b.Fork() || i >= b.Length() || b.Has(i) {
		return
	}
	nodes, err := b.MissingNodes(2 * i)
	if err != nil {
		t.Fatal(err)
	}
	p, err := a.Prove(merkle.Request{Fork: a.Fork(), Block: &merkle.BlockRequest{Index: i, Nodes: nodes}})
	if err != nil {
		t.Fatal(err)
	}
	bad := *p
	block := *p.Block
	block.Value = append(append([]byte{}, block.Value...), 'x')
	bad.Block = &block
	if _, err := b.Apply(&bad); err == nil || b.Has(i) {
		t.Fatalf("a changed block %d was taken: %v", i, err) // SEC-1
	}
	if got, err := b.Apply(p); err != nil || !got.NewBlock {
		t.Fatalf("block %d: %+v, %v", i, got, err)
	}
}
