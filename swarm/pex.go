package swarm

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	"github.com/pkgswarm/pkgswarm/internal/compact"
	"github.com/pkgswarm/pkgswarm/swarm/protomux"
	"github.com/pkgswarm/pkgswarm/swarm/transport"
	"golang.org/x/time/rate"
)

// Peer exchange: connected peers tell each other of peers that they are connected
// to, over the protocol pkgswarm/pex. All integers are compact.
//
//	handshake  uint version (1), uint TCP port on which the sender listens, 0 is none
//	message 0  peers: uint count, then for each
//	           IP address (buffer of 4 or 16 bytes), uint port
//
// What is told is where a peer was dialled or, if it has dialled, its address with
// the port that it has named. A peer is told only of addresses that reach as far
// as the connection to it: the others would be of no use to it, and private ones
// nobody's business (SEC-24).
const (
	pexProtocol = "pkgswarm/pex"
	pexVersion  = 1
	pexPeers    = 0 // message type

	pexPause    = time.Second // between messages to a peer, at least
	pexBatch    = 32          // peers in one message that we send
	maxPEXBatch = 128         // and that we take
	maxPEXTold  = 1024        // peers that we have told a peer of and remember

	// A peer may name pexBurst peers at once, and one more every pexEvery; what is
	// more is ignored.
	pexBurst = 64
	pexEvery = 5 * time.Second
)

// A pex is our end of the exchange with one peer. It is the channel's handler.
type pex struct {
	s       *Swarm
	c       *conn
	ch      *protomux.Channel
	budget  *rate.Limiter
	told    map[netip.AddrPort]bool // used by tell alone
	opened  chan struct{}           // closed when both sides have opened the channel
	carries bool                    // Opened was called
}

// attachPEX opens the channel on c.
func (s *Swarm) attachPEX(c *conn) (*pex, error) {
	p := &pex{
		s: s, c: c, opened: make(chan struct{}),
		budget: rate.NewLimiter(rate.Every(pexEvery), pexBurst),
		told:   map[netip.AddrPort]bool{},
	}
	b := compact.AppendUint(nil, pexVersion)
	b = compact.AppendUint(b, uint64(s.advertised(c)))
	var err error
	p.ch, err = c.mux.Open(pexProtocol, nil, b, p)
	return p, err
}

// advertised returns the port at which others reach us, in the view of c; 0 if none.
func (s *Swarm) advertised(c *conn) int {
	if s.c.Advertise > 0 {
		return int(s.c.Advertise)
	}
	if isLoopback(c.info.Address) {
		return s.listenPort(func(net.IP) bool { return true })
	}
	return s.lanPort()
}

// Opened implements [protomux.Handler].
func (p *pex) Opened(handshake []byte) error {
	d := compact.NewDecoder(handshake)
	version, port := d.Uint(), d.Uint()
	if d.Err() != nil || port > 65535 {
		return fmt.Errorf("%w: peer exchange: bad handshake", protomux.ErrProtocol)
	}
	if p.carries || version != pexVersion {
		return nil
	}
	p.carries = true
	if port > 0 && !p.c.info.Dialled {
		if ip, ok := addrIP(p.c.info.Address); ok {
			p.s.mu.Lock()
			p.s.setListens(p.c, netip.AddrPortFrom(ip, uint16(port)))
			p.s.mu.Unlock()
		}
	}
	close(p.opened)
	return nil
}

// Message implements [protomux.Handler].
func (p *pex) Message(kind int, payload []byte) error {
	if kind != pexPeers {
		return nil
	}
	addrs, err := decodePEX(payload)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if !p.budget.Allow() {
			return nil
		}
		p.s.AddCandidate(a.String(), p.c.info.Address)
	}
	return nil
}

// Closed implements [protomux.Handler].
func (p *pex) Closed() {}

func appendPEX(b []byte, addrs []netip.AddrPort) []byte {
	b = compact.AppendUint(b, uint64(len(addrs)))
	for _, a := range addrs {
		b = compact.AppendBytes(b, a.Addr().AsSlice())
		b = compact.AppendUint(b, uint64(a.Port()))
	}
	return b
}

// decodePEX reads a message. Its errors match protomux.ErrProtocol or ErrLimit.
func decodePEX(b []byte) ([]netip.AddrPort, error) {
	d := compact.NewDecoder(b)
	n := d.Count(6)
	if d.Err() != nil {
		return nil, fmt.Errorf("%w: peer exchange: bad count", protomux.ErrProtocol)
	}
	if n > maxPEXBatch {
		return nil, fmt.Errorf("%w: peer exchange: %d peers", protomux.ErrLimit, n)
	}
	addrs := make([]netip.AddrPort, 0, n)
	for range n {
		ip, ok := netip.AddrFromSlice(d.Bytes())
		port := d.Uint()
		if !ok || port == 0 || port > 65535 || d.Err() != nil {
			return nil, fmt.Errorf("%w: peer exchange: bad address", protomux.ErrProtocol)
		}
		addrs = append(addrs, netip.AddrPortFrom(ip.Unmap(), uint16(port)))
	}
	return addrs, nil
}

// tell tells the peer of others until ctx ends.
func (p *pex) tell(ctx context.Context) {
	select {
	case <-p.opened:
	case <-ctx.Done():
		return
	}
	for {
		changed := p.s.peersChanged()
		addrs := p.news()
		if len(addrs) > 0 && p.ch.Send(pexPeers, appendPEX(nil, addrs)) != nil {
			return
		}
		if len(addrs) < pexBatch {
			select {
			case <-ctx.Done():
				return
			case <-changed:
			}
		}
		timer := time.NewTimer(jitter(pexPause))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// peersChanged returns a channel that is closed when there is one more peer to tell
// of.
func (s *Swarm) peersChanged() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// setListens notes where others can dial c. s.mu is held.
func (s *Swarm) setListens(c *conn, a netip.AddrPort) {
	if c.listens = a; a.IsValid() {
		close(s.changed)
		s.changed = make(chan struct{})
	}
}

// news returns peers that the peer was not told of yet.
func (p *pex) news() []netip.AddrPort {
	to, ok := addrIP(p.c.info.Address)
	if !ok {
		return nil
	}
	var out []netip.AddrPort
	for _, a := range p.s.reachable(p.c) {
		if len(out) == pexBatch {
			break
		}
		if transport.ScopeOf(a.Addr()) < transport.ScopeOf(to) || p.told[a] {
			continue
		}
		if len(p.told) >= maxPEXTold {
			clear(p.told)
		}
		p.told[a] = true
		out = append(out, a)
	}
	return out
}

// reachable returns where the peers can be dialled, but for that of except.
func (s *Swarm) reachable(except *conn) []netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []netip.AddrPort
	for _, c := range s.conns {
		if c != except && c.listens.IsValid() {
			out = append(out, c.listens)
		}
	}
	return out
}

// dialledAt returns where a target can be dialled by others: a WebSocket is of no
// use to them without its name, which they would not look up.
func dialledAt(t *target) netip.AddrPort {
	ip, ok := t.address.IP()
	port, err := strconv.ParseUint(t.address.Port, 10, 16)
	if !ok || err != nil || t.address.Scheme != "tcp" {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ip, uint16(port))
}
