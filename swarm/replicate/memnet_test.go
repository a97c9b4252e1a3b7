package replicate

import (
	"context"
	"crypto/sha512"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/core"
)

// A node is one replicator with its cores, as a plain value.
type node struct {
	t     *testing.T
	id    PeerID
	r     *Replicator
	cores map[core.DiscoveryKey]*memCore

	mu        sync.Mutex
	conflicts []core.Evidence
	opened    int
}

func newNode(t *testing.T, id byte, cores ...*memCore) *node {
	return newNodeWith(t, id, Config{}, cores...)
}

func newNodeWith(t *testing.T, id byte, cfg Config, cores ...*memCore) *node {
	n := &node{t: t, id: PeerID{id}, cores: map[core.DiscoveryKey]*memCore{}}
	for _, c := range cores {
		n.cores[c.key.Discovery()] = c
	}
	cfg.Open = func(_ context.Context, dk core.DiscoveryKey) (Core, func(), error) {
		n.mu.Lock()
		defer n.mu.Unlock()
		c := n.cores[dk]
		if c == nil {
			return nil, nil, fs.ErrNotExist
		}
		n.opened++
		return c, func() {
			n.mu.Lock()
			n.opened--
			n.mu.Unlock()
		}, nil
	}
	cfg.OnConflict = func(e core.Evidence) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.conflicts = append(n.conflicts, e)
	}
	cfg.Self = n.id
	n.r = New(cfg)
	return n
}

func (n *node) conflict() []core.Evidence {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.conflicts
}

func (n *node) feeds() int {
	n.r.mu.Lock()
	defer n.r.mu.Unlock()
	return len(n.r.feeds)
}

// dump logs what a node waits for.
func (n *node) dump() {
	n.r.mu.Lock()
	defer n.r.mu.Unlock()
	for _, f := range n.r.feeds {
		f.mu.Lock()
		n.t.Logf("core %s: length %d fork %d, %d blocks, %d urgent, %d retry, ticking %v, upgrade %v", f.key.Short(), f.tree.Length, f.tree.Fork,
			len(f.blocks), len(f.urgent), len(f.retry), f.ticking, f.upgrade != nil)
		for _, b := range f.blocks {
			n.t.Logf("  block %d: waiters %d, %d asked, %d late", b.index, b.waiters, b.asked(), len(b.reqs)-b.asked())
		}
		for _, d := range f.ranges {
			n.t.Logf("  range %d..%d, low %d, %d pending", d.lo, d.hi, d.low, len(d.pending))
		}
		for _, p := range f.peers {
			n.t.Logf("  peer %s: open %v synced %v length %d fork %d acked %d canUpgrade %v contiguous %d, %d in flight, room %d, strikes %d, refused %d, paused %v, stalled %v, work %d..%d",
				p.c.id, p.open, p.synced, p.length, p.fork, p.acked, p.canUpgrade, p.have.contiguous, len(p.inFlight), f.room(p), p.strikes, len(p.refused), p.paused, p.stalled, p.work.next, p.work.end)
		}
		f.mu.Unlock()
	}
}

// open opens a session for key, on the node's core or a new empty one.
func (n *node) open(key core.Key, o SessionOptions) (*Session, *memCore) {
	n.mu.Lock()
	c := n.cores[key.Discovery()]
	if c == nil {
		c = emptyCore(key)
		n.cores[key.Discovery()] = c
	}
	n.mu.Unlock()
	s, err := n.r.Open(c, o)
	if err != nil {
		n.t.Fatal(err)
	}
	return s, c
}

// A link is a simulated connection. The zero value is without delay or limit.
type link struct {
	delay time.Duration // one way
	rate  float64       // bytes a second each way; 0 is unlimited
	// alter may change or drop what a sends; nil passes everything.
	alter func(kind int, payload []byte) [][]byte

	a, b *end
	wg   sync.WaitGroup
	errA error
	errB error
}

// connect runs a connection between a and b until it ends.
func (l *link) connect(ctx context.Context, a, b *node) *link {
	l.a = newEnd(a.id, b.id, true, l)
	l.b = newEnd(b.id, a.id, false, l)
	l.a.other, l.b.other = l.b, l.a
	run := func(n *node, e *end, err *error) {
		e.r = n.r
		l.wg.Go(func() { *err = n.r.Serve(ctx, e) })
		l.wg.Go(e.read)
	}
	run(a, l.a, &l.errA)
	run(b, l.b, &l.errB)
	return l
}

// cut ends the connection as if the cable was pulled.
func (l *link) cut() {
	l.a.Close(errCut)
	l.b.Close(errCut)
	l.wg.Wait()
}

var errCut = errors.New("cut")

// An end is one end of a link; it implements Mux.
type end struct {
	us, peer  PeerID
	initiator bool
	link      *link
	other     *end
	r         *Replicator

	mu       sync.Mutex
	cond     *sync.Cond
	inbox    []frame
	free     time.Time // when the line to us is free again
	err      error
	done     chan struct{}
	handlers map[core.DiscoveryKey]Handler
	local    map[core.DiscoveryKey]bool
	remote   map[core.DiscoveryKey][]byte // handshakes of channels the remote has opened
	paired   map[core.DiscoveryKey]bool
	frames   int
	bytes    int
}

type frame struct {
	at      time.Time
	id      core.DiscoveryKey
	kind    int // message, or one of the following
	payload []byte
}

const (
	frameOpen   = -2
	frameReject = -3
	frameClose  = -4
)

