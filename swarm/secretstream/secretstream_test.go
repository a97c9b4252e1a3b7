package secretstream

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flynn/noise"
	"github.com/pkgswarm/pkgswarm/internal/vectors"
)

type keyVector struct{ Seed, PublicKey, SecretKey vectors.Hex }

type vectorFile struct {
	DH []struct {
		SecretKey, RemotePublicKey, Shared vectors.Hex
	}
	DHEdgeCases []struct {
		Name            string
		RemotePublicKey vectors.Hex
	}
	Keys    map[string]keyVector
	NoiseXX struct {
		Messages []struct {
			Message vectors.Hex
		}
		HandshakeHash, InitiatorTx, InitiatorRx vectors.Hex
	}
	Stream struct {
		HandshakeHash, InitiatorID, ResponderID, InitiatorHeader, ResponderHeader vectors.Hex
		Wire                                                                      []struct {
			From  string
			Bytes vectors.Hex
		}
	}
	Secretstream struct {
		Key, Header vectors.Hex
		Steps       []struct {
			Op                     string
			Tag                    byte
			Message, Cipher, State vectors.Hex
		}
	}
}

func load(t *testing.T) (v vectorFile) {
	vectors.Load(t, "secret-stream.json", &v)
	if len(v.DH) == 0 || len(v.Keys) != 4 || len(v.Secretstream.Steps) == 0 || len(v.Stream.Wire) == 0 {
		t.Fatal("the vector file lacks a section")
	}
	return v
}

func TestDH(t *testing.T) {
	v := load(t)
	for _, c := range v.DH {
		got, err := dhEd25519{}.DH(c.SecretKey, c.RemotePublicKey)
		if err != nil || !bytes.Equal(got, c.Shared) {
			t.Errorf("DH with %x = %x, %v, want %x", c.RemotePublicKey, got, err, c.Shared)
		}
	}
	for _, c := range v.DHEdgeCases {
		if got, err := (dhEd25519{}).DH(v.DH[0].SecretKey, c.RemotePublicKey); err == nil {
			t.Errorf("DH with %s = %x, want an error", c.Name, got)
		}
	}
}

func TestNoiseVectors(t *testing.T) {
	v := load(t)
	side := func(name string, initiator bool) *noise.HandshakeState {
		c, err := noiseConfig(Config{Key: ed25519.PrivateKey(v.Keys[name+" static"].SecretKey)}, initiator)
		if err != nil {
			t.Fatal(err)
		}
		c.Random = bytes.NewReader(v.Keys[name+" ephemeral"].Seed)
		h, err := noise.NewHandshakeState(c)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	a, b := side("initiator", true), side("responder", false)
	var k1, k2 *noise.CipherState
	for i, m := range v.NoiseXX.Messages {
		got, c1, c2, err := a.WriteMessage(nil, nil)
		if err != nil || !bytes.Equal(got, m.Message) {
			t.Fatalf("message %d = %x, %v, want %x", i, got, err, m.Message)
		}
		if _, _, _, err := b.ReadMessage(nil, got); err != nil {
			t.Fatalf("message %d: %v", i, err)
		}
		k1, k2 = c1, c2
		a, b = b, a
	}
	tx, rx := k1.UnsafeKey(), k2.UnsafeKey()
	if !bytes.Equal(tx[:], v.NoiseXX.InitiatorTx) || !bytes.Equal(rx[:], v.NoiseXX.InitiatorRx) || !bytes.Equal(a.ChannelBinding(), v.NoiseXX.HandshakeHash) {
		t.Errorf("keys %x %x, hash %x", tx, rx, a.ChannelBinding())
	}
	if id := streamID(v.Stream.HandshakeHash, true); !bytes.Equal(id[:], v.Stream.InitiatorID) {
		t.Errorf("initiator's id = %x, want %x", id, v.Stream.InitiatorID)
	}
	if id := streamID(v.Stream.HandshakeHash, false); !bytes.Equal(id[:], v.Stream.ResponderID) {
		t.Errorf("responder's id = %x, want %x", id, v.Stream.ResponderID)
	}
}

func (s *stream) state() []byte { return append(bytes.Clone(s.key[:]), s.nonce[:]...) }

func TestStreamVectors(t *testing.T) {
	v := load(t).Secretstream
	a, err := newStream(v.Key, [headerSize]byte(v.Header))
	if err != nil {
		t.Fatal(err)
	}
	b, _ := newStream(v.Key, [headerSize]byte(v.Header))
	for i, step := range v.Steps {
		switch step.Op {
		case "init":
		case "push":
			buf := make([]byte, prefix+len(step.Message)+16)
			copy(buf[prefix:], step.Message)
			if err := a.seal(buf, len(step.Message), step.Tag); err != nil || !bytes.Equal(buf[prefix-1:], step.Cipher) {
				t.Fatalf("step %d: %x, %v, want %x", i, buf[prefix-1:], err, step.Cipher)
			}
			tag, err := b.open(buf)
			if err != nil || tag != step.Tag || !bytes.Equal(buf[prefix:prefix+len(step.Message)], step.Message) {
				t.Fatalf("step %d: opened to tag %d, %v", i, tag, err)
			}
		default: // the counter is set
			for _, s := range []*stream{a, b} {
				copy(s.nonce[:4], []byte{255, 255, 255, 255})
			}
		}
		if !bytes.Equal(a.state()[:len(step.State)], step.State) && !bytes.HasPrefix(step.State, a.state()) {
			t.Fatalf("step %d (%s): state %x, want %x", i, step.Op, a.state(), step.State)
		}
	}
}

// TestStreamLengths holds the shortcut through the AEAD against every length
// modulo its block, and every flipped bit of a message against the MAC.
func TestStreamLengths(t *testing.T) {
	key := make([]byte, 32)
	r := rand.New(rand.NewPCG(1, 2))
	a, _ := newStream(key, [headerSize]byte{})
	b, _ := newStream(key, [headerSize]byte{})
	for _, n := range append(seq(0, 200), 65535, 65536, 65544) {
		m := make([]byte, n)
		for i := range m {
			m[i] = byte(r.Uint32())
		}
		buf := make([]byte, prefix+n+16)
		copy(buf[prefix:], m)
		if err := a.seal(buf, n, 0); err != nil {
			t.Fatal(err)
		}
		sealed := bytes.Clone(buf[prefix-1:])
		if n < 40 {
			for bit := range 8 * len(sealed) {
				c := *b
				bad := append(make([]byte, prefix-1), sealed...)
				bad[prefix-1+bit/8] ^= 1 << (bit % 8)
				if _, err := c.open(bad); err == nil {
					t.Fatalf("length %d: bit %d flipped is accepted", n, bit)
				}
			}
		}
		if _, err := b.open(buf); err != nil || !bytes.Equal(buf[prefix:prefix+n], m) {
			t.Fatalf("length %d: %v, or another message", n, err)
		}
	}
}

func seq(lo, hi int) (s []int) {
	for i := lo; i < hi; i++ {
		s = append(s, i)
	}
	return s
}

func newKey(seed byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, 32))
}

