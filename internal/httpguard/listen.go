package httpguard

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

// What a client may hold (SEC-55).
const (
	headerTimeout  = 10 * time.Second
	maxHeaderBytes = 64 << 10
	idleTimeout    = 60 * time.Second
	maxConns       = 1024

	// A reader that takes less than slowBytes in slowWindow is dropped.
	slowWindow = 60 * time.Second
	slowBytes  = 60 << 10
)

// Server returns an HTTP server with the package's deadlines and caps.
func Server(h http.Handler, log *slog.Logger) *http.Server {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes - 4096, // net/http adds 4096
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// Listen returns a listener whose connections are capped in number, more wait
// to be accepted, and dropped when the other side reads less than 1 KiB/s over
// a minute.
func Listen(ln net.Listener) net.Listener {
	return &listener{Listener: ln, slots: make(chan struct{}, maxConns), closed: make(chan struct{})}
}

type listener struct {
	net.Listener
	slots  chan struct{} // one per open connection
	closed chan struct{}
	once   sync.Once
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &conn{Conn: c, free: sync.OnceFunc(func() { <-l.slots })}, nil
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// A conn sets a deadline for each stretch of a write.
type conn struct {
	net.Conn
	free func() // gives back the connection's slot
}

func (c *conn) Close() error {
	defer c.free()
	return c.Conn.Close()
}

// Write writes p as long as the other side reads.
func (c *conn) Write(p []byte) (n int, err error) {
	for {
		m, err := c.stretch(func() (int64, error) {
			m, err := c.Conn.Write(p[n:])
			return int64(m), err
		})
		if n += int(m); err != errMore {
			return n, err
		}
	}
}

// ReadFrom writes what r has, with sendfile where that is possible.
func (c *conn) ReadFrom(r io.Reader) (n int64, err error) {
	for {
		m, err := c.stretch(func() (int64, error) {
			if rf, ok := c.Conn.(io.ReaderFrom); ok {
				return rf.ReadFrom(r)
			}
			return io.Copy(onlyWriter{c.Conn}, r)
		})
		if n += m; err != errMore {
			return n, err
		}
	}
}

type onlyWriter struct{ io.Writer }

// errMore says that a stretch has ended and the next may begin.
var errMore = errors.New("more")

// stretch runs write under a deadline. A write that the deadline ends is to go
// on if the other side has read enough meanwhile.
func (c *conn) stretch(write func() (int64, error)) (int64, error) {
	if err := c.SetWriteDeadline(time.Now().Add(slowWindow)); err != nil {
		return 0, err
	}
	n, err := write()
	if errors.Is(err, os.ErrDeadlineExceeded) && n >= slowBytes {
		return n, errMore
	}
	return n, err
}

// CloseWrite lets net/http end the answer before the connection.
func (c *conn) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return nil
}
