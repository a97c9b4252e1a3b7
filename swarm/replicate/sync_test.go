package replicate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/core/merkle"
)

// simulate runs f in a bubble with a context that ends all connections.
func simulate(t *testing.T, f func(t *testing.T, ctx context.Context)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		f(t, ctx)
		cancel()
		synctest.Wait()
	})
}

func mustGet(t *testing.T, s *Session, i uint64, want []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	got, err := s.Get(ctx, i)
	if err != nil {
		t.Log(s.f.describe())
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("block %d = %q, want %q", i, got, want)
	}
}

func sameBlocks(t *testing.T, got, want *memCore) {
	t.Helper()
	for i := range want.Tree().Length {
		if !bytes.Equal(got.blocks[i], want.blocks[i]) {
			t.Fatalf("block %d differs", i)
		}
	}
}

func TestGetFromWriter(t *testing.T) {
	simulate(t, func(t *testing.T, ctx context.Context) {
		w := singleWriter(1)
		w.appendN(10, 20)
		a, b := newNode(t, 1, w), newNode(t, 2)
		l := (&link{delay: 25 * time.Millisecond}).connect(ctx, a, b)
		s, _ := b.open(w.key, SessionOptions{})
		start := time.Now()
		mustGet(t, s, 7, w.blocks[7])
		// Open and open; sync; request and data.
		if d := time.Since(start); d > 110*time.Millisecond {
			t.Errorf("the first block took %v", d)
		}
		for i := range uint64(10) {
			mustGet(t, s, i, w.blocks[i])
		}
		// Live.
		w.append([]byte("eleven"))
		mustGet(t, s, 10, []byte("eleven"))
		l.cut()
	})
}

// TestExpected counts the round trips to a core that is not here: one to open it
// and be told how long it is, and one for the tree with all its blocks. One of which
// the beginning is here takes one more, in which the peer hears how long that is.
func TestExpected(t *testing.T) {
	for _, blocks := range []int{1, 2, 3, 7, 8, 30} {
		for _, grow := range []int{0, 1, 5, 24} {
			simulate(t, func(t *testing.T, ctx context.Context) {
				const delay = 25 * time.Millisecond
				w := singleWriter(1)
				w.appendN(blocks, 200)
				a, b := newNode(t, 1, w), newNode(t, 2)
				l := (&link{delay: delay}).connect(ctx, a, b)
				expect := func() time.Duration {
					n := w.Tree().Length
					start := time.Now()
					s, got := b.open(w.key, SessionOptions{NoReorg: true})
					defer s.Close()
					s.Expect(n)
					if _, err := s.Update(ctx); err != nil {
						t.Fatal(err)
					}
					if err := s.Download(ctx, 0, n); err != nil {
						t.Fatal(err)
					}
					sameBlocks(t, got, w)
					if got.applied != int(n) {
						t.Errorf("%d blocks were stored for %d", got.applied, n)
					}
					return time.Since(start)
				}
				if d := expect(); d > 2*2*delay+rangeGrace {
					t.Errorf("%d blocks took %v", blocks, d)
				}
				if grow == 0 {
					l.cut()
					return
				}
				time.Sleep(time.Second)
				w.appendN(grow, 200)
				if d := expect(); d > 3*2*delay+rangeGrace {
					t.Errorf("%d blocks more than %d took %v", grow, blocks, d)
				}
				l.cut()
			})
		}
	}
}

func TestWaitsForPeersAndBlocks(t *testing.T) {
	simulate(t, func(t *testing.T, ctx context.Context) {
		w := singleWriter(1)
		a, b := newNode(t, 1, w), newNode(t, 2)
		s, _ := b.open(w.key, SessionOptions{})
		got := make(chan []byte)
		go func() {
			v, _ := s.Get(ctx, 2)
			got <- v
		}()
		synctest.Wait()
		l := (&link{delay: time.Millisecond}).connect(ctx, a, b)
		time.Sleep(time.Second)
		w.append([]byte("0"), []byte("1"))
		time.Sleep(time.Second)
		select {
		case v := <-got:
			t.Fatalf("Get returned %q before the block was there", v)
		default:
		}
		w.append([]byte("2"))
		if v := <-got; string(v) != "2" {
			t.Fatalf("Get = %q", v)
		}
		l.cut()
	})
}

