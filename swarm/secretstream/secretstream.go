// Package secretstream encrypts a connection between two peers that know each
// other by their Ed25519 public keys. It speaks the protocol of the npm package
// @hyperswarm/secret-stream 6.
//
// Everything on the wire is a frame, a length of 3 bytes, little endian, and as
// many bytes. First come the three messages of a Noise handshake with empty
// payloads, Noise_XX_Ed25519_ChaChaPoly_BLAKE2b, in which both sides prove their
// keys. Then each side sends a frame of 56 bytes, an identifier that follows from
// the handshake's hash and its role, and the header of its secretstream; then
// messages, encrypted with libsodium's secretstream (XChaCha20-Poly1305). An empty
// message keeps the connection alive and is not passed on.
//
// A [Config] with a token makes the connection private: the token becomes the
// pre-shared key of the handshake Noise_XXpsk0, mixed in before the first
// message, so that without it not even the first message can be read or made.
// Peers of the reference have no such mode.
package secretstream

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/flynn/noise"
	"golang.org/x/crypto/blake2b"
	//lint:ignore SA1019 libsodium's secretstream is defined by the bare function
	"golang.org/x/crypto/poly1305"
)

const (
	// MaxMessage is the length of the largest message, in bytes.
	MaxMessage = 1<<24 - 1 - overhead

	// MinToken is the length of the shortest token, in bytes.
	MinToken = 16

	maxHandshakeFrame = 128 // the largest frame before the stream is up, in bytes

	defaultHandshakeTimeout = 10 * time.Second
	defaultKeepAlive        = 5 * time.Second
	defaultIdleTimeout      = 60 * time.Second

	// stallTimeout is how long a peer may not take what is written.
	stallTimeout = 60 * time.Second

	// bufferSize is how much is gathered before it is written, in bytes.
	bufferSize = 64 << 10

	// readBuffer is how much is read at once, in bytes.
	readBuffer = 16 << 10

	// keepBuffer is how long a message's buffer may be and still be kept for the
	// next one that is small, in bytes.
	keepBuffer = 64 << 10
)

var (
	// ErrHandshake is matched by the errors of a handshake that the other side got
	// wrong: another protocol, another token, or no proof of its key.
	ErrHandshake = errors.New("secretstream: handshake failed")
	// ErrNotAllowed means that [Config.Allow] refused the peer.
	ErrNotAllowed = errors.New("secretstream: peer is not allowed")
	// ErrToken means that a token is shorter than MinToken.
	ErrToken = errors.New("secretstream: token is too short")
	// ErrTooLong means that a message is longer than MaxMessage.
	ErrTooLong = errors.New("secretstream: message is too long")
)

// A PublicKey is the identity of a peer.
type PublicKey [32]byte

// Config is how a connection is made. Only Key must be set.
type Config struct {
	// Key is our identity.
	Key ed25519.PrivateKey

	// Token, if not empty, is the secret that both sides must have; at least
	// MinToken random bytes.
	Token []byte

	// Allow says whether to talk to a peer, as soon as it has proven its key. Nil
	// allows all.
	Allow func(PublicKey) bool

	HandshakeTimeout time.Duration // for all of it; 0 is 10 s
	KeepAlive        time.Duration // silence after which an empty message is sent; 0 is 5 s, negative never
	IdleTimeout      time.Duration // silence of the peer that ends the connection; 0 is 60 s, negative never
}

// A Conn is an encrypted connection.
//
// One goroutine may read while others write. Messages that are written are
// buffered until [Conn.Flush].
type Conn struct {
	conn      net.Conn
	initiator bool
	remote    PublicKey
	hash      []byte // of the handshake
	idle      time.Duration

	recv   *stream
	reader *bufio.Reader
	rbuf   []byte // of the message that was read last
	large  reservation

	mu      sync.Mutex // guards what follows
	send    *stream
	frame   []byte // the message being encrypted
	out     []byte // encrypted frames not yet written
	written bool   // since the last keep-alive tick
	err     error  // of the first failed write

	closing   chan struct{}
	closeOnce sync.Once
	alive     sync.WaitGroup
}

