package exchange

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pkgswarm/pkgswarm/registry/artifact"
	"github.com/pkgswarm/pkgswarm/registry/fetch"
)

// A shelf is a store in memory.
type shelf struct {
	mu    sync.Mutex
	files map[artifact.Digest][]byte
	// lies are found answers for files that the shelf's other half will not, or
	// not rightly, deliver.
	lies map[artifact.Digest]artifact.Info
}

func (s *shelf) get(d artifact.Digest) ([]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.files[d]
	return b, ok
}

func (s *shelf) put(b []byte) artifact.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.files == nil {
		s.files = map[artifact.Digest][]byte{}
	}
	s.files[digest(b)] = b
	return digest(b)
}

func (s *shelf) CheckShared(d artifact.Digest) (artifact.Info, error) {
	if info, ok := s.lies[d]; ok {
		return info, nil
	}
	b, ok := s.get(d)
	if !ok {
		return artifact.Info{}, artifact.ErrNotFound
	}
	return artifact.Info{Key: artifact.Key(d.Sum), Size: int64(len(b))}, nil
}

type memFile struct{ *bytes.Reader }

func (memFile) Close() error { return nil }

func (s *shelf) Open(d artifact.Digest) (fetch.File, artifact.Info, error) {
	b, ok := s.get(d)
	if !ok {
		return nil, artifact.Info{}, artifact.ErrNotFound
	}
	return memFile{bytes.NewReader(b)}, artifact.Info{Size: int64(len(b))}, nil
}

func (s *shelf) Create(int64) (fetch.Writer, error) { return &writer{s: s}, nil }

type writer struct {
	s   *shelf
	mu  sync.Mutex
	buf []byte
}

func (w *writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf = append(w.buf, p...)
	return len(p), nil
}

func (w *writer) ReadAt(p []byte, off int64) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return bytes.NewReader(w.buf).ReadAt(p, off)
}
func (w *writer) Close() error { return nil }
func (w *writer) Size() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return int64(len(w.buf))
}
func (w *writer) Verify(d artifact.Digest) error { return d.Verify(w, w.Size()) }
func (w *writer) SetOrigin(string, ...string)    {}

func (w *writer) Commit(d artifact.Digest, private bool) (artifact.Info, error) {
	if err := w.Verify(d); err != nil {
		return artifact.Info{}, err
	}
	w.s.put(w.buf)
	return artifact.Info{}, nil
}

func digest(b []byte) artifact.Digest {
	return artifact.Digest{Alg: artifact.SHA256, Sum: sha256.Sum256(b)}
}

// A node is an exchange with a store and a fetcher.
type node struct {
	*Exchange
	*shelf
	net     *network
	key     PeerKey
	fetcher *fetch.Fetcher
	blamed  map[PeerKey]int
	served  atomic.Int64  // downloads from it
	wrong   []byte        // if set, what it delivers instead
	hangs   bool          // delivers half
	pace    time.Duration // of a download from it
	dead    chan struct{}
}

// A network connects nodes with messages that take a while and keep their order.
type network struct {
	t      *testing.T
	nodes  map[PeerKey]*node
	delay  time.Duration
	fleet  bool
	links  []*link
	silent sync.Map                     // of PeerKey: its messages are lost
	late   map[PeerKey]time.Duration    // its messages take longer
	slow   map[[2]PeerKey]time.Duration // those from the one to the other do
	sent   atomic.Int64                 // messages
}

type link struct {
	a, b  *Peer
	queue [2]chan message
	done  chan struct{}
	once  sync.Once
	wg    sync.WaitGroup
}

type message struct {
	at      time.Time
	msg     int
	payload []byte
}

