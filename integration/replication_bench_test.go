package integration

import (
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/bee"
	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/internal/testenv"
	"github.com/pkgswarm/pkgswarm/swarm/replicate"
	"github.com/pkgswarm/pkgswarm/swarm/secretstream"
)

// cpu returns the processor time of this process.
func cpu() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkReplicate downloads a core from one peer over loopback TCP: goals R1
// and R2 of the performance document. Both ends run in this process, so the
// processor time is that of both.
func BenchmarkReplicate(b *testing.B) {
	for _, c := range []struct{ count, size int }{{4096, 64 << 10}, {100_000, 200}} {
		b.Run(fmt.Sprintf("%dx%d", c.count, c.size), func(b *testing.B) {
			a := newPeer(b)
			w := a.named("log")
			appendNumbered(b, w, c.count, c.size)
			b.SetBytes(int64(c.count * c.size))
			var used time.Duration
			for b.Loop() {
				b.StopTimer()
				p := newPeer(b)
				b.StartTimer()
				before := cpu()
				p.connect(a.port())
				_, s := p.open(w.Key())
				if _, err := s.Update(b.Context()); err != nil {
					b.Fatal(err)
				}
				if err := s.DownloadInOrder(b.Context(), 0, uint64(c.count)); err != nil {
					b.Fatal(err)
				}
				used += cpu() - before
			}
			seconds := used.Seconds() / float64(b.N)
			b.ReportMetric(float64(c.count*c.size)/1e6/seconds, "MB/cpu-s")
			b.ReportMetric(float64(c.count)/seconds, "blocks/cpu-s")
		})
	}
}

// BenchmarkReplicateJS is the same between two processes of the reference.
func BenchmarkReplicateJS(b *testing.B) {
	for _, c := range []struct{ count, size int }{{4096, 64 << 10}, {100_000, 200}} {
		b.Run(fmt.Sprintf("%dx%d", c.count, c.size), func(b *testing.B) {
			writer := testenv.StartNode(b, "replicate.mjs")
			var port int
			var key string
			writer.MustCall(b, "listen", nil, &port)
			writer.MustCall(b, "create", "log", &key)
			writer.MustCall(b, "appendMany", params{"key": key, "count": c.count, "size": c.size}, nil)
			b.SetBytes(int64(c.count * c.size))
			var used float64
			for b.Loop() {
				b.StopTimer()
				reader := testenv.StartNode(b, "replicate.mjs")
				var before, after [2]float64
				reader.MustCall(b, "cpu", nil, &before[0])
				writer.MustCall(b, "cpu", nil, &before[1])
				b.StartTimer()
				reader.MustCall(b, "connect", port, nil)
				reader.MustCall(b, "waitFor", params{"key": key, "length": c.count, "fork": 0}, nil)
				reader.MustCall(b, "download", params{"key": key, "start": 0, "end": c.count}, nil)
				reader.MustCall(b, "cpu", nil, &after[0])
				writer.MustCall(b, "cpu", nil, &after[1])
				used += (after[0] + after[1] - before[0] - before[1]) / 1e6
			}
			seconds := used / float64(b.N)
			b.ReportMetric(float64(c.count*c.size)/1e6/seconds, "MB/cpu-s")
			b.ReportMetric(float64(c.count)/seconds, "blocks/cpu-s")
		})
	}
}

// BenchmarkFirstBlock is goal R3: from dialling to the first block.
func BenchmarkFirstBlock(b *testing.B) {
	a := newPeer(b)
	w := a.named("log")
	appendNumbered(b, w, 10, 1000)
	p := newPeer(b)
	for b.Loop() {
		b.StopTimer()
		c, err := p.store.Open(w.Key())
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		s, err := p.r.Open(c, replicate.SessionOptions{})
		if err != nil {
			b.Fatal(err)
		}
		p.connect(a.port())
		if _, err := s.Get(b.Context(), 0); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		s.Close()
		c.Close()
		p.disconnect()
		deleteCore(b, p.store, w.Key())
		b.StartTimer()
	}
}

func deleteCore(b *testing.B, s *core.Store, key core.Key) {
	b.Helper()
	for range 100 {
		if err := s.Delete(key); err == nil {
			return
		}
		time.Sleep(time.Millisecond) // the connection still holds it
	}
	b.Fatal("core stays in use")
}

// A slowConn delays what is read by a fixed time, as a long way does.
type slowConn struct {
	net.Conn
	delay time.Duration
	late  chan late
	rest  []byte
	err   error
}

type late struct {
	at  time.Time
	b   []byte
	err error
}

