package replicate

import (
	"context"
	"crypto/sha512"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/core"
)

// A node is one replicator with its cores, as a plain value.
type node struct {
	t     testing.TB
	id    PeerID
	r     *Replicator
	cores map[core.DiscoveryKey]*memCore

	mu        sync.Mutex
	conflicts []core.Evidence
	opened    int
}

func newNode(t testing.TB, id byte, cores ...*memCore) *node {
	return newNodeWith(t, id, Config{}, cores...)
}

func newNodeWith(t testing.TB, id byte, cfg Config, cores ...*memCore) *node {
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
	feeds := mapValues(n.r.feeds)
	n.r.mu.Unlock()
	for _, f := range feeds {
		n.t.Log(f.describe())
	}
}

// describe returns what a feed waits for, and what it knows of its peers.
func (f *feed) describe() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := fmt.Sprintf("core %s: length %d fork %d, %d urgent, %d retry, ticking %v, upgrade %v, err %v\n", f.key.Short(),
		f.tree.Length, f.tree.Fork, len(f.urgent), len(f.retry), f.ticking, f.upgrade != nil, f.err)
	for _, b := range f.blocks {
		s += fmt.Sprintf("  block %d: waiters %d, queued %v, %d asked, %d late\n", b.index, b.waiters, b.queued, b.asked(), len(b.reqs)-b.asked())
	}
	for _, d := range f.ranges {
		s += fmt.Sprintf("  range %d..%d, low %d, %d pending\n", d.lo, d.hi, d.low, len(d.pending))
	}
	for _, p := range f.peers {
		s += fmt.Sprintf("  peer %s: open %v synced %v length %d fork %d acked %d canUpgrade %v failures %d contiguous %d, %d in flight, room %d, strikes %d, refused %d, paused %v, stalled %v, work %d..%d\n",
			p.c.id, p.open, p.synced, p.length, p.fork, p.acked, p.canUpgrade, p.failures, p.have.contiguous, len(p.inFlight), f.room(p),
			p.strikes, len(p.refused), p.paused, p.stalled, p.work.next, p.work.end)
	}
	return s
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
	// late returns how much longer a frame takes than the others, as one does of
	// which packets were lost or overtaken: those behind it wait. Nil is never.
	late func() time.Duration
	// alter may change or drop what a sends; nil passes everything.
	alter func(kind int, payload []byte) [][]byte

	asleep atomic.Int64 // until then nothing is delivered, in Unix nanoseconds
	a, b   *end
	wg     sync.WaitGroup
	errA   error
	errB   error
}

