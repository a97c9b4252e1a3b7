package signed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/core/merkle"
	"github.com/pkgswarm/pkgswarm/registry/catalog"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func openStore(t *testing.T, dir string) *core.Store {
	t.Helper()
	s, err := core.OpenStore(dir, core.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// A testOperator writes a catalog and logs.
type testOperator struct {
	t     *testing.T
	store *core.Store
	keys  *catalog.Operator
	core  *core.Core
	w     *catalog.Writer
}

func newOperator(t *testing.T, seed byte) *testOperator {
	t.Helper()
	o := &testOperator{t: t, store: openStore(t, t.TempDir())}
	o.use(catalog.NewOperator(catalog.Seed{seed}), o.memory())
	return o
}

func (o *testOperator) memory() *catalog.Memory {
	m, err := catalog.OpenMemory(o.t.TempDir())
	if err != nil {
		o.t.Fatal(err)
	}
	return m
}

func (o *testOperator) use(keys *catalog.Operator, memory *catalog.Memory) {
	o.t.Helper()
	m, pairs := keys.Catalog()
	c, err := o.store.Create(m, pairs...)
	if err == nil {
		o.w, err = catalog.OpenWriter(o.t.Context(), c, memory)
	}
	if err != nil {
		o.t.Fatal(err)
	}
	o.keys, o.core = keys, c
}

func line(name, vers, cksum string) []byte {
	return fmt.Appendf(nil, `{"name":%q,"vers":%q,"deps":[],"cksum":%q,"features":{},"yanked":false}`, name, vers, strings.Repeat(cksum, 64))
}

func crate(name string) pkglog.Header { return pkglog.Header{Ecosystem: pkglog.Cargo, Package: name} }

// append appends lines to the log of h, as if it were of package as, and
// returns its entry.
func (o *testOperator) append(h, as pkglog.Header, lines ...[]byte) catalog.Entry {
	o.t.Helper()
	m, pair, err := o.keys.Log(h)
	if err != nil {
		o.t.Fatal(err)
	}
	log, err := o.store.Create(m, pair)
	if err != nil {
		o.t.Fatal(err)
	}
	s := pkglog.NewState(as)
	var blocks [][]byte
	if log.Length() == 0 {
		blocks = append(blocks, as.Encode())
	} else if s, err = catalog.ReadLog(o.t.Context(), log, entryOf(log), as); err != nil {
		o.t.Fatal(err)
	}
	for _, l := range lines {
		b, err := s.Append(pkglog.Event{Kind: pkglog.Published, Position: len(s.Lines()), Line: l})
		if err != nil {
			o.t.Fatal(err)
		}
		blocks = append(blocks, b)
	}
	if _, err := log.Append(blocks...); err != nil {
		o.t.Fatal(err)
	}
	return entryOf(log)
}

func entryOf(log *core.Core) catalog.Entry {
	t := log.Tree()
	return catalog.Entry{Log: log.Key(), Length: t.Length, TreeHash: t.Hash(), Time: time.Now()}
}

func (o *testOperator) flush(at time.Time, changes ...catalog.Change) {
	o.t.Helper()
	if err := o.w.Flush(o.t.Context(), changes, at); err != nil {
		o.t.Fatal(err)
	}
}

// publish appends lines to a crate's log and records it.
func (o *testOperator) publish(name string, lines ...[]byte) {
	o.t.Helper()
	o.flush(time.Now(), catalog.Change{Key: "cargo/" + name, Entry: o.append(crate(name), crate(name), lines...)})
}

// stores are peers: replicas come from whichever of them has the core.
type stores struct {
	own *core.Store

	mu    sync.Mutex
	peers []*core.Store
}

func (s *stores) set(peers ...*core.Store) {
	s.mu.Lock()
	s.peers = peers
	s.mu.Unlock()
}

func (s *stores) Replica(key core.Key) (Replica, error) {
	c, err := s.own.Open(key)
	if err != nil {
		return nil, err
	}
	return &storeReplica{Core: c, s: s}, nil
}

func (s *stores) Held(key core.Key) (Held, error) {
	c, err := s.own.OpenExisting(key)
	if err != nil {
		return nil, err
	}
	return c, nil
}

type storeReplica struct {
	*core.Core
	s *stores
}

func (r *storeReplica) Changed() <-chan struct{} { return nil }

func (r *storeReplica) Expect(uint64) {}

// Update takes up the tree of each peer that extends ours.
func (r *storeReplica) Update(context.Context) error {
	err := errors.New("no peer has it")
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	for _, p := range r.s.peers {
		c, openErr := p.OpenExisting(r.Key())
		if openErr != nil {
			continue
		}
		err = upgrade(r.Core, c)
		c.Close()
	}
	return err
}

func upgrade(to, from *core.Core) error {
	n, m := to.Length(), from.Length()
	if m <= n {
		return nil
	}
	p, err := from.Prove(merkle.Request{Fork: from.Fork(), Upgrade: &merkle.UpgradeRequest{Start: n, Length: m - n}, Manifest: true})
	if err != nil {
		return err
	}
	_, err = to.Apply(p)
	return err
}

func (r *storeReplica) Download(_ context.Context, lo, hi uint64) error {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	for i := lo; i < hi; i++ {
		if r.Core.Has(i) {
			continue
		}
		if err := r.fetch(i); err != nil {
			return err
		}
	}
	return nil
}

func (r *storeReplica) fetch(i uint64) error {
	err := errors.New("no peer has it")
	for _, p := range r.s.peers {
		c, openErr := p.OpenExisting(r.Key())
		if openErr != nil {
			continue
		}
		defer c.Close()
		nodes, missErr := r.Core.MissingNodes(2 * i)
		if missErr != nil {
			return missErr
		}
		var proof *merkle.Proof
		if proof, err = c.Prove(merkle.Request{Block: &merkle.BlockRequest{Index: i, Nodes: nodes}}); err != nil {
			continue
		}
		if _, err = r.Core.Apply(proof); err == nil {
			return nil
		}
	}
	return err
}

// A client is a node that follows catalogs.
type client struct {
	t      *testing.T
	dir    string
	peers  *stores
	memory *catalog.Memory
	*Registry
}

// newClient starts a client whose memory is in dir/state, with an empty store.
func newClient(t *testing.T, dir string, agree int, keys []core.Key, peers ...*core.Store) *client {
	t.Helper()
	m, err := catalog.OpenMemory(filepath.Join(dir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	c := &client{t: t, dir: dir, peers: &stores{own: openStore(t, t.TempDir())}, memory: m}
	c.peers.set(peers...)
	t.Cleanup(func() {
		for _, f := range c.followers {
			f.leave()
		}
	})
	c.Registry = New(Config{Peers: c.peers, Memory: m, Keys: keys, Agree: agree})
	return c
}

// turn does what Run does when catalogs may have grown.
func (c *client) turn() {
	for _, f := range c.followers {
		if f.replica != nil {
			f.replica.Update(c.t.Context()) // a session follows by itself
		}
		for f.open() && f.step(c.t.Context()) {
		}
	}
}

func (c *client) file(name string) (string, error) {
	a, err := c.Package(c.t.Context(), crate(name))
	if err != nil {
		return "", err
	}
	return string(a.State.IndexFile()), nil
}

func (c *client) want(name string, lines ...[]byte) {
	c.t.Helper()
	got, err := c.file(name)
	if want := string(bytes.Join(lines, []byte("\n"))) + "\n"; err != nil || got != want {
		c.t.Errorf("%s is\n%s%v\nwant\n%s", name, got, err, want)
	}
}

func (c *client) wantErr(name string, want error) {
	c.t.Helper()
	if got, err := c.file(name); !errors.Is(err, want) {
		c.t.Errorf("%s is %q, %v; want error %v", name, got, err, want)
	}
}

var (
	v1, v2 = line("serde", "1.0.0", "a"), line("serde", "1.0.1", "b")
	l1     = line("libc", "0.2.0", "c")
)

func TestFollow(t *testing.T) {
	o := newOperator(t, 1)
	o.publish("serde", v1)
	c := newClient(t, t.TempDir(), 0, []core.Key{o.w.Key()}, o.store)
	c.wantErr("serde", ErrNotReady)
	c.turn()
	c.want("serde", v1)
	c.wantErr("libc", fs.ErrNotExist)

	var changed []pkglog.Header
	c.c.Refreshed = func(h pkglog.Header) { changed = append(changed, h) }
	o.publish("libc", l1)
	o.publish("serde", v2)
	c.turn()
	c.want("serde", v1, v2)
	c.want("libc", l1)
	if len(changed) != 2 || changed[0] != crate("libc") || changed[1] != crate("serde") {
		t.Errorf("refreshed %v", changed)
	}
	if s := c.Status()[0]; !s.Ready || s.Stale || s.Err != "" || s.Head.Cargo != 2 || s.Length != o.w.Length() {
		t.Errorf("status %+v", s)
	}
	if !c.Known(t.Context(), crate("libc")) || c.Known(t.Context(), crate("private")) { // SEC-61
		t.Error("wrong names are known")
	}
}

// A countedPeers counts cores that are opened and blocks that are asked for.
type countedPeers struct {
	*stores
	opened, asked atomic.Int64
}

func (p *countedPeers) Replica(key core.Key) (Replica, error) {
	p.opened.Add(1)
	r, err := p.stores.Replica(key)
	return &countedReplica{r, p}, err
}

type countedReplica struct {
	Replica
	p *countedPeers
}

func (r *countedReplica) Get(ctx context.Context, i uint64) ([]byte, error) {
	r.p.asked.Add(1)
	return r.Replica.Get(ctx, i)
}

func (r *countedReplica) Download(ctx context.Context, lo, hi uint64) error {
	r.p.asked.Add(int64(hi - lo))
	return r.Replica.Download(ctx, lo, hi)
}

// TestAbsentNames: nothing is asked of peers for names that the catalog does not
// have, whatever they are: it is here as a whole. SEC-61
func TestAbsentNames(t *testing.T) {
	o := newOperator(t, 1)
	for i := range 50 {
		name := fmt.Sprintf("crate-%02d", i)
		o.publish(name, line(name, "1.0.0", "a"))
	}
	c := newClient(t, t.TempDir(), 0, []core.Key{o.w.Key()}, o.store)
	p := &countedPeers{stores: c.peers}
	c.c.Peers = p
	c.turn()
	if p.opened.Load() != 1 || p.asked.Load() < int64(o.w.Length()) {
		t.Fatalf("%d cores opened, %d blocks asked for, to get the catalog", p.opened.Load(), p.asked.Load())
	}
	c.peers.set() // nobody answers any more
	p.opened.Store(0)
	for _, name := range []string{"a", "crate-", "crate-25a", "crate-49a", "zzz"} {
		c.wantErr(name, fs.ErrNotExist)
		if c.Known(t.Context(), crate(name)) {
			t.Errorf("%s is known", name)
		}
	}
	if n := p.opened.Load(); n != 0 {
		t.Errorf("%d cores were opened for absent names", n)
	}
}

// TestRollback: an older copy of a catalog is refused, also after a restart with
// an empty store. SEC-6, SEC-10
func TestRollback(t *testing.T) {
	o := newOperator(t, 1)
	o.publish("serde", v1)
	older := openStore(t, t.TempDir())
	copyStore(t, older, o.store)
	o.publish("serde", v2)

	dir := t.TempDir()
	c := newClient(t, dir, 0, []core.Key{o.w.Key()}, o.store)
	c.turn()
	c.want("serde", v1, v2)
	c.peers.set(older)
	c.turn()
	c.want("serde", v1, v2)

	c = newClient(t, dir, 0, []core.Key{o.w.Key()}, older)
	c.turn()
	c.wantErr("serde", catalog.ErrRollback)
	c.peers.set(o.store) // recovers by itself
	c.turn()
	c.want("serde", v1, v2)
}

func copyStore(t *testing.T, to, from *core.Store) {
	t.Helper()
	for key, err := range from.Cores() {
		if err != nil {
			t.Fatal(err)
		}
		src, err := from.OpenExisting(key)
		if err != nil {
			t.Fatal(err)
		}
		dst, err := to.Open(key)
		if err != nil {
			t.Fatal(err)
		}
		r := &storeReplica{dst, &stores{own: to, peers: []*core.Store{from}}}
		if err := r.Update(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := r.Download(t.Context(), 0, src.Length()); err != nil {
			t.Fatal(err)
		}
		dst.Close()
		src.Close()
	}
}

// TestEquivocation: two histories under one key, at equal and other lengths, in
// either order, over a restart with an empty store. SEC-13
func TestEquivocation(t *testing.T) {
	for _, more := range []int{0, 1, 5} {
		for _, longFirst := range []bool{false, true} {
			t.Run(fmt.Sprint(more, longFirst), func(t *testing.T) {
				a, b := newOperator(t, 1), newOperator(t, 1)
				a.publish("serde", v1)
				b.publish("serde", v2)
				for i := range more {
					b.publish("libc", line("libc", fmt.Sprint(i), "d"))
				}
				if longFirst {
					a, b = b, a
				}
				dir, keys := t.TempDir(), []core.Key{a.w.Key()}
				c := newClient(t, dir, 0, keys, a.store)
				c.turn()
				if _, err := c.file("serde"); err != nil {
					t.Fatal(err)
				}
				c = newClient(t, dir, 0, keys, b.store)
				c.turn()
				if longFirst && more > 0 {
					// A shorter head alone may be an old one: it is refused, and the
					// fork shows when the longer history is met, which the swarm does.
					c.wantErr("serde", catalog.ErrRollback)
					return
				}
				c.wantErr("serde", catalog.ErrEquivocated)
				s := c.Status()[0]
				if !s.Forked || s.Ready {
					t.Errorf("status %+v", s)
				}
				e, err := c.memory.Evidence(keys[0])
				if err != nil || e.Verify() != nil {
					t.Fatalf("evidence: %v", err)
				}
				c = newClient(t, dir, 0, keys, a.store) // and it stays so
				c.turn()
				c.wantErr("serde", catalog.ErrEquivocated)
			})
		}
	}
}

// TestHistories shows a client two histories of a catalog, of random lengths and
// common beginning, one after the other in random order, with restarts between
// them. None that differ may be missed, none that agree may be accused. SEC-13
func TestHistories(t *testing.T) {
	runs := uint64(80) // package replicate has 200 of peers that meet
	if testing.Short() {
		runs = 12
	}
	for seed := range runs {
		rng := rand.New(rand.NewPCG(seed, 13))
		common, x, y := 1+rng.IntN(4), rng.IntN(4), rng.IntN(4)
		a, b := newOperator(t, 1), newOperator(t, 1)
		start := time.Unix(1_700_000_000, 0)
		for i := range common {
			for _, o := range []*testOperator{a, b} {
				o.flush(start.Add(time.Duration(i)*time.Second), catalog.Change{Key: "cargo/serde", Entry: catalog.Entry{Length: uint64(i + 1), Time: start}})
			}
		}
		for i := range x {
			a.flush(time.Now(), catalog.Change{Key: "cargo/a", Entry: catalog.Entry{Length: uint64(i + 1), Time: start}})
		}
		for i := range y {
			b.flush(time.Now(), catalog.Change{Key: "cargo/b", Entry: catalog.Entry{Length: uint64(i + 1), Time: start}})
		}
		ops := []*testOperator{a, b}
		if rng.IntN(2) == 0 {
			slices.Reverse(ops)
		}
		dir := t.TempDir()
		forked, turns := false, 2+rng.IntN(3)
		for turn := range turns {
			// Restarted with its memory and an empty store, as after a lost cache.
			c := newClient(t, dir, 0, []core.Key{a.w.Key()}, ops[turn%2].store)
			c.turn()
			forked = c.Status()[0].Forked
		}
		// A shorter head alone is an old one or a fork; which, shows when the longer
		// history, that was lost with the store, is met again.
		onlyOnce := turns == 2 && ops[0].core.Length() > ops[1].core.Length()
		if want := x > 0 && y > 0 && !onlyOnce; forked != want {
			t.Errorf("seed %d: %d common, then %d and %d flushes, %d turns: forked %v, want %v", seed, common, x, y, turns, forked, want)
		}
		if t.Failed() {
			return
		}
	}
}

// TestRewritten: a history with a raised fork counter is refused. SEC-14
func TestRewritten(t *testing.T) {
	o := newOperator(t, 1)
	o.publish("serde", v1)
	o.publish("serde", v2)
	if err := o.core.Truncate(2); err != nil {
		t.Fatal(err)
	}
	c := newClient(t, t.TempDir(), 0, []core.Key{o.w.Key()}, o.store)
	c.turn()
	if s := c.Status()[0]; s.Ready || s.Err == "" {
		t.Errorf("status %+v", s)
	}
	c.wantErr("serde", ErrNotReady)
}

// TestFreeze: a catalog nobody vouches for any more is said to be stale. SEC-11
func TestFreeze(t *testing.T) {
	o := newOperator(t, 1)
	old := time.Now().Add(-2 * catalog.DefaultMaxAge)
	o.flush(old, catalog.Change{Key: "cargo/serde", Entry: o.append(crate("serde"), crate("serde"), v1)})
	c := newClient(t, t.TempDir(), 0, []core.Key{o.w.Key()}, o.store)
	c.turn()
	c.want("serde", v1)
	a, err := c.Package(t.Context(), crate("serde"))
	if err != nil || !a.Stale || !c.Status()[0].Stale {
		t.Errorf("old catalog: stale %v, %v, status %+v", a.Stale, err, c.Status()[0])
	}
	if err := o.w.Heartbeat(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	c.turn()
	if a, err = c.Package(t.Context(), crate("serde")); err != nil || a.Stale {
		t.Errorf("after a heartbeat: stale %v, %v", a.Stale, err)
	}
}

// TestFuture: a head from the future costs no more than itself. SEC-15
func TestFuture(t *testing.T) {
	o := newOperator(t, 1)
	memory := o.memory()
	o.use(o.keys, memory)
	o.publish("serde", v1)
	c := newClient(t, t.TempDir(), 0, []core.Key{o.w.Key()}, o.store)
	c.turn()
	o.flush(time.Now().AddDate(10, 0, 0), catalog.Change{Key: "cargo/serde", Entry: o.append(crate("serde"), crate("serde"), v2)})
	c.turn()
	if s := c.Status()[0]; !strings.Contains(s.Err, catalog.ErrFuture.Error()) {
		t.Errorf("status %+v", s)
	}
	fresh := newClient(t, t.TempDir(), 0, []core.Key{o.w.Key()}, o.store)
	fresh.turn()
	fresh.wantErr("serde", catalog.ErrFuture)

	o.rotate(2, memory)
	o.publish("serde", v1, v2)
	for _, c := range []*client{c, fresh} {
		c.turn()
		c.want("serde", v1, v2)
	}
}

// rotate goes over to the operator of another seed, with empty logs.
func (o *testOperator) rotate(seed byte, memory *catalog.Memory) {
	o.t.Helper()
	next := catalog.NewOperator(catalog.Seed{seed})
	p, err := o.w.Retire(o.t.Context(), next)
	if err != nil {
		o.t.Fatal(err)
	}
	o.use(next, memory)
	if err := o.w.Succeed(o.t.Context(), p); err != nil {
		o.t.Fatal(err)
	}
}

// TestRotations: an old client catches up over three rotations. SEC-17
func TestRotations(t *testing.T) {
	o := newOperator(t, 1)
	memory := o.memory()
	o.use(o.keys, memory)
	first := o.w.Key()
	o.publish("serde", v1)
	dir := t.TempDir()
	c := newClient(t, dir, 0, []core.Key{first}, o.store)
	c.turn()
	for seed := byte(2); seed < 5; seed++ {
		o.rotate(seed, memory)
		o.publish("serde", v1, line("serde", fmt.Sprint(seed, ".0.0"), "e"))
	}
	c.turn()
	if s := c.Status()[0]; s.Key != o.w.Key() || s.Configured != first {
		t.Errorf("status %+v, want key %s", s, o.w.Key())
	}
	c.want("serde", v1, line("serde", fmt.Sprint(4, ".0.0"), "e"))

	// A thief of the first seed names a successor of his own: a step once taken
	// is not taken back, also after a restart.
	thief := &testOperator{t: t, store: openStore(t, t.TempDir())}
	thief.use(catalog.NewOperator(catalog.Seed{1}), thief.memory())
	thief.publish("serde", v2)
	thief.rotate(66, thief.memory())
	c = newClient(t, dir, 0, []core.Key{first}, thief.store, o.store)
	c.turn()
	c.want("serde", v1, line("serde", "4.0.0", "e"))
}

// TestLyingLogs: logs that are not what the catalog names. SEC-12
func TestLyingLogs(t *testing.T) {
	tests := []struct {
		name string
		lie  func(o *testOperator) catalog.Entry
		want error
	}{
		{"other tree hash", func(o *testOperator) catalog.Entry {
			e := o.append(crate("serde"), crate("serde"), v1)
			e.TreeHash[0] ^= 1
			return e
		}, ErrOperator},
		{"log of another package", func(o *testOperator) catalog.Entry {
			return o.append(crate("serde"), crate("libc"), l1)
		}, ErrOperator},
		{"longer than it is", func(o *testOperator) catalog.Entry {
			e := o.append(crate("serde"), crate("serde"), v1)
			e.Length += 1000
			return e
		}, nil},
		{"junk", func(o *testOperator) catalog.Entry {
			m, pair, _ := o.keys.Log(crate("serde"))
			log, err := o.store.Create(m, pair)
			if err != nil {
				o.t.Fatal(err)
			}
			blocks := [][]byte{crate("serde").Encode()}
			for range 1000 {
				blocks = append(blocks, []byte("junk"))
			}
			if _, err := log.Append(blocks...); err != nil {
				o.t.Fatal(err)
			}
			return entryOf(log)
		}, ErrOperator},
		{"no such log", func(o *testOperator) catalog.Entry {
			return catalog.Entry{Log: core.Key{7}, Length: 3}
		}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := newOperator(t, 1)
			o.publish("libc", l1)
			o.flush(time.Now(), catalog.Change{Key: "cargo/serde", Entry: tt.lie(o)})
			c := newClient(t, t.TempDir(), 0, []core.Key{o.w.Key()}, o.store)
			c.turn()
			got, err := c.file("serde")
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("serde is %q, %v; want error %v", got, err, tt.want)
			}
			if errors.Is(err, fs.ErrNotExist) {
				t.Errorf("a lie looks like absence: %v", err)
			}
			if tt.name != "log of another package" {
				c.want("libc", l1)
			}
		})
	}
	t.Run("longer than named", func(t *testing.T) {
		o := newOperator(t, 1)
		o.publish("serde", v1)
		o.append(crate("serde"), crate("serde"), v2) // not recorded
		c := newClient(t, t.TempDir(), 0, []core.Key{o.w.Key()}, o.store)
		c.turn()
		c.want("serde", v1)
	})
}

// TestAgree: three operators, one of them may lie and one may be down. SEC-18
func TestAgree(t *testing.T) {
	lie := line("serde", "1.0.1", "f")
	for liar := range 4 { // 3: none
		for down := range 4 {
			t.Run(fmt.Sprint(liar, down), func(t *testing.T) {
				var keys []core.Key
				var peers []*core.Store
				for i := range 3 {
					o := newOperator(t, byte(10+i))
					second := v2
					if i == liar {
						second = lie
					}
					o.publish("serde", v1, second)
					keys = append(keys, o.w.Key())
					if i != down {
						peers = append(peers, o.store)
					}
				}
				c := newClient(t, t.TempDir(), 2, keys, peers...)
				c.turn()
				a, err := c.Package(t.Context(), crate("serde"))
				if err != nil {
					t.Fatal(err)
				}
				if liar == 3 || liar == down {
					c.want("serde", v1, v2)
					return
				}
				c.want("serde", v1)
				var d *DisagreementError
				if !errors.As(a.Refused["1.0.1"], &d) || len(d.Said) < 2 || !strings.Contains(d.Error(), keys[liar].Short()+" says ffff") {
					t.Errorf("refused: %v", a.Refused)
				}
			})
		}
	}
	t.Run("on nothing", func(t *testing.T) {
		a, b := newOperator(t, 1), newOperator(t, 2)
		a.publish("serde", v2)
		b.publish("serde", lie)
		c := newClient(t, t.TempDir(), 2, []core.Key{a.w.Key(), b.w.Key()}, a.store, b.store)
		var said bytes.Buffer
		c.c.Logger = slog.New(slog.NewTextHandler(&said, nil))
		c.turn()
		for range 2 {
			_, _, err := c.CrateIndex(t.Context(), "serde")
			if !errors.Is(err, ErrOperator) || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), b.w.Key().Short()+" says ffff") {
				t.Errorf("error %v", err)
			}
		}
		if n := strings.Count(said.String(), "operators disagree on cargo/serde@1.0.1"); n != 1 {
			t.Errorf("said %d times:\n%s", n, &said)
		}
	})
	t.Run("stale", func(t *testing.T) { // SEC-11
		for _, agree := range []int{2, 3} {
			var keys []core.Key
			var peers []*core.Store
			for i := range 3 {
				o, at := newOperator(t, byte(10+i)), time.Now()
				if i == 1 {
					at = at.Add(-2 * time.Hour)
				}
				o.flush(at, catalog.Change{Key: "cargo/serde", Entry: o.append(crate("serde"), crate("serde"), v1)})
				keys, peers = append(keys, o.w.Key()), append(peers, o.store)
			}
			c := newClient(t, t.TempDir(), agree, keys, peers...)
			c.turn()
			_, stale, err := c.CrateIndex(t.Context(), "serde")
			if want := agree == 3; err != nil || stale != want || c.Fresh() == want {
				t.Errorf("%d of 3 must agree, one is stale: %v, %v, fresh %v", agree, stale, err, c.Fresh())
			}
		}
	})
	t.Run("too few", func(t *testing.T) {
		a, b := newOperator(t, 1), newOperator(t, 2)
		a.publish("serde", v1)
		b.publish("libc", l1)
		c := newClient(t, t.TempDir(), 2, []core.Key{a.w.Key(), b.w.Key()}, a.store, b.store)
		c.turn()
		c.wantErr("serde", ErrOnlySome)
		c.wantErr("none", fs.ErrNotExist)
	})
}

// silentPeers never tell about package logs.
type silentPeers struct {
	*stores
	catalog core.Key
	waited  time.Duration // longest
}

type silentReplica struct {
	*storeReplica
	p *silentPeers
}

func (p *silentPeers) Replica(key core.Key) (Replica, error) {
	r, err := p.stores.Replica(key)
	if err != nil || key == p.catalog {
		return r, err
	}
	return &silentReplica{r.(*storeReplica), p}, nil
}

func (r *silentReplica) Update(ctx context.Context) error {
	deadline, _ := ctx.Deadline()
	r.p.waited = max(r.p.waited, time.Until(deadline))
	<-ctx.Done()
	return ctx.Err()
}

// TestSilentPeers: with nobody who has the logs, a build waits once, not for each
// of its packages. SEC-23
func TestSilentPeers(t *testing.T) {
	o := newOperator(t, 1)
	o.publish("serde", v1)
	o.publish("libc", l1)
	c := newClient(t, t.TempDir(), 0, []core.Key{o.w.Key()}, o.store)
	p := &silentPeers{stores: c.peers, catalog: o.w.Key()}
	c.c.Peers = p
	c.headDeadline = 200 * time.Millisecond
	c.turn()
	c.wantErr("serde", context.DeadlineExceeded)
	if p.waited <= headHurry {
		t.Errorf("peers were given %v", p.waited)
	}
	p.waited = 0
	c.wantErr("libc", context.DeadlineExceeded)
	if p.waited > headHurry {
		t.Errorf("peers were given %v after they had not answered", p.waited)
	}
}
