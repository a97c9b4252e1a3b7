package signed

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/core/merkle"
	"github.com/pkgswarm/pkgswarm/registry/artifact"
	"github.com/pkgswarm/pkgswarm/registry/catalog"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
)

// A mirrorClient is a client that holds everything, and notes what it is told.
type mirrorClient struct {
	*client
	counted *countedPeers

	mu    sync.Mutex
	kept  []string
	files []string
	full  error // what the getting of files answers
}

// newMirror returns a mirror of o whose store is store.
func newMirror(t *testing.T, store *core.Store, o *testOperator, m Mirror) *mirrorClient {
	t.Helper()
	c := &mirrorClient{client: newClient(t, t.TempDir(), 0, nil, o.store)}
	c.peers.own = store
	c.counted = &countedPeers{stores: c.peers}
	if m.FilesOf != "" {
		m.Files = func(_ context.Context, h pkglog.Header, s *pkglog.State) error {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.files = append(c.files, h.Package)
			return c.full
		}
	}
	c.Registry = New(Config{
		Peers: c.counted, Memory: c.memory, Keys: []core.Key{o.w.Key()}, Mirror: m,
		Kept: func(h pkglog.Header, _ *pkglog.State) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.kept = append(c.kept, h.Package)
		},
	})
	return c
}

// round does what Run does when the catalog may have grown.
func (c *mirrorClient) round() {
	c.t.Helper()
	c.turn()
	for _, f := range c.followers {
		for _, k := range f.keepers {
			if s, due := k.next(); due {
				k.ended(c.t.Context(), s, k.pass(c.t.Context(), s))
			}
			k.save()
		}
	}
}

func (c *mirrorClient) mirrored() *MirrorStatus { return c.Status()[0].Mirrored }

// told returns what was told since the last call, sorted.
func (c *mirrorClient) told() (kept, files []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	kept, files = c.kept, c.files
	c.kept, c.files = nil, nil
	slices.Sort(kept)
	slices.Sort(files)
	return kept, files
}

func crates(from, to int) (names []string) {
	for i := from; i < to; i++ {
		names = append(names, fmt.Sprintf("crate-%03d", i))
	}
	return names
}

func TestMirror(t *testing.T) {
	o := newOperator(t, 1)
	for _, name := range crates(0, 100) {
		o.publish(name, line(name, "1.0.0", "a"))
	}
	store := openStore(t, t.TempDir())
	c := newMirror(t, store, o, Mirror{Logs: true})
	c.round()
	if kept, _ := c.told(); !slices.Equal(kept, crates(0, 100)) {
		t.Errorf("kept %d logs", len(kept))
	}
	st := c.mirrored()
	if st.Known != 100 || st.Held != 100 || st.State != "up to date" || st.Late+st.Wrong != 0 || st.Files != nil {
		t.Errorf("status %+v", st)
	}
	bytes := uint64(0)
	for i, name := range crates(0, 100) {
		if i%2 == 0 {
			c.want(name, line(name, "1.0.0", "a"))
		}
		e, err := c.Snapshots()[0].Entry(t.Context(), crate(name))
		if err != nil {
			t.Fatal(err)
		}
		log, err := c.whole(e)
		if err != nil {
			t.Fatal(err)
		}
		bytes += log.Tree().ByteLength()
		log.Close()
	}
	if st.Bytes != bytes {
		t.Errorf("%d bytes, want %d", st.Bytes, bytes)
	}

	// What changes is fetched, and nothing else.
	c.counted.opened.Store(0)
	o.publish("crate-007", line("crate-007", "1.0.1", "b"))
	o.publish("crate-100", line("crate-100", "1.0.0", "a"))
	c.round()
	if kept, _ := c.told(); !slices.Equal(kept, []string{"crate-007", "crate-100"}) || c.counted.opened.Load() != 2 {
		t.Errorf("kept %v, %d logs opened", kept, c.counted.opened.Load())
	}

	// A restarted one goes on where it was.
	c.followers[0].leave()
	bytes = c.mirrored().Bytes
	c = newMirror(t, store, o, Mirror{Logs: true})
	o.publish("crate-101", line("crate-101", "1.0.0", "a"))
	c.turn()
	c.round()
	if kept, _ := c.told(); !slices.Equal(kept, []string{"crate-101"}) || c.counted.opened.Load() != 2 { // one is the catalog
		t.Errorf("after a restart: kept %v, %d cores opened", kept, c.counted.opened.Load())
	}
	if st := c.mirrored(); st.Held != 102 || st.Bytes <= bytes {
		t.Errorf("after a restart: %+v, had %d bytes", st, bytes)
	}

	// All of it is of use with nobody else there.
	c.peers.set()
	for _, name := range crates(50, 100) {
		c.want(name, line(name, "1.0.0", "a"))
	}
}