// pair returns both ends of a connection, or the errors of the handshakes.
func pair(t *testing.T, a, b Config) (ca, cb *Conn, errA, errB error) {
	x, y := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		cb, errB = Server(context.Background(), y, b)
	}()
	ca, errA = Client(context.Background(), x, a)
	<-done
	t.Cleanup(func() {
		if ca != nil {
			ca.Close()
		}
		if cb != nil {
			cb.Close()
		}
	})
	return ca, cb, errA, errB
}

func TestConn(t *testing.T) {
	for _, token := range [][]byte{nil, bytes.Repeat([]byte{7}, 32)} {
		a, b, err1, err2 := pair(t, Config{Key: newKey(1), Token: token}, Config{Key: newKey(2), Token: token})
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		if a.Remote() != PublicKey(newKey(2).Public().(ed25519.PublicKey)) || !bytes.Equal(a.HandshakeHash(), b.HandshakeHash()) {
			t.Error("wrong identity or hash")
		}
		messages := [][]byte{[]byte("hello"), bytes.Repeat([]byte{1}, 100_000), []byte("x"), bytes.Repeat([]byte{2}, 1<<20)}
		go func() {
			for _, m := range messages {
				a.WriteMessage(m[:len(m)/2], m[len(m)/2:])
				a.WriteMessage() // keep-alive
			}
			a.Flush()
			a.Close()
		}()
		for i, want := range messages {
			if got, err := b.ReadMessage(); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("message %d: %d bytes, %v", i, len(got), err)
			}
		}
		if _, err := b.ReadMessage(); !errors.Is(err, io.EOF) {
			t.Errorf("after close: %v, want EOF", err)
		}
	}
}

// TestMessagesKeepTheirOrder writes messages around the size from which they are
// written at once while smaller ones are buffered. REL-18: a small one, then one
// of half a buffer, went out in the wrong order.
func TestMessagesKeepTheirOrder(t *testing.T) {
	a, b, err1, err2 := pair(t, Config{Key: newKey(1)}, Config{Key: newKey(2)})
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	sizes := []int{10, bufferSize / 2, 100, bufferSize/2 - overhead - 3, 10, bufferSize - 200, bufferSize, 5, 2 * bufferSize, 1}
	go func() {
		for i, n := range sizes {
			a.WriteMessage(bytes.Repeat([]byte{byte(i)}, n))
		}
		a.Flush()
	}()
	for i, n := range sizes {
		if got, err := b.ReadMessage(); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{byte(i)}, n)) {
			t.Fatalf("message %d of %d bytes: %d bytes, %v", i, n, len(got), err)
		}
	}
}

// SEC-27: without the token not even the first message is answered.
func TestToken(t *testing.T) {
	token, other := bytes.Repeat([]byte{7}, 32), bytes.Repeat([]byte{8}, 32)
	for _, c := range []struct{ a, b []byte }{{nil, token}, {token, nil}, {other, token}} {
		_, _, errA, errB := pair(t, Config{Key: newKey(1), Token: c.a}, Config{Key: newKey(2), Token: c.b})
		if errA == nil || errB == nil || !errors.Is(errA, ErrHandshake) && !errors.Is(errB, ErrHandshake) {
			t.Errorf("token %x against %x: %v, %v, want ErrHandshake", c.a, c.b, errA, errB)
		}
	}
	if _, _, errA, _ := pair(t, Config{Key: newKey(1), Token: []byte("short")}, Config{Key: newKey(2)}); !errors.Is(errA, ErrToken) {
		t.Errorf("short token: %v, want ErrToken", errA)
	}
}

