// Package swarm connects a node to its peers: it listens, dials, keeps one
// encrypted connection to each peer, and runs on it the replication of cores and
// whatever other protocols it is given.
//
//	key, err := swarm.Identity("identity")
//	s, err := swarm.New(swarm.Config{Key: key, Listen: []string{":7071"}, Open: swarm.FromStore(store)})
//	go s.Run(ctx)
//	session, err := s.Open(core, replicate.SessionOptions{})
//	block, err := session.Get(ctx, 0)
//
// Peers are found by configured addresses, whose names may resolve to many, and by
// candidates that discovery adds. A candidate is a hint: a connection counts only
// when the peer has proven its key, and nothing that a peer says makes a node look
// up a name or connect to an address narrower in scope than the one the hint came
// from (SEC-24).
//
// Two nodes that dial each other at the same time keep the connection that was
// dialled by the lower key. A peer that sends something wrong is banned by key and
// address, for a minute the first time and twice as long each time after, up to a
// day (SEC-22). Bans are kept in memory, at most 10 000 of them: a restart forgets
// them, and who misbehaves again is banned again by the first wrong proof.
package swarm

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/pkgswarm/pkgswarm/bee"
	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/swarm/protomux"
	"github.com/pkgswarm/pkgswarm/swarm/remotebee"
	"github.com/pkgswarm/pkgswarm/swarm/replicate"
	"github.com/pkgswarm/pkgswarm/swarm/secretstream"
	"github.com/pkgswarm/pkgswarm/swarm/transport"
	"golang.org/x/time/rate"
)

// Default limits.
const (
	DefaultMaxIn      = 128 // connections that peers have made
	DefaultMaxOut     = 64  // connections that we have made
	maxPerAddress     = 8   // connections from one IPv4 address or IPv6 /56
	maxHandshakes     = 64  // handshakes of peers under way
	dialTimeout       = 10 * time.Second
	firstBackOff      = time.Second
	maxBackOff        = time.Minute
	resolveEvery      = 30 * time.Second
	firstBan          = time.Minute
	maxBan            = 24 * time.Hour
	maxBans           = 10_000
	maxCandidates     = 1024
	candidateLifetime = time.Hour
)

// ErrClosed means that the swarm does not run any more.
var ErrClosed = errors.New("swarm: closed")

// A PeerKey is the identity of a peer.
type PeerKey = secretstream.PublicKey

// A Protocol is run on every connection beside the replication of cores.
type Protocol struct {
	Name string
	// Attach opens the protocol's channel on m, before any frame is read.
	Attach func(m *protomux.Mux, p PeerInfo) error
}

// Config configures a swarm. Key must be set.
type Config struct {
	Key ed25519.PrivateKey // our identity; see Identity

	// Open returns cores to serve; see replicate.Config. Nil serves only cores
	// with a session.
	Open func(context.Context, core.DiscoveryKey) (replicate.Core, func(), error)

	Listen []string // TCP addresses, such as ":7071"
	Peers  []string // addresses of peers; see package transport. Names may have many addresses

	// Token makes the swarm a private one: only peers that have it can connect.
	// At least secretstream.MinToken bytes.
	Token []byte
	// Allow says which peers may connect; nil allows all.
	Allow func(PeerKey) bool

	// LAN announces us on the local networks and looks for peers there that have
	// one of Topics in common with us.
	LAN    bool
	Topics []TopicID

	// PeerExchange tells peers of each other, and dials those that are named.
	PeerExchange bool
	// Advertise is the TCP port at which peers of our peers reach us; 0 is the one
	// that we listen on.
	Advertise uint16

	Protocols []Protocol

	MaxIn, MaxOut int // connections; 0 is the default
	Limits        Limits

	// Extensions answers extension messages by name; that of Hyperbee is answered
	// in any case.
	Extensions map[string]replicate.Extension

	OnConflict func(core.Evidence) // two signed histories of a core; must not block

	// Dial replaces the network, for tests. Nil is transport.Dial.
	Dial func(context.Context, transport.Address) (net.Conn, error)

	Logger *slog.Logger // nil discards
}

// Limits caps the bytes of blocks that are exchanged with all peers together in a
// second; 0 is no limit. Each peer gets the same share (SEC-28).
type Limits struct{ Upload, Download int64 }

// limiter returns what holds an average of n bytes a second; nil if n is 0.
func limiter(n int64) *rate.Limiter {
	if n <= 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(n), int(min(max(n/10, 64<<10), 16<<20)))
}

