package exchange

import (
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/pkgswarm/pkgswarm/internal/compact"
	"github.com/pkgswarm/pkgswarm/registry/artifact"
	"golang.org/x/time/rate"
)

// A Shelf is the verified store. See [artifact.Store.CheckShared].
type Shelf interface {
	CheckShared(artifact.Digest) (artifact.Info, error)
}

// Config configures an Exchange.
type Config struct {
	Shelf    Shelf      // what peers may have; required
	Download Downloader // gets cores from peers; required to fetch
	// Fleet makes this node a member of a fleet. Nil: none.
	Fleet *Fleet
	// Blame is told of a peer whose answer led to wrong bytes. May be nil.
	Blame  func(peer PeerKey, reason string)
	Logger *slog.Logger // nil discards
}

// Fleet is a membership.
type Fleet struct {
	Self   PeerKey
	Secret [32]byte // known to members only; derived from the join token
}

// An Exchange asks peers for artifacts and answers their asking. It is what
// [fetch.Config] calls Peers.
type Exchange struct {
	c   Config
	log *slog.Logger

	mu       sync.Mutex
	peers    map[PeerKey]*Peer
	nextID   uint64
	attempts map[uint64]*attempt      // by want and lease id
	fetching map[artifact.Digest]int  // public artifacts that we are getting
	held     map[artifact.Digest]bool // of fetching, those whose lease is ours
	leases   leases                   // that we keep
}

// New returns an Exchange without peers.
func New(c Config) *Exchange {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Blame == nil {
		c.Blame = func(PeerKey, string) {}
	}
	return &Exchange{
		c:        c,
		log:      c.Logger,
		peers:    make(map[PeerKey]*Peer),
		attempts: make(map[uint64]*attempt),
		fetching: make(map[artifact.Digest]int),
		held:     make(map[artifact.Digest]bool),
	}
}

// Connected returns the number of peers with an open channel.
func (x *Exchange) Connected() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.peers)
}

// A Peer is the exchange's end of a channel to a peer.
type Peer struct {
	x      *Exchange
	key    PeerKey
	member bool // of our fleet
	send   func(msg int, payload []byte) error
	limit  *rate.Limiter
	jobs   chan want // wants to be answered
	wake   chan struct{}
	gone   chan struct{} // closed by Close
	once   sync.Once
	wg     sync.WaitGroup

	outMu sync.Mutex // taken after x.mu
	out   []outgoing

	// Guarded by x.mu:
	waiting map[uint64]artifact.Digest // its wants for what we are getting
	heard   time.Time                  // when it last sent anything
	suspect time.Time                  // when it last failed as a keeper
	mute    time.Time                  // when it last did not answer a want in time
}

type outgoing struct {
	msg   int
	entry []byte
}

// Connect adds a peer. send sends a message to it and may block for as long as
// the peer is slow to read; it is called by one goroutine at a time. member says
// that the peer has proven to be of our fleet. The caller passes what the peer
// sends to Handle and calls Close when the channel ends or send fails.
func (x *Exchange) Connect(key PeerKey, member bool, send func(msg int, payload []byte) error) *Peer {
	p := &Peer{
		x: x, key: key, send: send,
		member:  member && x.c.Fleet != nil,
		limit:   rate.NewLimiter(wantsPerSec, maxQueued),
		jobs:    make(chan want, maxQueued),
		wake:    make(chan struct{}, 1),
		gone:    make(chan struct{}),
		waiting: make(map[uint64]artifact.Digest),
	}
	x.mu.Lock()
	old := x.peers[key]
	x.peers[key] = p
	for id, a := range x.attempts {
		if a.asked[key] != nil { // what it was asked over the old connection is lost
			a.asked[key] = &asked{open: len(a.ids)}
			p.push(msgWant, appendWant(nil, want{id, a.ids[id]}))
		}
	}
	x.mu.Unlock()
	if old != nil {
		old.Close() // one connection replaces another
	}
	p.wg.Go(p.answer)
	p.wg.Go(p.write)
	return p
}

// Close removes the peer and waits for what is being sent to it.
func (p *Peer) Close() {
	p.once.Do(func() {
		close(p.gone)
		x := p.x
		x.mu.Lock()
		defer x.mu.Unlock()
		if x.peers[p.key] == p {
			delete(x.peers, p.key)
			x.leases.left(p.key)
			for _, a := range x.attempts {
				a.signal()
			}
		}
	})
	p.wg.Wait()
}