// TestMirrorResumes: killed in the middle, it fetches no log again.
func TestMirrorResumes(t *testing.T) {
	o := newOperator(t, 1)
	for _, name := range crates(0, 200) {
		o.publish(name, line(name, "1.0.0", "a"))
	}
	store := openStore(t, t.TempDir())
	var fetched atomic.Int64
	for range 2 {
		c := newMirror(t, store, o, Mirror{Logs: true, Skip: func(pkglog.Header) bool { return false }})
		c.turn()
		k := c.followers[0].keepers[0]
		s, _ := k.next()
		ctx, cancel := context.WithCancel(t.Context())
		work := k.work
		k.work = func(ctx context.Context, h pkglog.Header, e catalog.Entry) (uint64, error) {
			if fetched.Add(1) == 20 {
				cancel()
			}
			return work(ctx, h, e)
		}
		err := k.pass(ctx, s)
		k.save()
		cancel()
		c.followers[0].leave()
		if opened := c.counted.opened.Load(); err == nil && opened > 200-20+logWorkers+1 {
			t.Errorf("%d logs were fetched after a restart", opened)
		}
	}
	if n := fetched.Load(); n > 200+20+logWorkers || n < 200 {
		t.Errorf("%d logs looked at", n)
	}
}

// TestMirrorWithoutPeers: what nobody has is asked for again, and does not keep the
// rest from being held; where nobody has anything it waits.
func TestMirrorWithoutPeers(t *testing.T) {
	o := newOperator(t, 1)
	o.flush(time.Now(), catalog.Change{Key: "cargo/lost", Entry: catalog.Entry{Log: core.Key{7}, Length: 3}})
	o.publish("serde", v1)
	lie := o.append(crate("libc"), crate("libc"), l1)
	lie.TreeHash[0] ^= 1
	o.flush(time.Now(), catalog.Change{Key: "cargo/libc", Entry: lie}) // SEC-12
	c := newMirror(t, openStore(t, t.TempDir()), o, Mirror{Logs: true})
	c.round()
	if kept, _ := c.told(); !slices.Equal(kept, []string{"serde"}) {
		t.Errorf("kept %v", kept)
	}
	if st := c.mirrored(); st.Late != 1 || st.Wrong != 1 || st.Held != 2 || st.State != "waiting for peers" {
		t.Errorf("status %+v", st)
	}
	if p, err := c.followers[0].keepers[0].loadPlace(c.Snapshots()[0]); err != nil || p.seq > 1 {
		t.Errorf("place %+v, %v: what is missing would be forgotten", p, err)
	}

	for _, name := range crates(0, 2*maxMissed) {
		o.flush(time.Now(), catalog.Change{Key: "cargo/" + name, Entry: catalog.Entry{Log: core.Key{8}, Length: 3}})
	}
	c.round()
	if st := c.mirrored(); st.Late < maxMissed || st.Late > maxMissed+2*logWorkers || st.State != "waiting" || st.Err == "" {
		t.Errorf("with nobody there: %+v", st)
	}
}

// TestMirrorStops: nothing is taken from a catalog that is stale, or of which there
// are two histories. SEC-11, SEC-13
func TestMirrorStops(t *testing.T) {
	o := newOperator(t, 1)
	entry := o.append(crate("serde"), crate("serde"), v1)
	o.flush(time.Now().Add(-2*catalog.DefaultMaxAge), catalog.Change{Key: "cargo/serde", Entry: entry})
	c := newMirror(t, openStore(t, t.TempDir()), o, Mirror{Logs: true})
	c.round()
	if st := c.mirrored(); st.State != "stopped" || st.Err != errStale.Error() || st.Held != 0 {
		t.Errorf("stale: %+v", st)
	}
	o.publish("libc", l1)
	c.round()
	if st := c.mirrored(); st.State != "up to date" || st.Err != "" || st.Held != 2 {
		t.Errorf("vouched for again: %+v", st)
	}

	other := newOperator(t, 1)
	other.publish("serde", v2)
	proof := func(o *testOperator) []byte {
		p, err := o.core.Prove(merkle.Request{Upgrade: &merkle.UpgradeRequest{Length: o.core.Length()}})
		if err != nil {
			t.Fatal(err)
		}
		return p.AppendMessage(nil, 0)
	}
	m, _ := o.keys.Catalog()
	other.publish("libc", l1)
	e := &core.Evidence{Key: o.w.Key(), Manifest: m.Encode(), A: proof(o), B: proof(other)}
	if err := c.Conflict(e); err != nil {
		t.Fatalf("%v, lengths %d and %d", err, o.core.Length(), other.core.Length())
	}
	c.round()
	if st := c.mirrored(); st.State != "stopped" || st.Err != errForked.Error() {
		t.Errorf("forked: %+v", st)
	}
}