// Client runs the handshake on conn as the side that dialled. It owns conn, also
// when it fails. Errors match [ErrHandshake], [ErrNotAllowed], [ErrToken],
// [os.ErrDeadlineExceeded] or ctx's, or come from conn.
func Client(ctx context.Context, conn net.Conn, c Config) (*Conn, error) {
	return start(ctx, conn, c, true)
}

// Server runs the handshake on conn as the side that was dialled; see [Client].
func Server(ctx context.Context, conn net.Conn, c Config) (*Conn, error) {
	return start(ctx, conn, c, false)
}

func start(ctx context.Context, conn net.Conn, c Config, initiator bool) (*Conn, error) {
	s, err := handshake(ctx, conn, c, initiator)
	if err != nil {
		conn.Close()
		return nil, err
	}
	if c.KeepAlive >= 0 {
		interval := c.KeepAlive
		if interval == 0 {
			interval = defaultKeepAlive
		}
		s.alive.Go(func() { s.keepAlive(interval) })
	}
	return s, nil
}

func handshake(ctx context.Context, conn net.Conn, c Config, initiator bool) (*Conn, error) {
	timeout := c.HandshakeTimeout
	if timeout == 0 {
		timeout = defaultHandshakeTimeout
	}
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	s := &Conn{
		conn: conn, initiator: initiator, closing: make(chan struct{}), idle: c.IdleTimeout,
		reader: bufio.NewReaderSize(conn, readBuffer),
	}
	if s.idle == 0 {
		s.idle = defaultIdleTimeout
	}
	if err := s.shake(c); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, err
	}
	if !stop() {
		return nil, ctx.Err()
	}
	return s, conn.SetDeadline(time.Time{})
}

// suite is the one cipher suite of the handshake.
var suite = noise.NewCipherSuite(dhEd25519{}, noise.CipherChaChaPoly, noise.HashBLAKE2b)

func noiseConfig(c Config, initiator bool) (noise.Config, error) {
	n := noise.Config{
		CipherSuite:   suite,
		Random:        rand.Reader,
		Pattern:       noise.HandshakeXX,
		Initiator:     initiator,
		StaticKeypair: dhKey(c.Key),
	}
	if len(c.Token) > 0 {
		if len(c.Token) < MinToken {
			return n, ErrToken
		}
		psk := blake2b.Sum256(append([]byte("pkgswarm join token "), c.Token...))
		n.PresharedKey = psk[:]
	}
	return n, nil
}

func (s *Conn) shake(c Config) error {
	nc, err := noiseConfig(c, s.initiator)
	if err != nil {
		return err
	}
	return s.run(nc, c.Allow)
}

// run exchanges the three messages, then the headers.
func (s *Conn) run(nc noise.Config, allow func(PublicKey) bool) error {
	h, err := noise.NewHandshakeState(nc)
	if err != nil {
		return err
	}
	var k1, k2 *noise.CipherState
	for i, ours := 0, s.initiator; i < 3; i, ours = i+1, !ours {
		if ours {
			var m []byte
			if m, k1, k2, err = h.WriteMessage(nil, nil); err != nil {
				return fmt.Errorf("%w: %w", ErrHandshake, err)
			}
			if err := s.writePlain(m); err != nil {
				return err
			}
			continue
		}
		m, err := s.readPlain()
		if err != nil {
			return err
		}
		if _, k1, k2, err = h.ReadMessage(nil, m); err != nil {
			return fmt.Errorf("%w: message %d: %w", ErrHandshake, i+1, err)
		}
		if key := h.PeerStatic(); len(key) == 32 && s.remote == (PublicKey{}) {
			s.remote = PublicKey(key)
			if allow != nil && !allow(s.remote) {
				return ErrNotAllowed
			}
		}
	}
	tx, rx := k1.UnsafeKey(), k2.UnsafeKey()
	if !s.initiator {
		tx, rx = rx, tx
	}
	return s.begin(tx[:], rx[:], h.ChannelBinding())
}

