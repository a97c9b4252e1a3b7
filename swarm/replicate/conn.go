package replicate

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/internal/compact"
)

// A Mux is one connection to a peer. Package swarm has one over protomux.
type Mux interface {
	// Peer returns the proven identity of the other end.
	Peer() PeerID
	// HandshakeHash returns the 64 bytes that identify the encrypted stream.
	HandshakeHash() []byte
	// Initiator says whether our end dialled.
	Initiator() bool
	// Open opens our side of the channel of that id; h is called when the
	// remote has opened its side, in order, by the goroutine that reads the
	// connection.
	Open(id core.DiscoveryKey, handshake []byte, h Handler) (Channel, error)
	// Batch collects what is sent by f into as few frames as possible.
	Batch(f func() error) error
	// Close ends the connection for that reason. It does not wait.
	Close(reason error)
}

// A Handler gets what arrives on a channel. An error ends the connection.
type Handler interface {
	Opened(handshake []byte) error
	// Message gets the payload of one message, valid during the call.
	Message(kind int, payload []byte) error
	// Closed is called once when the channel ends from the other side or with
	// the connection, also if it was never opened there.
	Closed()
}

// A Channel is our side of a channel.
type Channel interface {
	// Send writes a message; it may wait for the network. It does not keep
	// payload.
	Send(kind int, payload []byte) error
	// Close ends the channel. The handler's Closed is not called then.
	Close() error
}

// A conn is one connection as the replicator sees it.
type conn struct {
	r     *Replicator
	mux   Mux
	id    PeerID
	pages atomic.Int64    // pages of peers' bitfields that may still be made
	wake  chan struct{}   // has room for one; set when there is something to write
	done  chan struct{}   // closed by fail
	ctx   context.Context // ended by fail
	end   context.CancelFunc

	mu       sync.Mutex
	err      error // why the connection ends, once done is closed
	out      []outgoing
	outBytes int
	queue    []*upload // requests to answer, oldest first
	pushes   []*upload // blocks to be sent unasked
	peers    map[core.DiscoveryKey]*peer
	inbox    inbox

	// Measured over all cores of the connection.
	window   float64 // requests that may be in flight
	active   int     // peers with requests in flight
	srtt     time.Duration
	minRTT   time.Duration
	minRTTAt time.Time
	last     time.Time // when something was last received

	guess int // size of the next answer; used by the writing goroutine only

	// Floods. Used by the reading goroutine only.
	wants, bitfields, ranges, extensions *rate.Limiter
}

// An outgoing is a message that waits to be written; kind closeChannel closes.
type outgoing struct {
	p       *peer
	kind    int
	payload []byte
}

const closeChannel = -1

// initialWindow is the number of requests in flight to a peer that has not
// answered any yet.
const initialWindow = 32

func newConn(r *Replicator, mux Mux) *conn {
	c := &conn{
		r: r, mux: mux, id: mux.Peer(),
		wake: make(chan struct{}, 1), done: make(chan struct{}),
		peers: make(map[core.DiscoveryKey]*peer), window: initialWindow, guess: 64 << 10,
		wants:      rate.NewLimiter(100, 2048),
		bitfields:  rate.NewLimiter(200, 4096),
		ranges:     rate.NewLimiter(50_000, 200_000),
		extensions: rate.NewLimiter(1000, 4096),
	}
	c.ctx, c.end = context.WithCancel(context.Background()) // as long as the connection
	c.pages.Store(maxConnPages)
	c.inbox.init()
	return c
}

// Serve exchanges cores over mux until ctx ends or the connection does. The
// caller runs the reading side of mux meanwhile, and passes the peer's opens to
// [Replicator.RemoteOpen]. The result says why it ended: it is a *[PeerError]
// if the peer is to blame.
func (r *Replicator) Serve(ctx context.Context, mux Mux) error {
	c, err := r.connect(mux)
	if err != nil {
		return err
	}
	return c.serve(ctx)
}

