// Package replicate exchanges cores between peers: the protocol
// hypercore/alpha, on one channel per core and connection.
//
// A [Replicator] belongs to a node. It serves the cores that [Config.Open]
// gives it to peers that know their keys, and downloads those that a [Session]
// was opened for. A connection is given to [Replicator.Serve], which runs until
// the connection ends.
//
// # What is believed
//
// Nothing a peer says is believed before its proof holds: blocks and lengths go
// through [Core.Apply], which verifies and stores them in one step. Announced
// lengths, ranges and bitfields only steer whom to ask for what, and cost
// memory by fixed limits whatever they claim. A peer whose proof is wrong is
// dropped with a [PeerError], and its requests go elsewhere at once.
//
// Two signed histories of one core are noticed whether their lengths are equal
// or not: every peer's head is compared with ours, the shorter one having to be
// a prefix of the longer. A pair of heads that disagree is kept as
// [core.Evidence], handed to [Config.OnConflict], and ends the replication of
// that core.
//
// # Who is asked for what
//
// Blocks somebody waits for come first, then ranges. Ranges are cut into chunks,
// and each peer works on one at a time, so that peers get different blocks. Nodes
// that download the same from the same seed have an order among them for each
// chunk: the first fetches it from the seed, and the others from the first, unless
// that one has too much to do or gets no further. So each block leaves the seed
// about once. The number of requests in flight to a peer grows while answers come
// back promptly and shrinks when they queue up. A request that stays unanswered
// for longer than the round trips measured allow is sent to another peer as well;
// when nothing else is left, those still in flight are doubled. The first answer
// counts.
//
// # Concurrency
//
// All exported methods may be called concurrently. Messages of one connection
// are handled in order by the goroutine that reads it, which never waits for a
// write: everything sent passes a queue that one goroutine per connection
// empties. Another one verifies and stores blocks, as many at once as have
// arrived; reading waits for it when too much does.
package replicate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"

	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/core/merkle"
)

// A Core is a log as far as replication needs it; [*core.Core] is one. Methods
// may be called concurrently, and behave as those of core.Core do.
type Core interface {
	Key() core.Key
	Manifest() (core.Manifest, bool)
	Tree() merkle.Tree
	TreeAt(length uint64) (merkle.Tree, error)
	Has(i uint64) bool
	ContiguousLength() uint64
	NextAbsent(from, end uint64) (uint64, error)
	NextPresent(from, end uint64) (uint64, error)
	Present(start uint64, words []uint32) error
	Node(index uint64) (merkle.Node, bool, error)
	Get(ctx context.Context, i uint64) ([]byte, error)
	Prove(req merkle.Request) (*merkle.Proof, error)
	ApplyAll(proofs []*merkle.Proof) ([]core.Applied, []error)
	BeginReorg(p *merkle.Proof) (*merkle.Reorg, error)
	UpdateReorg(g *merkle.Reorg, p *merkle.Proof) error
	FinishReorg(g *merkle.Reorg) error
	Watch(f func(core.Event)) (stop func())
}

var _ Core = (*core.Core)(nil)

// Config configures a Replicator. Its zero value serves nothing.
type Config struct {
	// Self is our own identity, as peers see it. It decides which part of a core
	// falls to us when several nodes download it from the same seed.
	Self PeerID

	// Open returns the core of that discovery key if it is to be served. The
	// error matches fs.ErrNotExist if there is none. The replicator calls
	// release when it no longer uses the core. Nil serves only cores with a
	// session.
	Open func(ctx context.Context, key core.DiscoveryKey) (c Core, release func(), err error)

	// OnConflict is called when two signed histories of a core were found. It
	// must not block.
	OnConflict func(core.Evidence)

	// Extensions answers extension messages by name, for all cores.
	Extensions map[string]Extension

	// UploadRate and DownloadRate cap the bytes of blocks per second over all
	// peers, of which each gets the same share. Nil means no limit.
	UploadRate, DownloadRate *rate.Limiter

	// Logger gets what happens; nil discards it.
	Logger *slog.Logger
}

// An Extension answers an extension message of a peer about the core c. reply
// sends a message back. push sends blocks that the peer did not ask for; false
// means that it does not take such. Both only queue, and may be called until the
// Extension returns. payload is valid as long.
type Extension func(c Core, payload []byte, reply func(payload []byte), push func(blocks ...uint64) bool)

// A PeerID identifies a peer: the public key it has proven to own.
type PeerID [32]byte

// String returns the first bytes in hexadecimal.
func (id PeerID) String() string { return fmt.Sprintf("%x", id[:4]) }

// A Fault says what a peer did wrong.
type Fault string