// begin exchanges the headers under the keys that the handshake gave.
func (s *Conn) begin(tx, rx, hash []byte) error {
	s.hash = bytes.Clone(hash)
	var header [headerSize]byte
	rand.Read(header[:])
	var err error
	if s.send, err = newStream(tx, header); err != nil {
		return err
	}
	id := streamID(hash, s.initiator)
	sent := make(chan error, 1)
	// Both sides send theirs at once; on an unbuffered connection neither could
	// finish before the other reads.
	go func() { sent <- s.writePlain(append(id[:], header[:]...)) }()
	m, err := s.readPlain()
	if err != nil {
		s.conn.Close()
		<-sent
		return err
	}
	if err := <-sent; err != nil {
		return err
	}
	want := streamID(hash, !s.initiator)
	if len(m) != len(want)+headerSize || subtle.ConstantTimeCompare(m[:len(want)], want[:]) != 1 {
		return fmt.Errorf("%w: wrong stream header", ErrHandshake)
	}
	s.recv, err = newStream(rx, [headerSize]byte(m[len(want):]))
	return err
}

var namespaces = func() (ns [2][32]byte) {
	base := blake2b.Sum256([]byte("hyperswarm/secret-stream"))
	for i := range ns {
		ns[i] = blake2b.Sum256(append(base[:], byte(i)))
	}
	return ns
}()

// streamID is what the initiator, or the responder, sends before its header.
func streamID(hash []byte, initiator bool) (id [32]byte) {
	h, err := blake2b.New256(hash)
	if err != nil {
		panic("secretstream: " + err.Error()) // a hash has 64 bytes
	}
	ns := namespaces[1]
	if initiator {
		ns = namespaces[0]
	}
	h.Write(ns[:])
	h.Sum(id[:0])
	return id
}

func (s *Conn) writePlain(m []byte) error {
	b := append(make([]byte, 0, 3+len(m)), byte(len(m)), byte(len(m)>>8), 0)
	_, err := s.conn.Write(append(b, m...))
	return err
}

// readPlain reads a frame of the handshake.
func (s *Conn) readPlain() ([]byte, error) {
	var buf [maxHandshakeFrame]byte
	if _, err := io.ReadFull(s.reader, buf[:3]); err != nil {
		return nil, err
	}
	n := int(buf[0]) | int(buf[1])<<8 | int(buf[2])<<16
	if n > len(buf) {
		return nil, fmt.Errorf("%w: frame of %d bytes", ErrHandshake, n)
	}
	if _, err := io.ReadFull(s.reader, buf[:n]); err != nil {
		return nil, err
	}
	return bytes.Clone(buf[:n]), nil
}

// Initiator reports whether we dialled.
func (s *Conn) Initiator() bool { return s.initiator }

// Remote returns the peer's identity, which it has proven.
func (s *Conn) Remote() PublicKey { return s.remote }

// HandshakeHash returns the 64 bytes that identify this connection to both
// sides. It must not be modified.
func (s *Conn) HandshakeHash() []byte { return s.hash }

// RemoteAddr returns the peer's address.
func (s *Conn) RemoteAddr() net.Addr { return s.conn.RemoteAddr() }

// ReadMessage returns the next message that is not empty. It is valid until the
// next call. The error is io.EOF when the peer has closed between messages.
func (s *Conn) ReadMessage() ([]byte, error) {
	for {
		m, err := s.readMessage()
		if err != nil || len(m) > 0 {
			return m, err
		}
	}
}

func (s *Conn) readMessage() ([]byte, error) {
	if s.idle > 0 {
		s.conn.SetReadDeadline(time.Now().Add(s.idle)) // if it fails, so does the read
	}
	var header [3]byte
	if _, err := io.ReadFull(s.reader, header[:]); err != nil {
		return nil, err
	}
	n := int(header[0]) | int(header[1])<<8 | int(header[2])<<16
	if n < overhead {
		return nil, fmt.Errorf("secretstream: frame of %d bytes", n)
	}
	if err := s.readFrame(n); err != nil {
		return nil, err
	}
	if _, err := s.recv.open(s.rbuf); err != nil {
		return nil, err
	}
	return s.rbuf[prefix : len(s.rbuf)-poly1305.TagSize], nil
}

