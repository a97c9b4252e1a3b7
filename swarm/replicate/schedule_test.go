package replicate

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/core/merkle"
	"github.com/pkgswarm/pkgswarm/internal/compact"
)

// blocksOf returns the blocks of c in order.
func blocksOf(c *memCore) [][]byte {
	var out [][]byte
	for i := range c.Tree().Length {
		out = append(out, c.blocks[i])
	}
	return out
}

// testStatic returns a static core of n blocks of that size.
func testStatic(n, size int) *memCore {
	w := singleWriter(9)
	w.appendN(n, size)
	return newStatic(blocksOf(w)...)
}

// TestSlowPeer has one slow peer among four: it must not slow the others down.
// SEC-23
func TestSlowPeer(t *testing.T) {
	simulate(t, func(t *testing.T, ctx context.Context) {
		c := testStatic(800, 16<<10)
		b := newNode(t, 9)
		s, got := b.open(c.key, SessionOptions{})
		var links []*link
		for i := range 4 {
			l := &link{delay: 20 * time.Millisecond, rate: 10e6}
			if i == 0 {
				l.rate = 50e3
			}
			links = append(links, l.connect(ctx, newNode(t, byte(i+1), c), b))
		}
		s.Update(ctx)
		start := time.Now()
		if err := s.Download(ctx, 0, ^uint64(0)); err != nil {
			t.Fatal(err)
		}
		// Three peers of 10 MB/s bring 13 MB in 0.44 s.
		if d := time.Since(start); d > 1500*time.Millisecond {
			t.Errorf("download took %v", d)
		}
		sameBlocks(t, got, c)
		if twice := got.applied - 800; twice > 40 {
			t.Errorf("%d blocks were fetched twice", twice)
		}
		for _, l := range links {
			l.cut()
		}
	})
}

// TestOnePeerFillsTheLine checks that one connection is used to the full, over
// short and long ways.
func TestOnePeerFillsTheLine(t *testing.T) {
	for _, delay := range []time.Duration{time.Millisecond, 25 * time.Millisecond, 100 * time.Millisecond} {
		simulate(t, func(t *testing.T, ctx context.Context) {
			c := testStatic(600, 32<<10)
			b := newNode(t, 9)
			s, got := b.open(c.key, SessionOptions{})
			l := (&link{delay: delay, rate: 10e6}).connect(ctx, newNode(t, 1, c), b)
			s.Update(ctx)
			start := time.Now()
			if err := s.DownloadInOrder(ctx, 0, ^uint64(0)); err != nil {
				t.Fatal(err)
			}
			best := time.Duration(600 * 32 << 10 * 100) // ns at 10 MB/s
			if d := time.Since(start); d > best*5/4+10*delay {
				t.Errorf("delay %v: download took %v, the line allows %v", delay, d, best)
			}
			if got.applied != 600 {
				t.Errorf("delay %v: %d blocks arrived for 600", delay, got.applied)
			}
			l.cut()
		})
	}
}

// TestSilentPeer reads from a peer that never answers and one that does.
// SEC-23
func TestSilentPeer(t *testing.T) {
	simulate(t, func(t *testing.T, ctx context.Context) {
		w := singleWriter(1)
		w.appendN(50, 100)
		b := newNode(t, 9)
		s, _ := b.open(w.key, SessionOptions{})
		silent := &link{delay: time.Millisecond, alter: func(kind int, p []byte) [][]byte {
			if kind == msgData || kind == msgNoData {
				return nil
			}
			return [][]byte{p}
		}}
		silent.connect(ctx, newNode(t, 1, w), b)
		time.Sleep(100 * time.Millisecond)
		l := (&link{delay: 30 * time.Millisecond}).connect(ctx, newNode(t, 2, w), b)
		for i := range uint64(50) {
			start := time.Now()
			mustGet(t, s, i, w.blocks[i])
			if d := time.Since(start); i > 0 && d > time.Second || d > 5*time.Second {
				t.Errorf("block %d took %v", i, d)
			}
		}
		silent.cut()
		l.cut()
	})
}