// connect enters a connection into the tables.
func (r *Replicator) connect(mux Mux) (*conn, error) {
	c := newConn(r, mux)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, ErrClosed
	}
	r.conns[c] = struct{}{}
	return c, nil
}

// serve exchanges cores over c until it ends, and takes it out of the tables.
func (c *conn) serve(ctx context.Context) error {
	r := c.r
	r.mu.Lock()
	feeds := mapValues(r.feeds)
	r.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { c.fail(context.Cause(ctx)) })
	defer stop()
	for _, f := range feeds {
		f.offer(c)
	}
	var storing sync.WaitGroup
	storing.Go(c.store)
	c.write()
	storing.Wait()

	r.mu.Lock()
	delete(r.conns, c)
	r.mu.Unlock()
	c.mu.Lock()
	peers := mapValues(c.peers)
	c.mu.Unlock()
	for _, p := range peers {
		p.f.remove(p)
	}
	c.inbox.mu.Lock()
	r.large.Release(c.inbox.large)
	c.inbox.large = 0
	c.inbox.mu.Unlock()
	c.mux.Close(c.err)
	return c.err
}

// RemoteOpen answers a channel that the peer of mux opened and we have not. The
// error matches fs.ErrNotExist if it is to be rejected. mux must be one that
// Serve runs with.
func (r *Replicator) RemoteOpen(ctx context.Context, mux Mux, dk core.DiscoveryKey) error {
	c := r.connOf(mux)
	if c == nil {
		return ErrClosed
	}
	return r.remoteOpen(ctx, c, dk)
}

func (r *Replicator) remoteOpen(ctx context.Context, c *conn, dk core.DiscoveryKey) error {
	f, err := r.lookup(ctx, dk)
	if err != nil {
		return err
	}
	defer r.unhold(f)
	return f.attach(c)
}

func (r *Replicator) connOf(mux Mux) *conn {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.conns {
		if c.mux == mux {
			return c
		}
	}
	return nil
}

// fail ends the connection; the first reason counts.
func (c *conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	if err == nil {
		err = ErrClosed
	}
	c.err = err
	var fault *PeerError
	if errors.As(err, &fault) {
		c.r.log.Warn("peer dropped", "peer", c.id, "fault", string(fault.Fault), "err", err)
	}
	close(c.done)
	c.end()
	c.inbox.close(fault != nil)
}

// blame ends the connection because of what the peer did.
func (c *conn) blame(key core.Key, fault Fault, err error) error {
	e := &PeerError{Peer: c.id, Core: key, Fault: fault, Err: err}
	c.fail(e)
	return e
}

// send queues a message. It never waits.
func (c *conn) send(p *peer, kind int, payload []byte) {
	c.mu.Lock()
	c.out = append(c.out, outgoing{p, kind, payload})
	c.outBytes += len(payload) + 64
	over := c.outBytes > maxControlBytes
	c.mu.Unlock()
	if over {
		c.blame(p.f.key, FaultSlow, nil)
	}
	c.signal()
}

func (c *conn) signal() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// write empties the queues until the connection ends.
func (c *conn) write() {
	for {
		select {
		case <-c.done:
			return
		case <-c.wake:
		}
		for more := true; more; {
			err := c.mux.Batch(func() (err error) {
				more, err = c.writeSome()
				return err
			})
			if err != nil {
				c.fail(fmt.Errorf("write to peer %s: %w", c.id, err))
				return
			}
			select {
			case <-c.done:
				return
			default:
			}
		}
	}
}

const (
	// batchBytes is about how much is written at a time.
	batchBytes = 512 << 10
	// turnBytes is about how much is written before control messages that wait get
	// a turn.
	turnBytes = 32 << 10
)

