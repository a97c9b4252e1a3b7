package exchange

import (
	"fmt"

	"github.com/pkgswarm/pkgswarm/swarm/protomux"
)

// Attach opens the protocol's channel on a connection to the peer key. The peer
// is connected from when it has opened the channel as well until the channel
// ends. member says that it has proven to be of our fleet.
func (x *Exchange) Attach(m *protomux.Mux, key PeerKey, member bool) error {
	l := &channel{x: x, key: key, member: member, open: make(chan struct{})}
	ch, err := m.Open(Protocol, nil, Handshake(), l)
	if err != nil {
		return fmt.Errorf("open %s: %w", Protocol, err)
	}
	l.ch = ch
	close(l.open)
	return nil
}

// A channel is our end of the channel to one peer.
type channel struct {
	x      *Exchange
	key    PeerKey
	member bool
	open   chan struct{}     // closed when ch is set
	ch     *protomux.Channel // ours
	peer   *Peer             // from Opened to Closed
}

func (l *channel) Opened(handshake []byte) error {
	if err := CheckHandshake(handshake); err != nil {
		return err
	}
	l.peer = l.x.Connect(l.key, l.member, l.send)
	return nil
}

func (l *channel) send(msg int, payload []byte) error {
	<-l.open
	return l.ch.Send(msg, payload)
}

func (l *channel) Message(msg int, payload []byte) error { return l.peer.Handle(msg, payload) }

// Closed may be called while the peer's goroutines wait for the connection that
// its caller reads, so it does not wait for them.
func (l *channel) Closed() {
	if l.peer != nil {
		go l.peer.Close()
	}
}
