// Package protomux runs many protocols over one message stream, as the npm
// package protomux 3 does.
//
// # Frames
//
// One message of the stream is one frame: uint channel, and for channels other
// than 0, uint message type and payload. A channel's number is the one that the
// sender of the frame gave it. Channel 0 is control:
//
//	00 00  batch   uint channel, then entries: buffer = a frame without its
//	               channel number; an empty buffer is followed by the uint
//	               channel of the entries after it
//	00 01  open    uint number, string protocol, buffer id, handshake
//	00 02  reject  uint number that the other side used in its open
//	00 03  close   uint own number
//
// # Channels
//
// A channel is named by a protocol and an id. Both sides open it, each under a
// number of its own, and the opens of one name pair up in order. An open that
// finds nobody is offered to the function that [Mux.Handle] has for the
// protocol, and rejected if there is none. A number is free again after a reject
// or when both sides have closed or one has closed after both had opened. A side
// must use a free number or the next one.
//
// Frames of closed channels and messages without a taker are ignored; frames
// that make no sense end the connection.
//
// # Back-pressure
//
// [Channel.Send] waits while the connection does not take more, so a sender is
// never ahead of the network by more than one batch, and senders of all channels
// take turns. What must not wait for others' data is sent by who sends that, in
// between: as package replicate does. A handler that does not return holds up
// reading, for all channels, and through the network the peer: it must hand on what
// takes long, and bound what it has handed on. What arrives for a channel that is
// being opened is kept up to maxKept bytes; reading pauses above it.
package protomux

import (
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"sync"
)

const (
	// MaxChannels is how many channels a peer may have open.
	MaxChannels = 8192

	// maxNumber is the largest number that a peer may give a channel. One that uses
	// free numbers again, as it must, needs no more than it has opens unanswered.
	maxNumber = 8 * MaxChannels

	maxProtocol  = 256  // bytes of a protocol's name
	maxID        = 256  // bytes of a channel's id
	maxHandshake = 4096 // bytes of the handshake in an open

	// maxKept bounds what is kept for channels that are being opened, in bytes;
	// reading pauses above it.
	maxKept = 32 << 10
	keptFee = 512 // what a kept message counts besides its bytes

	// maxControl bounds control frames that wait to be written, in bytes. A peer
	// that makes us write and does not read is dropped.
	maxControl = 1 << 20

	// batchBytes is when a batch is sent though more may come, in bytes; messages
	// of a quarter of that are sent as frames of their own.
	batchBytes = 64 << 10
)

var (
	// ErrClosed is returned for channels and connections that have ended.
	ErrClosed = errors.New("protomux: closed")
	// ErrProtocol is matched by the errors for frames that make no sense.
	ErrProtocol = errors.New("protomux: protocol error")
	// ErrLimit is matched by the errors for a peer that wants too much.
	ErrLimit = errors.New("protomux: limit exceeded")
	// ErrInUse means that we have a channel of that name open.
	ErrInUse = errors.New("protomux: channel is open already")
)

// A Stream carries messages; [*secretstream.Conn] is one. What WriteMessage
// takes may be buffered until Flush.
type Stream interface {
	ReadMessage() ([]byte, error) // valid until the next call
	WriteMessage(parts ...[]byte) error
	Flush() error
	Close() error
}

// A Handler gets what arrives on a channel. Its methods are called one at a time
// for a whole [Mux]. An error ends the connection.
type Handler interface {
	// Opened is called when both sides have opened the channel.
	Opened(handshake []byte) error
	// Message is called with each message; payload is valid during the call.
	Message(kind int, payload []byte) error
	// Closed is called once when the channel was closed or rejected by the peer
	// or ended with the connection, not after [Channel.Close].
	Closed()
}

// A Mux is one end of a connection. Its methods may be called concurrently, and
// by handlers.
type Mux struct {
	stream Stream

	// dispatch is held while handlers run.
	dispatch sync.Mutex
	drains   sync.WaitGroup

	writeMu sync.Mutex // guards stream's writing side and batch
	corks   int
	batch   []byte // entries of the batch being gathered
	batchCh uint64 // the channel of its last entry

	mu       sync.Mutex // guards what follows
	resume   *sync.Cond // kept has shrunk, or err is set
	err      error
	control  []byte // frames that wait to be written, each with its length
	wake     chan struct{}
	handlers map[string]func(id []byte) error
	aliases  map[string]string
	local    []*Channel // by our number less 1; nil is free or waits for its ack
	free     []uint64   // numbers of ours that may be used again
	remote   []*remote  // by the peer's number less 1
	open     int        // how many of remote are not nil
	names    map[string]*name
	unheard  map[uint64]string // our numbers whose opens the peer has not answered, and their names
	kept     int
}

// New returns a Mux over s. It does nothing before [Mux.Run].
func New(s Stream) *Mux {
	m := &Mux{
		stream:   s,
		wake:     make(chan struct{}, 1),
		handlers: map[string]func([]byte) error{},
		aliases:  map[string]string{},
		names:    map[string]*name{},
		unheard:  map[uint64]string{},
	}
	m.resume = sync.NewCond(&m.mu)
	return m
}

// Handle makes f decide about channels of a protocol that the peer opens and we
// have not: f, or somebody on its behalf soon, opens the channel too, or f returns an
// error and it is rejected. f is called by Run, and must not wait for messages.
func (m *Mux) Handle(protocol string, f func(id []byte) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.handlers[protocol] = f
}

// Alias makes opens of the protocol alias count as ones of protocol.
func (m *Mux) Alias(alias, protocol string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.aliases[alias] = protocol
}

// A PanicError says that a handler has panicked. It ends the connection, and no
// other.
type PanicError struct {
	Value any
	Stack []byte
}

func (e *PanicError) Error() string { return fmt.Sprintf("protomux: handler panicked: %v", e.Value) }

// guard runs f, which calls handlers, alone, and makes an error of its panic.
func (m *Mux) guard(f func() error) (err error) {
	m.dispatch.Lock()
	defer m.dispatch.Unlock()
	defer func() {
		if v := recover(); v != nil {
			err = &PanicError{v, debug.Stack()}
		}
	}()
	return f()
}

// Run reads the connection until it ends, and closes it. It returns nil if the
// peer has closed it between messages or [Mux.Close] was called without a
// reason.
func (m *Mux) Run() error {
	done := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() { m.writeControl(done) })
	err := m.read()
	if errors.Is(err, io.EOF) {
		err = nil
	}
	m.fail(err)
	close(done)
	writer.Wait()
	m.drains.Wait()
	m.closeAll()

	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err == ErrClosed {
		return nil
	}
	return m.err
}

// Close ends the connection. It does not wait; Run returns soon. A nil reason is
// an ordinary end.
func (m *Mux) Close(reason error) { m.fail(reason) }

func (m *Mux) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failLocked(err)
}

func (m *Mux) failLocked(err error) {
	if m.err != nil {
		return
	}
	if err == nil {
		err = ErrClosed
	}
	m.err = err
	m.resume.Broadcast()
	go m.stream.Close() // may wait for a writer, which may wait for m.mu
}

// closeAll tells all channels that it is over.
func (m *Mux) closeAll() {
	m.mu.Lock()
	var open []*Channel
	for _, ch := range m.local {
		if ch != nil {
			ch.closed = true
			open = append(open, ch)
		}
	}
	m.local = nil
	m.mu.Unlock()
	for _, ch := range open {
		err := m.guard(func() error { ch.h.Closed(); return nil })
		m.mu.Lock()
		if err != nil && m.err == ErrClosed {
			m.err = err
		}
		m.mu.Unlock()
	}
}