func newNetwork(t *testing.T, n int, fleet bool) (*network, []*node) {
	w := &network{t: t, nodes: map[PeerKey]*node{}, delay: time.Millisecond, fleet: fleet, late: map[PeerKey]time.Duration{}, slow: map[[2]PeerKey]time.Duration{}}
	var nodes []*node
	for i := range n {
		key := PeerKey{byte(i + 1)}
		nd := &node{shelf: &shelf{}, net: w, key: key, blamed: map[PeerKey]int{}, dead: make(chan struct{})}
		c := Config{Shelf: nd.shelf, Download: nd, Blame: func(p PeerKey, _ string) { nd.blamed[p]++ }}
		if fleet {
			c.Fleet = &Fleet{Self: key, Secret: [32]byte{7}}
		}
		nd.Exchange = New(c)
		nd.fetcher = fetch.New(fetch.Config{Store: nd.shelf, Peers: nd.Exchange})
		w.nodes[key] = nd
		nodes = append(nodes, nd)
	}
	for i, a := range nodes {
		for _, b := range nodes[:i] {
			w.connect(a, b)
		}
	}
	t.Cleanup(func() {
		for _, nd := range nodes {
			nd.fetcher.Close()
		}
		for _, l := range w.links {
			l.close()
		}
		for _, nd := range nodes {
			if len(nd.attempts) != 0 || len(nd.fetching) != 0 || len(nd.peers) != 0 {
				t.Errorf("node %d: %d attempts, %d fetching, %d peers left", nd.key[0], len(nd.attempts), len(nd.fetching), len(nd.peers))
			}
		}
		time.Sleep(time.Second) // the last heartbeats find nothing to do
	})
	return w, nodes
}

func (w *network) connect(a, b *node) {
	l := &link{queue: [2]chan message{make(chan message, 1000), make(chan message, 1000)}, done: make(chan struct{})}
	send := func(from, to *node, q chan message) func(int, []byte) error {
		return func(msg int, payload []byte) error {
			w.sent.Add(1)
			if _, silent := w.silent.Load(from.key); silent {
				return nil
			}
			select {
			case q <- message{time.Now().Add(w.delay + w.late[from.key] + w.slow[[2]PeerKey{from.key, to.key}]), msg, payload}:
				return nil
			case <-l.done:
				return io.ErrClosedPipe
			}
		}
	}
	l.a = a.Connect(b.key, w.fleet, send(a, b, l.queue[0]))
	l.b = b.Connect(a.key, w.fleet, send(b, a, l.queue[1]))
	deliver := func(to *Peer, q chan message) {
		for {
			select {
			case m := <-q:
				time.Sleep(time.Until(m.at))
				if err := to.Handle(m.msg, m.payload); err != nil {
					w.t.Errorf("handle %d: %v", m.msg, err)
				}
			case <-l.done:
				return
			}
		}
	}
	l.wg.Go(func() { deliver(l.b, l.queue[0]) })
	l.wg.Go(func() { deliver(l.a, l.queue[1]) })
	w.links = append(w.links, l)
}

// cut ends the connection of two nodes.
func (w *network) cut(a, b *node) {
	for _, l := range w.links {
		if l.a.x == a.Exchange && l.b.x == b.Exchange || l.a.x == b.Exchange && l.b.x == a.Exchange {
			l.close()
		}
	}
}

func (l *link) close() {
	l.once.Do(func() {
		close(l.done)
		l.a.Close()
		l.b.Close()
		l.wg.Wait()
	})
}

// kill ends a node at once.
func (w *network) kill(n *node) {
	w.silent.Store(n.key, true)
	n.fetcher.Close()
	close(n.dead)
	for _, l := range w.links {
		if l.a.x == n.Exchange || l.b.x == n.Exchange {
			l.close()
		}
	}
}

