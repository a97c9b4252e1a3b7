package httpguard

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A pipeListener accepts the ends of pipes.
type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 7070} }

// TestSlowClients has 200 clients of each slow kind at once: each is dropped when its
// time is over and not before, and who asks meanwhile is answered at once. SEC-55
func TestSlowClients(t *testing.T) {
	const get = "GET / HTTP/1.1\r\nHost: localhost:7070\r\n"
	for _, kind := range []struct {
		name string
		do   func(c net.Conn) // until the connection fails
		want time.Duration    // from the connection's beginning
	}{
		{"silent", func(c net.Conn) {}, headerTimeout},
		{"half a header", func(c net.Conn) { io.WriteString(c, get) }, headerTimeout},
		{"dripping a header", func(c net.Conn) {
			io.WriteString(c, get+"X: ")
			for {
				time.Sleep(time.Second)
				if _, err := io.WriteString(c, "x"); err != nil {
					return
				}
			}
		}, headerTimeout},
		{"idle after an answer", func(c net.Conn) { io.WriteString(c, get+"\r\n") }, idleTimeout},
		{"dripping a second header", func(c net.Conn) {
			io.WriteString(c, get+"\r\n")
			time.Sleep(5 * time.Second)
			io.WriteString(c, get)
		}, 5*time.Second + headerTimeout},
	} {
		synctest.Test(t, func(t *testing.T) {
			l := &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
			srv := Server(New(Config{Hosts: LoopbackHosts(7070)}, http.HandlerFunc(ok)), nil)
			var wg sync.WaitGroup
			wg.Go(func() { srv.Serve(Listen(l)) })
			for range 200 {
				ours, theirs := net.Pipe()
				l.conns <- theirs
				begin := time.Now()
				wg.Go(func() { kind.do(ours) })
				wg.Go(func() {
					defer ours.Close()
					io.Copy(io.Discard, ours)
					if d := time.Since(begin); d < kind.want-time.Second || d > kind.want+time.Second {
						t.Errorf("%s: dropped after %v, want %v", kind.name, d, kind.want)
					}
				})
			}
			time.Sleep(2 * time.Second)
			ours, theirs := net.Pipe()
			l.conns <- theirs
			wg.Go(func() { io.WriteString(ours, get+"Connection: close\r\n\r\n") })
			begin := time.Now()
			b, _ := io.ReadAll(ours)
			if d := time.Since(begin); !bytes.HasPrefix(b, []byte("HTTP/1.1 200")) || d > time.Second {
				t.Errorf("%s: beside them, an answer after %v: %.100q", kind.name, d, b)
			}
			time.Sleep(idleTimeout + 2*time.Second)
			srv.Close()
			wg.Wait()
		})
	}
}

// TestHeaderLimit: headers of 64 KiB are the most. SEC-55
func TestHeaderLimit(t *testing.T) {
	addr := serve(t, Config{}, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "ok") })
	for size, want := range map[int]string{1 << 10: "200", maxHeaderBytes - 1<<10: "200", maxHeaderBytes + 1<<10: "431", 8 << 20: "431"} {
		head := "GET / HTTP/1.1\r\nHost: localhost:7070\r\nConnection: close\r\nX: "
		got, _ := roundTrip(t, addr, head+strings.Repeat("x", size-len(head)-4)+"\r\n\r\n")
		// The last one may be reset before we have read the refusal.
		if len(got) == 0 && size > 1<<20 {
			continue
		}
		if len(got) != 1 || got[0] != want {
			t.Errorf("%d bytes: %v, want %s", size, got, want)
		}
	}
}

// TestRangesCostNoMore: whatever the ranges, an answer has no more than twice the
// object's bytes. SEC-55
func TestRangesCostNoMore(t *testing.T) {
	object := bytes.Repeat([]byte("0123456789abcdef"), 10_000)
	addr := serve(t, Config{}, func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "f", time.Time{}, bytes.NewReader(object))
	})
	for name, ranges := range map[string]string{
		"one":                     "0-",
		"the whole twice":         "0-,0-",
		"as many as are honoured": strings.Repeat("0-,", MaxRanges-1) + "0-",
		"one more":                strings.Repeat("0-,", MaxRanges) + "0-",
		"1300 overlapping":        strings.Repeat("5-,1-,", 650) + "0-",
		"most of it, often":       strings.Repeat("0-159998,", MaxRanges-1) + "1-",
		"halves":                  "0-79999,80000-",
	} {
		_, answer := roundTrip(t, addr, "GET / HTTP/1.1\r\nHost: localhost:7070\r\nConnection: close\r\nRange: bytes="+ranges+"\r\n\r\n")
		if len(answer) < len(object) || len(answer) > 2*len(object) {
			t.Errorf("%s: %d bytes of an object of %d", name, len(answer), len(object))
		}
	}
}