func TestNotAllowed(t *testing.T) {
	no := func(PublicKey) bool { return false }
	if _, _, _, errB := pair(t, Config{Key: newKey(1)}, Config{Key: newKey(2), Allow: no}); !errors.Is(errB, ErrNotAllowed) {
		t.Errorf("server: %v, want ErrNotAllowed", errB)
	}
	if _, _, errA, _ := pair(t, Config{Key: newKey(1), Allow: no}, Config{Key: newKey(2)}); !errors.Is(errA, ErrNotAllowed) {
		t.Errorf("client: %v, want ErrNotAllowed", errA)
	}
}

// SEC-21: a peer that never speaks, or drips, costs one slot for 10 s.
func TestHandshakeTimeout(t *testing.T) {
	for name, behave := range map[string]func(net.Conn){
		"silent": func(net.Conn) {},
		"drips": func(c net.Conn) {
			for range 100 {
				if _, err := c.Write([]byte{32}); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			ours, theirs := net.Pipe()
			defer theirs.Close()
			var wg sync.WaitGroup
			defer wg.Wait()
			wg.Go(func() { behave(theirs) })
			start := time.Now()
			_, err := Server(t.Context(), ours, Config{Key: newKey(1)})
			if d := time.Since(start); err == nil || d > defaultHandshakeTimeout {
				t.Errorf("%s: %v after %v", name, err, d)
			}
			if name == "silent" && !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: %v, want a deadline", name, err)
			}
		})
	}
}

// A peer that closes at any point of the handshake costs an error, nothing more.
func TestHandshakeCut(t *testing.T) {
	for cut := range 300 {
		x, y := net.Pipe()
		go Client(context.Background(), &cutConn{Conn: x, left: cut}, Config{Key: newKey(1), KeepAlive: -1})
		c, err := Server(context.Background(), y, Config{Key: newKey(2), KeepAlive: -1})
		if err == nil {
			c.Close()
			if cut < 3+32+3+64+3+56 {
				t.Errorf("cut after %d bytes: handshake succeeds", cut)
			}
		}
		x.Close()
	}
}

// A cutConn closes after it has written some bytes.
type cutConn struct {
	net.Conn
	left int
}

func (c *cutConn) Write(b []byte) (int, error) {
	if len(b) > c.left {
		n, _ := c.Conn.Write(b[:c.left])
		c.Conn.Close()
		return n, io.ErrClosedPipe
	}
	c.left -= len(b)
	return c.Conn.Write(b)
}

func TestKeepAliveAndIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, err1, err2 := pair(t, Config{Key: newKey(1)}, Config{Key: newKey(2), KeepAlive: -1})
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		ended := make(chan error, 1)
		start := time.Now()
		go func() {
			_, err := b.ReadMessage() // kept alive by a's empty messages
			ended <- err
		}()
		if _, err := a.ReadMessage(); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != defaultIdleTimeout {
			t.Errorf("silent peer: %v after %v", err, time.Since(start))
		}
		time.Sleep(5 * time.Minute)
		a.Close()
		if err := <-ended; !errors.Is(err, io.EOF) {
			t.Errorf("kept-alive connection: %v after %v, want EOF at its end", err, time.Since(start))
		}
	})
}

// SEC-20: memory is taken for bytes that came, not for those announced.
func TestAnnouncedLength(t *testing.T) {
	x, y := net.Pipe()
	go func() {
		x.Write([]byte{0xff, 0xff, 0xff, 1, 2, 3})
		x.Close()
	}()
	s := newTestReader(y)
	if _, err := s.readMessage(); !errors.Is(err, io.ErrUnexpectedEOF) || cap(s.rbuf) > 4*keepBuffer {
		t.Errorf("%v, with a buffer of %d bytes", err, cap(s.rbuf))
	}
}

func FuzzReadMessage(f *testing.F) {
	f.Add([]byte{17, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17})
	f.Add([]byte{0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		x, y := net.Pipe()
		go func() {
			x.Write(b)
			x.Close()
		}()
		if m, err := newTestReader(y).ReadMessage(); err == nil {
			t.Fatalf("forged message %x", m)
		}
		y.Close()
	})
}

func BenchmarkSeal(b *testing.B) {
	for _, n := range []int{200, 65536, 65537} {
		b.Run("", func(b *testing.B) {
			s, _ := newStream(make([]byte, 32), [headerSize]byte{})
			buf := make([]byte, prefix+n+16)
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				s.seal(buf, n, 0)
			}
		})
	}
}

func newTestReader(c net.Conn) *Conn {
	s := &Conn{conn: c, reader: bufio.NewReaderSize(c, readBuffer), idle: -1}
	s.recv, _ = newStream(make([]byte, 32), [headerSize]byte{})
	return s
}
