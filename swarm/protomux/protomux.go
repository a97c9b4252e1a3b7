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
package protomux

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"sync"

	"github.com/pkgswarm/pkgswarm/internal/compact"
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

// A name is what is known of one protocol and id.
type name struct {
	waiting  []uint64 // our numbers whose opens the peer has not answered
	incoming []uint64 // the peer's numbers whose opens we have not answered
	opened   int      // channels of ours
}

// A remote is a channel that the peer has opened.
type remote struct {
	ch        *Channel // nil: not answered yet, or closed by us
	handshake []byte
	name      string
	kept      []message // until the channel is handed over
	pending   bool      // messages are kept
}

type message struct {
	kind    uint64
	payload []byte
}

// A Channel is our end of a channel.
type Channel struct {
	mux    *Mux
	key    string
	h      Handler
	local  uint64 // our number; 0 once closed
	remote uint64 // the peer's; 0 if it has not opened it
	closed bool
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

func nameKey(protocol string, id []byte) string { return protocol + "\x00" + string(id) }

func (m *Mux) name(key string) *name {
	n := m.names[key]
	if n == nil {
		n = &name{}
		m.names[key] = n
	}
	return n
}

// forget drops a name that nobody uses.
func (m *Mux) forget(key string) {
	if n := m.names[key]; n != nil && n.opened == 0 && len(n.waiting) == 0 && len(n.incoming) == 0 {
		delete(m.names, key)
	}
}

// Open opens our end of a channel. Messages may be sent at once. The error is
// [ErrInUse], or [ErrClosed] if the connection has ended.
func (m *Mux) Open(protocol string, id, handshake []byte, h Handler) (*Channel, error) {
	key := nameKey(protocol, id)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return nil, ErrClosed
	}
	n := m.name(key)
	if n.opened > 0 {
		return nil, ErrInUse
	}
	ch := &Channel{mux: m, key: key, h: h}
	n.opened++
	if k := len(m.free); k > 0 {
		ch.local = m.free[k-1]
		m.free = m.free[:k-1]
		m.local[ch.local-1] = ch
	} else {
		m.local = append(m.local, ch)
		ch.local = uint64(len(m.local))
	}
	b := compact.AppendUint([]byte{0, 1}, ch.local)
	b = compact.AppendString(b, protocol)
	b = compact.AppendBytes(b, id)
	m.putControl(append(b, handshake...))
	if len(n.incoming) == 0 {
		n.waiting = append(n.waiting, ch.local)
		m.unheard[ch.local] = key
		return ch, nil
	}
	ch.remote = n.incoming[0]
	n.incoming = n.incoming[1:]
	r := m.remote[ch.remote-1]
	r.ch = ch
	m.drains.Go(func() { m.handOver(ch, r) })
	return ch, nil
}

