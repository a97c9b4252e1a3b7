package catalog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"sync"
	"time"

	"github.com/pkgswarm/pkgswarm/bee"
	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/core/merkle"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
)

// Defaults of a [Reader].
const (
	// DefaultMaxAge is the age of a heartbeat at which a catalog is stale:
	// six times the interval at which a watching importer writes one.
	DefaultMaxAge = time.Hour
	// maxAhead is how far a heartbeat may be ahead of our clock.
	maxAhead = 10 * time.Minute
)

var (
	// ErrEquivocated means that there is evidence against a catalog's signers.
	ErrEquivocated = errors.New("operator has signed two histories")
	// ErrFuture means that a catalog's heartbeat is ahead of our clock.
	ErrFuture = errors.New("catalog head from the future")
	errGrown  = errors.New("catalog has grown meanwhile")
	// ErrAbsurd means that a core claims more blocks than there can be.
	ErrAbsurd = errors.New("absurd length")
)

// A ReadableCore is a catalog's core on the reader's side: a replica whose
// blocks come from peers.
type ReadableCore interface {
	Core
	Prover
}

// A Reader reads one operator's catalog and refuses what its operator may not
// do. Its methods may be called concurrently.
type Reader struct {
	core   ReadableCore
	memory *Memory
	maxAge time.Duration

	mu  sync.Mutex // held while a new head is judged
	now *Snapshot
}

// OpenReader returns a reader of c. maxAge is the age of a heartbeat at which
// the catalog is stale; 0 means DefaultMaxAge.
func OpenReader(c ReadableCore, memory *Memory, maxAge time.Duration) *Reader {
	if maxAge == 0 {
		maxAge = DefaultMaxAge
	}
	return &Reader{core: c, memory: memory, maxAge: maxAge}
}

// Key returns the registry key.
func (r *Reader) Key() core.Key { return r.core.Key() }

// A Snapshot is a catalog at one head: all that is read through it belongs
// together. SEC-12
type Snapshot struct {
	Key      core.Key
	Length   uint64
	TreeHash merkle.Hash
	Head     Head
	tree     *bee.Tree
	maxAge   time.Duration
}

// Current returns the snapshot of the newest head that was accepted, nil if
// none was yet.
func (r *Reader) Current() *Snapshot {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.now
}

// Update judges the newest head of the core and returns its snapshot. If that
// head is not acceptable it returns the last good snapshot, if any, with the
// error: the catalog stays usable at what was accepted before, except after
// [ErrEquivocated].
//
// The head is remembered, durably, before it is used.
func (r *Reader) Update(ctx context.Context) (*Snapshot, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e, err := r.memory.Evidence(r.Key()); e != nil || err != nil {
		r.now = nil
		return nil, errors.Join(r.fail(ErrEquivocated), err)
	}
	t := r.core.Tree()
	if r.now != nil && r.now.Length == t.Length && r.now.TreeHash == t.Hash() && t.Fork == 0 {
		return r.now, nil
	}
	s, err := r.judge(ctx, t)
	for errors.Is(err, errGrown) && ctx.Err() == nil {
		s, err = r.judge(ctx, r.core.Tree())
	}
	if err != nil {
		if errors.Is(err, ErrEquivocated) {
			r.now = nil
		}
		return r.now, r.fail(err)
	}
	r.now = s
	return s, nil
}

func (r *Reader) fail(err error) error {
	return fmt.Errorf("catalog %s: %w", r.Key().Short(), err)
}

// judge accepts a head or says what is wrong with it.
func (r *Reader) judge(ctx context.Context, t merkle.Tree) (*Snapshot, error) {
	switch {
	case t.Fork != 0:
		return nil, fmt.Errorf("%w: fork %d", ErrFork, t.Fork)
	case t.Length > MaxLength:
		return nil, fmt.Errorf("%w: %d blocks", ErrAbsurd, t.Length)
	case t.Length == 0:
		return nil, fmt.Errorf("%w: no head seen yet", ErrRollback)
	}
	last, err := r.memory.Head(r.Key())
	if err != nil {
		return nil, err
	}
	if last != nil {
		err := r.extends(ctx, last, t.Length)
		if errors.Is(err, ErrRollback) {
			err = errors.Join(err, r.keepOlder(t))
		}
		if err != nil {
			return nil, err
		}
	}
	if err := r.compareOlder(ctx, t.Length); err != nil {
		return nil, err
	}
	s := &Snapshot{Key: r.Key(), Length: t.Length, TreeHash: t.Hash(), maxAge: r.maxAge}
	s.tree = bee.Open(frozen{r.core, t.Length}, bee.Options{})
	if s.Head, err = readHead(ctx, s.tree); err != nil {
		return nil, err
	}
	if s.Head.Time.After(time.Now().Add(maxAhead)) {
		// Such a head counts for nothing, unless the operator has recovered from
		// it with a new key: then only the successor is read from it. SEC-15
		if _, replaced, err := s.Successor(ctx); err != nil || !replaced {
			return nil, fmt.Errorf("%w: %s", ErrFuture, s.Head.Time.Format(time.RFC3339))
		}
		s.Head.Time = time.Time{}
	}
	return s, r.remember(last, t)
}

// extends checks that the core goes on from the last head that was accepted.
func (r *Reader) extends(ctx context.Context, last *Memorized, length uint64) error {
	n := last.Tree.Length
	if length >= n && n > 0 {
		// The block brings the nodes that the tree hash at n is made of.
		if _, err := r.core.Get(ctx, n-1); err != nil {
			return err
		}
	}
	err := CheckExtends(r.core, n, last.Tree.Hash())
	if !errors.Is(err, ErrFork) {
		return err
	}
	e, evErr := evidenceAgainst(r.core, &last.SignedHead)
	if evErr != nil {
		return errors.Join(err, evErr)
	}
	if err := r.memory.SetEvidence(e); err != nil {
		return err
	}
	return fmt.Errorf("%w: evidence in %s", ErrEquivocated, r.memory.EvidencePath(r.Key()))
}