// Download takes the file from the first peer that is said to have it.
func (n *node) Download(ctx context.Context, key artifact.Key, size int64, peers []PeerKey, w fetch.Writer, progress func(int64)) (func(), error) {
	from := n.net.nodes[peers[0]]
	from.served.Add(1)
	b, ok := from.get(artifact.Digest{Alg: artifact.SHA256, Sum: key})
	if from.wrong != nil {
		b, ok = from.wrong, true
	}
	if !ok {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	for i, part := range [][]byte{b[:len(b)/2], b[len(b)/2:]} {
		if i == 1 && from.hangs {
			<-ctx.Done()
		}
		select {
		case <-time.After(n.net.delay + from.pace):
		case <-from.dead:
			return nil, io.ErrClosedPipe
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		w.Write(part)
		progress(int64(len(part)))
	}
	return func() {}, nil
}

// An origin is the upstream, which counts.
type origin struct {
	data   []byte
	wait   time.Duration
	opened atomic.Int64
	hang   atomic.Bool
	fails  int64 // requests that fail, the first ones
}

func (o *origin) artifact() *fetch.Artifact {
	return &fetch.Artifact{
		Name: digest(o.data).String(), Known: []artifact.Digest{digest(o.data)}, MaxBytes: 1 << 30,
		Upstream: func(ctx context.Context) (*fetch.Download, error) {
			n := o.opened.Add(1)
			if o.hang.Load() {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			select {
			case <-time.After(o.wait):
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			if n <= o.fails {
				return nil, errors.New("the upstream fails")
			}
			return &fetch.Download{ReadCloser: io.NopCloser(bytes.NewReader(o.data)), Size: int64(len(o.data))}, nil
		},
	}
}

func (n *node) wantGet(o *origin, source fetch.Source) {
	n.net.t.Helper()
	b, err := n.fetcher.Fetch(n.net.t.Context(), o.artifact())
	if err != nil {
		n.net.t.Errorf("node %d: %v", n.key[0], err)
		return
	}
	defer b.Close()
	var got []byte
	if b.Content != nil {
		got, err = io.ReadAll(b.Content)
	} else {
		got, err = io.ReadAll(b.Stream)
	}
	if err != nil || !bytes.Equal(got, o.data) {
		n.net.t.Errorf("node %d: %d bytes, %v", n.key[0], len(got), err)
	}
	if source != "" && b.Source != source {
		n.net.t.Errorf("node %d: from %s, want %s", n.key[0], b.Source, source)
	}
}

func newOrigin() *origin {
	return &origin{data: bytes.Repeat([]byte("artifact "), 10_000), wait: 100 * time.Millisecond}
}

func TestPeerHasIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, nodes := newNetwork(t, 5, false)
		o := newOrigin()
		nodes[2].put(o.data)
		start := time.Now()
		nodes[0].wantGet(o, fetch.Peer)
		if d := time.Since(start); d > 10*time.Millisecond {
			t.Errorf("took %v over links of 1 ms", d)
		}
		if o.opened.Load() != 0 {
			t.Errorf("upstream was asked")
		}
	})
}

func TestNobodyHasIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, nodes := newNetwork(t, 5, false)
		o := newOrigin()
		start := time.Now()
		nodes[0].wantGet(o, fetch.Upstream)
		if d := time.Since(start) - o.wait; d > 3*time.Millisecond {
			t.Errorf("a miss costs %v over links of 1 ms", d)
		}
	})
}

// TestBadPeers has one honest peer among bad ones. SEC-1, SEC-22, SEC-23
func TestBadPeers(t *testing.T) {
	for name, c := range map[string]struct {
		spoil  func(n *node, o *origin)
		source fetch.Source
		blamed bool
		most   time.Duration
	}{
		"another file": {func(n *node, o *origin) { n.wrong = []byte("wrong"); n.lie(o, 5) }, fetch.Peer, true, 20 * time.Millisecond},
		"has it not":   {func(n *node, o *origin) { n.lie(o, len(o.data)) }, "", false, 900 * time.Millisecond},
		"hangs":        {func(n *node, o *origin) { n.put(o.data); n.hangs = true }, "", false, 900 * time.Millisecond},
		"huge":         {func(n *node, o *origin) { n.lie(o, 1<<50) }, fetch.Peer, false, 20 * time.Millisecond},
		"silent":       {func(n *node, o *origin) { n.net.silent.Store(n.key, true) }, fetch.Peer, false, 20 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, nodes := newNetwork(t, 3, false)
				o := newOrigin()
				c.spoil(nodes[1], o)
				nodes[2].put(o.data)
				w.late[nodes[2].key] = time.Millisecond
				start := time.Now()
				nodes[0].wantGet(o, "")
				if d := time.Since(start) - o.wait; d > c.most {
					t.Errorf("took %v more than the upstream", d)
				}
				if got := nodes[0].blamed[nodes[1].key] > 0; got != c.blamed {
					t.Errorf("blamed: %v", nodes[0].blamed)
				}
				if nodes[0].blamed[nodes[2].key] > 0 {
					t.Errorf("the honest peer is blamed")
				}
			})
		})
	}
}

