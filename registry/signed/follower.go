package signed

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/registry/catalog"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
)

// A follower keeps up with one operator's catalog, and with its successors.
type follower struct {
	r     *Registry
	first core.Key // as configured
	ready chan struct{}
	once  sync.Once     // closes ready
	again chan struct{} // holds a token when the catalog should be judged again

	keepers []*keeper // are told when there is another head

	// Of the one goroutine that follows.
	replica Replica
	reader  *catalog.Reader
	before  *catalog.Snapshot // final head of the predecessor, until the replica's was accepted

	mu   sync.Mutex // guards what follows
	key  core.Key   // of the catalog followed now
	snap *catalog.Snapshot
	err  error // of the newest head
}

func newFollower(r *Registry, key core.Key) *follower {
	f := &follower{r: r, first: key, key: key, ready: make(chan struct{}), again: make(chan struct{}, 1)}
	f.keepers = newKeepers(f)
	return f
}

// wake has the catalog judged again soon.
func (f *follower) wake() {
	select {
	case f.again <- struct{}{}:
	default:
	}
}

// follows reports whether key is the catalog's or was that of one before it.
func (f *follower) follows(key core.Key) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return key == f.key || key == f.first
}

// current returns the snapshot to read from, nil if there is none.
func (f *follower) current() *catalog.Snapshot {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.snap
}

func (f *follower) set(key core.Key, s *catalog.Snapshot, err error) {
	f.mu.Lock()
	changed := (err == nil) != (f.err == nil) || err != nil && f.err != nil && err.Error() != f.err.Error()
	f.key, f.snap, f.err = key, s, err
	f.mu.Unlock()
	if changed && err != nil {
		f.r.c.Logger.Warn("catalog not accepted", "core", key.Short(), "err", err)
	}
	if s != nil {
		f.once.Do(func() { close(f.ready) })
	}
	for _, k := range f.keepers {
		k.wake()
	}
}

func (f *follower) status() Status {
	mirrored := f.mirrored()
	f.mu.Lock()
	defer f.mu.Unlock()
	s := Status{Configured: f.first, Key: f.key, Ready: f.snap != nil, Mirrored: mirrored}
	if f.snap != nil {
		now := time.Now()
		s.Length, s.Head = f.snap.Length, f.snap.Head
		s.Age, s.Stale = f.snap.Age(now), f.snap.Stale(now)
	}
	if f.err != nil {
		s.Err = f.err.Error()
		if s.Forked = errors.Is(f.err, catalog.ErrEquivocated); s.Forked {
			s.Evidence = f.r.c.Memory.EvidencePath(f.key)
		}
	}
	return s
}

// run follows catalogs, one after the other, until ctx ends.
func (f *follower) run(ctx context.Context) {
	defer f.leave()
	for ctx.Err() == nil {
		if !f.open() {
			f.wait(ctx, nil)
			continue
		}
		grown := f.replica.Changed() // while it is judged, too
		if !f.step(ctx) {
			f.wait(ctx, grown)
		}
	}
}

// open begins to read the catalog, or the last successor that it was followed to,
// unless that is so already.
func (f *follower) open() bool {
	if f.replica != nil {
		return true
	}
	if err := f.enter(f.successor(f.first)); err != nil {
		f.set(f.first, nil, err)
		return false
	}
	return true
}

// step judges the newest head of the catalog, which is open. It reports whether it
// went over to a successor, which is to be read at once.
func (f *follower) step(ctx context.Context) (moved bool) {
	key := f.replica.Key()
	s, err := f.update(ctx)
	if err == nil && f.before != nil {
		if err = s.Follows(ctx, f.before); err == nil {
			err = f.r.c.Memory.SetNext(f.before.Key, key)
		}
	}
	if err != nil {
		if f.before != nil { // go on with the predecessor
			key, s = f.before.Key, f.before
		}
		f.set(key, s, err)
		return false
	}
	f.before = nil
	next, ok, err := s.Successor(ctx)
	f.set(key, s, err)
	if err != nil || !ok {
		return false
	}
	f.leave()
	f.before = s // answers come from it until the successor can be read
	if err := f.enter(next); err != nil {
		f.set(key, s, err)
		return false
	}
	return true
}

