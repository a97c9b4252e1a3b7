package swarm

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"github.com/pkgswarm/pkgswarm/swarm/transport"
)

// A target is an address that we try to be connected to.
type target struct {
	address    transport.Address
	configured bool
	name       string    // the configured name that it was resolved from
	expires    time.Time // of candidates and resolved addresses

	// Guarded by Swarm.mu.
	dialling bool
	backOff  time.Duration
	next     time.Time // not before
	peer     PeerKey   // who answered there last; zero if nobody
}

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
	if len(s.targets) >= maxCandidates {
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

// dialDue starts the dials that are due and returns how long until the next.
func (s *Swarm) dialDue(ctx context.Context) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	wait := resolveEvery
	out := 0
	for _, c := range s.conns {
		if c.info.Dialled {
			out++
		}
	}
	for key, t := range s.targets {
		switch {
		case !t.configured && now.After(t.expires):
			delete(s.targets, key)
			continue
		case t.dialling || s.conns[t.peer] != nil || t.peer == s.self:
			continue
		case now.Before(t.next):
			wait = min(wait, t.next.Sub(now))
			continue
		case out >= s.c.MaxOut:
			continue
		}
		t.dialling = true
		if _, isIP := t.address.IP(); t.configured && !isIP && t.address.Scheme == "tcp" {
			s.wg.Go(func() { s.resolve(ctx, t) })
			continue
		}
		out++
		s.wg.Go(func() { s.dial(ctx, t) })
	}
	return wait
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
		old.expires = expires
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
	if errors.Is(err, errDuplicate) || time.Since(start) > maxBackOff {
		t.backOff = 0 // the address is good
	}
	t.backOff = min(max(firstBackOff, 2*t.backOff), maxBackOff)
	t.next = time.Now().Add(jitter(t.backOff))
	if err != nil && ctx.Err() == nil {
		s.log.Debug("dial peer", "address", t.address, "err", err, "again", t.backOff)
	}
	s.wakeUp()
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
