package integration

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/bee"
	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/internal/testenv"
	"github.com/pkgswarm/pkgswarm/internal/vectors"
	"github.com/pkgswarm/pkgswarm/swarm/protomux"
	"github.com/pkgswarm/pkgswarm/swarm/remotebee"
	"github.com/pkgswarm/pkgswarm/swarm/replicate"
	"github.com/pkgswarm/pkgswarm/swarm/secretstream"
)

// A peer is a store that replicates over TCP.
type peer struct {
	t     testing.TB
	store *core.Store
	r     *replicate.Replicator
	key   ed25519.PrivateKey
	ctx   context.Context
	ln    net.Listener

	mu    sync.Mutex
	conns []*secretstream.Conn
	wg    sync.WaitGroup
}

func newPeer(t testing.TB) *peer {
	t.Helper()
	store, err := core.OpenStore(t.TempDir(), core.Options{})
	if err != nil {
		t.Fatal(err)
	}
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &peer{t: t, store: store, key: key, ctx: ctx, ln: ln}
	p.r = replicate.New(replicate.Config{Self: replicate.PeerID(key.Public().(ed25519.PublicKey)), Extensions: map[string]replicate.Extension{
		bee.ExtensionName: remotebee.Extension(),
	}, Open: func(_ context.Context, dk core.DiscoveryKey) (replicate.Core, func(), error) {
		c, err := store.ByDiscovery(dk)
		if err != nil {
			return nil, nil, err
		}
		return c, func() { c.Close() }, nil
	}})
	p.wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			p.wg.Go(func() { p.serve(conn, secretstream.Server) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		p.r.Close()
		cancel()
		p.disconnect()
		p.wg.Wait()
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func (p *peer) port() int { return p.ln.Addr().(*net.TCPAddr).Port }

func (p *peer) connect(port int) {
	p.t.Helper()
	conn, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		p.t.Fatal(err)
	}
	p.wg.Go(func() { p.serve(conn, secretstream.Client) })
}

func (p *peer) disconnect() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
	p.conns = nil
}

func (p *peer) serve(conn net.Conn, start func(context.Context, net.Conn, secretstream.Config) (*secretstream.Conn, error)) {
	s, err := start(p.ctx, conn, secretstream.Config{Key: p.key})
	if err != nil {
		return
	}
	p.mu.Lock()
	p.conns = append(p.conns, s)
	p.mu.Unlock()
	m := protomux.New(s)
	serve, err := p.r.Attach(m, replicate.Identity{
		Peer: replicate.PeerID(s.Remote()), HandshakeHash: s.HandshakeHash(), Initiator: s.Initiator(),
	})
	if err != nil {
		s.Close()
		return
	}
	ctx, cancel := context.WithCancel(p.ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		var fault *replicate.PeerError
		if err := serve(ctx); errors.As(err, &fault) {
			p.t.Errorf("peer dropped: %v", err)
		}
	})
	m.Run()
	cancel()
	wg.Wait()
}

// open opens a core to download it.
func (p *peer) open(key core.Key) (*core.Core, *replicate.Session) {
	p.t.Helper()
	c, err := p.store.Open(key)
	if err != nil {
		p.t.Fatal(err)
	}
	s, err := p.r.Open(c, replicate.SessionOptions{})
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		s.Close()
		c.Close()
	})
	return c, s
}

func (p *peer) named(name string) *core.Core {
	p.t.Helper()
	c, err := p.store.Named(name)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { c.Close() })
	return c
}

