package httpguard

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// serveUpgrades is serve for a server that takes upgrades.
func serveUpgrades(t *testing.T, h http.HandlerFunc) (*http.Server, net.Addr) {
	t.Helper()
	return serveStreams(t, maxConns, h)
}

// serveStreams is serveUpgrades with a number of requests under way at most.
func serveStreams(t *testing.T, most int, h http.HandlerFunc) (*http.Server, net.Addr) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	up := NewUpgrades(ln.Addr())
	guarded := New(Config{Hosts: LoopbackHosts(7070), Upgrades: up}, h)
	guarded.(*guard).streams = make(chan struct{}, most)
	srv := Server(guarded, nil)
	srv.Protocols.SetUnencryptedHTTP2(true)
	go srv.Serve(up)
	go srv.Serve(Listen(ln))
	t.Cleanup(func() { srv.Close() })
	return srv, ln.Addr()
}

const upgradeRequest = "GET /first?a=b HTTP/1.1\r\nHost: localhost:7070\r\nX-Test: 1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"

// An h2Client is a client whose connection has been upgraded.
type h2Client struct {
	t     *testing.T
	conn  net.Conn
	f     *http2.Framer
	block bytes.Buffer
	enc   *hpack.Encoder
}

func upgrade(t *testing.T, addr net.Addr) *h2Client {
	t.Helper()
	conn, err := net.Dial(addr.Network(), addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	io.WriteString(conn, upgradeRequest)
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("Upgrade") != "h2c" {
		t.Fatalf("answer to the upgrade: %v, %v", resp, err)
	}
	io.WriteString(conn, http2.ClientPreface)
	c := &h2Client{t: t, conn: conn, f: http2.NewFramer(conn, r)}
	c.f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	c.enc = hpack.NewEncoder(&c.block)
	c.f.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 100})
	return c
}

// get asks for a path on a stream, with fields that enter the compression's table.
func (c *h2Client) get(stream uint32, path string) {
	c.block.Reset()
	for _, f := range []hpack.HeaderField{
		{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "http"}, {Name: ":authority", Value: "localhost:7070"},
		{Name: ":path", Value: path}, {Name: "x-test", Value: "later"},
	} {
		c.enc.WriteField(f)
	}
	c.f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: c.block.Bytes(), EndStream: true, EndHeaders: true})
}

// answers reads until n streams have ended, and returns status and body of each.
func (c *h2Client) answers(n int) map[uint32]string {
	c.t.Helper()
	got := map[uint32]string{}
	for n > 0 {
		fr, err := c.f.ReadFrame()
		if err != nil {
			c.t.Fatalf("after %v: %v", got, err)
		}
		switch fr := fr.(type) {
		case *http2.MetaHeadersFrame:
			got[fr.StreamID] += fr.PseudoValue("status") + " "
		case *http2.DataFrame:
			got[fr.StreamID] += string(fr.Data())
		}
		if fr.Header().Flags.Has(http2.FlagDataEndStream) && (fr.Header().Type == http2.FrameData || fr.Header().Type == http2.FrameHeaders) {
			n--
		}
	}
	return got
}

func echo(w http.ResponseWriter, r *http.Request) {
	fmt.Fprint(w, r.Proto, " ", r.Host, " ", r.RequestURI, " ", r.Header.Get("X-Test"), r.Header.Get("Upgrade"))
}

// The request that asked for HTTP/2 is answered on stream 1, later ones on theirs,
// and the tables of both sides agree.
func TestUpgrade(t *testing.T) {
	_, addr := serveUpgrades(t, echo)
	c := upgrade(t, addr)
	for i := range uint32(3) {
		c.get(3+2*i, fmt.Sprint("/later/", i))
	}
	got := c.answers(4)
	for stream, want := range map[uint32]string{
		1: "200 HTTP/2.0 localhost:7070 /first?a=b 1",
		3: "200 HTTP/2.0 localhost:7070 /later/0 later",
		7: "200 HTTP/2.0 localhost:7070 /later/2 later",
	} {
		if got[stream] != want {
			t.Errorf("stream %d: %q, want %q", stream, got[stream], want)
		}
	}
}

