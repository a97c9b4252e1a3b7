// Package transport makes the raw connections that peers talk over: TCP, and
// WebSocket for networks that let nothing else through. What runs over them is
// encrypted and authenticated by package secretstream, so that a transport
// promises nothing but an ordered stream of bytes.
//
// Addresses are
//
//	HOST:PORT, tcp://HOST:PORT
//	ws://HOST[:PORT]/PATH, wss://HOST[:PORT]/PATH
package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/coder/websocket"
)

// ErrAddress is matched by the errors of addresses that are none.
var ErrAddress = errors.New("transport: malformed address")

// An Address is where a peer may be reached.
type Address struct {
	Scheme string // "tcp", "ws" or "wss"
	Host   string // name or IP address
	Port   string
	Path   string // of ws and wss, with the leading slash
}

// Parse reads an address.
func Parse(s string) (Address, error) {
	if !strings.Contains(s, "://") {
		s = "tcp://" + s
	}
	u, err := url.Parse(s)
	if err != nil || u.User != nil || u.Hostname() == "" {
		return Address{}, fmt.Errorf("%w: %q", ErrAddress, s)
	}
	if !validHost(u.Hostname()) {
		return Address{}, fmt.Errorf("%w: %q: neither a name nor an IP address", ErrAddress, s)
	}
	a := Address{u.Scheme, u.Hostname(), u.Port(), u.EscapedPath()}
	switch a.Scheme {
	case "tcp":
		if a.Port == "" || strings.Trim(a.Path, "/") != "" {
			return Address{}, fmt.Errorf("%w: %q: want HOST:PORT", ErrAddress, s)
		}
		a.Path = ""
	case "ws", "wss":
		if a.Port == "" {
			a.Port = map[string]string{"ws": "80", "wss": "443"}[a.Scheme]
		}
	default:
		return Address{}, fmt.Errorf("%w: %q: unknown scheme", ErrAddress, s)
	}
	return a, nil
}

// validHost reports whether host is an IP address or looks like a name.
func validHost(host string) bool {
	if ip, err := netip.ParseAddr(host); err == nil {
		host = ip.Zone()
	}
	return strings.TrimLeft(host, nameChars) == ""
}

const nameChars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._"

// String returns the address as Parse reads it.
func (a Address) String() string {
	host := net.JoinHostPort(strings.ReplaceAll(a.Host, "%", "%25"), a.Port) // of an IPv6 zone
	if a.Scheme == "tcp" {
		return host
	}
	return a.Scheme + "://" + host + a.Path
}

// IP returns the address's IP, if its host is one.
func (a Address) IP() (netip.Addr, bool) {
	ip, err := netip.ParseAddr(a.Host)
	return ip.Unmap(), err == nil
}

// Dial connects to a.
func Dial(ctx context.Context, a Address) (net.Conn, error) {
	if a.Scheme == "tcp" {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", net.JoinHostPort(a.Host, a.Port))
	}
	// The HTTP client honours HTTP_PROXY, HTTPS_PROXY and NO_PROXY.
	c, resp, err := websocket.Dial(ctx, a.String(), &websocket.DialOptions{CompressionMode: websocket.CompressionDisabled})
	if err != nil {
		if resp != nil && resp.StatusCode != http.StatusSwitchingProtocols {
			return nil, fmt.Errorf("dial %s: it answers %s: no peer there, or a proxy without WebSockets", a, resp.Status)
		}
		return nil, err
	}
	return netConn(c), nil
}

// netConn makes a stream of a WebSocket. Frames of it are as large as writes.
func netConn(c *websocket.Conn) net.Conn {
	c.SetReadLimit(-1) // the stream above bounds what it reads, byte by byte
	// The stream above has its own deadlines and its own end.
	return websocket.NetConn(context.Background(), c, websocket.MessageBinary)
}

// Upgrade answers a WebSocket request with a connection. A browser's page is
// refused by its Origin (SEC-51). The response is written in any case.
func Upgrade(w http.ResponseWriter, r *http.Request) (net.Conn, error) {
	if r.Header.Get("Origin") != "" {
		http.Error(w, "peers are no web pages", http.StatusForbidden)
		return nil, errors.New("transport: request of a browser")
	}
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{CompressionMode: websocket.CompressionDisabled})
	if err != nil {
		return nil, err
	}
	return &addressed{netConn(c), r.RemoteAddr}, nil
}

// An addressed is a connection that knows where the request came from.
type addressed struct {
	net.Conn
	remote string
}

func (c *addressed) RemoteAddr() net.Addr { return wsAddr(c.remote) }

type wsAddr string

func (wsAddr) Network() string  { return "websocket" }
func (a wsAddr) String() string { return string(a) }

// A Scope says how far an address reaches.
type Scope int

// Scopes, from the narrowest to the widest.
const (
	Unusable Scope = iota // multicast, unspecified and the like
	Loopback
	LinkLocal
	Private
	Public
)

// ScopeOf returns the scope of an IP address.
func ScopeOf(ip netip.Addr) Scope {
	ip = ip.Unmap()
	switch {
	case !ip.IsValid() || ip.IsUnspecified() || ip.IsMulticast() || ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return Unusable
	case ip.IsLoopback():
		return Loopback
	case ip.IsLinkLocalUnicast():
		return LinkLocal
	case ip.IsPrivate() || sharedSpace.Contains(ip):
		return Private
	}
	return Public
}

var sharedSpace = netip.MustParsePrefix("100.64.0.0/10") // RFC 6598
