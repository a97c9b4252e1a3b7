package httpguard

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// oneConn is a listener with one connection.
type oneConn struct {
	net.Listener
	c chan net.Conn
}

func (l oneConn) Accept() (net.Conn, error) {
	if c, ok := <-l.c; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (oneConn) Close() error   { return nil }
func (oneConn) Addr() net.Addr { return &net.TCPAddr{} }

// TestStalledStreams has clients over HTTP/2 that open windows of different sizes
// for an answer that comes in two halves, long after each other. SEC-55
func TestStalledStreams(t *testing.T) {
	const half = 100 << 10
	for _, tt := range []struct {
		name   string
		window uint32 // bytes that the client takes in all
		first  int    // bytes written first
		want   bool   // the answer is complete
	}{
		{"open", 1 << 20, half, true},
		{"shut", 0, half, false},
		{"shut, with an answer that fits into a buffer", 0, 10, false},
		{"shut after the first half", half + 1000, half, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ended := make(chan time.Duration, 1)
				start := time.Now()
				srv := Server(New(Config{Hosts: []string{"localhost"}}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					defer func() { ended <- time.Since(start) }()
					if _, err := w.Write(make([]byte, tt.first)); err != nil {
						return
					}
					if tt.first == half {
						time.Sleep(time.Hour)
						w.Write(make([]byte, half))
					}
				})), nil)
				srv.Protocols.SetUnencryptedHTTP2(true)
				ours, theirs := net.Pipe()
				l := oneConn{c: make(chan net.Conn, 1)}
				l.c <- ours
				go srv.Serve(l)
				got, reset := readStream(t, theirs, tt.window)
				if want := tt.want; reset == want || want && got != 2*half {
					t.Errorf("%d bytes, reset %v; want success %v", got, reset, want)
				}
				if d := <-ended; !tt.want && d > time.Hour+3*slowWindow {
					t.Errorf("the handler ended after %v", d)
				}
				theirs.Close()
				close(l.c)
				srv.Close()
				synctest.Wait()
			})
		})
	}
}

// readStream asks for something over HTTP/2, with a window that stays as it is, and
// returns how many bytes came, and whether the server ended the stream early.
func readStream(t *testing.T, conn net.Conn, window uint32) (n int, reset bool) {
	t.Helper()
	// A pipe has no buffer: what is written must not wait for what is read.
	frames := make(chan []byte, 10)
	go func() {
		for b := range frames {
			if _, err := conn.Write(b); err != nil {
				return
			}
		}
	}()
	defer close(frames)
	send := func(write func(f *http2.Framer)) {
		var b bytes.Buffer
		write(http2.NewFramer(&b, nil))
		frames <- b.Bytes()
	}
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, f := range []hpack.HeaderField{{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "http"}, {Name: ":authority", Value: "localhost"}, {Name: ":path", Value: "/"}} {
		enc.WriteField(f)
	}
	frames <- []byte(http2.ClientPreface)
	send(func(f *http2.Framer) {
		f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: window})
		f.WriteWindowUpdate(0, 1<<20)
		f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true})
	})
	r := http2.NewFramer(io.Discard, conn)
	for {
		fr, err := r.ReadFrame()
		if err != nil {
			t.Fatalf("after %d bytes: %v", n, err)
		}
		switch fr := fr.(type) {
		case *http2.SettingsFrame:
			if !fr.IsAck() {
				send(func(f *http2.Framer) { f.WriteSettingsAck() })
			}
		case *http2.DataFrame:
			if n += len(fr.Data()); fr.StreamEnded() {
				return n, false
			}
		case *http2.RSTStreamFrame:
			return n, true
		}
	}
}
