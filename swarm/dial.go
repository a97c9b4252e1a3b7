package swarm

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"github.com/pkgswarm/pkgswarm/swarm/secretstream"
	"github.com/pkgswarm/pkgswarm/swarm/transport"
)

const (
	// Hints, that is what discovery and peers tell, get this share of the
	// connections and dials under way, so that they never keep us from the
	// configured peers (SEC-26).
	hintsOf4     = 3 // of 4 connections
	maxHintDials = 16

	maxHintBackOff = 10 * time.Minute
	maxHintFails   = 5 // in a row, before a hint that was never right is forgotten
)

// A target is an address that we try to be connected to.
type target struct {
	address    transport.Address
	configured bool
	name       string    // the configured name that it was resolved from
	expires    time.Time // of candidates and resolved addresses

	// Guarded by Swarm.mu.
	dialling bool
	fails    int // since the last connection
	backOff  time.Duration
	next     time.Time // not before
	peer     PeerKey   // who answered there last; zero if nobody
}

// hint says whether t was told by somebody, rather than configured.
func (t *target) hint() bool { return !t.configured && t.name == "" }

// AddCandidate adds an address at which a peer may be, as heard from a connection
// with the remote address learntOn, or found on the local network if that is
// empty. Addresses of a narrower scope than where they were heard are dropped, as
// are names (SEC-24). It reports whether the address is one that is tried.
func (s *Swarm) AddCandidate(addr, learntOn string) bool {
	a, err := transport.Parse(addr)
	if err != nil || a.Scheme != "tcp" {
		return false
	}
	ip, ok := a.IP()
	if !ok || transport.ScopeOf(ip) == transport.Unusable {
		return false
	}
	if learntOn != "" {
		from, ok := addrIP(learntOn)
		if !ok || transport.ScopeOf(ip) < transport.ScopeOf(from) {
			return false
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := a.String()
	if t := s.targets[key]; t != nil {
		t.expires = time.Now().Add(candidateLifetime)
		return true
	}
	if len(s.targets) >= maxCandidates && !s.dropFailed() {
		return false
	}
	s.targets[key] = &target{address: a, expires: time.Now().Add(candidateLifetime)}
	s.wakeUp()
	return true
}

func (s *Swarm) wakeUp() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// keepDialling dials what is due until ctx ends.
func (s *Swarm) keepDialling(ctx context.Context) {
	for {
		next := s.dialDue(ctx)
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-s.wake:
			timer.Stop()
		}
	}
}

// dropFailed forgets a hint that was wrong so far. s.mu is held.
func (s *Swarm) dropFailed() bool {
	for key, t := range s.targets {
		if t.hint() && !t.dialling && t.fails > 0 {
			delete(s.targets, key)
			return true
		}
	}
	return false
}

// A dialBudget counts connections that we have made or are making.
type dialBudget struct{ all, hints, hintDials int }

// dialBudget returns what is left. s.mu is held.
func (s *Swarm) dialBudget() dialBudget {
	b := dialBudget{s.c.MaxOut, max(1, s.c.MaxOut*hintsOf4/4), maxHintDials}
	for _, c := range s.conns {
		if c.target != nil {
			b.take(c.target.hint(), false)
		}
	}
	for _, t := range s.targets {
		if t.dialling && s.conns[t.peer] == nil {
			b.take(t.hint(), true)
		}
	}
	return b
}

func (b *dialBudget) take(hint, dial bool) {
	b.all--
	if hint {
		b.hints--
		if dial {
			b.hintDials--
		}
	}
}

func (b *dialBudget) allows(hint bool) bool {
	return b.all > 0 && (!hint || b.hints > 0 && b.hintDials > 0)
}

// dialDue starts the dials that are due, those to configured peers first, and
// returns how long until the next.
func (s *Swarm) dialDue(ctx context.Context) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	wait := resolveEvery
	budget := s.dialBudget()
	for _, hints := range []bool{false, true} {
		for key, t := range s.targets {
			switch {
			case t.hint() != hints || t.dialling || s.conns[t.peer] != nil || t.peer == s.self:
				// not now
			case !t.configured && now.After(t.expires):
				delete(s.targets, key)
			case now.Before(t.next):
				wait = min(wait, t.next.Sub(now))
			case t.isName():
				t.dialling = true
				s.wg.Go(func() { s.resolve(ctx, t) })
			case budget.allows(hints):
				budget.take(hints, true)
				t.dialling = true
				s.wg.Go(func() { s.dial(ctx, t) })
			}
		}
	}
	return wait
}

// isName says whether t is to be looked up rather than dialled.
func (t *target) isName() bool {
	_, isIP := t.address.IP()
	return t.configured && !isIP && t.address.Scheme == "tcp"
}

// resolve looks up a configured name and makes its addresses targets.
func (s *Swarm) resolve(ctx context.Context, t *target) {
	lookup, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	ips, err := net.DefaultResolver.LookupNetIP(lookup, "ip", t.address.Host)
	if err != nil && ctx.Err() == nil {
		s.log.Debug("look up peer", "name", t.address.Host, "err", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ip := range ips {
		s.addResolved(t, ip.Unmap())
	}
	t.dialling = false
	t.next = time.Now().Add(jitter(resolveEvery))
	s.wakeUp()
}

func (s *Swarm) addResolved(t *target, ip netip.Addr) {
	a := t.address
	a.Host = ip.String()
	expires := time.Now().Add(3 * resolveEvery)
	if old := s.targets[a.String()]; old != nil {
		old.expires, old.name = expires, t.address.Host
		return
	}
	s.targets[a.String()] = &target{address: a, name: t.address.Host, expires: expires}
}

// dial connects to a target and runs the connection until it ends.
func (s *Swarm) dial(ctx context.Context, t *target) {
	start := time.Now()
	err := s.dialOnce(ctx, t)
	s.mu.Lock()
	defer s.mu.Unlock()
	t.dialling = false
	t.failed(err, time.Since(start))
	if t.hint() && (t.fails > maxHintFails || errors.Is(err, secretstream.ErrNotAllowed)) {
		delete(s.targets, t.address.String())
	}
	if err != nil && ctx.Err() == nil {
		s.log.Debug("dial peer", "address", t.address, "err", err, "again", t.backOff)
	}
	s.wakeUp()
}

// failed sets when a target is dialled again, after a connection that took d and
// ended for err.
func (t *target) failed(err error, d time.Duration) {
	t.fails++
	if errors.Is(err, errDuplicate) || d > maxBackOff {
		t.backOff, t.fails = 0, 0 // the address is good
	}
	most := maxBackOff
	if t.hint() {
		most = maxHintBackOff
	}
	t.backOff = min(max(firstBackOff, 2*t.backOff), most)
	t.next = time.Now().Add(jitter(t.backOff))
}

func (s *Swarm) dialOnce(ctx context.Context, t *target) error {
	dial, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	raw, err := s.c.Dial(dial, t.address)
	if err != nil {
		return err
	}
	return s.connect(ctx, raw, t, bucketOf(raw.RemoteAddr()))
}

// jitter returns d, give or take a quarter, so that many nodes do not act as one.
func jitter(d time.Duration) time.Duration {
	return d*3/4 + rand.N(d/2)
}
