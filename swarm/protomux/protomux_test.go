package protomux_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/pkgswarm/pkgswarm/internal/compact"
	"github.com/pkgswarm/pkgswarm/internal/vectors"
	"github.com/pkgswarm/pkgswarm/swarm/protomux"
)

// A memStream is a stream whose writes are recorded and handed to the other end
// when they are flushed.
type memStream struct {
	in, out chan []byte
	once    *sync.Once
	ended   chan struct{}

	mu   sync.Mutex
	buf  [][]byte
	sent []string // in hexadecimal
}

func memPair() (a, b *memStream) {
	x, y, once, ended := make(chan []byte, 10000), make(chan []byte, 10000), new(sync.Once), make(chan struct{})
	return &memStream{in: x, out: y, once: once, ended: ended}, &memStream{in: y, out: x, once: once, ended: ended}
}

func (s *memStream) ReadMessage() ([]byte, error) {
	select {
	case b := <-s.in:
		return b, nil
	case <-s.ended:
	}
	select {
	case b := <-s.in:
		return b, nil
	default:
		return nil, io.EOF
	}
}

func (s *memStream) WriteMessage(parts ...[]byte) error {
	b := slices.Concat(parts...)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.buf = append(s.buf, b)
	s.sent = append(s.sent, hex.EncodeToString(b))
	return nil
}

func (s *memStream) Flush() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.buf {
		select {
		case s.out <- b:
		case <-s.ended:
			return io.ErrClosedPipe
		}
	}
	s.buf = nil
	return nil
}

func (s *memStream) Close() error {
	s.once.Do(func() { close(s.ended) })
	return nil
}

func (s *memStream) frames() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.sent)
}

// A recorder notes what arrives.
type recorder struct {
	mu  sync.Mutex
	got []string
	err error // returned by Message
}

func (r *recorder) note(format string, args ...any) {
	r.mu.Lock()
	r.got = append(r.got, fmt.Sprintf(format, args...))
	r.mu.Unlock()
}

func (r *recorder) Opened(h []byte) error { r.note("opened %s", h); return nil }
func (r *recorder) Message(kind int, b []byte) error {
	r.note("%d %x", kind, b)
	return r.err
}
func (r *recorder) Closed() { r.note("closed") }

func (r *recorder) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.got)
}

// scene runs f with two connected ends inside a bubble.
func scene(t *testing.T, f func(a, b *protomux.Mux, sa, sb *memStream)) (errA, errB error) {
	synctest.Test(t, func(t *testing.T) {
		sa, sb := memPair()
		a, b := protomux.New(sa), protomux.New(sb)
		var wg sync.WaitGroup
		wg.Go(func() { errA = a.Run() })
		wg.Go(func() { errB = b.Run() })
		f(a, b, sa, sb)
		synctest.Wait()
		a.Close(nil)
		wg.Wait()
	})
	return errA, errB
}

type vector struct {
	Name string
	Log  []struct {
		From, Event string
		Frame       vectors.Hex
	}
}

// want returns the frames that a side has sent in a recorded scene.
func want(t *testing.T, name, from string) (frames []string) {
	var v struct{ Protomux []vector }
	vectors.Load(t, "messages.json", &v)
	for _, s := range v.Protomux {
		if s.Name == name {
			for _, l := range s.Log {
				if l.From == from && l.Event == "" {
					frames = append(frames, hex.EncodeToString(l.Frame))
				}
			}
		}
	}
	if frames == nil {
		t.Fatalf("no frames of %s in scene %q", from, name)
	}
	return frames
}

func equal(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n got %q\nwant %q", what, got, want)
	}
}

var id, _ = hex.DecodeString("a80bf455603280024a461934375ff62fd7abac931b2e2919cc2364b1020ea6ed")

func hs(s string) []byte { return compact.AppendString(nil, s) }

func mustOpen(t *testing.T, m *protomux.Mux, protocol, handshake string, h protomux.Handler) *protomux.Channel {
	t.Helper()
	ch, err := m.Open(protocol, id, hs(handshake), h)
	if err != nil {
		t.Fatal(err)
	}
	return ch
}