// Handle takes a message of the peer. It does not block. After an error, which
// matches ErrProtocol, the channel is to be closed.
func (p *Peer) Handle(msg int, payload []byte) error {
	p.x.mu.Lock()
	p.heard = time.Now()
	p.x.mu.Unlock()
	switch msg {
	case msgWant:
		ws, err := decode(payload, 34, decodeWant)
		for _, w := range ws {
			p.queue(w)
		}
		return err
	case msgFound:
		fs, err := decode(payload, 34, decodeFound)
		p.x.onFound(p, fs)
		return err
	case msgMissing:
		ms, err := decode(payload, 2, decodeMissing)
		p.x.onMissing(p, ms)
		return err
	case msgCancel:
		ids, err := decode(payload, 1, decodeID)
		p.x.mu.Lock()
		defer p.x.mu.Unlock()
		for _, id := range ids {
			delete(p.waiting, id)
		}
		return err
	case msgLease, msgLeased, msgRelease:
		if !p.member {
			return fmt.Errorf("%w: fleet message from a peer that is no member", ErrProtocol)
		}
		return p.handleFleet(msg, payload)
	}
	return fmt.Errorf("%w: message type %d", ErrProtocol, msg)
}

func (p *Peer) handleFleet(msg int, payload []byte) error {
	x := p.x
	now := time.Now()
	switch msg {
	case msgLease:
		ws, err := decode(payload, 34, decodeWant)
		x.mu.Lock()
		defer x.mu.Unlock()
		for _, w := range ws {
			p.push(msgLeased, appendLeased(nil, leased{w.id, x.leases.request(w.digest, p.key, now)}))
		}
		return err
	case msgLeased:
		ls, err := decode(payload, 33, decodeLeased)
		x.onLeased(p, ls)
		return err
	default:
		rs, err := decode(payload, 34, decodeRelease)
		x.mu.Lock()
		defer x.mu.Unlock()
		for _, r := range rs {
			x.leases.release(r.digest, p.key, r.stored, now)
		}
		return err
	}
}

// queue leaves w to be answered, or answers "not here" when the peer asks for
// more than its share.
func (p *Peer) queue(w want) {
	if p.limit.Allow() {
		select {
		case p.jobs <- w:
			return
		default:
		}
	}
	p.push(msgMissing, appendMissing(nil, missing{w.id, notHere}))
}

// answer answers the peer's wants until it is gone. Checking a file can take
// time: hence a goroutine of its own.
func (p *Peer) answer() {
	for {
		select {
		case w := <-p.jobs:
			p.answerWant(w)
		case <-p.gone:
			return
		}
	}
}

func (p *Peer) answerWant(w want) {
	x := p.x
	if p.found(w) {
		return
	}
	x.mu.Lock()
	getting, state := x.fetching[w.digest] > 0, x.state(w.digest)
	if getting && len(p.waiting) < maxWaiting {
		p.waiting[w.id] = w.digest
	}
	x.mu.Unlock()
	switch {
	case getting:
		p.push(msgMissing, appendMissing(nil, missing{w.id, state}))
	case p.found(w): // stored since the first look
	default:
		p.push(msgMissing, appendMissing(nil, missing{w.id, notHere}))
	}
}

// found answers w if the file is in the store and free to share (SEC-25).
func (p *Peer) found(w want) bool {
	info, err := p.x.c.Shelf.CheckShared(w.digest)
	if err == nil {
		p.push(msgFound, appendFound(nil, found{w.id, info.Key, uint64(info.Size)}))
	}
	return err == nil
}

// push leaves an entry to be sent. Entries that are sent together share a message.
func (p *Peer) push(msg int, entry []byte) {
	p.outMu.Lock()
	full := len(p.out) >= maxOut
	if !full {
		p.out = append(p.out, outgoing{msg, entry})
	}
	p.outMu.Unlock()
	if full { // it asks and does not read: SEC-20
		go p.Close() // takes x.mu, which our caller may hold
		return
	}
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// write sends what is pushed until the peer is gone.
func (p *Peer) write() {
	for {
		select {
		case <-p.wake:
		case <-p.gone:
			return
		}
		for {
			p.outMu.Lock()
			out := p.out
			p.out = nil
			p.outMu.Unlock()
			if len(out) == 0 {
				break
			}
			for len(out) > 0 {
				n := batch(out)
				if err := p.send(out[0].msg, encode(out[:n], func(b []byte, o outgoing) []byte { return append(b, o.entry...) })); err != nil {
					p.x.log.Debug("send to peer", "err", err)
					go p.Close() // it waits for this goroutine
					return
				}
				out = out[n:]
			}
		}
	}
}

// batch returns how many entries at the start of out fit one message.
func batch(out []outgoing) int {
	n := 1
	for n < len(out) && n < MaxBatch && out[n].msg == out[0].msg {
		n++
	}
	return n
}

// Handshake returns the channel's handshake.
func Handshake() []byte { return compact.AppendUint(nil, Version) }

// CheckHandshake checks a peer's handshake. Later versions may add to it.
func CheckHandshake(b []byte) error {
	d := compact.NewDecoder(b)
	if v := d.Uint(); d.Err() != nil || v < Version {
		return fmt.Errorf("%w: handshake %x", ErrProtocol, b)
	}
	return nil
}