// handOver gives a channel what has arrived for it before it was open.
func (m *Mux) handOver(ch *Channel, r *remote) {
	err := m.guard(func() error {
		err := ch.h.Opened(r.handshake)
		for err == nil {
			m.mu.Lock()
			if ch.closed || len(r.kept) == 0 {
				r.pending = false
				m.drop(r)
				m.mu.Unlock()
				return nil
			}
			msg := r.kept[0]
			r.kept = r.kept[1:]
			m.unkeep(msg)
			m.mu.Unlock()
			err = ch.h.Message(int(msg.kind), msg.payload)
		}
		return err
	})
	if err != nil {
		m.fail(err)
	}
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

// drop gives up what is kept for r.
func (m *Mux) drop(r *remote) {
	for _, msg := range r.kept {
		m.unkeep(msg)
	}
	r.kept = nil
}

func (m *Mux) unkeep(msg message) {
	m.kept -= len(msg.payload) + keptFee
	m.resume.Broadcast()
}

// putControl queues a control frame. m.mu is held.
func (m *Mux) putControl(frame []byte) {
	if len(m.control)+len(frame) > maxControl {
		m.failLocked(fmt.Errorf("%w: peer does not read", ErrLimit))
		return
	}
	m.control = compact.AppendBytes(m.control, frame)
	select {
	case m.wake <- struct{}{}:
	default:
	}
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

// writeControl writes control frames that nobody else does.
func (m *Mux) writeControl(done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		case <-m.wake:
		}
		m.writeMu.Lock()
		err := m.flush()
		m.writeMu.Unlock()
		if err != nil {
			m.fail(err)
			return
		}
	}
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

// Batch collects what f sends, and others meanwhile, into as few frames as
// possible, and writes them.
func (m *Mux) Batch(f func() error) error {
	m.writeMu.Lock()
	m.corks++
	m.writeMu.Unlock()
	err := f()
	m.writeMu.Lock()
	defer m.writeMu.Unlock()
	if err == nil {
		err = m.flushControl()
	}
	m.corks--
	if err != nil {
		return err
	}
	return m.flush()
}

// flush writes all that waits, unless somebody is gathering a batch. m.writeMu is
// held.
func (m *Mux) flush() error {
	if err := m.flushControl(); err != nil || m.corks > 0 {
		return err
	}
	if err := m.flushBatch(); err != nil {
		return err
	}
	return m.stream.Flush()
}

// Send sends a message. It may wait for the network, and must therefore not be
// called by handlers unless they know that the peer reads. The error is
// [ErrClosed] after the channel's end, or the connection's.
func (c *Channel) Send(kind int, payload []byte) error {
	m := c.mux
	m.writeMu.Lock()
	defer m.writeMu.Unlock()
	if err := m.flushControl(); err != nil { // our open comes first
		return err
	}
	m.mu.Lock()
	local, closed := c.local, c.closed
	m.mu.Unlock()
	if closed {
		return ErrClosed
	}
	if err := m.put(local, uint64(kind), payload); err != nil {
		m.fail(err)
		return err
	}
	return m.flush()
}

// put writes one message, or adds it to the batch. m.writeMu is held.
func (m *Mux) put(channel, kind uint64, payload []byte) error {
	if m.corks > 0 && len(payload) < batchBytes/4 {
		return m.putBatch(channel, kind, payload)
	}
	if err := m.flushBatch(); err != nil {
		return err
	}
	var head [18]byte
	b := compact.AppendUint(compact.AppendUint(head[:0], channel), kind)
	return m.stream.WriteMessage(b, payload)
}

func (m *Mux) putBatch(channel, kind uint64, payload []byte) error {
	switch {
	case len(m.batch) == 0:
		m.batch = compact.AppendUint(append(m.batch, 0, 0), channel)
	case m.batchCh != channel:
		m.batch = compact.AppendUint(append(m.batch, 0), channel)
	}
	m.batchCh = channel
	m.batch = compact.AppendUint(m.batch, uint64(compact.SizeUint(kind)+len(payload)))
	m.batch = append(compact.AppendUint(m.batch, kind), payload...)
	if len(m.batch) >= batchBytes {
		return m.flushBatch()
	}
	return nil
}

// flushBatch hands the batch to the stream. m.writeMu is held.
func (m *Mux) flushBatch() error {
	if len(m.batch) == 0 {
		return nil
	}
	err := m.stream.WriteMessage(m.batch)
	m.batch = m.batch[:0]
	if cap(m.batch) > batchBytes/16 && m.corks == 0 {
		m.batch = nil // idle connections are many
	}
	return err
}

// flushControl writes the control frames that wait. m.writeMu is held.
func (m *Mux) flushControl() error {
	m.mu.Lock()
	control, err := m.control, m.err
	m.control = nil
	m.mu.Unlock()
	if err != nil {
		return ErrClosed
	}
	d := compact.NewDecoder(control)
	for d.Len() > 0 {
		frame := d.Bytes()
		// A frame on channel 0 is 0, type, body: in a batch it goes without the 0.
		inner := compact.NewDecoder(frame[1:])
		if err := m.put(0, inner.Uint(), inner.Rest()); err != nil {
			return err
		}
	}
	return nil
}

// Close closes our end of the channel; the handler is not called any more,
// except by a call that is under way.
func (c *Channel) Close() error {
	m := c.mux
	m.mu.Lock()
	defer m.mu.Unlock()
	if c.closed || m.err != nil {
		c.closed = true
		return ErrClosed
	}
	m.putControl(compact.AppendUint([]byte{0, 3}, c.local))
	m.end(c)
	return nil
}

// end takes c out of the tables. m.mu is held.
func (m *Mux) end(c *Channel) {
	c.closed = true
	m.name(c.key).opened--
	if c.remote > 0 {
		m.removeRemote(c.remote)
		m.free = append(m.free, c.local)
	}
	// Else the number is free once the peer has answered the open.
	m.local[c.local-1] = nil
	m.forget(c.key)
}

func (m *Mux) removeRemote(number uint64) {
	if r := m.remote[number-1]; r != nil {
		m.drop(r)
		m.remote[number-1] = nil
		m.open--
	}
}

// read handles frames until there are no more.
func (m *Mux) read() error {
	for {
		b, err := m.stream.ReadMessage()
		if err != nil {
			return err
		}
		err = m.guard(func() error {
			d := compact.NewDecoder(b)
			return m.frame(d.Uint(), d)
		})
		if err != nil {
			return err
		}
		if err := m.waitKept(); err != nil {
			return err
		}
	}
}

// waitKept waits while too much is kept for channels that are being opened.
func (m *Mux) waitKept() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for m.kept > maxKept && m.err == nil {
		m.resume.Wait()
	}
	return m.err
}

