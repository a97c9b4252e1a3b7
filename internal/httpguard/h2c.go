package httpguard

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2/hpack"
)

// Upgrades are connections whose clients asked, on HTTP/1.1 and without TLS, to go
// on with HTTP/2 (RFC 7540, section 3.2), as cargo does: over HTTP/1.1 it has no
// more than two requests under way, over HTTP/2 as many as it likes.
//
// net/http speaks HTTP/2 without TLS to clients that begin with it, but does not
// know the upgrade. So a connection is taken from the server that read the
// request, answered 101, and accepted once more from this listener, which the same
// server serves: the client begins HTTP/2 there. The request that asked for the
// upgrade counts as sent on stream 1. It is put into what the server reads as a
// HEADERS frame, behind the SETTINGS that a client begins with.
type Upgrades struct {
	addr   net.Addr
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

// NewUpgrades returns the upgrades of connections to addr. It is served until it
// is closed by a server with unencrypted HTTP/2 among its protocols.
func NewUpgrades(addr net.Addr) *Upgrades {
	return &Upgrades{addr: addr, conns: make(chan net.Conn), closed: make(chan struct{})}
}

// Accept implements [net.Listener].
func (u *Upgrades) Accept() (net.Conn, error) {
	select {
	case c := <-u.conns:
		return c, nil
	case <-u.closed:
		return nil, net.ErrClosed
	}
}

// Close implements [net.Listener].
func (u *Upgrades) Close() error {
	u.once.Do(func() { close(u.closed) })
	return nil
}

// Addr implements [net.Listener].
func (u *Upgrades) Addr() net.Addr { return u.addr }

// take upgrades the connection of r if the client asked for it, and reports
// whether it did. If not, r is to be answered as ever.
func (u *Upgrades) take(w http.ResponseWriter, r *http.Request) bool {
	if !asksForH2C(r) {
		return false
	}
	stream1 := headersFrame(r)
	if stream1 == nil {
		return false
	}
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return false
	}
	conn.SetReadDeadline(time.Now().Add(headerTimeout)) // net/http ends it when HTTP/2 has begun
	const answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
	if _, err := io.WriteString(conn, answer); err != nil {
		conn.Close()
		return true
	}
	select {
	case u.conns <- &upgraded{Conn: conn, src: rw.Reader, request: stream1}:
	case <-u.closed:
		conn.Close()
	}
	return true
}

func asksForH2C(r *http.Request) bool {
	if r.ProtoMajor != 1 || r.ProtoMinor != 1 || r.TLS != nil || r.Method != http.MethodGet {
		return false
	}
	var options []string
	for _, v := range r.Header.Values("Connection") {
		for o := range strings.SplitSeq(strings.ToLower(v), ",") {
			options = append(options, strings.TrimSpace(o))
		}
	}
	return slices.Equal(r.Header.Values("Upgrade"), []string{"h2c"}) && len(r.Header.Values("Http2-Settings")) == 1 &&
		slices.Contains(options, "upgrade") && slices.Contains(options, "http2-settings")
}

// Frames of HTTP/2: a length (u24be), a type, flags and a stream (u32be).
const (
	preface       = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	frameHeader   = 9
	maxFrame      = 16 << 10 // bytes of any frame's payload, which all servers take
	typeHeaders   = 1
	typeSettings  = 4
	endStreamHead = 0x1 | 0x4 // END_STREAM, END_HEADERS
)

// headersFrame returns r as the frame that begins and ends stream 1, or nil if it
// does not fit into one. Nothing in it enters the table of recent fields, of which
// the client's encoder does not know.
func headersFrame(r *http.Request) []byte {
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	put := func(name, value string) {
		enc.WriteField(hpack.HeaderField{Name: name, Value: value, Sensitive: true}) // a buffer takes all
	}
	put(":method", r.Method)
	put(":scheme", "http")
	put(":authority", r.Host)
	put(":path", r.RequestURI)
	for name, values := range r.Header {
		switch name {
		case "Connection", "Upgrade", "Http2-Settings", "Keep-Alive", "Proxy-Connection", "Transfer-Encoding", "Te":
			continue // of the connection, not of the request
		}
		for _, v := range values {
			put(strings.ToLower(name), v)
		}
	}
	n := block.Len()
	if n > maxFrame {
		return nil
	}
	return append([]byte{byte(n >> 16), byte(n >> 8), byte(n), typeHeaders, endStreamHead, 0, 0, 0, 1}, block.Bytes()...)
}

// upgraded is a connection that begins HTTP/2.
type upgraded struct {
	net.Conn
	src     io.Reader
	request []byte // the frame to put in; nil when that has been done
	ahead   []byte // to be read before src
}

var errNotHTTP2 = errors.New("upgraded connection does not begin with HTTP/2")

func (c *upgraded) Read(p []byte) (int, error) {
	if c.request != nil {
		begin, err := readBegin(c.src)
		if err != nil {
			return 0, err
		}
		c.ahead, c.request = append(begin, c.request...), nil
	}
	if len(c.ahead) > 0 {
		n := copy(p, c.ahead)
		c.ahead = c.ahead[n:]
		return n, nil
	}
	return c.src.Read(p)
}

// readBegin reads what a client must begin with: the preface and a SETTINGS frame.
func readBegin(r io.Reader) ([]byte, error) {
	b := make([]byte, len(preface)+frameHeader)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	head := b[len(preface):]
	n := int(head[0])<<16 | int(head[1])<<8 | int(head[2])
	if string(b[:len(preface)]) != preface || head[3] != typeSettings || n > maxFrame {
		return nil, errNotHTTP2
	}
	b = append(b, make([]byte, n)...)
	_, err := io.ReadFull(r, b[len(b)-n:])
	return b, err
}