func (n *node) lie(o *origin, size int) {
	n.lies = map[artifact.Digest]artifact.Info{digest(o.data): {Key: artifact.Key{n.key[0]}, Size: int64(size)}}
}

// TestFleetFetchesOnce starts cold nodes at once, in many interleavings. S2
func TestFleetFetchesOnce(t *testing.T) {
	for _, n := range []int{2, 3, 8, 20} {
		for seed := range uint64(10) {
			synctest.Test(t, func(t *testing.T) {
				r := rand.New(rand.NewPCG(seed, uint64(n)))
				w, nodes := newNetwork(t, n, true)
				w.delay = time.Duration(r.IntN(20)) * time.Millisecond
				o := newOrigin()
				o.wait = time.Duration(r.IntN(3000)) * time.Millisecond
				var wg sync.WaitGroup
				for _, nd := range nodes {
					late := time.Duration(r.IntN(300)) * time.Millisecond
					wg.Go(func() {
						time.Sleep(late)
						nd.wantGet(o, "")
					})
				}
				wg.Wait()
				if got := o.opened.Load(); got != 1 {
					t.Errorf("n %d, seed %d: %d upstream requests, want 1", n, seed, got)
				}
			})
		}
	}
}

// TestFleetSlow: a keeper that takes longer to answer than a dead one is given is
// waited for as long as it sends anything; one that is silent is passed over by all
// in the same way. Either costs the upstream one download. REL-9
func TestFleetSlow(t *testing.T) {
	for _, silent := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w, nodes := newNetwork(t, 10, true)
			o := newOrigin()
			o.wait = 3 * time.Second
			var keys []PeerKey
			for _, nd := range nodes {
				keys = append(keys, nd.key)
			}
			k := w.nodes[keeper([32]byte{7}, digest(o.data), keys)]
			w.late[k.key] = 4 * memberSilence
			if silent {
				w.silent.Store(k.key, true)
			}
			var wg sync.WaitGroup
			if !silent { // it answers other things meanwhile, as slowly
				wg.Go(func() {
					for range 40 {
						time.Sleep(memberSilence / 4)
						for _, p := range k.peers {
							p.push(msgMissing, appendMissing(nil, missing{1 << 40, notHere}))
						}
					}
				})
				time.Sleep(5 * memberSilence)
			}
			for i, nd := range nodes {
				if nd == k {
					continue
				}
				wg.Go(func() {
					time.Sleep(time.Duration(i) * 50 * time.Millisecond)
					nd.wantGet(o, "")
				})
			}
			wg.Wait()
			if got := o.opened.Load(); got != 1 {
				t.Errorf("silent %v: %d upstream requests, want 1", silent, got)
			}
			for _, nd := range nodes {
				if p := nd.peers[k.key]; p != nil && !silent && !p.suspect.IsZero() {
					t.Errorf("node %d has passed over a slow keeper", nd.key[0])
				}
			}
		})
	}
}

