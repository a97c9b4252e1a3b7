// Package signed reads a registry from the catalogs of operators: what it
// answers was signed, is fresh or said to be stale, and comes from one head of
// one catalog (or is what enough operators agree on). It needs no upstream.
//
// Each configured catalog is followed by [Registry.Run]: its whole core is held
// before names are looked up in it, so that a look-up tells no peer anything
// about the name, not even where it sorts (SEC-61). A package's log is then the
// only thing to fetch, in two round trips: one in which a peer says that it has
// the log, and one for its head with a proof and its blocks, all at once.
package signed

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/singleflight"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/registry/catalog"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
)

// A Replica is a core that comes from peers. Its methods may be called
// concurrently.
type Replica interface {
	catalog.ReadableCore
	// Update asks peers for a longer tree and returns when they have answered, or
	// with ctx if there is none to ask.
	Update(ctx context.Context) error
	// Expect says that all blocks of a tree of at least that length will be wanted,
	// so that they can come with it. It does not wait.
	Expect(length uint64)
	// Download fetches the blocks [lo, hi) that are not here, many at a time.
	Download(ctx context.Context, lo, hi uint64) error
	// Changed is closed when the core has grown since the call.
	Changed() <-chan struct{}
	// Close says that the replica is not used any more.
	Close() error
}

// Peers opens replicas.
type Peers interface {
	Replica(key core.Key) (Replica, error)
	// Held opens what is here of a core. The error matches fs.ErrNotExist if that is
	// nothing.
	Held(key core.Key) (Held, error)
}

var (
	// ErrNotReady means that no catalog has been read yet.
	ErrNotReady = errors.New("no catalog is here yet")
	// ErrOperator means that what an operator signed contradicts itself, or what
	// other operators signed. It is not used.
	ErrOperator = errors.New("operator fault")
	// ErrConflict means that peers have two signed histories of a core.
	ErrConflict = errors.New("two signed histories")
	// ErrOnlySome means that too few operators know a package to agree on it.
	ErrOnlySome = errors.New("too few operators agree")
)

// Config says which catalogs a Registry reads.
type Config struct {
	Peers  Peers
	Memory *catalog.Memory
	Keys   []core.Key // registry keys, in the order of preference

	// Agree is how many operators must agree on each version's digest. 0 or 1
	// means that the first that knows a package is believed. SEC-18
	Agree int

	MaxAge time.Duration // of a catalog that is not stale; 0 means [catalog.DefaultMaxAge]
	Logger *slog.Logger  // nil discards

	// Refreshed is told each package that a catalog changes. It must not block. May
	// be nil.
	Refreshed func(h pkglog.Header)

	// Kept is told each package of which a log that was here before, or is to be
	// with Mirror, has been brought up to what a catalog says. It may take its
	// time, and is called concurrently. May be nil.
	Kept func(h pkglog.Header, s *pkglog.State)

	Mirror Mirror // what is held without having been asked for
}

const (
	maxStates   = 4096             // folded logs kept in memory
	maxReported = 1024             // disagreements that are not logged again
	pollEvery   = 30 * time.Second // between questions for a longer catalog
	logDeadline = 20 * time.Second // for one package log from peers

	// Peers that have a log tell its head in a round trip or two. If none does
	// in headDeadline, they are given only headHurry for absentFor: with all
	// seeders away, each of the hundreds of packages of a build would cost its
	// user that wait otherwise.
	headDeadline = 2 * time.Second
	headHurry    = 50 * time.Millisecond
	absentFor    = 10 * time.Second
)

// A Registry answers from signed catalogs. Its methods may be called
// concurrently.
type Registry struct {
	c         Config
	followers []*follower
	states    *lru.Cache[stateKey, *pkglog.State]
	reported  *lru.Cache[string, struct{}]
	flight    singleflight.Group

	folding      chan struct{} // has room for maxFolding
	headDeadline time.Duration // the constant but in tests
	absentUntil  atomic.Int64  // Unix nanoseconds: no peer had a log before
}