// connect runs a connection between a and b until it ends.
func (l *link) connect(ctx context.Context, a, b *node) *link {
	l.a = newEnd(a.id, b.id, true, l)
	l.b = newEnd(b.id, a.id, false, l)
	l.a.other, l.b.other = l.b, l.a
	run := func(n *node, e *end, err *error) {
		e.r = n.r
		c, cerr := n.r.connect(e)
		if cerr != nil {
			n.t.Fatal(cerr)
		}
		l.wg.Go(func() { *err = c.serve(ctx) })
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
	chans    map[uint64]*endChannel              // ours, by our number, until closed
	byRemote map[uint64]*endChannel              // by the number of the other side
	waiting  map[core.DiscoveryKey][]*endChannel // ours that the other side has not opened yet
	incoming map[core.DiscoveryKey][]frame       // opens that we have not answered yet
	next     uint64
	frames   int
	bytes    int
}

type frame struct {
	at      time.Time
	number  uint64 // of the channel, as the sender numbers it; in a reject, as the receiver does
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
		chans: map[uint64]*endChannel{}, byRemote: map[uint64]*endChannel{},
		waiting: map[core.DiscoveryKey][]*endChannel{}, incoming: map[core.DiscoveryKey][]frame{}}
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
	if e.link.late != nil {
		e.free = e.free.Add(e.link.late())
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

// await waits until f arrives, and returns false if the end is closed before.
func (e *end) await(f frame) bool {
	for {
		d := max(time.Until(f.at), time.Until(time.Unix(0, e.link.asleep.Load())))
		if d <= 0 {
			return true
		}
		select {
		case <-time.After(d):
		case <-e.done:
			return false
		}
	}
}

// sleep delivers nothing for d: one end is suspended, or its network is away.
func (l *link) sleep(d time.Duration) { l.asleep.Store(time.Now().Add(d).UnixNano()) }

// read handles what arrives until the end is closed.
func (e *end) read() {
	for {
		e.mu.Lock()
		for len(e.inbox) == 0 && e.err == nil {
			e.cond.Wait()
		}
		if e.err != nil {
			open := mapValues(e.chans)
			clear(e.chans)
			e.mu.Unlock()
			for _, ch := range open {
				ch.h.Closed()
			}
			if c := e.r.connOf(e); c != nil {
				c.fail(e.err)
			}
			return
		}
		f := e.inbox[0]
		e.inbox = e.inbox[1:]
		e.mu.Unlock()
		if !e.await(f) {
			continue
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
	switch f.kind {
	case frameOpen:
		if list := e.waiting[f.id]; len(list) > 0 {
			ch := list[0]
			e.waiting[f.id] = list[1:]
			open := e.chans[ch.number] == ch
			if open {
				ch.remote, e.byRemote[f.number] = f.number, ch
			}
			e.mu.Unlock()
			if open {
				return ch.h.Opened(f.payload)
			}
			return nil
		}
		e.incoming[f.id] = append(e.incoming[f.id], f)
		e.mu.Unlock()
		if err := e.r.RemoteOpen(context.Background(), e, f.id); err != nil {
			e.mu.Lock()
			e.forget(f.number)
			e.mu.Unlock()
			return e.other.deliver(frame{number: f.number, id: f.id, kind: frameReject})
		}
		return nil
	case frameReject:
		ch := e.chans[f.number]
		e.waiting[f.id] = slices.DeleteFunc(e.waiting[f.id], func(c *endChannel) bool { return c.number == f.number })
		delete(e.chans, f.number)
		e.mu.Unlock()
		if ch != nil {
			ch.h.Closed()
		}
		return nil
	}
	ch := e.byRemote[f.number]
	if f.kind == frameClose {
		e.forget(f.number)
		if ch != nil {
			delete(e.chans, ch.number)
			delete(e.byRemote, f.number)
		}
	}
	e.mu.Unlock()
	switch {
	case ch == nil:
		return nil
	case f.kind == frameClose:
		ch.h.Closed()
		return nil
	}
	return ch.h.Message(f.kind, f.payload)
}

// channel returns our open channel of that id.
func (e *end) channel(id core.DiscoveryKey) *endChannel {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, ch := range e.chans {
		if ch.id == id {
			return ch
		}
	}
	panic("no such channel")
}

// forget drops an open of the other side that was not answered.
func (e *end) forget(number uint64) {
	for id, list := range e.incoming {
		if list = slices.DeleteFunc(list, func(f frame) bool { return f.number == number }); len(list) > 0 {
			e.incoming[id] = list
		} else {
			delete(e.incoming, id)
		}
	}
}

func (e *end) Open(id core.DiscoveryKey, hs []byte, h Handler) (Channel, error) {
	e.mu.Lock()
	if e.err != nil {
		defer e.mu.Unlock()
		return nil, e.err
	}
	for _, ch := range e.chans {
		if ch.id == id {
			e.mu.Unlock()
			return nil, fmt.Errorf("channel is open")
		}
	}
	e.next++
	ch := &endChannel{e: e, id: id, number: e.next, h: h}
	e.chans[ch.number] = ch
	var remote *frame
	if list := e.incoming[id]; len(list) > 0 {
		first := list[0]
		remote = &first
		e.forget(remote.number)
		ch.remote, e.byRemote[remote.number] = remote.number, ch
	} else {
		e.waiting[id] = append(e.waiting[id], ch)
	}
	e.mu.Unlock()
	if err := e.other.deliver(frame{number: ch.number, id: id, kind: frameOpen, payload: hs}); err != nil {
		return nil, err
	}
	if remote != nil {
		if err := h.Opened(remote.payload); err != nil {
			return nil, err
		}
	}
	return ch, nil
}

type endChannel struct {
	e              *end
	id             core.DiscoveryKey
	number, remote uint64
	h              Handler
}

func (c *endChannel) Send(kind int, payload []byte) error {
	payload = append([]byte{}, payload...)
	out := [][]byte{payload}
	if alter := c.e.link.alter; alter != nil && c.e.initiator {
		out = alter(kind, payload)
	}
	for _, p := range out {
		if err := c.e.other.deliver(frame{number: c.number, id: c.id, kind: kind, payload: p}); err != nil {
			return err
		}
	}
	return nil
}

func (c *endChannel) Close() error {
	c.e.mu.Lock()
	if c.e.chans[c.number] != c {
		c.e.mu.Unlock()
		return nil
	}
	delete(c.e.chans, c.number)
	delete(c.e.byRemote, c.remote)
	c.e.mu.Unlock()
	return c.e.other.deliver(frame{number: c.number, id: c.id, kind: frameClose})
}