// TestTwoKeepers: members that know of different keepers, because a connection is
// missing or has just been made anew, each get a lease, and one goes. REL-9
func TestTwoKeepers(t *testing.T) {
	for late := range 30 {
		synctest.Test(t, func(t *testing.T) {
			w, nodes := newNetwork(t, 4, true)
			o := newOrigin()
			o.wait = time.Second
			var keys []PeerKey
			for _, nd := range nodes {
				keys = append(keys, nd.key)
			}
			k := w.nodes[keeper([32]byte{7}, digest(o.data), keys)]
			var wants []*node
			for _, nd := range nodes {
				if nd != k {
					wants = append(wants, nd)
				}
			}
			cut := wants[0]
			w.cut(cut, k)
			again := wants[1]
			var wg sync.WaitGroup
			for i, nd := range wants {
				wg.Go(func() {
					time.Sleep(time.Duration(i*late) * time.Millisecond)
					nd.wantGet(o, "")
				})
			}
			wg.Go(func() { // the wants of one member for another are lost on the way
				time.Sleep(time.Duration(late) * time.Millisecond / 2)
				w.connect(again, cut)
			})
			wg.Wait()
			if got := o.opened.Load(); got != 1 {
				t.Errorf("late %d ms: %d upstream requests, want 1", late, got)
			}
		})
	}
}

// TestHolderOutOfReach: a keeper may name a holder to which there is no connection, or
// which does not exist. It is asked again now and then, not all the time, and not for
// ever. REL-9, SEC-23
func TestHolderOutOfReach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, nodes := newNetwork(t, 3, true)
		o := newOrigin()
		o.wait = 6 * time.Second
		k := w.nodes[keeper([32]byte{7}, digest(o.data), []PeerKey{nodes[0].key, nodes[1].key, nodes[2].key})]
		var wants []*node
		for _, nd := range nodes {
			if nd != k {
				wants = append(wants, nd)
			}
		}
		w.cut(wants[0], wants[1])
		var wg sync.WaitGroup
		wg.Go(func() { wants[0].wantGet(o, fetch.Upstream) })
		time.Sleep(time.Second)
		before := w.sent.Load()
		other := newOrigin()
		start := time.Now()
		wants[1].wantGet(other, fetch.Upstream)
		if d := time.Since(start) - other.wait; d < memberSilence-time.Second || d > memberSilence+time.Second {
			t.Errorf("went to the upstream after %v", d)
		}
		if n := w.sent.Load() - before; n > 200 {
			t.Errorf("%d messages", n)
		}
		wg.Wait()
	})
}

// TestFleetHasIt: what a member has is not fetched again, whoever keeps the lease;
// one that does not answer is waited for once.
func TestFleetHasIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, nodes := newNetwork(t, 3, true)
		w.delay = 5 * time.Millisecond
		for i := range 20 {
			o := newOrigin()
			o.data = append(o.data, byte(i))
			nodes[2].put(o.data)
			start := time.Now()
			nodes[i%2].wantGet(o, fetch.Peer)
			if d := time.Since(start); o.opened.Load() != 0 || d > 10*w.delay {
				t.Errorf("artifact %d: %d upstream requests, %v", i, o.opened.Load(), d)
			}
		}
		w.silent.Store(nodes[2].key, true)
		slow := 0
		for i := range 20 {
			o := newOrigin()
			o.data = append(o.data, 'x', byte(i))
			start := time.Now()
			nodes[0].wantGet(o, fetch.Upstream)
			d := time.Since(start) - o.wait
			if d > memberSilence+4*w.delay {
				t.Errorf("artifact %d: a silent member cost %v", i, d)
			}
			if d > 10*w.delay {
				slow++
			}
		}
		if slow > 2 { // as a keeper, and as one who is asked
			t.Errorf("a silent member cost %d of 20 artifacts time", slow)
		}
	})
}