func TestOpenMessageClose(t *testing.T) {
	var ra, rb recorder
	scene(t, func(a, b *protomux.Mux, sa, sb *memStream) {
		ca, cb := mustOpen(t, a, "test", "from a", &ra), mustOpen(t, b, "test", "from b", &rb)
		synctest.Wait()
		ca.Send(0, hs("hello"))
		ca.Send(1, compact.AppendUint(nil, 300))
		synctest.Wait()
		cb.Close()
		synctest.Wait()
		equal(t, "a sent", sa.frames(), want(t, "open, message, close", "a"))
		equal(t, "b sent", sb.frames(), want(t, "open, message, close", "b"))
		if err := ca.Send(0, nil); !errors.Is(err, protomux.ErrClosed) {
			t.Errorf("send after close = %v", err)
		}
	})
	equal(t, "a got", ra.all(), []string{"opened \x06from b", "closed"})
	equal(t, "b got", rb.all(), []string{"opened \x06from a", "0 0568656c6c6f", "1 fd2c01"})
}

func TestEarlyData(t *testing.T) {
	var ra, rb recorder
	scene(t, func(a, b *protomux.Mux, sa, sb *memStream) {
		b.Handle("test", func([]byte) error { return nil }) // opened below
		ca := mustOpen(t, a, "test", "", &ra)
		ca.Send(0, hs("early"))
		synctest.Wait()
		mustOpen(t, b, "test", "late", &rb)
		synctest.Wait()
		ca.Send(0, hs("later"))
	})
	equal(t, "b got", rb.all(), []string{"opened \x00", "0 056561726c79", "0 056c61746572", "closed"})
	equal(t, "a got", ra.all(), []string{"opened \x04late", "closed"})
}

func TestReject(t *testing.T) {
	var ra recorder
	scene(t, func(a, b *protomux.Mux, sa, sb *memStream) {
		b.Handle("refused", func([]byte) error { return errors.New("no") })
		mustOpen(t, a, "unknown", "x", &ra)
		synctest.Wait()
		equal(t, "b sent", sb.frames(), want(t, "reject", "b"))
		mustOpen(t, a, "refused", "x", &ra) // takes number 1 again
		synctest.Wait()
		equal(t, "b sent", sb.frames(), []string{"000201", "000201"})
	})
	equal(t, "a got", ra.all(), []string{"closed", "closed"})
}

func TestPairOnDemand(t *testing.T) {
	var ra, rb recorder
	scene(t, func(a, b *protomux.Mux, sa, sb *memStream) {
		b.Handle("test", func(got []byte) error {
			_, err := b.Open("test", got, hs("on demand"), &rb)
			return err
		})
		mustOpen(t, a, "test", "x", &ra)
		synctest.Wait()
		equal(t, "b sent", sb.frames(), want(t, "pair on demand", "b"))
	})
	equal(t, "a got", ra.all(), []string{"opened \x09on demand", "closed"})
}

func TestBatch(t *testing.T) {
	var r recorder
	scene(t, func(a, b *protomux.Mux, sa, sb *memStream) {
		one, two := mustOpen(t, a, "one", "a one", &r), mustOpen(t, a, "two", "a two", &r)
		var rb1, rb2 recorder
		mustOpen(t, b, "one", "b one", &rb1)
		mustOpen(t, b, "two", "b two", &rb2)
		synctest.Wait()
		a.Batch(func() error {
			one.Send(0, hs("m1"))
			one.Send(1, []byte{2})
			two.Send(0, hs("m3"))
			mustOpen(t, a, "three", "a three", &r)
			one.Send(0, hs("m4"))
			two.Close()
			return nil
		})
		synctest.Wait()
		all := want(t, "batch", "a")
		got := sa.frames()
		if got[len(got)-1] != all[len(all)-1] {
			t.Errorf("batch:\n got %s\nwant %s", got[len(got)-1], all[len(all)-1])
		}
		equal(t, "b one got", rb1.all(), []string{"opened \x05a one", "0 026d31", "1 02", "0 026d34"})
		equal(t, "b two got", rb2.all(), []string{"opened \x05a two", "0 026d33", "closed"})
	})
}