// A PeerInfo tells of a connected peer.
type PeerInfo struct {
	Key     PeerKey
	Address string // of the other end of the connection
	Dialled bool   // by us
	Since   time.Time
}

// A Swarm is a node's connections. Its methods may be called concurrently.
type Swarm struct {
	c          Config
	log        *slog.Logger
	self       PeerKey
	replicator *replicate.Replicator
	listeners  []net.Listener

	mu         sync.Mutex
	running    context.Context // nil before Run
	wg         sync.WaitGroup  // connections and dialers
	conns      map[PeerKey]*conn
	shaking    int
	perAddress map[string]int
	targets    map[string]*target // by address
	bans       map[string]*ban    // by key or address
	banCounts  map[string]uint64  // by reason
	wake       chan struct{}      // a target was added
	changed    chan struct{}      // closed when a peer can be told of
}

// A conn is an established connection.
type conn struct {
	info   PeerInfo
	target *target // nil if the peer has dialled
	bucket string  // of the address
	mux    *protomux.Mux

	listens netip.AddrPort // where others can dial the peer, if known; guarded by Swarm.mu
}

// initiator returns the key of who has dialled.
func (c *conn) initiator(self PeerKey) PeerKey {
	if c.info.Dialled {
		return self
	}
	return c.info.Key
}

// New returns a swarm that listens already; Run makes it live. Errors are of the
// configuration and of listening.
func New(c Config) (*Swarm, error) {
	if len(c.Key) != ed25519.PrivateKeySize {
		return nil, errors.New("swarm: no identity")
	}
	if n := len(c.Token); n > 0 && n < secretstream.MinToken {
		return nil, secretstream.ErrToken
	}
	c.MaxIn, c.MaxOut = cmp.Or(c.MaxIn, DefaultMaxIn), cmp.Or(c.MaxOut, DefaultMaxOut)
	if c.Dial == nil {
		c.Dial = transport.Dial
	}
	s := &Swarm{
		c: c, log: cmp.Or(c.Logger, slog.New(slog.DiscardHandler)),
		self:       PeerKey(c.Key.Public().(ed25519.PublicKey)),
		conns:      map[PeerKey]*conn{},
		perAddress: map[string]int{},
		targets:    map[string]*target{},
		bans:       map[string]*ban{},
		banCounts:  map[string]uint64{},
		wake:       make(chan struct{}, 1),
		changed:    make(chan struct{}),
	}
	for _, p := range c.Peers {
		a, err := transport.Parse(p)
		if err != nil {
			return nil, err
		}
		s.targets[a.String()] = &target{address: a, configured: true}
	}
	for _, addr := range c.Listen {
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			s.closeListeners()
			return nil, fmt.Errorf("listen for peers: %w", err)
		}
		s.listeners = append(s.listeners, ln)
	}
	s.replicator = replicate.New(replicate.Config{
		Self: replicate.PeerID(s.self),
		Open: c.Open, OnConflict: c.OnConflict, Extensions: extensions(c.Extensions),
		UploadRate: limiter(c.Limits.Upload), DownloadRate: limiter(c.Limits.Download), Logger: s.log,
	})
	return s, nil
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// extensions returns e and what every swarm answers: the questions of Hyperbee
// readers.
func extensions(e map[string]replicate.Extension) map[string]replicate.Extension {
	all := map[string]replicate.Extension{bee.ExtensionName: remotebee.Extension()}
	maps.Copy(all, e)
	return all
}

// FromStore serves all cores of a store.
func FromStore(store *core.Store) func(context.Context, core.DiscoveryKey) (replicate.Core, func(), error) {
	return func(_ context.Context, dk core.DiscoveryKey) (replicate.Core, func(), error) {
		c, err := store.ByDiscovery(dk)
		if err != nil {
			return nil, nil, err
		}
		return c, func() { c.Close() }, nil
	}
}

// Key returns our identity.
func (s *Swarm) Key() PeerKey { return s.self }

// Addrs returns the addresses that the swarm listens on.
func (s *Swarm) Addrs() []net.Addr {
	var out []net.Addr
	for _, ln := range s.listeners {
		out = append(out, ln.Addr())
	}
	return out
}

// Open begins to download a core from all peers; see replicate.Replicator.
func (s *Swarm) Open(c replicate.Core, o replicate.SessionOptions) (*replicate.Session, error) {
	return s.replicator.Open(c, o)
}

// Peers returns the connected peers, the longest connected first.
func (s *Swarm) Peers() []PeerInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]PeerInfo, 0, len(s.conns))
	for _, c := range s.conns {
		out = append(out, c.info)
	}
	slices.SortFunc(out, func(a, b PeerInfo) int { return a.Since.Compare(b.Since) })
	return out
}

