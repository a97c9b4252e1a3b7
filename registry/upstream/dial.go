package upstream

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"syscall"
	"time"
)

// A refusedAddrError says that a name led to an address that its origin may not have.
type refusedAddrError struct {
	host string
	addr string
}

func (e *refusedAddrError) Error() string {
	return fmt.Sprintf("%s is at %s, where no public registry is: if that is meant, name this upstream in the node's configuration, and a server of this machine by its address", e.host, e.addr)
}

// dialer returns a function that connects to configured origins and proxies,
// and to addresses that they may have. The check is made on the address of
// the connection itself, after every look-up (DNS rebinding).
func (c *Client) dialer() func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		d := net.Dialer{Timeout: connectTimeout, KeepAlive: 30 * time.Second}
		if !c.isProxy(addr) {
			d.Control = func(_, address string, _ syscall.RawConn) error {
				if !c.mayConnect(host, address) {
					return &refusedAddrError{host, address}
				}
				return nil
			}
		}
		return d.DialContext(ctx, network, addr)
	}
}

// mayConnect reports whether the configured host may be at address, an IP
// address and port. An origin that is configured by its address, or as
// localhost, may be there and nowhere else narrow; a name may lead to public
// addresses, and to private ones unless it must be public.
func (c *Client) mayConnect(host, address string) bool {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return false
	}
	ip := ap.Addr().Unmap().WithZone("")
	if literal, err := netip.ParseAddr(host); err == nil {
		return literal.Unmap().WithZone("") == ip && !ip.IsMulticast()
	}
	switch {
	case ip.IsLoopback():
		return host == "localhost"
	case ip.IsUnspecified(), ip.IsMulticast(), ip.IsLinkLocalUnicast():
		return false
	case ip.IsPrivate(), carrierGrade.Contains(ip):
		return !c.mustBePublic(host)
	}
	return ip.IsGlobalUnicast()
}

// How near a URL leads.
const (
	anywhere = iota
	private
	linkLocal
	thisMachine
)

// nearness returns how near u leads by what it says; what a name resolves to is for
// mayConnect.
func nearness(u *url.URL) int {
	host := strings.ToLower(strings.TrimSuffix(u.Hostname(), "."))
	if u.Scheme == "file" || host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return thisMachine
	}
	ip, err := netip.ParseAddr(host)
	ip = ip.Unmap().WithZone("")
	switch {
	case err != nil:
		return anywhere
	case ip.IsLoopback(), ip.IsUnspecified():
		return thisMachine
	case ip.IsPrivate(), carrierGrade.Contains(ip):
		return private
	case !ip.IsGlobalUnicast():
		return linkLocal
	}
	return anywhere
}

var carrierGrade = netip.MustParsePrefix("100.64.0.0/10")