func malformed(what string) error { return fmt.Errorf("%w: %s", ErrProtocol, what) }

// frame handles a frame of the peer's channel number, without that number.
func (m *Mux) frame(number uint64, d *compact.Decoder) error {
	kind := d.Uint()
	if d.Err() != nil {
		return malformed("short frame")
	}
	if number > 0 {
		return m.message(number, kind, d.Rest())
	}
	switch kind {
	case 0:
		return m.readBatch(d)
	case 1:
		return m.readOpen(d)
	case 2:
		return m.readReject(d)
	case 3:
		return m.readClose(d)
	}
	return nil
}

func (m *Mux) message(number, kind uint64, payload []byte) error {
	m.mu.Lock()
	var r *remote
	if number <= uint64(len(m.remote)) {
		r = m.remote[number-1]
	}
	if r == nil {
		m.mu.Unlock()
		return nil // a closed channel: it may have crossed
	}
	if r.pending {
		r.kept = append(r.kept, message{kind, bytes.Clone(payload)})
		m.kept += len(payload) + keptFee
		m.mu.Unlock()
		return nil
	}
	ch := r.ch
	m.mu.Unlock()
	if ch == nil || kind > 1<<31-1 {
		return nil
	}
	return ch.h.Message(int(kind), payload)
}

func (m *Mux) readBatch(d *compact.Decoder) error {
	number := d.Uint()
	for d.Len() > 0 {
		entry := d.Bytes()
		if len(entry) == 0 {
			number = d.Uint()
			continue
		}
		inner := compact.NewDecoder(entry)
		if number == 0 && entry[0] == 0 {
			return malformed("batch in a batch")
		}
		if err := m.frame(number, inner); err != nil {
			return err
		}
	}
	if d.Err() != nil {
		return malformed("cut batch")
	}
	return nil
}

func (m *Mux) readOpen(d *compact.Decoder) error {
	number := d.Uint()
	protocol, id := d.String(), d.Bytes()
	handshake := d.Rest()
	switch {
	case d.Err() != nil:
		return malformed("short open")
	case len(protocol) > maxProtocol || len(id) > maxID || len(handshake) > maxHandshake:
		return fmt.Errorf("%w: long open", ErrLimit)
	}
	ch, handle, err := m.opened(number, protocol, id, handshake)
	if err != nil {
		return err
	}
	if ch != nil {
		return ch.h.Opened(handshake)
	}
	if handle != nil && handle(id) != nil {
		m.reject(number)
	}
	return nil
}