// TestFleetMemberKilled kills holder, keeper or another while the holder fetches.
func TestFleetMemberKilled(t *testing.T) {
	for _, who := range []string{"holder", "keeper", "other"} {
		synctest.Test(t, func(t *testing.T) {
			w, nodes := newNetwork(t, 10, true)
			o := newOrigin()
			o.wait = time.Second
			var keys []PeerKey
			for _, nd := range nodes {
				keys = append(keys, nd.key)
			}
			k := w.nodes[keeper([32]byte{7}, digest(o.data), keys)]
			first := nodes[0]
			if first == k {
				first = nodes[1]
			}
			var victim *node
			switch who {
			case "holder":
				victim = first
			case "keeper":
				victim = k
			default:
				victim = nodes[2]
				if victim == k {
					victim = nodes[3]
				}
			}
			var wg sync.WaitGroup
			for _, nd := range nodes {
				wg.Go(func() {
					if nd != first {
						time.Sleep(10 * time.Millisecond)
					}
					if nd != victim {
						nd.wantGet(o, "")
						return
					}
					if b, err := nd.fetcher.Fetch(t.Context(), o.artifact()); err == nil {
						b.Close()
					}
				})
			}
			time.Sleep(500 * time.Millisecond)
			w.kill(victim)
			start := time.Now()
			wg.Wait()
			if d := time.Since(start); d > 1200*time.Millisecond {
				t.Errorf("%s killed: took %v more", who, d)
			}
			want := int64(1)
			if who == "holder" {
				want = 2
			}
			if got := o.opened.Load(); got != want {
				t.Errorf("%s killed: %d upstream requests, want %d", who, got, want)
			}
		})
	}
}

// TestFleetHolderFails has a holder whose upstream fails, and which tells those who
// wait for it before the keeper: one of them goes to the upstream, not all. REL-9,
// REL-18
func TestFleetHolderFails(t *testing.T) {
	for _, later := range []time.Duration{0, 20 * time.Millisecond, 100 * time.Millisecond, 400 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			w, nodes := newNetwork(t, 10, true)
			o := newOrigin()
			o.wait, o.fails = time.Second, 1
			var keys []PeerKey
			for _, nd := range nodes {
				keys = append(keys, nd.key)
			}
			k := keeper([32]byte{7}, digest(o.data), keys)
			first, rest := nodes[0], nodes[1:]
			if first.key == k {
				first, rest = nodes[9], nodes[:9]
			}
			w.slow[[2]PeerKey{first.key, k}] = later
			var wg sync.WaitGroup
			wg.Go(func() {
				if b, err := first.fetcher.Fetch(t.Context(), o.artifact()); err == nil {
					b.Close()
					t.Error("the first has it from an upstream that fails")
				}
			})
			time.Sleep(500 * time.Millisecond)
			for _, nd := range rest {
				if nd.key != k {
					wg.Go(func() { nd.wantGet(o, "") })
				}
			}
			wg.Wait()
			if got := o.opened.Load(); got != 2 {
				t.Errorf("release %v late: %d upstream requests, want 2", later, got)
			}
		})
	}
}

// TestFleetStalls has a silent keeper, and a holder whose upstream hangs. REL-9
func TestFleetStalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, nodes := newNetwork(t, 4, true)
		o := newOrigin()
		var keys []PeerKey
		for _, nd := range nodes {
			keys = append(keys, nd.key)
		}
		k := keeper([32]byte{7}, digest(o.data), keys)
		w.silent.Store(k, true)
		for _, nd := range nodes {
			if nd.key != k {
				start := time.Now()
				nd.wantGet(o, "")
				if d := time.Since(start); d > memberSilence+o.wait+20*time.Millisecond {
					t.Errorf("silent keeper cost %v", d)
				}
			}
		}
	})
	synctest.Test(t, func(t *testing.T) {
		_, nodes := newNetwork(t, 4, true)
		o := newOrigin()
		o.hang.Store(true)
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := nodes[0].fetcher.Fetch(t.Context(), o.artifact()); err == nil {
				t.Error("an upstream that hangs delivered")
			}
		})
		time.Sleep(time.Second)
		o.hang.Store(false)
		for _, nd := range nodes[1:] {
			wg.Go(func() {
				start := time.Now()
				nd.wantGet(o, "")
				if d := time.Since(start); d > 12*time.Second {
					t.Errorf("a holder that hangs cost %v", d)
				}
			})
		}
		wg.Wait()
		if got := o.opened.Load(); got != 2 {
			t.Errorf("%d upstream requests, want 2", got)
		}
	})
}

