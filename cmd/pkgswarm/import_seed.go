package main

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/registry/artifact"
	"github.com/pkgswarm/pkgswarm/registry/exchange"
	"github.com/pkgswarm/pkgswarm/swarm"
	"github.com/pkgswarm/pkgswarm/swarm/protomux"
)

// seeder returns the operator's swarm, which serves its cores and verified files;
// nil if it is to have no peers.
func (op *operator) seeder(f *importFlags) (*swarm.Swarm, error) {
	if len(f.listen) == 0 && len(f.peers) == 0 {
		return nil, nil
	}
	key, err := swarm.Identity(filepath.Join(f.state, "identity"))
	if err != nil {
		return nil, err
	}
	limits, err := f.rates.limits()
	if err != nil {
		return nil, err
	}
	c := swarm.Config{
		Limits: limits,
		Key:    key, Listen: f.listen, Peers: f.peers,
		Open:   swarm.FromStore(op.store),
		LAN:    f.lan,
		Topics: []swarm.TopicID{swarm.Topic(op.core.DiscoveryKey())},
		OnConflict: func(e core.Evidence) {
			op.memory.SetEvidence(&e) // the next write refuses to go on (SEC-16)
		},
	}
	if op.artifacts != nil {
		x := exchange.New(exchange.Config{Shelf: op.artifacts})
		c.Protocols = append(c.Protocols, swarm.Protocol{Name: exchange.Protocol, Attach: func(m *protomux.Mux, p swarm.PeerInfo) error {
			return x.Attach(m, exchange.PeerKey(p.Key), false)
		}})
	}
	s, err := swarm.New(c)
	if err != nil {
		return nil, &exitError{exitUsage, err, "give --swarm-listen and --peer addresses such as :7071 and seed.example.org:7071"}
	}
	return s, nil
}

// seed serves peers while work runs.
func (j *importJob) seed(ctx context.Context, work func(context.Context) error) error {
	s, err := j.op.seeder(j.f)
	if err != nil || s == nil {
		if err == nil {
			err = work(ctx)
		}
		return err
	}
	for _, a := range s.Addrs() {
		fmt.Fprintf(j.s.err, "seeding registry %s on %s\n", j.op.core.Key(), a)
	}
	swarming, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- s.Run(swarming) }()
	err = work(ctx)
	stop()
	if serveErr := <-done; err == nil {
		err = serveErr
	}
	return err
}

// openArtifacts opens the operator's artifact store, where a node of the same data
// directory has it. It shares its files through the core store.
func (op *operator) openArtifacts(data string) (err error) {
	op.artifacts, err = artifact.Open(filepath.Join(data, "artifacts"), filepath.Join(data, "store", "artifacts"),
		artifact.Options{Cores: artifact.InCoreStore(op.store)})
	return err
}