// opened enters the peer's open into the tables. It returns our end if we had
// opened it already, else the function that is to decide about it.
func (m *Mux) opened(number uint64, protocol string, id, handshake []byte) (*Channel, func([]byte) error, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if a, ok := m.aliases[protocol]; ok {
		protocol = a
	}
	if number == 0 {
		m.putControl([]byte{0, 2, 0})
		return nil, nil, nil
	}
	if number-1 > uint64(len(m.remote)) {
		return nil, nil, malformed("open skips a number")
	}
	if number > maxNumber {
		return nil, nil, fmt.Errorf("%w: channel number %d", ErrLimit, number)
	}
	if number-1 == uint64(len(m.remote)) {
		m.remote = append(m.remote, nil)
	}
	if m.remote[number-1] != nil {
		return nil, nil, malformed("open of a number in use")
	}
	key := nameKey(protocol, id)
	n := m.name(key)
	if len(n.waiting) > 0 {
		local := n.waiting[0]
		n.waiting = n.waiting[1:]
		delete(m.unheard, local)
		ch := m.local[local-1]
		if ch == nil { // we have closed it meanwhile; the peer will read that
			m.free = append(m.free, local)
			m.forget(key)
			return nil, nil, nil
		}
		m.addRemote(number, &remote{ch: ch, name: key})
		ch.remote = number
		return ch, nil, m.checkOpen()
	}
	handle := m.handlers[protocol]
	if handle == nil {
		m.putControl(compact.AppendUint([]byte{0, 2}, number))
		m.forget(key)
		return nil, nil, nil
	}
	m.addRemote(number, &remote{name: key, handshake: bytes.Clone(handshake), pending: true})
	n.incoming = append(n.incoming, number)
	return nil, handle, m.checkOpen()
}

func (m *Mux) addRemote(number uint64, r *remote) {
	m.remote[number-1] = r
	m.open++
}

func (m *Mux) checkOpen() error {
	if m.open > MaxChannels {
		return fmt.Errorf("%w: more than %d channels", ErrLimit, MaxChannels)
	}
	return nil
}

// reject refuses a channel unless it was opened after all.
func (m *Mux) reject(number uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.remote[number-1]
	if r == nil || r.ch != nil {
		return
	}
	n := m.name(r.name)
	for i, v := range n.incoming {
		if v == number {
			n.incoming = append(n.incoming[:i], n.incoming[i+1:]...)
			break
		}
	}
	m.removeRemote(number)
	m.forget(r.name)
	m.putControl(compact.AppendUint([]byte{0, 2}, number))
}

func (m *Mux) readReject(d *compact.Decoder) error {
	local := d.Uint()
	if d.Err() != nil {
		return malformed("short reject")
	}
	m.mu.Lock()
	ch, ok := m.rejected(local)
	m.mu.Unlock()
	if !ok {
		return malformed("reject of nothing")
	}
	if ch != nil {
		ch.h.Closed()
	}
	return nil
}

// rejected takes the channel that the peer has rejected out of the tables.
func (m *Mux) rejected(local uint64) (ch *Channel, ok bool) {
	key, ok := m.unheard[local]
	if !ok {
		return nil, false
	}
	delete(m.unheard, local)
	n := m.name(key)
	n.waiting = slices.DeleteFunc(n.waiting, func(v uint64) bool { return v == local })
	if ch = m.local[local-1]; ch != nil {
		m.end(ch)
	}
	m.free = append(m.free, local)
	m.forget(key)
	return ch, true
}

func (m *Mux) readClose(d *compact.Decoder) error {
	number := d.Uint()
	if d.Err() != nil {
		return malformed("short close")
	}
	m.mu.Lock()
	var ch *Channel
	if number > 0 && number <= uint64(len(m.remote)) {
		if r := m.remote[number-1]; r != nil {
			if ch = r.ch; ch != nil {
				m.end(ch)
			} else {
				m.abandon(number, r)
			}
		}
	}
	m.mu.Unlock()
	if ch != nil {
		ch.h.Closed()
	}
	return nil
}

// abandon removes an open of the peer that was closed before we answered.
func (m *Mux) abandon(number uint64, r *remote) {
	n := m.name(r.name)
	for i, v := range n.incoming {
		if v == number {
			n.incoming = append(n.incoming[:i], n.incoming[i+1:]...)
			break
		}
	}
	m.removeRemote(number)
	m.forget(r.name)
}