// Run accepts and makes connections until ctx ends, and returns after everything
// that it started has ended. It may be called once.
func (s *Swarm) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.mu.Lock()
	s.running = ctx
	s.mu.Unlock()

	errs := make(chan error, len(s.listeners))
	for _, ln := range s.listeners {
		s.wg.Go(func() {
			if err := s.accept(ctx, ln); err != nil {
				errs <- err
				cancel()
			}
		})
	}
	s.wg.Go(func() { s.keepDialling(ctx) })
	if s.c.LAN && len(s.c.Topics) > 0 {
		s.wg.Go(func() { s.runLAN(ctx) })
	}
	<-ctx.Done()
	s.closeListeners()
	s.mu.Lock()
	s.running = nil
	for _, c := range s.conns {
		c.mux.Close(nil)
	}
	s.mu.Unlock()
	s.replicator.Close()
	s.wg.Wait()
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
}

// Close ends a swarm that was never run.
func (s *Swarm) Close() error {
	s.closeListeners()
	s.replicator.Close()
	return nil
}

func (s *Swarm) closeListeners() {
	for _, ln := range s.listeners {
		ln.Close()
	}
}

// accept takes connections until ctx ends or the listener fails for good.
func (s *Swarm) accept(ctx context.Context, ln net.Listener) error {
	for {
		c, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("accept peers: %w", err)
			}
			// Out of descriptors, or reset before we came: serve those we have.
			s.log.Warn("accept peer", "err", err)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		s.Serve(c)
	}
}

// Serve takes over a connection that a peer has made. It returns at once; the
// connection is closed if there is no room for it.
func (s *Swarm) Serve(c net.Conn) {
	bucket := bucketOf(c.RemoteAddr())
	ctx, err := s.admit(bucket)
	if err != nil {
		s.log.Debug("peer refused", "peer", c.RemoteAddr(), "err", err)
		c.Close()
		return
	}
	go func() {
		defer s.wg.Done()
		defer s.leave(bucket)
		s.connect(ctx, c, nil, bucket)
	}()
}

// Handler accepts peers over WebSocket. It is to be mounted at /swarm.
func (s *Swarm) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		bucket := bucketOf(stringAddr(r.RemoteAddr))
		ctx, err := s.admit(bucket)
		if err != nil {
			http.Error(w, "no room for more peers", http.StatusServiceUnavailable)
			return
		}
		defer s.wg.Done()
		defer s.leave(bucket)
		c, err := transport.Upgrade(w, r)
		if err != nil {
			s.shaken()
			return
		}
		s.connect(ctx, c, nil, bucket)
	})
}

type stringAddr string

func (stringAddr) Network() string  { return "tcp" }
func (a stringAddr) String() string { return string(a) }

// admit reserves a place for a peer's connection, which the caller gives back with
// leave and s.wg.Done (SEC-21).
func (s *Swarm) admit(bucket string) (context.Context, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.running == nil:
		return nil, ErrClosed
	case s.banned(bucket):
		return nil, errors.New("swarm: address is banned")
	case s.perAddress[bucket] >= maxPerAddress && !isLoopbackBucket(bucket):
		// All users and containers of this machine share the loopback address, so
		// only the total counts there.
		return nil, errors.New("swarm: too many connections from one address")
	case s.shaking >= min(maxHandshakes, s.c.MaxIn):
		return nil, errors.New("swarm: too many handshakes")
	}
	s.shaking++
	s.perAddress[bucket]++
	s.wg.Add(1)
	return s.running, nil
}

// shaken says that a handshake that admit has counted is over.
func (s *Swarm) shaken() {
	s.mu.Lock()
	s.shaking--
	s.mu.Unlock()
}

func (s *Swarm) leave(bucket string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.perAddress[bucket]--; s.perAddress[bucket] <= 0 {
		delete(s.perAddress, bucket)
	}
}

// connect runs the handshake, and the connection until it ends. t is nil if the
// peer has dialled.
func (s *Swarm) connect(ctx context.Context, raw net.Conn, t *target, bucket string) error {
	sc := secretstream.Config{Key: s.c.Key, Token: s.c.Token, Allow: s.allows}
	start := secretstream.Server
	if t != nil {
		start = secretstream.Client
	}
	stream, err := start(ctx, raw, sc)
	if t == nil {
		s.shaken()
	}
	if err != nil {
		s.log.Debug("handshake with peer", "peer", raw.RemoteAddr(), "err", err)
		return err
	}
	c := &conn{
		info:   PeerInfo{Key: stream.Remote(), Address: raw.RemoteAddr().String(), Dialled: t != nil, Since: time.Now()},
		target: t, bucket: bucket, mux: protomux.New(stream),
	}
	if err := s.enter(c); err != nil {
		stream.Close()
		return err
	}
	err = s.run(ctx, c, stream)
	s.exit(c)
	return err
}

