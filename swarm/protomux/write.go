package protomux

import (
	"fmt"

	"github.com/pkgswarm/pkgswarm/internal/compact"
)

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