// keepOlder keeps the head t, which is shorter than one that is known. Whether it
// belongs to the same history can only be told once the longer one is here: a
// client whose store is lost has no more of it than its head. SEC-13
func (r *Reader) keepOlder(t merkle.Tree) error {
	if old, err := r.memory.Older(r.Key()); old != nil || err != nil {
		return err
	}
	h, err := signedHead(r.core, t.Length)
	if err != nil || h.Tree.Length != t.Length {
		return err
	}
	return r.memory.SetOlder(&Memorized{SignedHead: *h, Seen: time.Now()})
}

// compareOlder compares a head that was kept with the longer history that is here.
func (r *Reader) compareOlder(ctx context.Context, length uint64) error {
	old, err := r.memory.Older(r.Key())
	if old == nil || err != nil {
		return err
	}
	if old.Tree.Length > length {
		return nil
	}
	if err := r.extends(ctx, old, length); err != nil {
		return err
	}
	return r.memory.ForgetOlder(r.Key())
}

// remember keeps the head t, which must be of the core now.
func (r *Reader) remember(last *Memorized, t merkle.Tree) error {
	if last != nil && last.Tree.Length == t.Length {
		return nil
	}
	h, err := signedHead(r.core, t.Length)
	if err != nil {
		return err
	}
	if h.Tree.Length != t.Length {
		return errGrown // and what it has grown to is not judged yet
	}
	return r.memory.SetHead(&Memorized{SignedHead: *h, Seen: time.Now()})
}

// frozen is a core at a fixed length, as a log that cannot be written.
type frozen struct {
	Core
	length uint64
}

func (f frozen) Length() uint64 { return f.length }

func (f frozen) Append(...[]byte) (uint64, error) {
	return 0, errors.New("catalog snapshot is read-only")
}

// Age returns how old the heartbeat is at that time; it is huge without one.
func (s *Snapshot) Age(now time.Time) time.Duration { return now.Sub(s.Head.Time) }

// Stale reports whether the catalog has not been vouched for lately. SEC-11
func (s *Snapshot) Stale(now time.Time) bool { return s.Age(now) > s.maxAge }

// Entry returns what the catalog says about a package. The error matches
// fs.ErrNotExist if it says nothing.
func (s *Snapshot) Entry(ctx context.Context, h pkglog.Header) (Entry, error) {
	key, err := PackageKey(h)
	if err != nil {
		return Entry{}, err
	}
	e, ok, err := getEntry(ctx, s.tree, key)
	if err == nil && !ok {
		err = fmt.Errorf("%s: not in catalog %s: %w", key, s.Key.Short(), fs.ErrNotExist)
	}
	return e, err
}

// Entries yields all entries of an ecosystem in the order of their keys; of all
// if e is empty.
func (s *Snapshot) Entries(ctx context.Context, e pkglog.Ecosystem) iter.Seq2[Change, error] {
	return entries(ctx, s.tree, e)
}

// Changes yields the entries written from length since on, in that order, some
// perhaps more than once. It is how a node learns what to refresh.
func (s *Snapshot) Changes(ctx context.Context, since uint64) iter.Seq2[Change, error] {
	return changes(ctx, s.tree, since)
}

// Successor returns the key of the catalog that replaces this one; ok is false
// if there is none.
func (s *Snapshot) Successor(ctx context.Context) (next core.Key, ok bool, err error) {
	e, err := s.tree.Get(ctx, []byte(successorKey))
	if errors.Is(err, bee.ErrNotFound) {
		return next, false, nil
	}
	if err != nil {
		return next, false, err
	}
	next, err = verifySuccessor(s.Key, e.Value)
	return next, err == nil, err
}

// Follows checks that s begins where old ended: old names s's catalog as its
// successor, and s names the head of old. SEC-17
func (s *Snapshot) Follows(ctx context.Context, old *Snapshot) error {
	next, ok, err := old.Successor(ctx)
	if err != nil {
		return err
	}
	if !ok || next != s.Key {
		return fmt.Errorf("%w: %s does not name %s", ErrSuccession, old.Key.Short(), s.Key.Short())
	}
	e, err := s.tree.Get(ctx, []byte(predecessorKey))
	if err != nil {
		return fmt.Errorf("%w: %s names no predecessor: %w", ErrSuccession, s.Key.Short(), err)
	}
	p, err := decodePredecessor(e.Value)
	if err != nil {
		return err
	}
	if p != (Predecessor{old.Key, old.Length, old.TreeHash}) {
		return fmt.Errorf("%w: %s does not begin where %s ended", ErrSuccession, s.Key.Short(), old.Key.Short())
	}
	return nil
}

// ReadLog folds the log of a package exactly as far as e says, and refuses one
// that has another tree there or is about another package. SEC-12
func ReadLog(ctx context.Context, log Core, e Entry, h pkglog.Header) (*pkglog.State, error) {
	if log.Key() != e.Log {
		return nil, fmt.Errorf("log %s offered for %s", log.Key().Short(), e.Log.Short())
	}
	s, err := pkglog.Fold(h, func(yield func([]byte, error) bool) {
		for i := range e.Length {
			b, err := log.Get(ctx, i)
			if !yield(b, err) || err != nil {
				return
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("log of %s: %w", h.Name(), err)
	}
	if err := CheckExtends(log, e.Length, e.TreeHash); err != nil {
		return nil, fmt.Errorf("log of %s: %w", h.Name(), err)
	}
	return s, nil
}