// TestWantNeverFetches: a want does not make us ask anybody. SEC-24
func TestWantNeverFetches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := New(Config{Shelf: &shelf{}})
		var sent []int
		var mu sync.Mutex
		p := x.Connect(PeerKey{1}, false, func(msg int, b []byte) error {
			mu.Lock()
			defer mu.Unlock()
			sent = append(sent, msg)
			return nil
		})
		defer p.Close()
		p.Handle(msgWant, encode([]want{{1, digest(nil)}}, appendWant))
		synctest.Wait()
		if len(sent) != 1 || sent[0] != msgMissing || len(x.fetching) != 0 {
			t.Errorf("sent %v, fetching %v", sent, x.fetching)
		}
		if err := p.Handle(msgLease, encode([]want{{1, digest(nil)}}, appendWant)); !errors.Is(err, ErrProtocol) {
			t.Errorf("a stranger's lease request: %v, want ErrProtocol", err) // SEC-27
		}
	})
}

// TestGreedyPeer floods a node with wants. SEC-20
func TestGreedyPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shelf{}
		d := s.put([]byte("here"))
		x := New(Config{Shelf: s})
		var yes, no atomic.Int64
		p := x.Connect(PeerKey{1}, false, func(msg int, b []byte) error {
			time.Sleep(time.Millisecond)
			fs, _ := decode(b, 2, decodeID)
			if msg == msgFound {
				yes.Add(int64(len(fs)))
			} else {
				no.Add(int64(len(fs)))
			}
			return nil
		})
		defer p.Close()
		var ws []want
		for i := range MaxBatch {
			ws = append(ws, want{uint64(i), d})
		}
		for range 5 {
			if err := p.Handle(msgWant, encode(ws, appendWant)); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.Handle(msgWant, encode(append(ws, want{}), appendWant)); !errors.Is(err, ErrProtocol) {
			t.Errorf("%d wants in a message: %v", MaxBatch+1, err)
		}
		time.Sleep(10 * time.Second)
		for range 100 { // more than it reads answers to: it is dropped
			p.Handle(msgWant, encode(ws, appendWant))
		}
		synctest.Wait()
		if x.Connected() != 0 {
			t.Errorf("a flooding peer is still connected")
		}
		if n := yes.Load(); n > 2*maxQueued || n == 0 {
			t.Errorf("%d answered found, %d not", n, no.Load())
		}
	})
}

func TestKeeperIsStable(t *testing.T) {
	var members []PeerKey
	for i := range 10 {
		members = append(members, PeerKey{byte(i)})
	}
	moved, count := 0, map[PeerKey]int{}
	for i := range 1000 {
		d := digest(fmt.Append(nil, i))
		all := keeper([32]byte{1}, d, members)
		fewer := keeper([32]byte{1}, d, members[1:])
		count[all]++
		if all != fewer && all != members[0] {
			moved++
		}
	}
	if moved != 0 {
		t.Errorf("%d leases moved between members that stayed", moved)
	}
	for m, n := range count {
		if n < 50 || n > 200 {
			t.Errorf("member %d keeps %d of 1000 leases", m[0], n)
		}
	}
}

func FuzzMessages(f *testing.F) { // SEC-8
	f.Add(0, encode([]want{{1, digest(nil)}, {300, artifact.Digest{Alg: artifact.H1}}}, appendWant))
	f.Add(1, encode([]found{{1, artifact.Key{1}, 1 << 40}}, appendFound))
	f.Add(2, encode([]missing{{1, beingFetched}}, appendMissing))
	f.Add(5, encode([]leased{{1, PeerKey{2}}}, appendLeased))
	f.Add(6, encode([]release{{digest(nil), true}}, appendRelease))
	f.Fuzz(func(t *testing.T, msg int, b []byte) {
		x := New(Config{Shelf: &shelf{}, Fleet: &Fleet{}})
		p := x.Connect(PeerKey{1}, true, func(int, []byte) error { return nil })
		defer p.Close()
		p.Handle(msg, b)
	})
}