// TestCut pulls the cable again and again. REL-11
func TestCut(t *testing.T) {
	simulate(t, func(t *testing.T, ctx context.Context) {
		c := testStatic(500, 10<<10)
		a, b := newNode(t, 1, c), newNode(t, 2)
		s, got := b.open(c.key, SessionOptions{})
		done := make(chan error, 1)
		go func() {
			s.Update(ctx)
			for got.Tree().Length == 0 {
				time.Sleep(time.Millisecond)
			}
			done <- s.Download(ctx, 0, 500)
		}()
		cuts := 0
		for running := true; running; cuts++ {
			l := (&link{delay: 10 * time.Millisecond, rate: 5e6}).connect(ctx, a, b)
			select {
			case err := <-done:
				if err != nil {
					t.Fatal(err)
				}
				running = false
			case <-time.After(150 * time.Millisecond):
			}
			l.cut()
		}
		sameBlocks(t, got, c)
		if cuts < 4 || got.applied > 510 {
			t.Errorf("%d blocks arrived for 500, %d connections", got.applied, cuts)
		}
	})
}

// TestOvertakenUpgrade gets the answer to an upgrade when more is known already: it
// is useless, and nobody's fault. REL-18
func TestOvertakenUpgrade(t *testing.T) {
	simulate(t, func(t *testing.T, ctx context.Context) {
		w := singleWriter(1)
		w.appendN(10, 20)
		slow, quick, reader := newNode(t, 1, w), newNode(t, 2, w), newNode(t, 3)
		late := false
		la := (&link{alter: func(kind int, b []byte) [][]byte {
			if kind == msgData && late {
				late = false
				time.Sleep(8 * time.Second)
			}
			return [][]byte{b}
		}}).connect(ctx, slow, reader)
		s, _ := reader.open(w.key, SessionOptions{})
		s.Update(ctx)
		synctest.Wait()
		late = true
		w.appendN(3, 20)
		time.Sleep(100 * time.Millisecond)
		lb := (&link{}).connect(ctx, quick, reader)
		time.Sleep(5 * time.Second)
		w.appendN(3, 20)
		time.Sleep(10 * time.Second)
		if s.Length() != 16 || len(s.Peers()) != 2 {
			t.Errorf("length %d, %d peers, want 16 and 2", s.Length(), len(s.Peers()))
		}
		s.Close()
		la.cut()
		lb.cut()
	})
}

// TestHeadNotShown has a peer that never shows its signed head while it answers
// everything else: its requests end in another order than they began. REL-18
func TestHeadNotShown(t *testing.T) {
	simulate(t, func(t *testing.T, ctx context.Context) {
		w := singleWriter(1)
		w.appendN(50, 20)
		other, mute, reader := newNode(t, 1, w), newNode(t, 2, w), newNode(t, 3)
		lo := (&link{}).connect(ctx, other, reader)
		s, _ := reader.open(w.key, SessionOptions{})
		s.Update(ctx)
		lm := (&link{alter: func(kind int, b []byte) [][]byte {
			if p, _ := merkle.DecodeProof(compact.NewDecoder(b)); kind == msgData && p.Upgrade != nil {
				return nil
			}
			return [][]byte{b}
		}}).connect(ctx, mute, reader)
		time.Sleep(time.Second)
		lo.cut()
		for i := range uint64(20) {
			mustGet(t, s, i, w.blocks[i])
			time.Sleep(time.Second)
		}
		s.Close()
		lm.cut()
	})
}