// stateKey names a log at a length by what it commits to.
type stateKey struct {
	log  core.Key
	tree [32]byte
}

// New returns a registry. It answers once Run has read a catalog.
func New(c Config) *Registry {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.Agree = max(c.Agree, 1)
	r := &Registry{
		c: c, headDeadline: headDeadline,
		states: newCache[stateKey, *pkglog.State](maxStates), reported: newCache[string, struct{}](maxReported),
		folding: make(chan struct{}, maxFolding),
	}
	for _, k := range c.Keys {
		r.followers = append(r.followers, newFollower(r, k))
	}
	return r
}

func newCache[K comparable, V any](size int) *lru.Cache[K, V] {
	c, err := lru.New[K, V](size)
	if err != nil {
		panic("signed: " + err.Error()) // the size is positive
	}
	return c
}

// Run follows the catalogs until ctx ends. It returns after everything that it
// started has ended.
func (r *Registry) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, f := range r.followers {
		wg.Go(func() { f.run(ctx) })
		for _, k := range f.keepers {
			wg.Go(func() { k.run(ctx) })
		}
	}
	<-ctx.Done()
	return nil
}

// Ready returns a channel that is closed when every catalog has been read once.
func (r *Registry) Ready(ctx context.Context) error {
	for _, f := range r.followers {
		select {
		case <-f.ready:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// A Status is what is known of one catalog.
type Status struct {
	Configured core.Key      `json:"configured"`         // as the user gave it
	Key        core.Key      `json:"key"`                // after successors
	Length     uint64        `json:"length"`             // blocks of the catalog
	Head       catalog.Head  `json:"head"`               // its heartbeat
	Age        time.Duration `json:"age_ns"`             // of the heartbeat
	Stale      bool          `json:"stale"`              // SEC-11
	Ready      bool          `json:"ready"`              // it is read from
	Err        string        `json:"error,omitempty"`    // what is wrong with the newest head
	Evidence   string        `json:"evidence,omitempty"` // file, if the operator signed two histories
	Forked     bool          `json:"forked,omitempty"`   // SEC-13

	Mirrored *MirrorStatus `json:"mirrored,omitempty"` // nil without [Config.Mirror]
}

// Status returns the state of each catalog.
func (r *Registry) Status() []Status {
	var all []Status
	for _, f := range r.followers {
		all = append(all, f.status())
	}
	return all
}

// An Answer is a package as one head of one catalog has it.
type Answer struct {
	State    *pkglog.State // must not be changed
	Operator core.Key      // whose catalog; the first of those that agree
	Entry    catalog.Entry // what the catalog says: the proof chain of `why`
	Head     catalog.Head
	Stale    bool // the catalog has not been vouched for lately

	// Refused are the versions that operators do not agree on, each with who
	// said what. They are not in State.
	Refused map[string]error
}

// Package returns what the catalogs say about a package. Errors match
// fs.ErrNotExist if no catalog has it, ErrNotReady if none can be asked yet,
// ErrOperator and ErrOnlySome as said there.
func (r *Registry) Package(ctx context.Context, h pkglog.Header) (*Answer, error) {
	if r.c.Agree > 1 {
		return r.agreed(ctx, h)
	}
	var errs []error
	for _, f := range r.followers {
		a, err := f.answer(ctx, h)
		if err == nil {
			return a, nil
		}
		errs = append(errs, err)
	}
	return nil, joinMissing(errs)
}

// Conflict tells of two signed histories that the swarm has come across. One of
// a catalog ends its use; one of a package log is found out when that is read.
func (r *Registry) Conflict(e *core.Evidence) error {
	for _, f := range r.followers {
		if f.follows(e.Key) {
			if err := e.Verify(); err != nil {
				return err
			}
			defer f.wake()
			return r.c.Memory.SetEvidence(e)
		}
	}
	return nil
}

// Known reports whether a catalog that is on this disk names a package, which
// is what makes its name public. It asks nobody. SEC-61
func (r *Registry) Known(ctx context.Context, h pkglog.Header) bool {
	for _, f := range r.followers {
		if s := f.current(); s != nil {
			if _, err := s.Entry(ctx, h); err == nil {
				return true
			}
		}
	}
	return false
}

// joinMissing returns fs.ErrNotExist only if every catalog said so.
func joinMissing(errs []error) error {
	for _, err := range errs {
		if !errors.Is(err, fs.ErrNotExist) {
			return errors.Join(errs...)
		}
	}
	if len(errs) > 0 {
		return errs[0]
	}
	return ErrNotReady
}

// state returns the folded log that an entry names, from memory or from peers.
// Concurrent calls for one do the work once; a caller that gives up does not
// end it for the others.
func (r *Registry) state(ctx context.Context, e catalog.Entry, h pkglog.Header) (*pkglog.State, error) {
	k := stateKey{e.Log, e.TreeHash}
	if s, ok := r.states.Get(k); ok {
		return s, nil
	}
	done := r.flight.DoChan(string(e.Log[:])+string(e.TreeHash[:]), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), logDeadline)
		defer cancel()
		s, err := r.fetch(ctx, e, h)
		if err == nil {
			r.states.Add(k, s)
		}
		return s, err
	})
	select {
	case res := <-done:
		if res.Err != nil {
			return nil, res.Err
		}
		return res.Val.(*pkglog.State), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// fetch reads a log exactly as far as e says, from peers what is not here. SEC-12
func (r *Registry) fetch(ctx context.Context, e catalog.Entry, h pkglog.Header) (*pkglog.State, error) {
	s, err := r.readHeld(ctx, e, h)
	if !errors.Is(err, fs.ErrNotExist) {
		return s, err
	}
	return r.download(ctx, e, h, r.patience())
}

// patience returns how long peers have to tell the head of a log: not long if none
// seems to have any.
func (r *Registry) patience() time.Duration {
	if time.Now().UnixNano() < r.absentUntil.Load() {
		return min(r.headDeadline, headHurry)
	}
	return r.headDeadline
}

// download reads a log from peers, exactly as far as e says, who have so long to
// tell its head.
func (r *Registry) download(ctx context.Context, e catalog.Entry, h pkglog.Header, patience time.Duration) (*pkglog.State, error) {
	log, err := r.c.Peers.Replica(e.Log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	if err := r.bring(ctx, log, e, h, patience); err != nil {
		return nil, err
	}
	s, err := catalog.ReadLog(ctx, log, e, h)
	return s, operatorFault(err)
}

// bring downloads a log as far as e says.
func (r *Registry) bring(ctx context.Context, log Replica, e catalog.Entry, h pkglog.Header, patience time.Duration) error {
	log.Expect(e.Length)
	err := r.reach(ctx, log, e.Length, patience)
	if n := log.Tree().ByteLength(); err == nil && n > pkglog.MaxLog {
		err = operatorFault(fmt.Errorf("%w: %d bytes", pkglog.ErrTooLarge, n))
	}
	if err == nil {
		err = log.Download(ctx, 0, e.Length)
	}
	if err != nil {
		return fmt.Errorf("log of %s: %w", h.Name(), err)
	}
	return nil
}

// reach waits until a log has length blocks in its tree, but not longer than patience.
func (r *Registry) reach(ctx context.Context, log Replica, length uint64, patience time.Duration) error {
	if log.Tree().Length >= length {
		return nil
	}
	asked, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := log.Update(asked)
	n := log.Tree().Length
	if n >= length {
		r.absentUntil.Store(0)
		return nil
	}
	if asked.Err() != nil {
		r.absentUntil.Store(time.Now().Add(absentFor).UnixNano())
	}
	if err == nil {
		err = fmt.Errorf("peers have %d of %d blocks", n, length)
	}
	return err
}