// limit returns a context for one step of a test.
func limit(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func (p *peer) mustGet(s *replicate.Session, i uint64, want []byte) {
	p.t.Helper()
	got, err := s.Get(limit(p.t), i)
	if err != nil {
		p.t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		p.t.Fatalf("block %d = %.40q, want %.40q", i, got, want)
	}
}

// numbered is what appendMany of replicate.mjs writes as block i.
func numbered(i uint64, size int) []byte {
	text := fmt.Appendf(nil, "%d ", i)
	return bytes.Repeat(text, size/len(text)+1)[:size]
}

func appendNumbered(t testing.TB, c *core.Core, count, size int) {
	t.Helper()
	for count > 0 {
		var batch [][]byte
		for n := c.Length(); count > 0 && len(batch) < 1000; count-- {
			batch = append(batch, numbered(n, size))
			n++
		}
		if _, err := c.Append(batch...); err != nil {
			t.Fatal(err)
		}
	}
}

// A jsCore is what replicate.mjs tells of a core.
type jsCore struct {
	Key                                               string
	Length, ByteLength, Fork, ContiguousLength, Peers uint64
}

type params map[string]any

func hexes(blocks ...string) []string {
	var out []string
	for _, b := range blocks {
		out = append(out, fmt.Sprintf("%x", b))
	}
	return out
}

func parseKey(t testing.TB, s string) core.Key {
	t.Helper()
	k, err := core.ParseKey(s)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestReplicateGo runs our side of the whole stack against itself.
func TestReplicateGo(t *testing.T) {
	a, b := newPeer(t), newPeer(t)
	w := a.named("log")
	appendNumbered(t, w, 500, 300)
	b.connect(a.port())
	c, s := b.open(w.Key())
	b.mustGet(s, 77, numbered(77, 300))
	if err := s.Download(limit(t), 0, 500); err != nil {
		t.Fatal(err)
	}
	if c.TreeHash() != w.TreeHash() || c.ContiguousLength() != 500 {
		t.Errorf("%d blocks of %d, another tree", c.ContiguousLength(), c.Length())
	}
	appendNumbered(t, w, 1, 300)
	b.mustGet(s, 500, numbered(500, 300))
}

// TestReplicateFromJS reads cores of the reference.
func TestReplicateFromJS(t *testing.T) {
	js := testenv.StartNode(t, "replicate.mjs")
	var port int
	js.MustCall(t, "listen", nil, &port)
	var key string
	js.MustCall(t, "create", "log", &key)
	js.MustCall(t, "appendMany", params{"key": key, "count": 1000, "size": 100}, nil)

	p := newPeer(t)
	p.connect(port)
	c, s := p.open(parseKey(t, key))

	t.Run("sparse", func(t *testing.T) {
		for range 50 {
			i := rand.Uint64N(1000)
			p.mustGet(s, i, numbered(i, 100))
		}
		block, offset, err := s.Seek(limit(t), 12345)
		if err != nil || block != 123 || offset != 45 {
			t.Errorf("Seek = %d, %d, %v", block, offset, err)
		}
	})
	t.Run("live", func(t *testing.T) {
		for i := uint64(1000); i < 1020; i++ {
			js.MustCall(t, "append", params{"key": key, "blocks": hexes(fmt.Sprint("live ", i))}, nil)
			p.mustGet(s, i, fmt.Append(nil, "live ", i))
		}
	})
	t.Run("all", func(t *testing.T) {
		if err := s.Download(limit(t), 0, 1020); err != nil {
			t.Fatal(err)
		}
		sameTree(t, js, key, c)
	})
	t.Run("truncate", func(t *testing.T) {
		js.MustCall(t, "truncate", params{"key": key, "length": 700}, nil)
		js.MustCall(t, "append", params{"key": key, "blocks": hexes("forked 700", "forked 701")}, nil)
		waitFor(t, func() bool { return c.Fork() == 1 && c.Length() == 702 })
		p.mustGet(s, 700, []byte("forked 700"))
		p.mustGet(s, 701, []byte("forked 701"))
		p.mustGet(s, 3, numbered(3, 100))
		sameTree(t, js, key, c)
	})
	t.Run("reconnect", func(t *testing.T) {
		js.MustCall(t, "disconnect", nil, nil)
		js.MustCall(t, "append", params{"key": key, "blocks": hexes("after")}, nil)
		p.connect(port)
		p.mustGet(s, 702, []byte("after"))
	})
	t.Run("cleared", func(t *testing.T) {
		var other string
		js.MustCall(t, "create", "cleared", &other)
		js.MustCall(t, "appendMany", params{"key": other, "count": 300, "size": 10}, nil)
		js.MustCall(t, "clear", params{"key": other, "start": 100, "end": 120}, nil)
		_, s := p.open(parseKey(t, other))
		p.mustGet(s, 250, numbered(250, 10))
		p.mustGet(s, 99, numbered(99, 10))
		p.mustGet(s, 120, numbered(120, 10))
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if _, err := s.Get(ctx, 110); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("cleared block: %v", err)
		}
	})
	t.Run("static", func(t *testing.T) {
		var blocks []string
		for i := range uint64(200) {
			blocks = append(blocks, string(numbered(i, 50)))
		}
		var key string
		js.MustCall(t, "static", hexes(blocks...), &key)
		c, s := p.open(parseKey(t, key))
		p.mustGet(s, 150, numbered(150, 50))
		if err := s.Download(limit(t), 0, 200); err != nil {
			t.Fatal(err)
		}
		if m, ok := c.Manifest(); !ok || !m.IsStatic() || c.ContiguousLength() != 200 {
			t.Errorf("static core of %d blocks", c.ContiguousLength())
		}
	})
	t.Run("two signers", func(t *testing.T) {
		var key string
		js.MustCall(t, "multi", hexes("one", "two", "three"), &key)
		c, s := p.open(parseKey(t, key))
		p.mustGet(s, 2, []byte("three"))
		js.MustCall(t, "multiAppend", hexes("four"), nil)
		p.mustGet(s, 3, []byte("four"))
		sameTree(t, js, key, c)
	})
}

// sameTree compares the tree of c with that of the reference.
func sameTree(t *testing.T, js *testenv.Node, key string, c *core.Core) {
	t.Helper()
	var hash vectors.Hex
	js.MustCall(t, "treeHash", params{"key": key, "length": c.Length()}, &hash)
	if h := c.TreeHash(); !bytes.Equal(h[:], hash) {
		t.Errorf("tree hash of %d blocks is %x, there %x", c.Length(), h, hash)
	}
}

// waitFor waits until f is true; what it waits for comes from another process.
func waitFor(t *testing.T, f func() bool) {
	t.Helper()
	for range 6000 {
		if f() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("waited in vain")
}

// TestReplicateToJS lets the reference read our cores.
func TestReplicateToJS(t *testing.T) {
	js := testenv.StartNode(t, "replicate.mjs")
	p := newPeer(t)
	w := p.named("log")
	appendNumbered(t, w, 1000, 100)
	js.MustCall(t, "connect", p.port(), nil)
	key := w.Key().Hex()

	jsGet := func(t *testing.T, key string, i uint64, want []byte) {
		t.Helper()
		var got vectors.Hex
		js.MustCall(t, "get", params{"key": key, "index": i}, &got)
		if !bytes.Equal(got, want) {
			t.Fatalf("block %d = %.40q, want %.40q", i, got, want)
		}
	}
	t.Run("sparse", func(t *testing.T) {
		for range 50 {
			i := rand.Uint64N(1000)
			jsGet(t, key, i, numbered(i, 100))
		}
		var at [2]uint64
		js.MustCall(t, "seek", params{"key": key, "bytes": 12345}, &at)
		if at != [2]uint64{123, 45} {
			t.Errorf("seek = %v", at)
		}
	})
	t.Run("live", func(t *testing.T) {
		for i := uint64(1000); i < 1020; i++ {
			if _, err := w.Append(fmt.Append(nil, "live ", i)); err != nil {
				t.Fatal(err)
			}
			js.MustCall(t, "waitFor", params{"key": key, "length": i + 1, "fork": 0}, nil)
			jsGet(t, key, i, fmt.Append(nil, "live ", i))
		}
	})
	t.Run("all", func(t *testing.T) {
		var info jsCore
		js.MustCall(t, "download", params{"key": key, "start": 0, "end": 1020}, &info)
		js.MustCall(t, "info", key, &info)
		if info.ContiguousLength != 1020 {
			t.Errorf("%+v", info)
		}
		sameTree(t, js, key, w)
	})
	t.Run("truncate", func(t *testing.T) {
		if err := w.Truncate(700); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Append([]byte("forked 700"), []byte("forked 701")); err != nil {
			t.Fatal(err)
		}
		js.MustCall(t, "waitFor", params{"key": key, "length": 702, "fork": 1}, nil)
		jsGet(t, key, 700, []byte("forked 700"))
		jsGet(t, key, 3, numbered(3, 100))
		sameTree(t, js, key, w)
	})
	t.Run("reconnect", func(t *testing.T) {
		js.MustCall(t, "disconnect", nil, nil)
		if _, err := w.Append([]byte("after")); err != nil {
			t.Fatal(err)
		}
		js.MustCall(t, "connect", p.port(), nil)
		js.MustCall(t, "waitFor", params{"key": key, "length": 703, "fork": 1}, nil)
		jsGet(t, key, 702, []byte("after"))
	})
	t.Run("two signers", func(t *testing.T) {
		pairs := []core.KeyPair{core.NewKeyPair([32]byte{1}), core.NewKeyPair([32]byte{2})}
		c, err := p.store.Create(core.MultiSigner(2, pairs[0].Public(), pairs[1].Public()), pairs...)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Append([]byte("one"), []byte("two")); err != nil {
			t.Fatal(err)
		}
		jsGet(t, c.Key().Hex(), 1, []byte("two"))
	})
}

// TestReplicateManyBlocks moves 100 000 blocks each way.
func TestReplicateManyBlocks(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a while")
	}
	const count = 100_000
	js := testenv.StartNode(t, "replicate.mjs")
	p := newPeer(t)
	js.MustCall(t, "connect", p.port(), nil)
	t.Run("from JavaScript", func(t *testing.T) {
		var key string
		js.MustCall(t, "create", "log", &key)
		js.MustCall(t, "appendMany", params{"key": key, "count": count, "size": 100}, nil)
		c, s := p.open(parseKey(t, key))
		waitFor(t, func() bool { return c.Length() == count })
		start := time.Now()
		if err := s.Download(limit(t), 0, count); err != nil {
			t.Fatal(err)
		}
		t.Logf("%.0f blocks/s", count/time.Since(start).Seconds())
		for i := range uint64(count) {
			if b, err := c.Get(t.Context(), i); err != nil || !bytes.Equal(b, numbered(i, 100)) {
				t.Fatalf("block %d: %v", i, err)
			}
		}
	})
	t.Run("to JavaScript", func(t *testing.T) {
		w := p.named("log")
		appendNumbered(t, w, count, 100)
		key := w.Key().Hex()
		js.MustCall(t, "waitFor", params{"key": key, "length": count, "fork": 0}, nil)
		start := time.Now()
		js.MustCall(t, "download", params{"key": key, "start": 0, "end": count}, nil)
		t.Logf("%.0f blocks/s", count/time.Since(start).Seconds())
		var info jsCore
		js.MustCall(t, "info", key, &info)
		if info.ContiguousLength != count {
			t.Errorf("%+v", info)
		}
	})
}

// TestLargeBlocks exchanges blocks of 8 MiB with the reference, in both directions:
// what bounds the memory for large messages must let them pass.
func TestLargeBlocks(t *testing.T) {
	const count, size = 4, 8 << 20
	js := testenv.StartNode(t, "replicate.mjs")
	p := newPeer(t)
	js.MustCall(t, "connect", p.port(), nil)
	var key string
	js.MustCall(t, "create", "large", &key)
	js.MustCall(t, "appendMany", params{"key": key, "count": count, "size": size}, nil)
	c, s := p.open(parseKey(t, key))
	if _, err := s.Update(limit(t)); err != nil {
		t.Fatal(err)
	}
	if err := s.Download(limit(t), 0, count); err != nil {
		t.Fatal(err)
	}
	if c.ByteLength() != count*size {
		t.Errorf("%d bytes came", c.ByteLength())
	}
	w := p.named("ours")
	appendNumbered(t, w, count, size)
	js.MustCall(t, "waitFor", params{"key": w.Key().Hex(), "length": count, "fork": 0}, nil)
	js.MustCall(t, "download", params{"key": w.Key().Hex(), "start": 0, "end": count}, nil)
	var info struct{ ContiguousLength int }
	js.MustCall(t, "info", w.Key().Hex(), &info)
	if info.ContiguousLength != count {
		t.Errorf("the reference has %d blocks", info.ContiguousLength)
	}
}

// TestRelayThroughGo connects two Node peers and two of ours to a third of ours,
// which never holds a secret key: what one writes, all others must get.
func TestRelayThroughGo(t *testing.T) {
	writer, reader := testenv.StartNode(t, "replicate.mjs"), testenv.StartNode(t, "replicate.mjs")
	relay, p, q := newPeer(t), newPeer(t), newPeer(t)
	for _, js := range []*testenv.Node{writer, reader} {
		js.MustCall(t, "connect", relay.port(), nil)
	}
	p.connect(relay.port())
	q.connect(relay.port())
	var key string
	writer.MustCall(t, "create", "log", &key)
	writer.MustCall(t, "appendMany", params{"key": key, "count": 300, "size": 1000}, nil)

	c, s := relay.open(parseKey(t, key))
	waitFor(t, func() bool { return c.Length() == 300 })
	if err := s.Download(limit(t), 0, 300); err != nil {
		t.Fatal(err)
	}
	_, ps := p.open(c.Key())
	_, qs := q.open(c.Key())
	p.mustGet(ps, 299, numbered(299, 1000))
	q.mustGet(qs, 0, numbered(0, 1000))
	var got vectors.Hex
	reader.MustCall(t, "get", params{"key": key, "index": 123}, &got)
	if !bytes.Equal(got, numbered(123, 1000)) {
		t.Errorf("block 123 is %.40q", got)
	}
	if c.Writable() {
		t.Error("the relay can write")
	}
	// The writer leaves; the relay serves on, also what comes from our side.
	writer.MustCall(t, "disconnect", nil, nil)
	reader.MustCall(t, "download", params{"key": key, "start": 0, "end": 300}, nil)
	w := q.named("ours")
	appendNumbered(t, w, 20, 10)
	rc, rs := relay.open(w.Key())
	waitFor(t, func() bool { return rc.Length() == 20 })
	if err := rs.Download(limit(t), 0, 20); err != nil {
		t.Fatal(err)
	}
	reader.MustCall(t, "get", params{"key": w.Key().Hex(), "index": 19}, &got)
	if !bytes.Equal(got, numbered(19, 10)) {
		t.Errorf("block 19 is %.40q", got)
	}
}

// fillBee writes count keys in one batch, as beePut of replicate.mjs does.
func fillBee(t testing.TB, c *core.Core, count int) {
	t.Helper()
	b := bee.Open(c, bee.Options{}).Batch()
	for i := range count {
		if err := b.Put(t.Context(), fmt.Append(nil, "key ", i), fmt.Append(nil, "value ", i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// openBee opens a tree that is read from peers.
func (p *peer) openBee(key core.Key) (*bee.Tree, *replicate.Session, *core.Core) {
	p.t.Helper()
	c, err := p.store.Open(key)
	if err != nil {
		p.t.Fatal(err)
	}
	tree, s, err := remotebee.Open(p.r.Open, c, bee.Options{}, replicate.SessionOptions{})
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		s.Close()
		c.Close()
	})
	return tree, s, c
}

// TestRemoteBee reads a Hyperbee from peers of both kinds with the extension,
// and lets the reference read ours.
func TestRemoteBee(t *testing.T) {
	const count = 3000
	read := func(t *testing.T, p *peer, key core.Key) *core.Core {
		t.Helper()
		tree, s, c := p.openBee(key)
		if _, err := s.Update(limit(t)); err != nil {
			t.Fatal(err)
		}
		for range 40 {
			i := rand.IntN(count)
			e, err := tree.Get(limit(t), fmt.Append(nil, "key ", i))
			if err != nil || string(e.Value) != fmt.Sprint("value ", i) {
				t.Fatalf("key %d = %q, %v", i, e.Value, err)
			}
		}
		if _, err := tree.Get(limit(t), []byte("absent")); !errors.Is(err, bee.ErrNotFound) {
			t.Errorf("absent key: %v", err)
		}
		return c
	}
	t.Run("from Go", func(t *testing.T) {
		a, b := newPeer(t), newPeer(t)
		w := a.named("bee")
		fillBee(t, w, count)
		b.connect(a.port())
		c := read(t, b, w.Key())
		if n, _ := c.NextAbsent(1, c.Length()); n == c.Length() {
			t.Error("all of the tree was downloaded")
		}
	})
	t.Run("from JavaScript", func(t *testing.T) {
		js := testenv.StartNode(t, "replicate.mjs")
		p := newPeer(t)
		js.MustCall(t, "connect", p.port(), nil)
		var key string
		js.MustCall(t, "create", "bee", &key)
		js.MustCall(t, "beePut", params{"key": key, "count": count}, nil)
		read(t, p, parseKey(t, key))
	})
	t.Run("to JavaScript", func(t *testing.T) {
		js := testenv.StartNode(t, "replicate.mjs")
		p := newPeer(t)
		w := p.named("bee")
		fillBee(t, w, count)
		js.MustCall(t, "connect", p.port(), nil)
		js.MustCall(t, "waitFor", params{"key": w.Key().Hex(), "length": w.Length(), "fork": 0}, nil)
		for range 40 {
			i := rand.IntN(count)
			var value string
			js.MustCall(t, "beeGet", params{"key": w.Key().Hex(), "name": fmt.Sprint("key ", i)}, &value)
			if value != fmt.Sprint("value ", i) {
				t.Fatalf("key %d = %q", i, value)
			}
		}
	})
}

// TestRemoteRange reads ranges of a Hyperbee in either direction, both sides asking
// the other with the extension for the blocks that they will need.
func TestRemoteRange(t *testing.T) {
	const count = 5000
	ranges := []struct {
		r  bee.Range
		js params
	}{
		{bee.Range{}, params{}},
		{bee.Range{Reverse: true, Limit: 2500}, params{"reverse": true, "limit": 2500}},
		{bee.Range{GTE: []byte("key 2"), LT: []byte("key 3")}, params{"gte": "key 2", "lt": "key 3"}},
		{bee.Range{GT: []byte("key 20"), LTE: []byte("key 4000"), Reverse: true}, params{"gt": "key 20", "lte": "key 4000", "reverse": true}},
	}
	keysOf := func(t *testing.T, tree *bee.Tree, r bee.Range) (keys []string) {
		t.Helper()
		for e, err := range tree.Range(limit(t), r) {
			if err != nil {
				t.Fatal(err)
			}
			keys = append(keys, string(e.Key))
		}
		return keys
	}
	local := newPeer(t).named("bee")
	fillBee(t, local, count)
	whole := bee.Open(local, bee.Options{})
	for _, r := range ranges {
		want := keysOf(t, whole, r.r)
		t.Run(fmt.Sprint("from Go ", r.js), func(t *testing.T) {
			a, b := newPeer(t), newPeer(t)
			w := a.named("bee")
			fillBee(t, w, count)
			b.connect(a.port())
			tree, s, _ := b.openBee(w.Key())
			if _, err := s.Update(limit(t)); err != nil {
				t.Fatal(err)
			}
			if got := keysOf(t, tree, r.r); !slices.Equal(got, want) {
				t.Errorf("%d keys, want %d", len(got), len(want))
			}
		})
		t.Run(fmt.Sprint("from JavaScript ", r.js), func(t *testing.T) {
			js := testenv.StartNode(t, "replicate.mjs")
			p := newPeer(t)
			js.MustCall(t, "connect", p.port(), nil)
			var key string
			js.MustCall(t, "create", "bee", &key)
			js.MustCall(t, "beePut", params{"key": key, "count": count}, nil)
			tree, s, _ := p.openBee(parseKey(t, key))
			if _, err := s.Update(limit(t)); err != nil {
				t.Fatal(err)
			}
			if got := keysOf(t, tree, r.r); !slices.Equal(got, want) {
				t.Errorf("%d keys, want %d", len(got), len(want))
			}
			js.MustCall(t, "disconnect", nil, nil)
			answersRange(t, js, parseKey(t, key), whole, r.r)
		})
		t.Run(fmt.Sprint("to JavaScript ", r.js), func(t *testing.T) {
			js := testenv.StartNode(t, "replicate.mjs")
			p := newPeer(t)
			w := p.named("bee")
			fillBee(t, w, count)
			js.MustCall(t, "connect", p.port(), nil)
			js.MustCall(t, "waitFor", params{"key": w.Key().Hex(), "length": w.Length(), "fork": 0}, nil)
			var got struct {
				Keys  []string
				Hints int
			}
			js.MustCall(t, "beeRange", params{"key": w.Key().Hex(), "range": r.js}, &got)
			if !slices.Equal(got.Keys, want) {
				t.Errorf("%d keys, want %d", len(got.Keys), len(want))
			}
			if got.Hints < min(len(want), 2000) {
				t.Errorf("%d blocks were named for %d keys", got.Hints, len(want))
			}
		})
	}
}

// answersRange asks the reference about a range: it names the blocks that we would.
func answersRange(t *testing.T, js *testenv.Node, key core.Key, whole *bee.Tree, r bee.Range) {
	t.Helper()
	p := newPeer(t)
	js.MustCall(t, "connect", p.port(), nil)
	c, err := p.store.Open(key)
	if err != nil {
		t.Fatal(err)
	}
	named := make(chan []uint64, 100)
	s, err := p.r.Open(c, replicate.SessionOptions{Extensions: map[string]func(replicate.PeerID, []byte){
		bee.ExtensionName: func(_ replicate.PeerID, b []byte) { named <- bee.DecodeExtension(b).Blocks },
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	defer s.Close()
	if _, err := s.Update(limit(t)); err != nil {
		t.Fatal(err)
	}
	q := bee.RangeRequest{Version: s.Length(), Range: r}
	s.SendBest(bee.ExtensionName, bee.EncodeRange(q))
	missing := map[uint64]bool{}
	for _, i := range whole.TouchedRange(limit(t), q, bee.RangeHint) {
		missing[i] = true
	}
	// Going up without a limit, the reference reads ahead in the tree, and so names
	// other blocks first.
	enough := 0
	if !r.Reverse && len(missing) == bee.RangeHint {
		enough = len(missing) * 3 / 4
	}
	for len(missing) > enough {
		select {
		case blocks := <-named:
			for _, i := range blocks {
				delete(missing, i)
			}
		case <-limit(t).Done():
			t.Fatalf("%d blocks were not named", len(missing))
		}
	}
}

// TestUnknownCore asks for a core that nobody has.
func TestUnknownCore(t *testing.T) {
	p := newPeer(t)
	if _, err := p.store.OpenExisting(core.Key{1}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("OpenExisting = %v", err)
	}
}
