package swarm

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/mdns"
	"github.com/miekg/dns"
	"github.com/pkgswarm/pkgswarm/core"
	"golang.org/x/crypto/blake2b"
	"golang.org/x/net/ipv4"
)

const (
	lanService  = "_pkgswarm._tcp"
	lanDomain   = "local"
	lanInterval = 15 * time.Second
	lanTimeout  = 2 * time.Second // for answers to one query
	maxLANIfs   = 8               // interfaces that are used
	maxLANPeers = 256             // answers to one query that are looked at

	maxLANAnswer = 9000 // bytes of one (RFC 6762, 17)
	mdnsPort     = 5353
)

// A TopicID says what a swarm is about: nodes find each other on a local network
// if they have one in common. It tells nobody what it was made of.
type TopicID [16]byte

// Topic returns the topic of a core: its discovery key, hashed once more.
func Topic(dk core.DiscoveryKey) TopicID { return NamedTopic("core " + string(dk[:])) }

// NamedTopic returns the topic of that name.
func NamedTopic(name string) TopicID {
	h := blake2b.Sum256([]byte("pkgswarm topic " + name))
	return TopicID(h[:16])
}

// runLAN announces us on the local networks, by multicast DNS service discovery
// (RFC 6762, 6763), and looks for others there, until ctx ends. Where multicast
// does not work there is nobody to be found: that is no error.
func (s *Swarm) runLAN(ctx context.Context) {
	var wg sync.WaitGroup
	for _, ifi := range lanInterfaces() {
		if port := s.lanPort(); port > 0 {
			server, err := s.announce(ifi, port)
			if err != nil {
				s.log.Info("no announcements on network", "interface", ifi.Name, "err", err)
			} else {
				defer server.Shutdown()
			}
		}
		wg.Go(func() { s.lookLAN(ctx, ifi) })
	}
	wg.Wait() // and only then the announcements end
}

// lanPort returns the TCP port that others on the network can reach; 0 is none.
func (s *Swarm) lanPort() int {
	return s.listenPort(func(ip net.IP) bool { return !ip.IsLoopback() })
}

// listenPort returns the port of the first listener whose address fits; 0 is none.
func (s *Swarm) listenPort(fits func(net.IP) bool) int {
	for _, a := range s.Addrs() {
		if t, ok := a.(*net.TCPAddr); ok && fits(t.IP) {
			return t.Port
		}
	}
	return 0
}

// lanInterfaces returns the interfaces of local networks.
func lanInterfaces() []*net.Interface {
	all, err := net.Interfaces()
	if err != nil {
		return nil
	}
	var out []*net.Interface
	for _, ifi := range all {
		const want = net.FlagUp | net.FlagMulticast
		if ifi.Flags&want == want && ifi.Flags&net.FlagLoopback == 0 && len(out) < maxLANIfs {
			out = append(out, &ifi)
		}
	}
	return out
}

// quiet discards the library's messages, which are about other people's packets.
var quiet = log.New(io.Discard, "", 0)

func (s *Swarm) announce(ifi *net.Interface, port int) (*mdns.Server, error) {
	addrs, err := ifi.Addrs()
	if err != nil {
		return nil, err
	}
	var ips []net.IP
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			ips = append(ips, n.IP)
		}
	}
	if len(ips) == 0 {
		return nil, fmt.Errorf("interface %s has no address", ifi.Name)
	}
	// The name says nothing about the machine or the identity.
	name := hex.EncodeToString(randomBytes(8))
	var txt []string
	for _, t := range s.c.Topics {
		txt = append(txt, "t="+hex.EncodeToString(t[:]))
	}
	zone, err := mdns.NewMDNSService(name, lanService, "", "pkgswarm-"+name+".local.", port, ips, txt)
	if err != nil {
		return nil, err
	}
	return mdns.NewServer(&mdns.Config{Zone: zone, Iface: ifi, Logger: quiet})
}

// lookLAN asks again and again who is there.
//
// The library's client is not used: it gives up IPv4 where there is no default
// route, and all answers where there is no IPv6, as on many isolated networks.
func (s *Swarm) lookLAN(ctx context.Context, ifi *net.Interface) {
	for {
		var wg sync.WaitGroup
		for _, ask := range []func(*net.Interface) (net.PacketConn, net.Addr, error){lan4, lan6} {
			wg.Go(func() {
				if err := s.askLAN(ctx, ifi, ask); err != nil && ctx.Err() == nil {
					s.log.Debug("look for peers on network", "interface", ifi.Name, "err", err)
				}
			})
		}
		wg.Wait()
		timer := time.NewTimer(jitter(lanInterval))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// lan4 returns a connection that multicasts on an interface, and where to.
func lan4(ifi *net.Interface) (net.PacketConn, net.Addr, error) {
	c, err := net.ListenUDP("udp4", nil)
	if err != nil {
		return nil, nil, err
	}
	if err := ipv4.NewPacketConn(c).SetMulticastInterface(ifi); err != nil {
		c.Close()
		return nil, nil, err
	}
	return c, &net.UDPAddr{IP: net.IPv4(224, 0, 0, 251), Port: mdnsPort}, nil
}

func lan6(ifi *net.Interface) (net.PacketConn, net.Addr, error) {
	c, err := net.ListenUDP("udp6", nil)
	if err != nil {
		return nil, nil, err
	}
	return c, &net.UDPAddr{IP: net.ParseIP("ff02::fb"), Port: mdnsPort, Zone: ifi.Name}, nil
}

// askLAN asks once who has our service, and makes candidates of the answers. It
// asks from a port of its own, so that answers come to that (RFC 6762, 6.7).
func (s *Swarm) askLAN(ctx context.Context, ifi *net.Interface, open func(*net.Interface) (net.PacketConn, net.Addr, error)) error {
	c, to, err := open(ifi)
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	q := new(dns.Msg).SetQuestion(lanService+"."+lanDomain+".", dns.TypePTR)
	b, err := q.Pack()
	if err != nil {
		return err
	}
	if _, err := c.WriteTo(b, to); err != nil {
		return err
	}
	c.SetReadDeadline(time.Now().Add(lanTimeout))
	buf := make([]byte, maxLANAnswer)
	for range maxLANPeers {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return nil
			}
			return err
		}
		if port := s.lanAnswer(buf[:n]); port > 0 {
			s.foundOnLAN(from, port)
		}
	}
	return nil
}

// lanAnswer returns the port that an answer names if it has a topic of ours, else 0.
func (s *Swarm) lanAnswer(b []byte) (port uint16) {
	var m dns.Msg
	if m.Unpack(b) != nil || !m.Response {
		return 0
	}
	ours := false
	for _, rr := range append(m.Answer, m.Extra...) {
		if !strings.HasSuffix(rr.Header().Name, lanService+"."+lanDomain+".") {
			continue
		}
		switch rr := rr.(type) {
		case *dns.SRV:
			port = rr.Port
		case *dns.TXT:
			ours = ours || slices.ContainsFunc(s.c.Topics, func(t TopicID) bool {
				return slices.Contains(rr.Txt, "t="+hex.EncodeToString(t[:]))
			})
		}
	}
	if !ours {
		return 0
	}
	return port
}

// foundOnLAN makes a candidate of whoever has answered, and of nobody else that the
// answer may name: a liar can only offer itself (SEC-26).
func (s *Swarm) foundOnLAN(from net.Addr, port uint16) {
	ip, ok := addrIP(from.String())
	// A link-local IPv6 address would need its zone.
	if !ok || ip.Zone() != "" || ip.IsLoopback() {
		return
	}
	s.AddCandidate(netip.AddrPortFrom(ip, port).String(), "")
}
