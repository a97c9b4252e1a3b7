package protomux

import (
	"bytes"
	"fmt"

	"github.com/pkgswarm/pkgswarm/internal/compact"
)

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