// Requests on an upgraded connection are judged like others.
func TestUpgradeIsGuarded(t *testing.T) { // SEC-50, SEC-54
	_, addr := serveUpgrades(t, echo)
	for raw, want := range map[string]string{
		strings.Replace(upgradeRequest, "localhost", "evil.example", 1):                   "421",
		strings.Replace(upgradeRequest, "\r\n\r\n", "\r\nContent-Length: 1\r\n\r\nx", 1):  "400",
		strings.Replace(upgradeRequest, "GET", "POST", 1):                                 "200", // not upgraded
		strings.Replace(upgradeRequest, ", HTTP2-Settings", "", 1):                        "200",
		strings.Replace(upgradeRequest, "Upgrade: h2c", "Upgrade: h2c\r\nUpgrade: x", 1):  "200",
		strings.Replace(upgradeRequest, "X-Test: 1", "X: "+strings.Repeat("a", 30000), 1): "200",
	} {
		if statuses, body := roundTrip(t, addr, raw); len(statuses) == 0 || statuses[0] != want {
			t.Errorf("%.60q: %v, want %s\n%.200s", raw, statuses, want, body)
		}
	}
	c := upgrade(t, addr)
	for _, f := range []hpack.HeaderField{{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "http"}, {Name: ":authority", Value: "evil.example"}, {Name: ":path", Value: "/"}} {
		c.enc.WriteField(f)
	}
	c.f.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: c.block.Bytes(), EndStream: true, EndHeaders: true})
	if got := c.answers(2)[3]; !strings.HasPrefix(got, "421") {
		t.Errorf("foreign authority: %q, want 421", got)
	}
}

// What does not begin HTTP/2 after an upgrade is cut off, and one that does not
// begin at all does not keep the server from stopping (REL-12).
func TestUpgradeMalformed(t *testing.T) { // SEC-54, SEC-55
	srv, addr := serveUpgrades(t, echo)
	settings := http2.ClientPreface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00"
	for _, begin := range []string{"GET / HTTP/1.1\r\n" + strings.Repeat("x", 100), http2.ClientPreface + strings.Repeat("\xff", 9),
		settings[:10] + "X" + settings[11:], http2.ClientPreface + "\xff\xff\xff\x04\x00\x00\x00\x00\x00", http2.ClientPreface + "\x00\x00\x00\x01\x00\x00\x00\x00\x01"} {
		statuses, body := roundTrip(t, addr, upgradeRequest+begin)
		if len(statuses) == 0 || statuses[0] != "101" || strings.Contains(body, "/first") {
			t.Errorf("after %q: %q", begin, body)
		}
	}
	silent, err := net.Dial(addr.Network(), addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	io.WriteString(silent, upgradeRequest)
	io.ReadFull(silent, make([]byte, 12))
	done := upgrade(t, addr)
	done.answers(1)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond) // a node waits 8 s
	defer cancel()
	srv.Shutdown(ctx)
	srv.Close()
	if _, err := io.ReadAll(silent); err != nil {
		t.Errorf("silent connection: %v, want its end", err)
	}
}

// Requests over HTTP/2 are bounded in number over all connections.
func TestStreamsBounded(t *testing.T) { // SEC-55, REL-8
	const most = 3
	var running atomic.Int64
	var first atomic.Bool
	full, release := make(chan struct{}), make(chan struct{})
	_, addr := serveStreams(t, most, func(w http.ResponseWriter, r *http.Request) {
		n := running.Add(1)
		defer running.Add(-1)
		switch {
		case n > most:
			t.Errorf("%d requests at once, want at most %d", n, most)
		case n == most && first.CompareAndSwap(false, true):
			close(full)
		}
		<-release
		fmt.Fprint(w, "ok")
	})
	clients := []*h2Client{upgrade(t, addr), upgrade(t, addr)}
	for _, c := range clients {
		for i := range uint32(5) {
			c.get(3+2*i, "/")
		}
	}
	<-full
	close(release)
	for _, c := range clients {
		for stream, got := range c.answers(6) {
			if got != "200 ok" {
				t.Errorf("stream %d: %q", stream, got)
			}
		}
	}
}