// readFrame reads n bytes into s.rbuf, where open wants them. Memory is taken as
// the bytes arrive, not as the peer announces them.
func (s *Conn) readFrame(n int) error {
	if cap(s.rbuf) > keepBuffer && n < keepBuffer/4 || cap(s.rbuf) > largeFrame && n <= largeFrame {
		s.rbuf = nil
		s.large.release()
	}
	end := prefix - 1 + n
	s.rbuf = slices.Grow(s.rbuf[:0], prefix-1+min(n, keepBuffer))[:prefix-1]
	for len(s.rbuf) < end {
		part := min(end-len(s.rbuf), max(len(s.rbuf), keepBuffer))
		at := len(s.rbuf)
		if at+part > largeFrame && !s.large.grow(at+part) {
			return ErrMemory
		}
		s.rbuf = slices.Grow(s.rbuf, part)[:at+part]
		if _, err := io.ReadFull(s.reader, s.rbuf[at:]); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

// WriteMessage encrypts the message that consists of parts and buffers it. Large
// ones, and those for which the buffer has no room, are written at once. Parts
// are not kept. After an error the connection is of no use.
func (s *Conn) WriteMessage(parts ...[]byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.write(parts)
}

func (s *Conn) write(parts [][]byte) error {
	if s.err != nil {
		return s.err
	}
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	if n > MaxMessage {
		return fmt.Errorf("%w: %d bytes", ErrTooLong, n)
	}
	if cap(s.frame) > 4*keepBuffer && n < keepBuffer {
		s.frame = nil
	}
	s.frame = slices.Grow(s.frame[:0], prefix+n+poly1305.TagSize)[:prefix]
	for _, p := range parts {
		s.frame = append(s.frame, p...)
	}
	if s.err = s.send.seal(s.frame, n, 0); s.err != nil {
		return s.err
	}
	// The length goes where seal has left garbage.
	size := n + overhead
	frame := s.frame[prefix-4 : prefix+n+poly1305.TagSize]
	frame[0], frame[1], frame[2] = byte(size), byte(size>>8), byte(size>>16)
	s.written = true
	large := len(frame) >= bufferSize/2
	if large || len(s.out)+len(frame) > bufferSize {
		if s.err = s.flush(); s.err != nil { // what came before goes before
			return s.err
		}
	}
	if large {
		s.err = s.put(frame)
		return s.err
	}
	s.out = append(s.out, frame...)
	return nil
}

// Flush writes what is buffered.
func (s *Conn) Flush() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = s.flush()
	}
	return s.err
}

func (s *Conn) flush() error {
	if len(s.out) == 0 {
		return nil
	}
	err := s.put(s.out)
	s.out = s.out[:0]
	if cap(s.out) > bufferSize/4 {
		s.out = nil // idle connections are many
	}
	return err
}

func (s *Conn) put(b []byte) error {
	if err := s.conn.SetWriteDeadline(time.Now().Add(stallTimeout)); err != nil {
		return err
	}
	_, err := s.conn.Write(b)
	return err
}

// keepAlive sends an empty message whenever nothing was written for interval.
func (s *Conn) keepAlive(interval time.Duration) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-s.closing:
			return
		case <-tick.C:
		}
		s.mu.Lock()
		if !s.written && s.err == nil {
			if s.err = s.write(nil); s.err == nil {
				s.err = s.flush()
			}
		}
		s.written = false
		s.mu.Unlock()
	}
}

// Close closes the connection. What is buffered is lost; reads and writes under
// way fail.
func (s *Conn) Close() error {
	err := net.ErrClosed
	s.closeOnce.Do(func() {
		close(s.closing)
		err = s.conn.Close()
		s.alive.Wait()
		s.large.close()
	})
	return err
}