func TestGetCancelled(t *testing.T) {
	simulate(t, func(t *testing.T, ctx context.Context) {
		b := newNode(t, 2)
		s, _ := b.open(core.Key{1}, SessionOptions{})
		c, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if _, err := s.Get(c, 2); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Get = %v", err)
		}
		go func() {
			time.Sleep(time.Second)
			s.Close()
		}()
		if _, err := s.Get(ctx, 2); !errors.Is(err, ErrClosed) {
			t.Errorf("Get = %v", err)
		}
		if b.feeds() != 0 {
			t.Error("feed stays after its last session")
		}
	})
}

func TestDownload(t *testing.T) {
	for _, size := range []int{1, 100, 3000} {
		for _, c := range []*memCore{singleWriter(1), nil} {
			simulate(t, func(t *testing.T, ctx context.Context) {
				if c == nil {
					tmp := singleWriter(1)
					tmp.appendN(size, 30)
					var blocks [][]byte
					for i := range uint64(size) {
						blocks = append(blocks, tmp.blocks[i])
					}
					c = newStatic(blocks...)
				} else {
					c.appendN(size, 30)
				}
				a, b := newNode(t, 1, c), newNode(t, 2)
				l := (&link{delay: 10 * time.Millisecond}).connect(ctx, a, b)
				s, got := b.open(c.key, SessionOptions{})
				if _, err := s.Update(ctx); err != nil {
					t.Fatal(err)
				}
				if err := s.Download(ctx, 0, ^uint64(0)); err != nil {
					t.Fatal(err)
				}
				sameBlocks(t, got, c)
				if got.applied > size+1 {
					t.Errorf("%d blocks applied for %d", got.applied, size)
				}
				l.cut()
			})
		}
	}
}

func TestSparsePeers(t *testing.T) {
	simulate(t, func(t *testing.T, ctx context.Context) {
		w := singleWriter(1)
		w.appendN(400, 30)
		// Two seeds that have the odd and the even blocks, then the writer leaves.
		a, odd, even, b := newNode(t, 1, w), newNode(t, 2), newNode(t, 3), newNode(t, 4)
		for k, n := range []*node{odd, even} {
			l := new(link).connect(ctx, a, n)
			s, _ := n.open(w.key, SessionOptions{})
			for i := uint64(k); i < 400; i += 2 {
				mustGet(t, s, i, w.blocks[i])
			}
			l.cut()
		}
		s, got := b.open(w.key, SessionOptions{})
		l1 := (&link{delay: 5 * time.Millisecond}).connect(ctx, odd, b)
		l2 := (&link{delay: 5 * time.Millisecond}).connect(ctx, b, even)
		if _, err := s.Update(ctx); err != nil {
			t.Fatal(err)
		}
		if err := s.DownloadInOrder(ctx, 0, 400); err != nil {
			t.Fatal(err)
		}
		sameBlocks(t, got, w)
		l1.cut()
		l2.cut()
	})
}

func TestSeekRemote(t *testing.T) {
	simulate(t, func(t *testing.T, ctx context.Context) {
		w := singleWriter(1)
		w.appendN(333, 77)
		a, b := newNode(t, 1, w), newNode(t, 2)
		l := (&link{delay: 5 * time.Millisecond}).connect(ctx, a, b)
		s, _ := b.open(w.key, SessionOptions{})
		if _, err := s.Update(ctx); err != nil {
			t.Fatal(err)
		}
		for _, at := range []uint64{0, 1, 76, 77, 12345, 333*77 - 1, 333 * 77} {
			block, offset, err := s.Seek(ctx, at)
			if err != nil || block != at/77 || offset != at%77 {
				t.Errorf("Seek(%d) = %d, %d, %v", at, block, offset, err)
			}
		}
		if _, _, err := s.Seek(ctx, 333*77+1); !errors.Is(err, merkle.ErrRequest) {
			t.Errorf("Seek past the end: %v", err)
		}
		l.cut()
	})
}

func TestReorgRemote(t *testing.T) {
	simulate(t, func(t *testing.T, ctx context.Context) {
		w := singleWriter(1)
		w.appendN(40, 20)
		a, b := newNode(t, 1, w), newNode(t, 2)
		l := (&link{delay: 5 * time.Millisecond}).connect(ctx, a, b)
		s, got := b.open(w.key, SessionOptions{})
		s.Update(ctx)
		if err := s.Download(ctx, 0, 40); err != nil {
			t.Fatal(err)
		}
		for _, length := range []uint64{25, 24, 0, 3} {
			if length > w.Tree().Length {
				continue
			}
			w.truncate(length)
			w.append([]byte(fmt.Sprintf("new %d", length)), []byte("more"))
			for range 100 {
				if got.Tree().Fork != w.Tree().Fork || got.Tree().Length != w.Tree().Length {
					time.Sleep(10 * time.Millisecond)
				}
			}
			mustGet(t, s, length, w.blocks[length])
			mustGet(t, s, length+1, w.blocks[length+1])
			if got.Tree().Hash() != w.Tree().Hash() {
				t.Fatal("another tree")
			}
		}
		l.cut()
	})
}