func newSlowConn(c net.Conn, delay time.Duration) *slowConn {
	s := &slowConn{Conn: c, delay: delay, late: make(chan late, 1<<16)}
	go func() {
		for {
			b := make([]byte, 16<<10)
			n, err := c.Read(b)
			s.late <- late{time.Now().Add(delay), b[:n], err}
			if err != nil {
				return
			}
		}
	}()
	return s
}

func (s *slowConn) Read(b []byte) (int, error) {
	if len(s.rest) == 0 && s.err == nil {
		l := <-s.late
		time.Sleep(time.Until(l.at))
		s.rest, s.err = l.b, l.err
	}
	n := copy(b, s.rest)
	s.rest = s.rest[n:]
	if n == 0 {
		return 0, s.err
	}
	return n, nil
}

// BenchmarkColdGet is goal B3: round trips of one look-up in 100 000 entries of
// which nothing is here, over a way of 50 ms there and back.
func BenchmarkColdGet(b *testing.B) {
	const count, rtt = 100_000, 50 * time.Millisecond
	a := newPeer(b)
	w := a.named("bee")
	fillBee(b, w, count)
	for _, asking := range []bool{true, false} {
		b.Run(fmt.Sprintf("asking=%v", asking), func(b *testing.B) {
			var took time.Duration
			for b.Loop() {
				p := newPeer(b)
				ours, theirs := net.Pipe()
				go a.serve(newSlowConn(theirs, rtt/2), secretstream.Server)
				p.wg.Go(func() { p.serve(newSlowConn(ours, rtt/2), secretstream.Client) })
				tree, s, _ := p.openBee(w.Key())
				if !asking {
					tree = bee.Open(s, bee.Options{})
				}
				took += timeLookup(b, tree, s)
			}
			b.ReportMetric(took.Seconds()/float64(b.N)/rtt.Seconds(), "round-trips")
		})
	}
}

// timeLookup looks one key up once a peer has told of the tree.
func timeLookup(b *testing.B, tree *bee.Tree, s *replicate.Session) time.Duration {
	b.Helper()
	if _, err := s.Update(b.Context()); err != nil {
		b.Fatal(err)
	}
	start := time.Now()
	if _, err := tree.Get(b.Context(), []byte("key 77777")); err != nil {
		b.Fatal(err)
	}
	return time.Since(start)
}

// BenchmarkColdGetJS is the same from a seeder in JavaScript, which answers the
// extension with the numbers of the blocks, and not with the blocks.
func BenchmarkColdGetJS(b *testing.B) {
	const count, rtt = 100_000, 50 * time.Millisecond
	js := testenv.StartNode(b, "replicate.mjs")
	var key string
	js.MustCall(b, "create", "bee", &key)
	js.MustCall(b, "beePut", params{"key": key, "count": count}, nil)
	var took time.Duration
	for b.Loop() {
		p := newPeer(b)
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		js.MustCall(b, "connect", ln.Addr().(*net.TCPAddr).Port, nil)
		conn, err := ln.Accept()
		ln.Close()
		if err != nil {
			b.Fatal(err)
		}
		p.wg.Go(func() { p.serve(newSlowConn(conn, rtt), secretstream.Server) }) // all of the delay on one side
		tree, s, _ := p.openBee(parseKey(b, key))
		took += timeLookup(b, tree, s)
	}
	b.ReportMetric(took.Seconds()/float64(b.N)/rtt.Seconds(), "round-trips")
}

// BenchmarkColdRange reads all of a map of which nothing is here, from a peer: goal
// B2, cold. BenchmarkColdRangeJS is the same between two processes of the reference.
func BenchmarkColdRange(b *testing.B) {
	const count = 100_000
	a := newPeer(b)
	w := a.named("bee")
	fillBee(b, w, count)
	var used time.Duration
	for b.Loop() {
		b.StopTimer()
		p := newPeer(b)
		b.StartTimer()
		before := cpu()
		p.connect(a.port())
		tree, s, _ := p.openBee(w.Key())
		if _, err := s.Update(b.Context()); err != nil {
			b.Fatal(err)
		}
		n := 0
		for _, err := range tree.Range(b.Context(), bee.Range{}) {
			if err != nil {
				b.Fatal(err)
			}
			n++
		}
		if n != count {
			b.Fatalf("%d entries, want %d", n, count)
		}
		used += cpu() - before
	}
	b.ReportMetric(count*float64(b.N)/used.Seconds(), "entries/cpu-s")
}

