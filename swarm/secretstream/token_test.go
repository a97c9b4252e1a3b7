package secretstream

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"net"
	"sync"
	"testing"
)

// A tapped connection keeps what goes through it.
type tapped struct {
	net.Conn
	mu      sync.Mutex
	in, out []byte
}

func (c *tapped) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.in = append(c.in, b[:n]...)
	return n, err
}

func (c *tapped) Write(b []byte) (int, error) {
	c.mu.Lock()
	c.out = append(c.out, b...)
	c.mu.Unlock()
	return c.Conn.Write(b)
}

// record returns what the sides of a private connection sent.
func record(t *testing.T, token []byte) (client, server []byte) {
	t.Helper()
	x, y := net.Pipe()
	tap := &tapped{Conn: x}
	done := make(chan *Conn, 1)
	go func() {
		b, err := Server(context.Background(), y, Config{Key: newKey(2), Token: token})
		if err == nil {
			b.ReadMessage()
		}
		done <- b
	}()
	a, err := Client(context.Background(), tap, Config{Key: newKey(1), Token: token})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(a.WriteMessage([]byte("a secret message")), a.Flush()); err != nil {
		t.Fatal(err)
	}
	if b := <-done; b != nil {
		defer b.Close()
	}
	defer a.Close()
	tap.mu.Lock()
	defer tap.mu.Unlock()
	return bytes.Clone(tap.out), bytes.Clone(tap.in)
}

// SEC-27: who captures the traffic reads neither the token, nor who speaks, nor what
// is said.
func TestCapturedTraffic(t *testing.T) {
	token := bytes.Repeat([]byte("0123456789abcdef"), 2)
	client, server := record(t, token)
	for name, secret := range map[string][]byte{
		"token": token[:8], "message": []byte("secret message"),
		"client's key": newKey(1).Public().(ed25519.PublicKey)[:8], "server's key": newKey(2).Public().(ed25519.PublicKey)[:8],
	} {
		if bytes.Contains(client, secret) || bytes.Contains(server, secret) {
			t.Errorf("the %s goes over the wire", name)
		}
	}
}

// SEC-27: a replayed connection gets as far as its first message, which proves that
// its sender had the token once; what follows proves nothing any more.
func TestReplay(t *testing.T) {
	token := bytes.Repeat([]byte{7}, MinToken)
	client, _ := record(t, token)
	x, y := net.Pipe()
	go func() {
		go x.Read(make([]byte, 1<<10)) // the answer to the first message
		x.Write(client)
	}()
	if _, err := Server(context.Background(), y, Config{Key: newKey(2), Token: token}); !errors.Is(err, ErrHandshake) {
		t.Errorf("replayed handshake: %v, want ErrHandshake", err)
	}
	x.Close()
}

// SEC-27: a server answers who does not have the token with nothing at all.
func TestWrongTokenLearnsNothing(t *testing.T) {
	token := bytes.Repeat([]byte{7}, MinToken)
	for _, wrong := range [][]byte{nil, bytes.Repeat([]byte{8}, MinToken), append(bytes.Clone(token), 7)} {
		x, y := net.Pipe()
		tap := &tapped{Conn: y}
		done := make(chan error, 1)
		go func() {
			_, err := Server(context.Background(), tap, Config{Key: newKey(2), Token: token})
			done <- err
		}()
		Client(context.Background(), x, Config{Key: newKey(1), Token: wrong})
		if err := <-done; !errors.Is(err, ErrHandshake) {
			t.Errorf("token %x: %v, want ErrHandshake", wrong, err)
		}
		if len(tap.out) > 0 {
			t.Errorf("token %x: the server sent %d bytes", wrong, len(tap.out))
		}
	}
}
