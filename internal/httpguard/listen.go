package httpguard

import (
	"container/list"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// What a client may hold (SEC-55).
const (
	headerTimeout  = 10 * time.Second
	maxHeaderBytes = 64 << 10
	idleTimeout    = 60 * time.Second
	maxConns       = 1024 // or a third of the descriptors that the process may have
	maxStreams     = 100  // requests under way on a connection of HTTP/2; on all together as many as maxConns

	minSilence = 500 * time.Millisecond // of a connection that makes room for another

	// A reader that takes less than slowBytes in slowWindow is dropped.
	slowWindow = 60 * time.Second
	slowBytes  = 60 << 10
)

// Server returns an HTTP server with the package's deadlines and caps.
func Server(h http.Handler, log *slog.Logger) *http.Server {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	return &http.Server{
		Handler:           h,
		Protocols:         &protocols,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes - 4096, // net/http adds 4096
		// The guard answers OPTIONS *, too.
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// Listen returns a listener whose connections are capped in number, and dropped
// when the other side reads less than 1 KiB/s over a minute. When there are too
// many, the one that has been silent longest since it was opened makes room;
// when all have sent something, more wait to be accepted.
func Listen(ln net.Listener) net.Listener {
	return &listener{Listener: ln, slots: make(chan struct{}, share()), closed: make(chan struct{})}
}

// share is the part of the process's descriptors that clients may have.
func share() int { return Descriptors(3*maxConns) / 3 }

type listener struct {
	net.Listener
	slots  chan struct{} // one per open connection
	closed chan struct{}
	once   sync.Once

	mu     sync.Mutex
	silent list.List // of *conn that have not sent anything, the oldest first
}

func (l *listener) Accept() (net.Conn, error) {
	if err := l.room(); err != nil {
		return nil, err
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return l.add(c), nil
}

// room takes a slot, for which silent connections have to give way if need be.
func (l *listener) room() error {
	for {
		select {
		case l.slots <- struct{}{}:
			return nil
		default:
		}
		wait := time.NewTimer(l.shed())
		select {
		case l.slots <- struct{}{}:
			wait.Stop()
			return nil
		case <-l.closed:
			wait.Stop()
			return net.ErrClosed
		case <-wait.C:
		}
	}
}

func (l *listener) add(nc net.Conn) *conn {
	c := &conn{Conn: nc, since: time.Now()}
	l.mu.Lock()
	e := l.silent.PushBack(c)
	l.mu.Unlock()
	c.heard = sync.OnceFunc(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.silent.Remove(e)
	})
	c.free = sync.OnceFunc(func() { <-l.slots })
	return c
}

// shed closes the connection that has been silent longest, if it is one that could
// have sent its request by now, and returns after how long to look again.
func (l *listener) shed() time.Duration {
	l.mu.Lock()
	e := l.silent.Front()
	l.mu.Unlock()
	if e == nil {
		return minSilence
	}
	c := e.Value.(*conn)
	if left := minSilence - time.Since(c.since); left > 0 {
		return left
	}
	c.Close()
	return 0
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// A conn sets a deadline for each stretch of a write.
type conn struct {
	net.Conn
	since time.Time // when it was accepted
	heard func()    // says that the other side has sent something, or is gone
	free  func()    // gives back the connection's slot

	writeUntil atomic.Int64 // the deadline of a stretch, in Unix nanoseconds; 0: none
}

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.heard()
	}
	return n, err
}

func (c *conn) Close() error {
	defer c.free()
	c.heard()
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
// on if the other side has read enough meanwhile. Stretches that begin within a
// second share a deadline.
func (c *conn) stretch(write func() (int64, error)) (int64, error) {
	until := time.Now().Add(slowWindow)
	if until.UnixNano()-c.writeUntil.Load() > int64(time.Second) {
		if err := c.Conn.SetWriteDeadline(until); err != nil {
			return 0, err
		}
		c.writeUntil.Store(until.UnixNano())
	}
	n, err := write()
	if errors.Is(err, os.ErrDeadlineExceeded) && n >= slowBytes {
		return n, errMore
	}
	return n, err
}

// SetWriteDeadline leaves a stretch's deadline where there is to be none, as
// net/http has it after every answer: it ends nothing but what is written.
func (c *conn) SetWriteDeadline(t time.Time) error {
	if t.IsZero() && c.writeUntil.Load() != 0 {
		return nil
	}
	c.writeUntil.Store(0)
	return c.Conn.SetWriteDeadline(t)
}

// SetDeadline is SetReadDeadline and SetWriteDeadline.
func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// CloseWrite lets net/http end the answer before the connection.
func (c *conn) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return nil
}
