package protomux

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/pkgswarm/pkgswarm/internal/compact"
)

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
	m.abandon(number, r)
	m.putControl(compact.AppendUint([]byte{0, 2}, number))
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

// abandon removes an open of the peer that we have not answered. m.mu is held.
func (m *Mux) abandon(number uint64, r *remote) {
	n := m.name(r.name)
	n.incoming = slices.DeleteFunc(n.incoming, func(v uint64) bool { return v == number })
	m.removeRemote(number)
	m.forget(r.name)
}
