package swarm

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"log"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/mdns"
	"github.com/pkgswarm/pkgswarm/core"
	"golang.org/x/crypto/blake2b"
)

const (
	lanService  = "_pkgswarm._tcp"
	lanDomain   = "local"
	lanInterval = 15 * time.Second
	lanTimeout  = 2 * time.Second // for answers to one query
	maxLANIfs   = 8               // interfaces that are used
	maxLANPeers = 256             // answers to one query that are looked at
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
	defer wg.Wait()
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
func (s *Swarm) lookLAN(ctx context.Context, ifi *net.Interface) {
	for {
		entries := make(chan *mdns.ServiceEntry, maxLANPeers)
		err := mdns.QueryContext(ctx, &mdns.QueryParam{
			Service: lanService, Domain: lanDomain, Timeout: lanTimeout, Interface: ifi, Entries: entries, Logger: quiet,
		})
		if err != nil && ctx.Err() == nil {
			s.log.Debug("look for peers on network", "interface", ifi.Name, "err", err)
		}
		for more := true; more; {
			select {
			case e := <-entries:
				s.foundOnLAN(e)
			default:
				more = false
			}
		}
		timer := time.NewTimer(jitter(lanInterval))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// foundOnLAN makes candidates of an answer if it has a topic of ours.
func (s *Swarm) foundOnLAN(e *mdns.ServiceEntry) {
	if e.Port <= 0 || e.Port > 65535 || !strings.Contains(e.Name, lanService) {
		return
	}
	ours := slices.ContainsFunc(s.c.Topics, func(t TopicID) bool {
		return slices.Contains(e.InfoFields, "t="+hex.EncodeToString(t[:]))
	})
	if !ours {
		return
	}
	for _, ip := range []net.IP{e.AddrV4, e.AddrV6} {
		// A link-local IPv6 address would need its zone.
		if ip == nil || ip.To4() == nil && ip.IsLinkLocalUnicast() || ip.IsLoopback() {
			continue
		}
		s.AddCandidate(net.JoinHostPort(ip.String(), strconv.Itoa(e.Port)), "")
	}
}