// SEC-14
func TestReorgRefused(t *testing.T) {
	simulate(t, func(t *testing.T, ctx context.Context) {
		w := singleWriter(1)
		w.appendN(10, 20)
		a, b := newNode(t, 1, w), newNode(t, 2)
		l := new(link).connect(ctx, a, b)
		s, got := b.open(w.key, SessionOptions{NoReorg: true})
		s.Update(ctx)
		hash := got.Tree().Hash()
		w.truncate(5)
		w.appendN(20, 20)
		time.Sleep(time.Minute)
		if got.Tree().Hash() != hash || got.Tree().Fork != 0 {
			t.Error("a rewritten history was taken")
		}
		l.cut()
	})
}

func TestManyCoresOnDemand(t *testing.T) {
	simulate(t, func(t *testing.T, ctx context.Context) {
		var cores []*memCore
		for i := range 300 {
			c := newStatic([]byte(fmt.Sprint("core ", i)), []byte("second"))
			cores = append(cores, c)
		}
		a, b := newNode(t, 1, cores...), newNode(t, 2)
		l := (&link{delay: time.Millisecond}).connect(ctx, a, b)
		synctest.Wait()
		if a.opened != 0 {
			t.Errorf("%d cores open before they are asked for", a.opened)
		}
		for _, c := range cores {
			s, _ := b.open(c.key, SessionOptions{})
			mustGet(t, s, 0, c.blocks[0])
			s.Close()
		}
		time.Sleep(time.Second)
		a.mu.Lock()
		open := a.opened
		a.mu.Unlock()
		if open != 0 || a.feeds() != 0 || b.feeds() != 0 {
			t.Errorf("%d cores stay open, %d and %d feeds", open, a.feeds(), b.feeds())
		}
		// One that nobody has.
		s, _ := b.open(core.Key{9}, SessionOptions{})
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if _, err := s.Get(short, 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Get of an unknown core = %v", err)
		}
		l.cut()
	})
}

func TestRelay(t *testing.T) {
	simulate(t, func(t *testing.T, ctx context.Context) {
		w := singleWriter(1)
		w.appendN(50, 20)
		a, relay, b := newNode(t, 1, w), newNode(t, 2), newNode(t, 3)
		l1 := (&link{delay: 5 * time.Millisecond}).connect(ctx, a, relay)
		l2 := (&link{delay: 5 * time.Millisecond}).connect(ctx, relay, b)
		rs, _ := relay.open(w.key, SessionOptions{})
		bs, got := b.open(w.key, SessionOptions{})
		rs.Update(ctx)
		if err := rs.Download(ctx, 0, 50); err != nil {
			t.Fatal(err)
		}
		mustGet(t, bs, 49, w.blocks[49])
		if err := bs.Download(ctx, 0, 50); err != nil {
			t.Fatal(err)
		}
		sameBlocks(t, got, w)
		// Live through the relay.
		w.append([]byte("live"))
		go rs.Get(ctx, 50)
		mustGet(t, bs, 50, []byte("live"))
		l1.cut()
		l2.cut()
	})
}

// TestReopen wants a core at the moment when its channel is being closed
// because nobody did.
func TestReopen(t *testing.T) {
	for wait := range 12 {
		simulate(t, func(t *testing.T, ctx context.Context) {
			w := singleWriter(1)
			w.appendN(5, 20)
			a, b := newNode(t, 1, w), newNode(t, 2)
			l := (&link{delay: 5 * time.Millisecond}).connect(ctx, a, b)
			s, _ := b.open(w.key, SessionOptions{})
			mustGet(t, s, 0, w.blocks[0])
			s.Close()
			time.Sleep(time.Duration(wait) * 2 * time.Millisecond)
			s, _ = b.open(w.key, SessionOptions{})
			mustGet(t, s, 1, w.blocks[1])
			s.Close()
			l.cut()
		})
	}
}
