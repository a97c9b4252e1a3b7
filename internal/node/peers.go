package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/internal/httpguard"
	"github.com/pkgswarm/pkgswarm/registry/artifact"
	"github.com/pkgswarm/pkgswarm/registry/catalog"
	"github.com/pkgswarm/pkgswarm/registry/exchange"
	"github.com/pkgswarm/pkgswarm/registry/signed"
	"github.com/pkgswarm/pkgswarm/swarm"
	"github.com/pkgswarm/pkgswarm/swarm/protomux"
	"github.com/pkgswarm/pkgswarm/swarm/replicate"
	"github.com/pkgswarm/pkgswarm/swarm/secretstream"
	"github.com/pkgswarm/pkgswarm/swarm/transport"
	"github.com/zeebo/blake3"
)

// fleetContext derives the secret that chooses keepers from the join token.
const fleetContext = "pkgswarm 2026-11 fleet leases v1"

// openSwarm makes the node's identity, its connections, and the artifact
// exchange on them.
func (n *Node) openSwarm() error {
	key, err := swarm.Identity(filepath.Join(n.c.State, "identity"))
	if err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	c := swarm.Config{
		Key:    key,
		Open:   n.openShared,
		Peers:  n.c.Peers,
		MaxIn:  httpguard.Descriptors(8*swarm.DefaultMaxIn) / 8,
		Logger: n.log,
		LAN:    n.c.LAN,
		Topics: n.topics(),
		Limits: n.c.Limits,

		PeerExchange: n.c.PeerExchange,
		OnConflict: func(e core.Evidence) {
			n.log.Error("two signed histories of one core", "core", e.Key.Short())
			n.metrics.wrong.WithLabelValues("operator").Inc()
			if n.signed == nil {
				return
			}
			if err := n.signed.Conflict(&e); err != nil {
				n.log.Error("evidence not kept", "err", err)
			}
		},
		Protocols: []swarm.Protocol{{Name: exchange.Protocol, Attach: func(m *protomux.Mux, p swarm.PeerInfo) error {
			return n.exchange.Attach(m, exchange.PeerKey(p.Key), n.fleet)
		}}},
	}
	switch {
	case n.c.SwarmListen != "":
		c.Listen = []string{n.c.SwarmListen}
	case n.c.LAN:
		c.Listen = []string{":0"} // or nobody on the network could be found
	}
	if n.c.FleetTokenFile != "" {
		token, err := readSecret(n.c.FleetTokenFile)
		if err != nil {
			return setting("fleet-token-file", err)
		}
		c.Token, n.fleet = []byte(token), true
	}
	switch n.swarm, err = swarm.New(c); {
	case isAddrInUse(err):
		return &AddrInUseError{n.c.SwarmListen, err}
	case errors.Is(err, secretstream.ErrToken):
		return setting("fleet-token-file", err)
	case errors.Is(err, transport.ErrAddress):
		return setting("peer", err)
	case err != nil:
		return setting("swarm-listen", err)
	}
	n.closers = append(n.closers, n.swarm.Close)
	n.openExchange(c.Token)
	return n.openCatalogs()
}

// topics returns what the node is about: the catalogs or, with none, the public
// ecosystems. They never name packages (SEC-63).
func (n *Node) topics() []swarm.TopicID {
	var topics []swarm.TopicID
	for _, k := range n.c.Registries {
		topics = append(topics, swarm.Topic(k.Discovery()))
	}
	if len(topics) == 0 {
		topics = append(topics, swarm.NamedTopic("cargo"), swarm.NamedTopic("go"))
	}
	return topics
}

// openCatalogs makes the reader of the operators' catalogs, if there are any.
func (n *Node) openCatalogs() error {
	if len(n.c.Registries) == 0 {
		return nil
	}
	memory, err := catalog.OpenMemory(filepath.Join(n.c.State, "heads"))
	if err != nil {
		return fmt.Errorf("remembered heads: %w", err)
	}
	n.signed = signed.New(signed.Config{
		Peers:  &signed.Cores{Store: n.cores, Open: n.swarm.Open},
		Memory: memory, Keys: n.c.Registries, Agree: n.c.Agree, Logger: n.log,
		Refreshed: n.refreshed, Kept: n.kept, Mirror: n.openMirror(),
	})
	return nil
}

func (n *Node) openExchange(token []byte) {
	c := exchange.Config{
		Shelf: n.artifacts,
		Download: &exchange.Replicator{
			Store: n.cores,
			Held:  func(k artifact.Key) (io.ReadCloser, error) { return n.artifacts.OpenKey(k) },
			Open:  n.swarm.Open,
		},
		Blame: func(p exchange.PeerKey, reason string) {
			n.metrics.wrong.WithLabelValues("peer").Inc()
			n.swarm.Ban(swarm.PeerKey(p), reason)
		},
		Logger: n.log,
	}
	if n.fleet {
		c.Fleet = &exchange.Fleet{Self: exchange.PeerKey(n.swarm.Key())}
		blake3.DeriveKey(fleetContext, token, c.Fleet.Secret[:])
	}
	n.exchange = exchange.New(c)
}

// openShared opens a core for a peer that knows its discovery key: one that is
// signed by somebody, or the artifact of a file that peers may have (SEC-25).
func (n *Node) openShared(_ context.Context, dk core.DiscoveryKey) (replicate.Core, func(), error) {
	c, err := n.cores.ByDiscovery(dk)
	if err != nil {
		return nil, nil, err
	}
	if m, ok := c.Manifest(); !ok || len(m.Signers) == 0 {
		if _, err := n.artifacts.CheckSharedKey(artifact.Key(c.Key())); err != nil {
			c.Close()
			if errors.Is(err, artifact.ErrNotFound) {
				err = fs.ErrNotExist
			}
			return nil, nil, err
		}
	}
	return c, func() { c.Close() }, nil
}

func (n *Node) swarmStatus() SwarmStatus {
	st := SwarmStatus{Key: exchange.PeerKey(n.swarm.Key()).String(), LAN: n.c.LAN, Fleet: n.fleet, Peers: []PeerStatus{}}
	for _, a := range n.swarm.Addrs() {
		st.Listen = append(st.Listen, a.String())
	}
	for _, p := range n.swarm.Peers() {
		st.Peers = append(st.Peers, PeerStatus{Key: exchange.PeerKey(p.Key).String(), Addr: p.Address, Dialled: p.Dialled, Since: p.Since.UTC()})
	}
	return st
}

// SwarmAddr returns the address at which peers reach the node, or "" if it only
// dials.
func (n *Node) SwarmAddr() string {
	for _, a := range n.swarm.Addrs() {
		return a.String()
	}
	return ""
}