// run exchanges what there is with a peer.
func (s *Swarm) run(ctx context.Context, c *conn, stream *secretstream.Conn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	serve, err := s.replicator.Attach(c.mux, replicate.Identity{
		Peer: replicate.PeerID(c.info.Key), HandshakeHash: stream.HandshakeHash(), Initiator: stream.Initiator(),
	})
	if err != nil {
		stream.Close()
		return err
	}
	for _, p := range s.c.Protocols {
		if err := p.Attach(c.mux, c.info); err != nil {
			s.log.Warn("attach protocol", "protocol", p.Name, "err", err)
		}
	}
	var helpers sync.WaitGroup
	if s.c.PeerExchange {
		if p, err := s.attachPEX(c); err == nil { // else the connection is gone already
			helpers.Go(func() { p.tell(ctx) })
		}
	}
	s.log.Info("peer connected", "peer", shortKey(c.info.Key), "address", c.info.Address, "dialled", c.info.Dialled)
	served := make(chan error, 1)
	go func() { served <- serve(ctx) }()
	runErr := c.mux.Run()
	cancel()
	helpers.Wait()
	err = <-served
	if _, fault := errors.AsType[*replicate.PeerError](err); !fault && runErr != nil {
		err = runErr
	}
	if reason := s.fault(err); reason != "" {
		s.ban(c.info.Key, reason, err)
	}
	s.log.Info("peer gone", "peer", shortKey(c.info.Key), "err", err)
	return err
}

// fault says whether the peer is to blame for the end of its connection.
func (s *Swarm) fault(err error) string {
	if e, ok := errors.AsType[*replicate.PeerError](err); ok {
		return string(e.Fault)
	}
	if e, ok := errors.AsType[*protomux.PanicError](err); ok {
		s.log.Error("a peer's message made us panic", "err", e, "stack", string(e.Stack))
		return "a message made us panic" // it would do so again
	}
	if errors.Is(err, protomux.ErrProtocol) {
		return "malformed frame"
	}
	if errors.Is(err, protomux.ErrLimit) {
		return "over a limit of the connection"
	}
	return ""
}

func shortKey(k PeerKey) string { return fmt.Sprintf("%x", k[:4]) }

// allows is asked about a peer that has proven its key.
func (s *Swarm) allows(k PeerKey) bool {
	s.mu.Lock()
	no := s.banned(string(k[:])) || k == s.self
	s.mu.Unlock()
	return !no && (s.c.Allow == nil || s.c.Allow(k))
}

var (
	errDuplicate = errors.New("swarm: connected already")
	errFull      = errors.New("swarm: no room for more connections")
)

// enter makes c the connection to its peer, unless there is a better one.
func (s *Swarm) enter(c *conn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running == nil {
		return ErrClosed
	}
	if c.target != nil {
		c.target.peer = c.info.Key
	}
	if old := s.conns[c.info.Key]; old != nil {
		oldBy, newBy := old.initiator(s.self), c.initiator(s.self)
		// Of the same direction, the newer one lives: the peer knows of it.
		if oldBy != newBy && string(oldBy[:]) < string(newBy[:]) {
			return errDuplicate
		}
		old.mux.Close(errDuplicate)
		s.put(c)
		return nil
	}
	in, out := 0, 0
	for _, other := range s.conns {
		if other.info.Dialled {
			out++
		} else {
			in++
		}
	}
	if c.info.Dialled && out >= s.c.MaxOut || !c.info.Dialled && in >= s.c.MaxIn {
		return errFull
	}
	s.put(c)
	return nil
}

// put makes c the connection to its peer. s.mu is held.
func (s *Swarm) put(c *conn) {
	s.conns[c.info.Key] = c
	if c.target != nil {
		s.setListens(c, dialledAt(c.target))
	}
}

func (s *Swarm) exit(c *conn) {
	s.mu.Lock()
	if s.conns[c.info.Key] == c {
		delete(s.conns, c.info.Key)
	}
	s.mu.Unlock()
	s.wakeUp()
}

// Connected reports whether there is a connection to the peer.
func (s *Swarm) Connected(k PeerKey) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conns[k] != nil
}
