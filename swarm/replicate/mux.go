package replicate

import (
	"context"
	"errors"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/swarm/protomux"
)

// An Identity is what the encrypted stream below a connection has established.
type Identity struct {
	Peer          PeerID // the other end's public key
	HandshakeHash []byte // 64 bytes
	Initiator     bool   // whether our end dialled
}

// Attach prepares m to exchange cores with the peer at its other end. It must be
// called before m.Run, so that no channel that the peer opens is rejected. The
// caller then runs serve until ctx ends, which must be when m.Run returns at the
// latest; serve closes m, and for its result see [Replicator.Serve].
func (r *Replicator) Attach(m *protomux.Mux, id Identity) (serve func(ctx context.Context) error, err error) {
	c, err := r.connect(&muxOf{m, id})
	if err != nil {
		return nil, err
	}
	m.Alias("hypercore", protocol)
	m.Handle(protocol, func(b []byte) error {
		if len(b) != len(core.DiscoveryKey{}) {
			return errors.New("replicate: channel id is not a discovery key")
		}
		// Opening a core is short, and not undone when the connection ends.
		return r.remoteOpen(context.Background(), c, core.DiscoveryKey(b))
	})
	return c.serve, nil
}

// A muxOf is a Mux over protomux.
type muxOf struct {
	m  *protomux.Mux
	id Identity
}

func (m *muxOf) Peer() PeerID               { return m.id.Peer }
func (m *muxOf) HandshakeHash() []byte      { return m.id.HandshakeHash }
func (m *muxOf) Initiator() bool            { return m.id.Initiator }
func (m *muxOf) Batch(f func() error) error { return m.m.Batch(f) }
func (m *muxOf) Close(reason error)         { m.m.Close(reason) }

func (m *muxOf) Open(id core.DiscoveryKey, handshake []byte, h Handler) (Channel, error) {
	ch, err := m.m.Open(protocol, id[:], handshake, h)
	if err != nil {
		return nil, err
	}
	return channelOf{ch}, nil
}

// A channelOf is a Channel over protomux.
type channelOf struct{ ch *protomux.Channel }

// Send does not report the end of the channel: the handler is told of that.
func (c channelOf) Send(kind int, payload []byte) error {
	if err := c.ch.Send(kind, payload); !errors.Is(err, protomux.ErrClosed) {
		return err
	}
	return nil
}

func (c channelOf) Close() error {
	if err := c.ch.Close(); !errors.Is(err, protomux.ErrClosed) {
		return err
	}
	return nil
}