func TestNumberReused(t *testing.T) {
	var r recorder
	scene(t, func(a, b *protomux.Mux, sa, sb *memStream) {
		ca := mustOpen(t, a, "one", "a", &r)
		mustOpen(t, b, "one", "b", &r)
		synctest.Wait()
		ca.Close()
		synctest.Wait()
		mustOpen(t, a, "two", "a again", &r)
		synctest.Wait()
		got := sa.frames()
		equal(t, "a sent", got, want(t, "local ids are reused", "a"))
	})
}

func send(s *memStream, frame []byte) { s.WriteMessage(frame); s.Flush() }

// Frames that make no sense end the connection; so does asking for too much.
func TestBadFrames(t *testing.T) {
	open := func(number uint64) []byte {
		return compact.AppendBytes(compact.AppendString(compact.AppendUint([]byte{0, 1}, number), "p"), compact.AppendUint(nil, number))
	}
	for _, c := range []struct {
		name string
		send func(s *memStream)
		want error
	}{
		{"open skips a number", func(s *memStream) { send(s, []byte{0, 1, 5, 1, 'x', 0}) }, protomux.ErrProtocol},
		{"open of a number in use", func(s *memStream) { send(s, open(1)); send(s, open(1)) }, protomux.ErrProtocol},
		{"reject of nothing", func(s *memStream) { send(s, []byte{0, 2, 1}) }, protomux.ErrProtocol},
		{"cut batch", func(s *memStream) { send(s, []byte{0, 0, 1, 9, 1}) }, protomux.ErrProtocol},
		{"batch in a batch", func(s *memStream) { send(s, []byte{0, 0, 0, 2, 0, 1}) }, protomux.ErrProtocol},
		{"one byte", func(s *memStream) { send(s, []byte{1}) }, protomux.ErrProtocol},
		{"long protocol", func(s *memStream) {
			send(s, compact.AppendString([]byte{0, 1, 1}, string(make([]byte, 300))))
		}, protomux.ErrProtocol},
		{"as many channels as there may be", func(s *memStream) { // SEC-20
			for i := range uint64(protomux.MaxChannels) {
				s.WriteMessage(open(i + 1))
			}
			s.Flush()
		}, nil},
		{"one channel more", func(s *memStream) { // SEC-20
			for i := range uint64(protomux.MaxChannels + 1) {
				s.WriteMessage(open(i + 1))
			}
			s.Flush()
		}, protomux.ErrLimit},
		{"100 000 channels", func(s *memStream) { // SEC-20
			for i := range uint64(100_000) {
				s.WriteMessage(open(i + 1))
				if i%1000 == 0 && s.Flush() != nil {
					return
				}
			}
			s.Flush()
		}, protomux.ErrLimit},
		{"100 000 rejected channels", func(s *memStream) { // SEC-20
			for i := range uint64(100_000) {
				s.WriteMessage(append(compact.AppendUint([]byte{0, 1}, i+1), 1, 'q', 0))
				if i%1000 == 0 {
					if s.Flush() != nil {
						return
					}
					synctest.Wait()
				}
			}
			s.Flush()
		}, protomux.ErrLimit},
	} {
		var errB error
		synctest.Test(t, func(t *testing.T) {
			sa, sb := memPair()
			b := protomux.New(sb)
			b.Handle("p", func([]byte) error { return nil })
			var wg sync.WaitGroup
			wg.Go(func() { errB = b.Run() })
			c.send(sa)
			synctest.Wait()
			b.Close(nil)
			wg.Wait()
		})
		if !errors.Is(errB, c.want) {
			t.Errorf("%s: %v, want %v", c.name, errB, c.want)
		}
	}
}