// TestSwarm lets nodes download from one seed and from each other: each block
// should leave the seed about once, whatever one of the nodes is like, and none
// should wait for that one.
func TestSwarm(t *testing.T) {
	for _, c := range []struct {
		name   string
		odd    string // what the last of the nodes is like
		copies float64
		within time.Duration // for the others
	}{
		{"alike", "", 1.1, 2200 * time.Millisecond},
		{"one slow", "slow", 1.25, 3 * time.Second},
		{"one only says that it downloads", "idle", 1.1, 2500 * time.Millisecond},
		{"one leaves", "leaves", 1.25, 3 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			simulate(t, func(t *testing.T, ctx context.Context) {
				copies, took := swarmOf(t, ctx, c.odd)
				t.Logf("the seed sent %.2f copies in %v", copies, took)
				if copies > c.copies || took > c.within {
					t.Errorf("want at most %.2f copies within %v", c.copies, c.within)
				}
			})
		})
	}
}

// swarmOf runs such a swarm of a seed and four nodes. It returns how many copies
// the seed has sent until all but an odd one had everything, and how long they
// took.
func swarmOf(t *testing.T, ctx context.Context, odd string) (copies float64, took time.Duration) {
	const blocks, size = 1600, 16 << 10
	c := testStatic(blocks, size)
	seed := newNode(t, 1, c)
	var leeches []*node
	var links, seedLinks []*link
	for i := range 4 {
		n := newNode(t, byte(i+2))
		fast, slow := 20e6, 5e6
		if i == 3 && odd == "slow" {
			fast, slow = 1e6, 0.2e6
		}
		for _, o := range leeches {
			links = append(links, (&link{delay: 5 * time.Millisecond, rate: fast}).connect(ctx, o, n))
		}
		l := (&link{delay: 5 * time.Millisecond, rate: slow}).connect(ctx, seed, n)
		links, seedLinks = append(links, l), append(seedLinks, l)
		leeches = append(leeches, n)
	}
	start := time.Now()
	done := make(chan error)
	wait := 0
	var sessions []*Session
	for i, n := range leeches {
		s, _ := n.open(c.key, SessionOptions{})
		sessions = append(sessions, s)
		last := i == 3
		if last && odd == "idle" {
			continue
		}
		if !last || odd == "" {
			wait++
		}
		go func() {
			_, err := s.Update(ctx)
			if err == nil {
				err = s.Download(ctx, 0, ^uint64(0))
			}
			if !last || odd == "" {
				done <- err
			}
		}()
	}
	if odd == "leaves" {
		time.AfterFunc(700*time.Millisecond, func() { sessions[3].Close() })
	}
	for range wait {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	took = time.Since(start)
	upload := 0
	for _, l := range seedLinks {
		l.b.mu.Lock()
		upload += l.b.bytes
		l.b.mu.Unlock()
	}
	for _, s := range sessions {
		s.Close()
	}
	for _, l := range links {
		l.cut()
	}
	for i, n := range leeches {
		if i < 3 || odd == "" {
			sameBlocks(t, n.cores[c.key.Discovery()], c)
		}
	}
	return float64(upload) / float64(blocks*size), took
}

// TestFairness downloads two cores over one connection: a small one must not
// wait for a large one. SEC-28
func TestFairness(t *testing.T) {
	simulate(t, func(t *testing.T, ctx context.Context) {
		large, small := testStatic(2000, 16<<10), testStatic(40, 8<<10)
		a, b := newNode(t, 1, large, small), newNode(t, 2)
		l := (&link{delay: 5 * time.Millisecond, rate: 5e6}).connect(ctx, a, b)
		ls, _ := b.open(large.key, SessionOptions{})
		ls.Update(ctx)
		go ls.Download(ctx, 0, 2000)
		time.Sleep(time.Second)
		start := time.Now()
		ss, _ := b.open(small.key, SessionOptions{})
		ss.Update(ctx)
		if err := ss.Download(ctx, 0, 40); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d > 1500*time.Millisecond {
			t.Errorf("320 KiB took %v next to a large download", d)
		}
		ls.Close()
		l.cut()
	})
}

func TestRateCaps(t *testing.T) {
	for _, up := range []bool{true, false} {
		simulate(t, func(t *testing.T, ctx context.Context) {
			c := testStatic(100, 10<<10)
			limit := rate.NewLimiter(200e3, 20e3)
			var ca, cb Config
			if up {
				ca.UploadRate = limit
			} else {
				cb.DownloadRate = limit
			}
			a, b := newNodeWith(t, 1, ca, c), newNodeWith(t, 2, cb)
			l := (&link{delay: 5 * time.Millisecond}).connect(ctx, a, b)
			s, _ := b.open(c.key, SessionOptions{})
			s.Update(ctx)
			start := time.Now()
			if err := s.Download(ctx, 0, 100); err != nil {
				t.Fatal(err)
			}
			if d := time.Since(start); d < 4500*time.Millisecond || d > 7*time.Second {
				t.Errorf("upload cap %v: 1 MB at 200 kB/s took %v", up, d)
			}
			l.cut()
		})
	}
}

func TestPushAndExtension(t *testing.T) {
	simulate(t, func(t *testing.T, ctx context.Context) {
		w := singleWriter(1)
		w.appendN(100, 30)
		cfg := Config{Extensions: map[string]Extension{
			"echo": func(c Core, payload []byte, reply func([]byte), push func(...uint64) bool) {
				reply(append([]byte("re: "), payload...))
				push(7, 70, 99)
			},
		}}
		a, b := newNodeWith(t, 1, cfg, w), newNode(t, 2)
		l := (&link{delay: 5 * time.Millisecond}).connect(ctx, a, b)
		replies := make(chan string, 1)
		s, got := b.open(w.key, SessionOptions{AllowPush: true, Extensions: map[string]func(PeerID, []byte){
			"echo": func(from PeerID, b []byte) { replies <- fmt.Sprintf("%s %s", from, b) },
		}})
		s.Update(ctx)
		s.Broadcast("echo", []byte("hello"))
		if r := <-replies; r != fmt.Sprintf("%s re: hello", a.id) {
			t.Errorf("reply %q", r)
		}
		time.Sleep(time.Second)
		for _, i := range []uint64{7, 70, 99} {
			if !got.Has(i) {
				t.Errorf("block %d was not pushed", i)
			}
		}
		s.Close()

		// Who does not allow it gets none.
		c := newNode(t, 3)
		l2 := (&link{delay: 5 * time.Millisecond}).connect(ctx, a, c)
		s2, got2 := c.open(w.key, SessionOptions{})
		s2.Update(ctx)
		s2.Broadcast("echo", nil)
		time.Sleep(time.Second)
		if got2.applied != 0 {
			t.Error("blocks were pushed to a peer that does not allow it")
		}
		s2.Close()
		l.cut()
		l2.cut()
	})
}

func TestPrefetch(t *testing.T) {
	simulate(t, func(t *testing.T, ctx context.Context) {
		w := singleWriter(1)
		w.appendN(100, 30)
		a, b := newNode(t, 1, w), newNode(t, 2)
		l := new(link).connect(ctx, a, b)
		s, got := b.open(w.key, SessionOptions{})
		s.Update(ctx)
		s.Prefetch(3, 5, 99, 1000)
		time.Sleep(time.Second)
		if !got.Has(3) || !got.Has(5) || !got.Has(99) || got.applied != 3 {
			t.Errorf("%d blocks arrived", got.applied)
		}
		l.cut()
	})
}

// TestHoldsNothing opens and closes in all sorts of order; the bubble fails if a
// goroutine stays.
func TestHoldsNothing(t *testing.T) {
	simulate(t, func(t *testing.T, ctx context.Context) {
		w := singleWriter(1)
		w.appendN(10, 10)
		a, b := newNode(t, 1, w), newNode(t, 2)
		l := new(link).connect(ctx, a, b)
		s1, _ := b.open(w.key, SessionOptions{})
		s2, _ := b.open(w.key, SessionOptions{})
		mustGet(t, s1, 1, w.blocks[1])
		s1.Close()
		s1.Close()
		mustGet(t, s2, 2, w.blocks[2])
		b.r.Close()
		if _, err := s2.Get(ctx, 3); !errors.Is(err, ErrClosed) {
			t.Errorf("Get after Close = %v", err)
		}
		if _, err := b.r.Open(emptyCore(core.Key{}), SessionOptions{}); !errors.Is(err, ErrClosed) {
			t.Errorf("Open after Close = %v", err)
		}
		s2.Close()
		l.wg.Wait()
		synctest.Wait()
		if !errors.Is(l.errB, ErrClosed) {
			t.Errorf("connection ended with %v", l.errB)
		}
	})
}

// TestMessagesBesideData sends small messages of another core over a slow line that
// is full of blocks: no channel holds up the others for long.
func TestMessagesBesideData(t *testing.T) {
	simulate(t, func(t *testing.T, ctx context.Context) {
		big, small := testStatic(400, 16<<10), testStatic(10, 100)
		var heard atomic.Int64 // Unix time in nanoseconds
		source, reader := newNode(t, 1, big, small), newNode(t, 2)
		l := (&link{delay: 10 * time.Millisecond, rate: 100e3}).connect(ctx, source, reader)
		s1, _ := reader.open(big.key, SessionOptions{})
		s2, _ := reader.open(small.key, SessionOptions{Extensions: map[string]func(PeerID, []byte){
			"note": func(PeerID, []byte) { heard.Store(time.Now().UnixNano()) },
		}})
		s1.Update(ctx)
		s2.Update(ctx)
		done := make(chan error)
		go func() { done <- s1.Download(ctx, 0, ^uint64(0)) }()
		from, _ := source.open(small.key, SessionOptions{})
		for range 5 {
			time.Sleep(2 * time.Second)
			sent := time.Now()
			from.Broadcast("note", nil)
			time.Sleep(3 * time.Second)
			if d := time.Unix(0, heard.Load()).Sub(sent); d <= 0 || d > time.Second {
				t.Errorf("a message took %v", d)
			}
		}
		for _, s := range []*Session{s1, s2, from} {
			s.Close()
		}
		<-done
		l.cut()
	})
}

// TestGreedyPeers lets 50 peers download all they can from a node whose upload
// is capped: together they get what is configured, each about the same, and those
// that do not read keep nothing from the others. SEC-28
func TestGreedyPeers(t *testing.T) {
	simulate(t, func(t *testing.T, ctx context.Context) {
		const peers, limit = 50, 2e6 // bytes a second
		begin := time.Now()
		c := testStatic(400, 64<<10)
		seed := newNodeWith(t, 1, Config{UploadRate: rate.NewLimiter(limit, 100e3)}, c)
		var links []*link
		var sessions []*Session
		ends := make(chan error, peers)
		for i := range peers {
			n := newNode(t, byte(i+2))
			l := &link{delay: 5 * time.Millisecond}
			if i%10 == 9 {
				l.rate = 10 // does not read, as good as
			}
			links = append(links, l.connect(ctx, n, seed))
			s, _ := n.open(c.key, SessionOptions{})
			sessions = append(sessions, s)
			go func() {
				s.Update(ctx)
				ends <- s.Download(ctx, 0, ^uint64(0))
			}()
		}
		time.Sleep(time.Minute)
		seconds := time.Since(begin).Seconds()
		sum, least, most := 0, math.MaxInt, 0
		for i, l := range links {
			l.a.mu.Lock()
			got := l.a.bytes
			l.a.mu.Unlock()
			sum += got
			if i%10 != 9 {
				least, most = min(least, got), max(most, got)
			}
		}
		if got := float64(sum) / seconds; got > 1.02*limit || got < 0.9*limit {
			t.Errorf("%.0f bytes a second were sent, want %.0f", got, limit)
		}
		if most > 2*least {
			t.Errorf("one peer got %d bytes, another %d", least, most)
		}
		for _, s := range sessions {
			s.Close()
		}
		for _, l := range links {
			l.cut()
		}
		for range sessions {
			<-ends
		}
	})
}