// enter begins to read a catalog.
func (f *follower) enter(key core.Key) (err error) {
	if f.replica, err = f.r.c.Peers.Replica(key); err != nil {
		return err
	}
	f.reader = catalog.OpenReader(f.replica, f.r.c.Memory, f.r.c.MaxAge)
	return nil
}

func (f *follower) leave() {
	if f.replica != nil {
		f.replica.Close()
		f.replica = nil
	}
}

// maxSteps bounds a chain of successors that is remembered.
const maxSteps = 1000

// successor returns the catalog that key was followed to before. A step once
// taken is not asked for again: who stole a replaced key could name another.
func (f *follower) successor(key core.Key) core.Key {
	for range maxSteps {
		next, ok, err := f.r.c.Memory.Next(key)
		if err != nil {
			f.r.c.Logger.Error("successor not read", "core", key.Short(), "err", err)
		}
		if !ok || err != nil {
			break
		}
		key = next
	}
	return key
}

// update fetches the catalog up to the head that is here, judges it, and tells
// what has changed. Without any head yet it asks peers for one; later ones are
// followed as they come.
func (f *follower) update(ctx context.Context) (*catalog.Snapshot, error) {
	c, reader := f.replica, f.reader
	if c.Tree().Length == 0 {
		asked, cancel := context.WithTimeout(ctx, pollEvery)
		defer cancel()
		if err := c.Update(asked); err != nil && c.Tree().Length == 0 {
			return nil, fmt.Errorf("catalog %s: %w", c.Key().Short(), err)
		}
	}
	if n := c.Tree().Length; n <= catalog.MaxLength {
		if err := c.Download(ctx, 0, n); err != nil {
			return reader.Current(), fmt.Errorf("catalog %s: %w", c.Key().Short(), err)
		}
	} // else the reader says what is wrong
	old := reader.Current()
	s, err := reader.Update(ctx)
	if err == nil && old != nil && old != s && f.r.c.Refreshed != nil {
		err = f.refresh(ctx, old, s)
	}
	return s, err
}

// refresh tells which packages the catalog changed: its history says it. The logs
// that are held are brought up by keepers.
func (f *follower) refresh(ctx context.Context, old, now *catalog.Snapshot) error {
	for c, err := range now.Changes(ctx, old.Length) {
		if err != nil {
			return err
		}
		if h, ok := catalog.ParsePackageKey(c.Key); ok {
			f.r.c.Refreshed(h)
		}
	}
	return nil
}

// answer returns what this catalog says about a package.
func (f *follower) answer(ctx context.Context, h pkglog.Header) (*Answer, error) {
	s := f.current()
	if s == nil {
		f.mu.Lock()
		err := f.err
		f.mu.Unlock()
		return nil, errors.Join(fmt.Errorf("catalog %s: %w", f.first.Short(), ErrNotReady), err)
	}
	e, err := s.Entry(ctx, h)
	if err != nil {
		return nil, err
	}
	state, err := f.r.state(ctx, e, h)
	if err != nil {
		return nil, fmt.Errorf("catalog %s: %w", s.Key.Short(), err)
	}
	return &Answer{State: state, Operator: s.Key, Entry: e, Head: s.Head, Stale: s.Stale(time.Now())}, nil
}

// wait returns when the core has grown, when it should be judged again, after
// pollEvery, or with ctx.
func (f *follower) wait(ctx context.Context, grown <-chan struct{}) {
	t := time.NewTimer(pollEvery)
	defer t.Stop()
	select {
	case <-grown:
	case <-f.again:
	case <-t.C:
	case <-ctx.Done():
	}
}