func BenchmarkColdRangeJS(b *testing.B) {
	const count = 100_000
	writer := testenv.StartNode(b, "replicate.mjs")
	var port int
	var key string
	writer.MustCall(b, "listen", nil, &port)
	writer.MustCall(b, "create", "bee", &key)
	writer.MustCall(b, "beePut", params{"key": key, "count": count}, nil)
	var used float64
	for b.Loop() {
		b.StopTimer()
		reader := testenv.StartNode(b, "replicate.mjs")
		var before, after [2]float64
		reader.MustCall(b, "cpu", nil, &before[0])
		writer.MustCall(b, "cpu", nil, &before[1])
		b.StartTimer()
		reader.MustCall(b, "connect", port, nil)
		reader.MustCall(b, "waitFor", params{"key": key, "length": count + 1, "fork": 0}, nil)
		reader.MustCall(b, "beeRange", params{"key": key, "range": params{}}, nil)
		reader.MustCall(b, "cpu", nil, &after[0])
		writer.MustCall(b, "cpu", nil, &after[1])
		used += (after[0] + after[1] - before[0] - before[1]) / 1e6
	}
	b.ReportMetric(count*float64(b.N)/used, "entries/cpu-s")
}

// A countingConn counts what is written.
type countingConn struct {
	net.Conn
	written *atomic.Int64
}

func (c countingConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.written.Add(int64(n))
	return n, err
}

// BenchmarkSwarm is goal S1: one seed and four peers that download 200 MB from
// it and from each other, all in this process.
func BenchmarkSwarm(b *testing.B) {
	const count, size = 3200, 64 << 10
	seed := newPeer(b)
	w := seed.named("log")
	appendNumbered(b, w, count, size)
	var sent atomic.Int64
	var used time.Duration
	for b.Loop() {
		b.StopTimer()
		var peers []*peer
		for range 4 {
			peers = append(peers, newPeer(b))
		}
		b.StartTimer()
		before := cpu()
		for i, p := range peers {
			ours, theirs := net.Pipe()
			p.wg.Go(func() { p.serve(ours, secretstream.Client) })
			seed.wg.Go(func() { seed.serve(countingConn{theirs, &sent}, secretstream.Server) })
			for _, q := range peers[:i] {
				p.connect(q.port())
			}
		}
		var all sync.WaitGroup
		for _, p := range peers {
			_, s := p.open(w.Key())
			all.Go(func() {
				if _, err := s.Update(b.Context()); err != nil {
					b.Error(err)
				}
				if err := s.Download(b.Context(), 0, count); err != nil {
					b.Error(err)
				}
			})
		}
		all.Wait()
		used += cpu() - before
	}
	b.ReportMetric(float64(sent.Load())/float64(b.N)/(count*size), "copies")
	b.ReportMetric(used.Seconds()/float64(b.N), "cpu-s")
}

// BenchmarkSwarmJS is the same with five processes of the reference.
func BenchmarkSwarmJS(b *testing.B) {
	const count, size = 3200, 64 << 10
	seed := testenv.StartNode(b, "replicate.mjs")
	var key string
	seed.MustCall(b, "create", "log", &key)
	seed.MustCall(b, "appendMany", params{"key": key, "count": count, "size": size}, nil)
	var copies, used float64
	for b.Loop() {
		b.StopTimer()
		nodes := []*testenv.Node{seed}
		for range 4 {
			nodes = append(nodes, testenv.StartNode(b, "replicate.mjs"))
		}
		ports := make([]int, len(nodes))
		sum := func() (total float64) {
			for _, n := range nodes {
				var us float64
				n.MustCall(b, "cpu", nil, &us)
				total += us / 1e6
			}
			return total
		}
		for i, n := range nodes {
			n.MustCall(b, "listen", nil, &ports[i])
		}
		before := sum()
		b.StartTimer()
		var all sync.WaitGroup
		for i, n := range nodes[1:] {
			all.Go(func() {
				for _, port := range ports[:i+1] {
					n.MustCall(b, "connect", port, nil)
				}
				n.MustCall(b, "waitFor", params{"key": key, "length": count, "fork": 0}, nil)
				n.MustCall(b, "download", params{"key": key, "start": 0, "end": count}, nil)
			})
		}
		all.Wait()
		b.StopTimer()
		used += sum() - before
		var sent float64
		seed.MustCall(b, "sent", nil, &sent)
		copies += sent / (count * size)
		seed.MustCall(b, "disconnect", nil, nil)
		b.StartTimer()
	}
	b.ReportMetric(copies/float64(b.N), "copies")
	b.ReportMetric(used/float64(b.N), "cpu-s")
}