func newEnd(us, peer PeerID, initiator bool, l *link) *end {
	e := &end{us: us, peer: peer, initiator: initiator, link: l, done: make(chan struct{}),
		handlers: map[core.DiscoveryKey]Handler{}, local: map[core.DiscoveryKey]bool{},
		remote: map[core.DiscoveryKey][]byte{}, paired: map[core.DiscoveryKey]bool{}}
	e.cond = sync.NewCond(&e.mu)
	return e
}

func (e *end) Peer() PeerID { return e.peer }

func (e *end) HandshakeHash() []byte {
	a, b := e.us, e.peer
	if !e.initiator {
		a, b = b, a
	}
	h := sha512.Sum512(append(a[:], b[:]...))
	return h[:]
}

func (e *end) Initiator() bool { return e.initiator }

func (e *end) Batch(f func() error) error { return f() }

func (e *end) Close(err error) {
	for _, x := range []*end{e, e.other} {
		x.mu.Lock()
		if x.err == nil {
			x.err = err
			close(x.done)
		}
		x.cond.Broadcast()
		x.mu.Unlock()
	}
}

// lineBuffer is how far ahead of the line a sender may be before it waits.
const lineBuffer = 50 * time.Millisecond

// deliver puts a frame on the line to e, and waits while the line is full.
func (e *end) deliver(f frame) error {
	e.mu.Lock()
	if e.err != nil {
		defer e.mu.Unlock()
		return e.err
	}
	now := time.Now()
	if e.free.Before(now) {
		e.free = now
	}
	if e.link.rate > 0 {
		e.free = e.free.Add(time.Duration(float64(len(f.payload)+20) / e.link.rate * 1e9))
	}
	f.at = e.free.Add(e.link.delay)
	wait := e.free.Sub(now) - lineBuffer
	e.inbox = append(e.inbox, f)
	e.frames++
	e.bytes += len(f.payload)
	e.cond.Signal()
	e.mu.Unlock()
	if wait > 0 {
		select {
		case <-time.After(wait):
		case <-e.done:
		}
	}
	return nil
}

// read handles what arrives until the end is closed.
func (e *end) read() {
	for {
		e.mu.Lock()
		for len(e.inbox) == 0 && e.err == nil {
			e.cond.Wait()
		}
		if e.err != nil {
			handlers := mapValues(e.handlers)
			clear(e.handlers)
			e.mu.Unlock()
			for _, h := range handlers {
				h.Closed()
			}
			if c := e.r.connOf(e); c != nil {
				c.fail(e.err)
			}
			return
		}
		f := e.inbox[0]
		e.inbox = e.inbox[1:]
		e.mu.Unlock()
		if d := time.Until(f.at); d > 0 {
			select {
			case <-time.After(d):
			case <-e.done:
				continue
			}
		}
		if err := e.handle(f); err != nil {
			if c := e.r.connOf(e); c != nil {
				c.fail(err)
			}
		}
	}
}

func (e *end) handle(f frame) error {
	e.mu.Lock()
	h := e.handlers[f.id]
	paired := e.paired[f.id]
	local := e.local[f.id]
	switch f.kind {
	case frameOpen:
		if !local {
			e.remote[f.id] = f.payload
			e.mu.Unlock()
			if err := e.r.RemoteOpen(context.Background(), e, f.id); err != nil {
				e.mu.Lock()
				delete(e.remote, f.id)
				e.mu.Unlock()
				return e.other.deliver(frame{id: f.id, kind: frameReject})
			}
			return nil
		}
		e.paired[f.id] = true
		e.mu.Unlock()
		return h.Opened(f.payload)
	case frameReject, frameClose:
		delete(e.handlers, f.id)
		delete(e.local, f.id)
		delete(e.paired, f.id)
		delete(e.remote, f.id)
		e.mu.Unlock()
		if h != nil {
			h.Closed()
		}
		return nil
	}
	e.mu.Unlock()
	if h == nil || !paired {
		return nil
	}
	return h.Message(f.kind, f.payload)
}

func (e *end) Open(id core.DiscoveryKey, hs []byte, h Handler) (Channel, error) {
	e.mu.Lock()
	if e.err != nil {
		e.mu.Unlock()
		return nil, e.err
	}
	if e.local[id] {
		e.mu.Unlock()
		return nil, fmt.Errorf("channel is open")
	}
	e.local[id] = true
	e.handlers[id] = h
	remote, ok := e.remote[id]
	if ok {
		e.paired[id] = true
		delete(e.remote, id)
	}
	e.mu.Unlock()
	if err := e.other.deliver(frame{id: id, kind: frameOpen, payload: hs}); err != nil {
		return nil, err
	}
	if ok {
		if err := h.Opened(remote); err != nil {
			return nil, err
		}
	}
	return &endChannel{e, id}, nil
}

type endChannel struct {
	e  *end
	id core.DiscoveryKey
}

func (c *endChannel) Send(kind int, payload []byte) error {
	payload = append([]byte{}, payload...)
	out := [][]byte{payload}
	if alter := c.e.link.alter; alter != nil && c.e.initiator {
		out = alter(kind, payload)
	}
	for _, p := range out {
		if err := c.e.other.deliver(frame{id: c.id, kind: kind, payload: p}); err != nil {
			return err
		}
	}
	return nil
}

func (c *endChannel) Close() error {
	c.e.mu.Lock()
	delete(c.e.handlers, c.id)
	delete(c.e.local, c.id)
	delete(c.e.paired, c.id)
	c.e.mu.Unlock()
	return c.e.other.deliver(frame{id: c.id, kind: frameClose})
}