// The faults that get a peer dropped.
const (
	FaultMessage    Fault = "malformed message"
	FaultCapability Fault = "wrong capability"
	FaultProof      Fault = "wrong proof"
	FaultUnproven   Fault = "announced a length that it cannot prove"
	FaultFlood      Fault = "too many messages"
	FaultUnasked    Fault = "too much data that nobody asked for"
	FaultInvalid    Fault = "too many invalid requests"
	FaultSlow       Fault = "does not read what it asked for"
)

// A PeerError says why a connection was dropped.
type PeerError struct {
	Peer  PeerID
	Core  core.Key // zero if it is not about one core
	Fault Fault
	Err   error // details, may be nil
}

func (e *PeerError) Error() string {
	s := fmt.Sprintf("peer %s: %s", e.Peer, e.Fault)
	if e.Core != (core.Key{}) {
		s += " for core " + e.Core.Short()
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *PeerError) Unwrap() error { return e.Err }

var (
	// ErrConflict means that a core has two signed histories.
	ErrConflict = errors.New("replicate: core has two signed histories")
	// ErrClosed means that the session or replicator was closed.
	ErrClosed = errors.New("replicate: closed")
)

// A Replicator exchanges cores over the connections given to it.
type Replicator struct {
	cfg              Config
	log              *slog.Logger
	upload, download *throttle
	large            *semaphore.Weighted // of maxLarge

	mu     sync.Mutex
	feeds  map[core.DiscoveryKey]*feed
	conns  map[*conn]struct{}
	closed bool
}

// New returns a Replicator without connections.
func New(cfg Config) *Replicator {
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Replicator{
		cfg: cfg, log: log,
		large:  semaphore.NewWeighted(maxLarge),
		upload: newThrottle(cfg.UploadRate), download: newThrottle(cfg.DownloadRate),
		feeds: make(map[core.DiscoveryKey]*feed),
		conns: make(map[*conn]struct{}),
	}
}

// Close ends all sessions and connections. Serve calls return soon after.
func (r *Replicator) Close() {
	r.mu.Lock()
	r.closed = true
	conns, feeds := mapKeys(r.conns), mapValues(r.feeds)
	r.mu.Unlock()
	for _, c := range conns {
		c.fail(ErrClosed)
	}
	for _, f := range feeds {
		f.stop(ErrClosed)
	}
}

func mapKeys[K comparable, V any](m map[K]V) []K {
	out := make([]K, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	return out
}

func mapValues[K comparable, V any](m map[K]V) []V {
	out := make([]V, 0, len(m))
	for _, v := range m {
		out = append(out, v)
	}
	return out
}

// feedFor returns the feed of c, which it makes if needed, and holds it once
// more. release is called when the feed ends, if the feed is new; it may be nil.
func (r *Replicator) feedFor(c Core, release func()) (*feed, error) {
	dk := c.Key().Discovery()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, ErrClosed
	}
	f := r.feeds[dk]
	if f != nil {
		f.holds++
		if release != nil {
			defer release()
		}
		return f, nil
	}
	f = newFeed(r, c, dk, release)
	f.holds = 1
	r.feeds[dk] = f
	f.start()
	return f, nil
}

// unhold ends one hold of f, and f with the last.
func (r *Replicator) unhold(f *feed) {
	r.mu.Lock()
	f.holds--
	last := f.holds == 0
	if last && r.feeds[f.dk] == f {
		delete(r.feeds, f.dk)
	}
	r.mu.Unlock()
	if last {
		f.stop(ErrClosed)
	}
}

// drop ends f though peers may hold it: its core is about to be closed.
func (r *Replicator) drop(f *feed) {
	r.mu.Lock()
	if r.feeds[f.dk] == f {
		delete(r.feeds, f.dk)
	}
	r.mu.Unlock()
	f.stop(ErrClosed)
}

// lookup returns the feed that a peer asks for by dk, held once more, or an
// error that matches fs.ErrNotExist.
func (r *Replicator) lookup(ctx context.Context, dk core.DiscoveryKey) (*feed, error) {
	r.mu.Lock()
	if f := r.feeds[dk]; f != nil {
		f.holds++
		r.mu.Unlock()
		return f, nil
	}
	r.mu.Unlock()
	if r.cfg.Open == nil {
		return nil, fs.ErrNotExist
	}
	c, release, err := r.cfg.Open(ctx, dk)
	if err != nil {
		return nil, err
	}
	return r.feedFor(c, release)
}

// connections returns the connections there are now.
func (r *Replicator) connections() []*conn {
	r.mu.Lock()
	defer r.mu.Unlock()
	return mapKeys(r.conns)
}