func TestHandlerError(t *testing.T) {
	bad := errors.New("bad message")
	_, errB := scene(t, func(a, b *protomux.Mux, sa, sb *memStream) {
		ca := mustOpen(t, a, "test", "", &recorder{})
		mustOpen(t, b, "test", "", &recorder{err: bad})
		ca.Send(0, nil)
	})
	if !errors.Is(errB, bad) {
		t.Errorf("Run = %v, want the handler's error", errB)
	}
}

// A panicker panics wherever a handler can.
type panicker struct{ recorder }

func (p *panicker) Message(kind int, b []byte) error { panic("message") }
func (p *panicker) Closed()                          { panic("closed") }

// REL-16: a panic ends the connection, not the program, and the other channels are
// told.
func TestHandlerPanic(t *testing.T) {
	for _, early := range []bool{false, true} {
		var other recorder
		_, errB := scene(t, func(a, b *protomux.Mux, sa, sb *memStream) {
			b.Handle("test", func([]byte) error { return nil })
			mustOpen(t, b, "other", "", &other)
			ca := mustOpen(t, a, "test", "", &recorder{})
			if early {
				ca.Send(0, nil)
				synctest.Wait()
			}
			mustOpen(t, b, "test", "", &panicker{})
			synctest.Wait()
			ca.Send(0, nil)
		})
		if e, ok := errors.AsType[*protomux.PanicError](errB); !ok || e.Value != "message" || len(e.Stack) == 0 {
			t.Errorf("early %v: Run = %v, want the panic", early, errB)
		}
		if got := other.all(); len(got) != 1 || got[0] != "closed" {
			t.Errorf("early %v: the other channel: %v, want closed", early, got)
		}
	}
}

// A node may find that its peer has none of its thousands of cores: rejects are
// cheap, and numbers are used again.
func TestManyRejects(t *testing.T) {
	const n = 8000
	events := make([]recorder, n)
	scene(t, func(a, b *protomux.Mux, sa, sb *memStream) {
		for round := range 2 {
			for i := range n / 2 {
				if _, err := a.Open("test", compact.AppendUint(nil, uint64(i)), nil, &events[round*n/2+i]); err != nil {
					t.Fatal(err)
				}
			}
			synctest.Wait()
		}
		ch := mustOpen(t, a, "test", "", &recorder{})
		if err := ch.Send(0, nil); err != nil {
			t.Fatal(err)
		}
	})
	for i := range events {
		if got := events[i].all(); len(got) != 1 || got[0] != "closed" {
			t.Fatalf("channel %d: %v, want closed", i, got)
		}
	}
}

// Messages for a channel that nobody has opened yet are kept within a bound.
func TestKeptIsBounded(t *testing.T) {
	var rb recorder
	scene(t, func(a, b *protomux.Mux, sa, sb *memStream) {
		b.Handle("test", func([]byte) error { return nil })
		ca := mustOpen(t, a, "test", "", &recorder{})
		for range 100 {
			ca.Send(0, make([]byte, 4000))
		}
		synctest.Wait()
		if n := len(sb.in); n < 80 {
			t.Errorf("%d of 100 messages are left unread, want reading to pause", n)
		}
		mustOpen(t, b, "test", "", &rb)
	})
	if n := len(rb.all()); n != 102 {
		t.Errorf("got %d events, want 102", n)
	}
}

func FuzzFrames(f *testing.F) {
	f.Add([]byte{0, 1, 1, 1, 'p', 0}, []byte{1, 0, 5})
	f.Add([]byte{0, 0, 1, 2, 0, 7, 0, 0, 2, 3, 1}, []byte{0, 3, 1})
	f.Fuzz(func(t *testing.T, x, y []byte) {
		sa, sb := memPair()
		b := protomux.New(sb)
		b.Handle("p", func(id []byte) error {
			_, err := b.Open("p", bytes.Clone(id), nil, &recorder{})
			return err
		})
		send(sa, x)
		send(sa, y)
		sa.Close()
		b.Run()
	})
}
