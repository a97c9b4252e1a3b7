package integration

import (
	"context"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/importer"
	"github.com/pkgswarm/pkgswarm/integration/synthetic"
	"github.com/pkgswarm/pkgswarm/registry/catalog"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
	"github.com/pkgswarm/pkgswarm/registry/signed"
	"github.com/pkgswarm/pkgswarm/swarm/secretstream"
)

// BenchmarkColdPackage asks a registry for packages whose logs are not here, of a
// catalog that is, over a way of 50 ms there and back. The goal is at most three
// round trips.
func BenchmarkColdPackage(b *testing.B) {
	const crates, rtt = 500, 50 * time.Millisecond
	syn := synthetic.Cargo{Crates: crates, Seed: 3}
	seed := newPeer(b)
	key := importSynthetic(b, seed.store, syn)
	p := newPeer(b)
	ours, theirs := net.Pipe()
	seed.wg.Go(func() { seed.serve(newSlowConn(theirs, rtt/2), secretstream.Server) })
	p.wg.Go(func() { p.serve(newSlowConn(ours, rtt/2), secretstream.Client) })
	r := newSigned(b, p, key)

	var took []time.Duration
	n := 0
	for b.Loop() {
		h := pkglog.Header{Ecosystem: pkglog.Cargo, Package: syn.Name(n % crates)}
		n++
		start := time.Now()
		a, err := r.Package(b.Context(), h)
		if err != nil || !a.State.Exists() {
			b.Fatalf("%s: %v", h.Package, err)
		}
		if n <= crates {
			took = append(took, time.Since(start))
		}
	}
	slices.Sort(took)
	b.ReportMetric(took[len(took)/2].Seconds()/rtt.Seconds(), "round-trips")
	b.ReportMetric(took[len(took)-1].Seconds()/rtt.Seconds(), "round-trips-most")
}

// importSynthetic imports an index into a store and returns the registry key.
func importSynthetic(t testing.TB, store *core.Store, syn synthetic.Cargo) core.Key {
	t.Helper()
	dir := t.TempDir()
	if _, _, err := syn.Write(filepath.Join(dir, "index")); err != nil {
		t.Fatal(err)
	}
	op := catalog.NewOperator(catalog.Seed{7})
	m, pairs := op.Catalog()
	c, err := store.Create(m, pairs...)
	if err != nil {
		t.Fatal(err)
	}
	memory, err := catalog.OpenMemory(filepath.Join(dir, "heads"))
	if err != nil {
		t.Fatal(err)
	}
	w, err := catalog.OpenWriter(t.Context(), c, memory)
	if err != nil {
		t.Fatal(err)
	}
	src, err := importer.OpenCargoDir(filepath.Join(dir, "index"))
	if err != nil {
		t.Fatal(err)
	}
	im := importer.New(importer.Config{Logs: &importer.CoreLogs{Store: store, Operator: op}, Catalog: w, Dir: filepath.Join(dir, "importer")})
	if _, err := im.Run(t.Context(), src); err != nil {
		t.Fatal(err)
	}
	return w.Key()
}

// newSigned runs a registry on a peer and waits until it holds the catalog.
func newSigned(t testing.TB, p *peer, key core.Key) *signed.Registry {
	t.Helper()
	memory, err := catalog.OpenMemory(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	r := signed.New(signed.Config{Peers: &signed.Cores{Store: p.store, Open: p.r.Open}, Memory: memory, Keys: []core.Key{key}})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	if err := r.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r
}
