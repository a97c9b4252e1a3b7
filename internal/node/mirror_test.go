package node

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/registry/artifact"
	"github.com/pkgswarm/pkgswarm/registry/catalog"
	"github.com/pkgswarm/pkgswarm/registry/fetch"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
)

// An operatorNode is a node whose store also has the cores of an operator.
type operatorNode struct {
	*testNode
	keys   *catalog.Operator
	w      *catalog.Writer
	states map[string]*pkglog.State
}

func startOperator(t *testing.T, u *cargoRegistry) *operatorNode {
	return startOperatorOf(t, u, catalog.Seed{5})
}

func startOperatorOf(t *testing.T, u *cargoRegistry, seed catalog.Seed) *operatorNode {
	t.Helper()
	o := &operatorNode{testNode: start(t, config(t, u, t.TempDir())), states: map[string]*pkglog.State{}}
	o.keys = catalog.NewOperator(seed)
	m, pairs := o.keys.Catalog()
	c, err := o.cores.Create(m, pairs...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	memory, err := catalog.OpenMemory(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if o.w, err = catalog.OpenWriter(t.Context(), c, memory); err != nil {
		t.Fatal(err)
	}
	return o
}

// sign appends events to the log of a crate and returns its new entry.
func (o *operatorNode) sign(t *testing.T, name string, events ...pkglog.Event) catalog.Change {
	t.Helper()
	h := pkglog.Header{Ecosystem: pkglog.Cargo, Package: name}
	m, pair, err := o.keys.Log(h)
	if err != nil {
		t.Fatal(err)
	}
	log, err := o.cores.Create(m, pair)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	var blocks [][]byte
	if o.states[name] == nil {
		o.states[name] = pkglog.NewState(h)
		blocks = append(blocks, h.Encode())
	}
	for _, e := range events {
		b, err := o.states[name].Append(e)
		if err != nil {
			t.Fatal(err)
		}
		blocks = append(blocks, b)
	}
	if _, err := log.Append(blocks...); err != nil {
		t.Fatal(err)
	}
	tree := log.Tree()
	return catalog.Change{Key: "cargo/" + name, Entry: catalog.Entry{Log: log.Key(), Length: tree.Length, TreeHash: tree.Hash(), Time: time.Now()}}
}

// publish signs a crate of u and has its file.
func (o *operatorNode) publish(t *testing.T, u *cargoRegistry, name string) catalog.Change {
	t.Helper()
	data := u.crates[name]
	w, err := o.artifacts.Create(int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	d := digestOf(data)
	info, err := w.Commit(d, false)
	if err != nil {
		t.Fatal(err)
	}
	line := fmt.Appendf(nil, `{"name":%q,"vers":"1.0.0","deps":[],"cksum":"%x","features":{},"yanked":false}`, name, d.Sum)
	return o.sign(t, name, pkglog.Event{Kind: pkglog.Published, Line: line}, pkglog.Event{
		Kind: pkglog.HasArtifact, Version: "1.0.0",
		Artifact: pkglog.Artifact{Key: info.Key, ByteLength: uint64(info.Size), Digest: d.Sum},
	})
}

func digestOf(b []byte) artifact.Digest {
	return artifact.Digest{Alg: artifact.SHA256, Sum: sha256.Sum256(b)}
}

func (o *operatorNode) flush(t *testing.T, at time.Time, changes ...catalog.Change) {
	t.Helper()
	if err := o.w.Flush(t.Context(), changes, at); err != nil {
		t.Fatal(err)
	}
}

// mirrorOf returns the configuration of a mirror of o that has no upstream.
func mirrorOf(t *testing.T, u *cargoRegistry, o *operatorNode) Config {
	c := config(t, u, t.TempDir())
	c.Registries, c.Peers = []core.Key{o.w.Key()}, []string{o.swarm.Addrs()[0].String()}
	c.Mirror = Mirror{Logs: true, Files: "all"}
	c.Offline = true
	return c
}

func (n *testNode) waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 3000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	r := n.Status().Registries[0]
	t.Fatalf("%s: not within 30 s: %+v, mirror %+v", what, r, r.Mirror)
}

func (n *testNode) mirrored() bool {
	m := n.Status().Registries[0].Mirror
	return m.State == "up to date" && m.Files.State == "up to date" && m.Held == m.Known && m.Files.Done == m.Known && m.Known > 0
}

// TestMirror: a mirror has, unasked, what an operator has signed, but for what is
// private here (SEC-60) and for files beyond its cap. What comes is there within
// seconds, and what is removed is taken back (SEC-19).
func TestMirror(t *testing.T) {
	u := newRegistry(t, 1000, 65536, 300_000, 2_000_000, 5000)
	o := startOperator(t, u)
	var changes []catalog.Change
	for _, name := range []string{"crate00", "crate01", "crate02", "crate03"} {
		changes = append(changes, o.publish(t, u, name))
	}
	o.flush(t, time.Now(), changes...)

	c := mirrorOf(t, u, o)
	c.DiskCap = 1_500_000
	c.Private = []string{"crate01"}
	n := start(t, c)
	n.waitFor(t, "mirror", n.mirrored)
	m := n.Status().Registries[0].Mirror
	if m.Known != 4 || m.Files.LeftOut != 1 || m.Late+m.Wrong+m.Files.Late != 0 {
		t.Errorf("mirror %+v, files %+v", m, m.Files)
	}
	has := func(name string) error {
		_, err := n.artifacts.Stat(digestOf(u.crates[name]))
		return err
	}
	for name, want := range map[string]error{"crate00": nil, "crate01": artifact.ErrNotFound, "crate02": nil, "crate03": artifact.ErrNotFound} {
		if err := has(name); !errors.Is(err, want) {
			t.Errorf("file of %s: %v, want %v", name, err, want)
		}
	}
	if st := n.artifacts.Stats(); st.Evicted != 0 {
		t.Errorf("%d files were evicted for the mirror", st.Evicted)
	}

	begin := time.Now()
	o.flush(t, time.Now(), o.publish(t, u, "crate04"))
	n.waitFor(t, "a new crate", func() bool { return has("crate04") == nil })
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("a new crate was there after %v", d)
	}
	o.flush(t, time.Now(), o.sign(t, "crate00", pkglog.Event{Kind: pkglog.Removed, All: true}))
	n.waitFor(t, "a removal", func() bool {
		_, withdrawn := errors.AsType[*artifact.WithdrawnError](has("crate00"))
		return withdrawn
	})
	if got := n.Status().Usage; got.Artifacts+got.Failed != 0 {
		t.Errorf("usage %+v: nobody asked for anything", got)
	}

	// What is here serves others.
	o.stop(t)
	if err := n.fetch(u, "crate02"); err != nil {
		t.Error(err)
	}
	if status, body, err := n.get("/cargo/cr/at/crate03"); err != nil || status != http.StatusOK || !bytes.Contains(body, []byte(`"crate03"`)) {
		t.Errorf("index of crate03: %d %s %v", status, body, err)
	}
}

// TestStaleCatalog: a mirror of a catalog that nobody vouches for stops, and all
// there is to say it by says so. SEC-11
func TestStaleCatalog(t *testing.T) {
	u := newRegistry(t, 1000)
	o := startOperator(t, u)
	o.flush(t, time.Now().Add(-2*catalog.DefaultMaxAge), o.publish(t, u, "crate00"))
	n := start(t, mirrorOf(t, u, o))
	n.waitFor(t, "stopping", func() bool {
		r := n.Status().Registries[0]
		return r.Stale && r.Length > 0 && r.Mirror.State == "stopped"
	})
	_, metrics, err := n.get("/metrics")
	if err != nil || !strings.Contains(string(metrics), "\npkgswarm_catalogs{state=\"stale\"} 1\n") {
		t.Errorf("metrics do not tell: %v", err)
	}
	resp, err := client.Get(n.URL() + "/cargo/cr/at/crate00") // no upstream can say more
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Pkgswarm-Stale") == "" {
		t.Errorf("index file: %s, %v", resp.Status, resp.Header)
	}
	if err := o.w.Heartbeat(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	n.waitFor(t, "going on", n.mirrored)
}

// TestWantedTwice: a file that a mirror and a client want at once, each for itself, is
// downloaded once. Both once wrote to one core, and the peer was blamed for what came
// of it.
func TestWantedTwice(t *testing.T) {
	sizes := make([]int, 60)
	for i := range sizes {
		sizes[i] = 100_000 + i
	}
	u := newRegistry(t, sizes...)
	a := start(t, config(t, u, t.TempDir()))
	a.fetchAll(t, u)
	c := config(t, u, t.TempDir())
	c.Peers = []string{a.swarm.Addrs()[0].String()}
	b := start(t, c)
	b.waitPeers(t, 1)
	var wg sync.WaitGroup
	for name, data := range u.crates {
		sum := artifact.Digest{Alg: artifact.SHA256, Sum: sha256.Sum256(data)}
		for _, who := range []string{"mirror", "client"} {
			wg.Go(func() {
				err := b.fetcher.Store(t.Context(), &fetch.Artifact{Name: who + name, Known: []artifact.Digest{sum}, MaxBytes: int64(len(data))})
				if err != nil {
					t.Errorf("%s for the %s: %v", name, who, err)
				}
			})
		}
	}
	wg.Wait()
	if _, metrics, err := b.get("/metrics"); err != nil || bytes.Contains(metrics, []byte("pkgswarm_peer_bans_total{")) {
		t.Errorf("a peer was banned, or %v", err)
	}
	if peers := b.swarm.Peers(); len(peers) != 1 {
		t.Errorf("%d peers, want 1", len(peers))
	}
}
