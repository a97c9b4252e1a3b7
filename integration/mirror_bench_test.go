package integration

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/integration/synthetic"
	"github.com/pkgswarm/pkgswarm/registry/catalog"
	"github.com/pkgswarm/pkgswarm/registry/signed"
	"github.com/pkgswarm/pkgswarm/swarm/secretstream"
)

// BenchmarkMirror mirrors all package logs of a registry from one peer in the same
// process.
func BenchmarkMirror(b *testing.B) {
	const crates = 5000
	seed := newPeer(b)
	key := importSynthetic(b, seed.store, synthetic.Cargo{Crates: crates, Seed: 3})
	for b.Loop() {
		p := newPeer(b)
		ours, theirs := net.Pipe()
		seed.wg.Go(func() { seed.serve(theirs, secretstream.Server) })
		p.wg.Go(func() { p.serve(ours, secretstream.Client) })
		mirrorAll(b, p, key)
		ours.Close()
	}
	b.ReportMetric(float64(b.N)*crates/b.Elapsed().Seconds(), "logs/s")
}

func mirrorAll(b *testing.B, p *peer, key core.Key) {
	b.Helper()
	memory, err := catalog.OpenMemory(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	r := signed.New(signed.Config{
		Peers: &signed.Cores{Store: p.store, Open: p.r.Open}, Memory: memory, Keys: []core.Key{key},
		Mirror: signed.Mirror{Logs: true},
	})
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	for {
		if m := r.Status()[0].Mirrored; m.State == "up to date" {
			if m.Held != m.Known || m.Known == 0 {
				b.Fatalf("mirror %+v", m)
			}
			break
		}
		time.Sleep(time.Millisecond)
	}
	cancel()
	<-done
}
