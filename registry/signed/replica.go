package signed

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/registry/catalog"
	"github.com/pkgswarm/pkgswarm/swarm/replicate"
)

// Cores opens the replicas of a store, which peers keep up to date. It is [Peers].
type Cores struct {
	Store *core.Store
	// Open begins to download a core; see [replicate.Replicator.Open].
	Open func(replicate.Core, replicate.SessionOptions) (*replicate.Session, error)
}

// Replica opens the replica of a core, an empty one if it is new. It never takes
// up a rewritten history, nor one of absurd length. SEC-14, SEC-15
func (c *Cores) Replica(key core.Key) (Replica, error) {
	k, err := c.open(key)
	if err != nil {
		return nil, err
	}
	s, err := c.Open(k, replicate.SessionOptions{NoReorg: true, AllowPush: true, MaxLength: catalog.MaxLength})
	if err != nil {
		k.Close()
		return nil, translate(err)
	}
	r := &replica{Core: k, session: s, changed: make(chan struct{})}
	r.stop = k.Watch(r.event)
	return r, nil
}

// Held opens what is here of a core. See [Peers].
func (c *Cores) Held(key core.Key) (Held, error) {
	k, err := c.Store.OpenExisting(key)
	if err != nil {
		return nil, err
	}
	return k, nil
}

// open opens a core. One of absurd length, taken up before such were refused or
// by somebody else, is begun again: it has nothing to lose. SEC-15
func (c *Cores) open(key core.Key) (*core.Core, error) {
	k, err := c.Store.Open(key)
	if err != nil || k.Length() <= catalog.MaxLength {
		return k, err
	}
	if err := k.Close(); err != nil {
		return nil, err
	}
	if err := c.Store.Delete(key); err != nil {
		return nil, fmt.Errorf("core %s of %w: %w", key.Short(), catalog.ErrAbsurd, err)
	}
	return c.Store.Open(key)
}

// A replica is a core whose missing blocks come from peers.
type replica struct {
	*core.Core
	session *replicate.Session
	stop    func()

	mu      sync.Mutex // guards what follows
	changed chan struct{}
}

func (r *replica) event(e core.Event) {
	if e.Kind != core.Appended {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *replica) Changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

func (r *replica) Get(ctx context.Context, i uint64) ([]byte, error) {
	if r.Core.Has(i) {
		b, err := r.Core.Get(ctx, i)
		if err == nil {
			return b, nil
		}
	}
	b, err := r.session.Get(ctx, i)
	return b, translate(err)
}

func (r *replica) Update(ctx context.Context) error {
	_, err := r.session.Update(ctx)
	return translate(err)
}

func (r *replica) Expect(length uint64) { r.session.Expect(length) }

func (r *replica) Download(ctx context.Context, lo, hi uint64) error {
	if absent, err := r.Core.NextAbsent(lo, hi); err == nil && absent >= hi {
		return nil
	}
	return translate(r.session.Download(ctx, lo, hi))
}

func (r *replica) Close() error {
	r.stop()
	return errors.Join(r.session.Close(), r.Core.Close())
}

// translate makes a conflict match this package's error.
func translate(err error) error {
	if errors.Is(err, replicate.ErrConflict) {
		return fmt.Errorf("%w: %w", ErrConflict, err)
	}
	return err
}