// writeSome writes all control messages and some answers. It says whether there
// is more.
func (c *conn) writeSome() (more bool, err error) {
	c.mu.Lock()
	out := c.out
	c.out, c.outBytes = nil, 0
	c.mu.Unlock()
	var later []outgoing // their channel is being opened
	for _, m := range out {
		ch := m.p.openChannel()
		switch {
		case m.p.dead.Load() && m.kind != closeChannel:
		case ch == nil && !m.p.dead.Load():
			later = append(later, m)
		case ch != nil:
			if err := m.write(ch); err != nil {
				return false, err
			}
		}
	}
	if len(later) > 0 {
		c.mu.Lock()
		c.out = append(later, c.out...)
		c.mu.Unlock()
	}
	for sent := 0; sent < batchBytes && (sent < turnBytes || !c.hasControl()); {
		if !c.hasUploads() || !c.r.upload.turn(c, c.guess, c.signal) {
			return false, nil
		}
		n, err := c.answerNext()
		if err != nil {
			return false, err
		}
		sent += n
	}
	return true, nil
}

// hasControl says whether a control message waits to be written.
func (c *conn) hasControl() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.out) > 0
}

func (m outgoing) write(ch Channel) error {
	if m.kind == closeChannel {
		return ch.Close()
	}
	return ch.Send(m.kind, m.payload)
}

// share returns the number of requests that p may have in flight: cores of one
// connection that download share what the connection allows.
func (c *conn) share(p *peer) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	active := c.active
	if !p.busy {
		active++
	}
	return max(min(int(c.window), maxInFlight)/active, 1)
}

// sent notes a request of p, which had none in flight if first is true.
func (c *conn) sent(p *peer, first bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if first && !p.busy {
		p.busy = true
		c.active++
	}
}

// answered notes the end of a request of p, its last one in flight if last is
// true. It took d; 0 means that it was not answered.
func (c *conn) answered(p *peer, last bool, d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if last && p.busy {
		p.busy = false
		c.active--
	}
	if d <= 0 {
		return
	}
	now := time.Now()
	c.last = now
	if c.srtt == 0 {
		c.srtt = d
	}
	c.srtt += (d - c.srtt) / 8
	if d <= c.minRTT || c.minRTT == 0 || now.Sub(c.minRTTAt) > rttWindow {
		c.minRTT, c.minRTTAt = d, now
	}
	// More in flight while answers hardly queue, fewer once they do.
	switch {
	case d < 2*c.minRTT+20*time.Millisecond:
		c.window = min(c.window+1, maxInFlight)
	case d > 3*c.minRTT+200*time.Millisecond:
		c.window = max(c.window-0.5, 2)
	}
}

// heard returns when the peer last answered anything, if that is after t, else t.
func (c *conn) heard(t time.Time) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.last.After(t) {
		return c.last
	}
	return t
}

// stalled notes that a request timed out.
func (c *conn) stalled() {
	c.mu.Lock()
	c.window = max(c.window/2, 1)
	c.mu.Unlock()
}

// roundTrip returns the smoothed time an answer takes, 0 if unknown.
func (c *conn) roundTrip() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.srtt
}

// timeout returns how long an answer may take before it counts as stalled.
func (c *conn) timeout() time.Duration {
	rtt := c.roundTrip()
	if rtt == 0 {
		return 4 * minTimeout
	}
	return min(max(4*rtt+200*time.Millisecond, minTimeout), maxTimeout)
}

// Opened implements Handler for a peer.
func (p *peer) Opened(b []byte) error {
	d := compact.NewDecoder(b)
	h := decodeHandshake(d)
	if d.Err() != nil {
		return p.c.blame(p.f.key, FaultMessage, d.Err())
	}
	if h.capability != core.Capability(p.f.key, p.c.mux.HandshakeHash(), !p.c.mux.Initiator()) {
		return p.c.blame(p.f.key, FaultCapability, nil)
	}
	p.f.opened(p, h.seeks)
	return nil
}

// Closed implements Handler for a peer.
func (p *peer) Closed() {
	p.ended.Store(true)
	p.c.ended(p)
}