// TestMirrorFiles: files are got once for each change, those for which there was no
// room again after a restart.
func TestMirrorFiles(t *testing.T) {
	o := newOperator(t, 1)
	o.publish("serde", v1)
	o.publish("libc", l1)
	store := openStore(t, t.TempDir())
	c := newMirror(t, store, o, Mirror{Logs: true, FilesOf: "all"})
	c.full = ErrLeftOut
	c.round()
	if _, files := c.told(); !slices.Equal(files, []string{"libc", "serde"}) {
		t.Errorf("files of %v", files)
	}
	if st := c.mirrored().Files; st == nil || st.LeftOut != 2 || st.Done != 2 || st.State != "up to date" {
		t.Errorf("status %+v", st)
	}
	c.followers[0].leave()

	c = newMirror(t, store, o, Mirror{Logs: true, FilesOf: "all"})
	c.round()
	if kept, files := c.told(); len(kept) != 0 || !slices.Equal(files, []string{"libc", "serde"}) {
		t.Errorf("with more room: kept %v, files of %v", kept, files)
	}
	c.full = fmt.Errorf("store: %w", ErrFull) // REL-7
	o.publish("serde", v2)
	c.round()
	if st := c.mirrored().Files; st.State != "waiting" || st.Err == "" {
		t.Errorf("full: %+v", st)
	}
	c.told()
	c.full = nil
	c.round()
	if _, files := c.told(); !slices.Equal(files, []string{"serde"}) || c.mirrored().Files.State != "up to date" {
		t.Errorf("with space again: files of %v, %+v", files, c.mirrored().Files)
	}
	c.followers[0].leave()

	c = newMirror(t, store, o, Mirror{Logs: true, FilesOf: "others"})
	c.round()
	if _, files := c.told(); len(files) != 2 {
		t.Errorf("of other files: %v", files)
	}
}

// TestKeepsWhatIsHeld: without a mirror, logs that were asked for follow the catalog,
// and no others are fetched.
func TestKeepsWhatIsHeld(t *testing.T) {
	o := newOperator(t, 1)
	o.publish("serde", v1)
	o.publish("libc", l1)
	c := newMirror(t, openStore(t, t.TempDir()), o, Mirror{})
	c.round()
	c.want("serde", v1)
	o.publish("serde", v2)
	o.publish("libc", line("libc", "0.2.1", "d"))
	c.round()
	if kept, _ := c.told(); !slices.Equal(kept, []string{"serde"}) {
		t.Errorf("kept %v", kept)
	}
	c.peers.set()
	c.want("serde", v1, v2)
	if c.Status()[0].Mirrored != nil {
		t.Error("it says that it mirrors")
	}
}

// TestFiles: files of removed versions are not among those of a package. SEC-19
func TestFiles(t *testing.T) {
	s := pkglog.NewState(crate("serde"))
	add := func(e pkglog.Event) {
		if _, err := s.Append(e); err != nil {
			t.Fatal(err)
		}
	}
	add(pkglog.Event{Kind: pkglog.Published, Line: v1})
	add(pkglog.Event{Kind: pkglog.Published, Position: 1, Line: v2})
	var sums [2]artifact.Sum
	for i, digit := range []byte{0xaa, 0xbb} {
		for j := range sums[i] {
			sums[i][j] = digit
		}
		add(pkglog.Event{Kind: pkglog.HasArtifact, Version: fmt.Sprintf("1.0.%d", i), Artifact: pkglog.Artifact{Digest: sums[i], ByteLength: 7}})
	}
	if fs := Files(s); len(fs) != 2 || fs[0].Version != "1.0.1" || fs[0].Artifact.Digest != [32]byte(sums[1]) {
		t.Errorf("files %+v", fs)
	}
	add(pkglog.Event{Kind: pkglog.Removed, Position: 1})
	if fs := Files(s); len(fs) != 1 || fs[0].Version != "1.0.0" {
		t.Errorf("files after a removal %+v", fs)
	}
}
