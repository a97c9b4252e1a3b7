package swarm

import (
	"maps"
	"net"
	"net/netip"
	"time"
)

// A ban keeps a peer, or an address, away until a time.
type ban struct {
	until time.Time
	last  time.Duration
}

// Ban drops a peer and refuses it, and where it came from, for a while: a minute
// the first time, then twice as long as the last time (SEC-22). Loopback addresses
// are not banned, since all users of the machine share them. The reason is one of
// few phrases, by which [Swarm.Bans] counts.
func (s *Swarm) Ban(k PeerKey, reason string) { s.ban(k, reason, nil) }

// Bans returns how often peers were banned, by reason.
func (s *Swarm) Bans() map[string]uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.banCounts)
}

// ban is Ban; err has the details, if there are any.
func (s *Swarm) ban(k PeerKey, reason string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := []string{string(k[:])}
	c := s.conns[k]
	if c != nil {
		if !isLoopback(c.info.Address) {
			names = append(names, c.bucket)
		}
		c.mux.Close(nil)
	}
	now := time.Now()
	for _, name := range names {
		b := s.bans[name]
		if b == nil {
			s.makeRoom(now)
			b = &ban{}
			s.bans[name] = b
		}
		b.last = min(max(firstBan, 2*b.last), maxBan)
		b.until = now.Add(b.last)
	}
	s.banCounts[reason]++
	s.log.Warn("peer banned", "peer", shortKey(k), "reason", reason, "for", s.bans[names[0]].last, "err", err)
}

// makeRoom forgets bans that are over, and any one if there are too many.
func (s *Swarm) makeRoom(now time.Time) {
	if len(s.bans) < maxBans {
		return
	}
	for name, b := range s.bans {
		if now.Sub(b.until) > maxBan {
			delete(s.bans, name)
		}
	}
	for name := range s.bans {
		if len(s.bans) < maxBans {
			return
		}
		delete(s.bans, name)
	}
}

// banned reports whether a key or address is banned. s.mu is held.
func (s *Swarm) banned(name string) bool {
	b := s.bans[name]
	return b != nil && time.Now().Before(b.until)
}

// bucketOf returns what counts as one address: an IPv4 address or an IPv6 /56.
func bucketOf(a net.Addr) string {
	ip, ok := addrIP(a.String())
	if !ok {
		return a.String()
	}
	if ip.Is6() {
		if p, err := ip.WithZone("").Prefix(56); err == nil {
			return p.String()
		}
	}
	return ip.String()
}

func addrIP(hostPort string) (netip.Addr, bool) {
	host, _, err := net.SplitHostPort(hostPort)
	if err != nil {
		return netip.Addr{}, false
	}
	ip, err := netip.ParseAddr(host)
	return ip.Unmap(), err == nil
}

func isLoopback(hostPort string) bool {
	ip, ok := addrIP(hostPort)
	return ok && ip.IsLoopback()
}

// isLoopbackBucket is isLoopback for what bucketOf returns.
func isLoopbackBucket(bucket string) bool {
	if p, err := netip.ParsePrefix(bucket); err == nil {
		return p.Contains(netip.IPv6Loopback())
	}
	ip, err := netip.ParseAddr(bucket)
	return err == nil && ip.IsLoopback()
}
