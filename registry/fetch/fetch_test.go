package fetch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pkgswarm/pkgswarm/registry/artifact"
)

// A memStore is a Store in memory. It stands in for the one on disk, whose
// database has goroutines of its own, which synctest cannot follow.
type memStore struct {
	mu      sync.Mutex
	files   map[artifact.Digest][]byte
	room    atomic.Int64 // bytes that still fit
	open    atomic.Int64 // writers not closed
	private map[artifact.Digest]bool
}

func newMemStore() *memStore {
	s := &memStore{files: map[artifact.Digest][]byte{}, private: map[artifact.Digest]bool{}}
	s.room.Store(1 << 40)
	return s
}

type memFile struct{ *bytes.Reader }

func (memFile) Close() error { return nil }

func (s *memStore) Open(d artifact.Digest) (File, artifact.Info, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.files[d]
	if !ok {
		return nil, artifact.Info{}, artifact.ErrNotFound
	}
	return memFile{bytes.NewReader(b)}, artifact.Info{Size: int64(len(b))}, nil
}

func (s *memStore) Create(size int64) (Writer, error) {
	if size > s.room.Load() {
		return nil, artifact.ErrNoSpace
	}
	b := &budget{}
	b.left.Store(1 << 40)
	s.open.Add(1)
	return &memWriter{memoryFile{budget: b}, s}, nil
}

type memWriter struct {
	memoryFile
	s *memStore
}

func (w *memWriter) Write(p []byte) (int, error) {
	if w.s.room.Add(-int64(len(p))) < 0 {
		return 0, artifact.ErrNoSpace
	}
	return w.memoryFile.Write(p)
}

func (w *memWriter) SetOrigin(string, ...string) {}

func (w *memWriter) Commit(d artifact.Digest, private bool) (artifact.Info, error) {
	if err := w.Verify(d); err != nil {
		return artifact.Info{}, err
	}
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	w.s.files[d] = bytes.Clone(w.buf)
	w.s.private[d] = private
	return artifact.Info{}, nil
}

func (w *memWriter) Close() error {
	w.s.open.Add(-1)
	return w.memoryFile.Close()
}

// A fakeUpstream delivers data, first waiting, then at a rate.
type fakeUpstream struct {
	data   []byte
	wait   time.Duration // before the answer
	per64K time.Duration // before each 64 KiB
	hangAt int           // if positive: sends nothing from there on
	cutAt  int           // if positive: fails there
	noSize bool
	err    error
	opened atomic.Int64
	sent   atomic.Int64
	healAt int64 // from this opening on, neither hangs nor cuts; 0: never
}

func (u *fakeUpstream) open(ctx context.Context) (*Download, error) {
	n := u.opened.Add(1)
	if err := sleep(ctx, u.wait); err != nil {
		return nil, err
	}
	if u.err != nil {
		return nil, u.err
	}
	size := int64(len(u.data))
	if u.noSize {
		size = -1
	}
	return &Download{ReadCloser: &upstreamBody{u: u, ctx: ctx, n: n}, Size: size}, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

type upstreamBody struct {
	u   *fakeUpstream
	ctx context.Context
	n   int64
	off int
}

func (b *upstreamBody) Read(p []byte) (int, error) {
	u := b.u
	healed := u.healAt > 0 && b.n >= u.healAt
	if err := sleep(b.ctx, u.per64K); err != nil {
		return 0, err
	}
	end := min(b.off+64<<10, len(u.data))
	if u.hangAt > 0 && !healed {
		if b.off >= u.hangAt {
			<-b.ctx.Done()
			return 0, context.Cause(b.ctx)
		}
		end = min(end, u.hangAt)
	}
	if u.cutAt > 0 && !healed {
		if b.off >= u.cutAt {
			return 0, io.ErrUnexpectedEOF
		}
		end = min(end, u.cutAt)
	}
	if b.off == len(u.data) {
		return 0, io.EOF
	}
	n := copy(p, u.data[b.off:end])
	b.off += n
	u.sent.Add(int64(n))
	return n, nil
}

func (b *upstreamBody) Close() error { return nil }

// fakePeers deliver data as their script says.
type fakePeers struct {
	data   []byte
	find   time.Duration // until Progress(0); negative: never found
	per64K time.Duration
	hangAt int
	none   time.Duration // if positive: error after this time
	asked  atomic.Int64
	ended  atomic.Int64
}

func (p *fakePeers) Connected() int { return 3 }

func (p *fakePeers) Fetch(ctx context.Context, want []artifact.Digest, t *Transfer) (Writer, error) {
	p.asked.Add(1)
	t.Finally = func(bool) { p.ended.Add(1) }
	if p.none > 0 {
		if err := sleep(ctx, p.none); err != nil {
			return nil, err
		}
		return nil, errors.New("no peer has it")
	}
	if p.find < 0 {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if err := sleep(ctx, p.find); err != nil {
		return nil, err
	}
	t.Progress(0)
	w, err := t.Create(int64(len(p.data)))
	if err != nil {
		return nil, err
	}
	for off := 0; off < len(p.data); off += 64 << 10 {
		if p.hangAt > 0 && off >= p.hangAt {
			<-ctx.Done()
		}
		if err := sleep(ctx, p.per64K); err != nil {
			w.Close()
			return nil, err
		}
		b := p.data[off:min(off+64<<10, len(p.data))]
		w.Write(b)
		t.Progress(int64(len(b)))
	}
	t.Peers = []string{"p"}
	return w, nil
}

func digest(b []byte) artifact.Digest {
	return artifact.Digest{Alg: artifact.SHA256, Sum: sha256.Sum256(b)}
}

func testData(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * 7 >> 3)
	}
	return b
}

// A fixture is a Fetcher and what it uses.
type fixture struct {
	*Fetcher
	store *memStore
	data  []byte
}

func setUp(t *testing.T, size int, peers Peers) *fixture {
	s := newMemStore()
	f := &fixture{New(Config{Store: s, Peers: peers}), s, testData(size)}
	t.Cleanup(func() {
		f.Close()
		if n := s.open.Load(); n != 0 {
			t.Errorf("%d files left open", n)
		}
		if n := memoryBudget - f.memory.left.Load(); n != 0 {
			t.Errorf("%d bytes of memory not given back", n)
		}
	})
	return f
}

func (f *fixture) artifact(u *fakeUpstream) *Artifact {
	a := &Artifact{Name: "a", Known: []artifact.Digest{digest(f.data)}, MaxBytes: 64 << 20}
	if u != nil {
		a.Upstream = u.open
	}
	return a
}

func read(b *Body) ([]byte, error) {
	defer b.Close()
	if b.Content != nil {
		return io.ReadAll(b.Content)
	}
	return io.ReadAll(b.Stream)
}

// get fetches a and checks what comes.
func (f *fixture) get(t *testing.T, a *Artifact, want Source) {
	t.Helper()
	b, err := f.Fetch(t.Context(), a)
	if err != nil {
		t.Errorf("Fetch = %v", err)
		return
	}
	got, err := read(b)
	if err != nil || !bytes.Equal(got, f.data) {
		t.Errorf("read %d bytes, %v; want the %d of the artifact", len(got), err, len(f.data))
	}
	if b.Source != want {
		t.Errorf("source %v, want %v", b.Source, want)
	}
}

func (f *fixture) wantStored(t *testing.T, want bool) {
	t.Helper()
	f.Wait(t.Context())
	if _, got := f.store.files[digest(f.data)]; got != want {
		t.Errorf("stored = %v, want %v", got, want)
	}
}

func TestUpstreamThenStore(t *testing.T) {
	for _, size := range []int{0, 1, holdback, holdback + 1, 3 << 20} {
		for _, noSize := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				f := setUp(t, size, nil)
				u := &fakeUpstream{data: f.data, wait: 20 * time.Millisecond, noSize: noSize}
				start := time.Now()
				f.get(t, f.artifact(u), Upstream)
				if d := time.Since(start); d != 20*time.Millisecond {
					t.Errorf("took %v, want the upstream's 20 ms", d)
				}
				f.wantStored(t, true)
				f.get(t, f.artifact(u), Disk)
				if n := u.opened.Load(); n != 1 {
					t.Errorf("%d upstream requests, want 1", n)
				}
			})
		}
	}
}

func TestPeersSpareTheUpstream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := setUp(t, 1<<20, nil)
		p := &fakePeers{data: f.data, find: 19 * time.Millisecond, per64K: 100 * time.Millisecond}
		f.c.Peers = p
		u := &fakeUpstream{data: f.data}
		f.get(t, f.artifact(u), Peer)
		if n := u.opened.Load(); n != 0 {
			t.Errorf("%d upstream requests, want none", n)
		}
		f.wantStored(t, true)
	})
}

// TestPeersCostTheBudget has peers that are of no use in all ways. SEC-23
func TestPeersCostTheBudget(t *testing.T) {
	data := testData(1 << 20)
	wrong := bytes.Clone(data)
	wrong[5] ^= 1
	for name, c := range map[string]struct {
		peers *fakePeers
		most  time.Duration // above the upstream's time
	}{
		"silent":             {peers: &fakePeers{find: -1}, most: DefaultPeerBudget},
		"none":               {peers: &fakePeers{none: 2 * time.Millisecond}, most: 2 * time.Millisecond},
		"late":               {peers: &fakePeers{data: data, find: time.Minute}, most: DefaultPeerBudget},
		"hangs after half":   {peers: &fakePeers{data: data, find: time.Millisecond, hangAt: 128 << 10}, most: time.Millisecond + peerStall},
		"drips":              {peers: &fakePeers{data: data, find: 0, per64K: 299 * time.Millisecond}, most: 2500 * time.Millisecond},
		"lies":               {peers: &fakePeers{data: wrong, find: time.Millisecond}, most: time.Millisecond},
		"offers a huge file": {peers: &fakePeers{data: make([]byte, 65<<20), find: time.Millisecond}, most: time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := setUp(t, len(data), c.peers)
				u := &fakeUpstream{data: f.data, wait: 30 * time.Millisecond}
				start := time.Now()
				f.get(t, f.artifact(u), Upstream)
				if d := time.Since(start) - u.wait; d > c.most {
					t.Errorf("peers cost %v, want at most %v", d, c.most)
				}
				f.wantStored(t, true)
				if n := c.peers.ended.Load(); n != 1 {
					t.Errorf("the end was told %d times, want 1", n)
				}
			})
		})
	}
}

// TestPeersShareTheirRate: peers that are too slow for one file are not for each of
// many that come at once. SEC-23
func TestPeersShareTheirRate(t *testing.T) {
	for files, want := range map[int]Source{1: Upstream, 16: Peer} {
		synctest.Test(t, func(t *testing.T) {
			f := setUp(t, 256<<10, nil)
			f.c.Peers = &fakePeers{data: f.data, per64K: 700 * time.Millisecond}
			u := &fakeUpstream{data: f.data}
			for i := range files {
				a := f.artifact(u)
				a.Name = fmt.Sprint(i)
				f.wg.Go(func() { f.get(t, a, want) })
			}
			f.Wait(t.Context())
			if n := u.opened.Load(); n > 0 != (want == Upstream) {
				t.Errorf("%d files: %d upstream requests", files, n)
			}
			if n := f.receiving.Load(); n != 0 {
				t.Errorf("%d files said to be coming after the end", n)
			}
		})
	}
}

// TestPeersWinUnderReaders lets peers finish while a client already streams from
// a slow upstream: it gets the rest from the peers' file.
func TestPeersWinUnderReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := setUp(t, 1<<20, nil)
		f.c.Peers = &fakePeers{data: f.data, find: 50 * time.Millisecond, per64K: time.Millisecond}
		u := &fakeUpstream{data: f.data, per64K: 10 * time.Millisecond, hangAt: 200 << 10}
		start := time.Now()
		f.get(t, f.artifact(u), Upstream)
		if d := time.Since(start); d > 70*time.Millisecond {
			t.Errorf("took %v", d)
		}
		f.wantStored(t, true)
	})
}

func TestOneFlightForAll(t *testing.T) { // REL-9
	synctest.Test(t, func(t *testing.T) {
		f := setUp(t, 2<<20, nil)
		u := &fakeUpstream{data: f.data, wait: time.Second, per64K: 10 * time.Millisecond}
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				if i%5 == 0 { // leaves early, the first one above all
					ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i+1)*20*time.Millisecond)
					defer cancel()
					if b, err := f.Fetch(ctx, f.artifact(u)); err == nil {
						if _, err := read(b); err == nil {
							t.Error("the whole file before the upstream sent it")
						}
					}
					return
				}
				time.Sleep(time.Duration(i) * 20 * time.Millisecond)
				f.get(t, f.artifact(u), Upstream)
			})
		}
		wg.Wait()
		if n := u.opened.Load(); n != 1 {
			t.Errorf("%d upstream requests, want 1", n)
		}
		f.wantStored(t, true)
	})
}

// TestWrongBytesNeverLookComplete streams bodies that turn out wrong. SEC-3
func TestWrongBytesNeverLookComplete(t *testing.T) {
	good := testData(1 << 20)
	flipped := bytes.Clone(good)
	flipped[len(good)-1] ^= 1
	for name, u := range map[string]*fakeUpstream{
		"last byte flipped": {data: flipped},
		"junk appended":     {data: append(bytes.Clone(good), "junk"...)},
		"cut, clean end":    {data: good[:len(good)-10]},
		"cut, with error":   {data: good, cutAt: len(good) - 10},
		"empty":             {data: nil},
		"hangs":             {data: good, hangAt: len(good) - 10},
	} {
		for _, noSize := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/noSize=%v", name, noSize), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					u := &fakeUpstream{data: u.data, cutAt: u.cutAt, hangAt: u.hangAt, noSize: noSize, per64K: time.Millisecond}
					f := setUp(t, len(good), nil)
					b, err := f.Fetch(t.Context(), f.artifact(u))
					if err == nil {
						var got []byte
						got, err = read(b)
						if b.Size >= 0 && int64(len(got)) >= b.Size {
							t.Errorf("read all %d announced bytes", b.Size)
						}
					}
					if err == nil {
						t.Error("wrong bytes looked complete")
					}
					f.wantStored(t, false)
					// Once the fault has ended, the right answer comes at once. SEC-35
					f.get(t, f.artifact(&fakeUpstream{data: good}), Upstream)
				})
			})
		}
	}
}

func TestSmallFileRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := setUp(t, 20_000, nil)
		u := &fakeUpstream{data: f.data, cutAt: 10_000, healAt: 3}
		f.get(t, f.artifact(u), Upstream)
		u = &fakeUpstream{data: []byte("web page")}
		g := setUp(t, 20_000, nil)
		_, err := g.Fetch(t.Context(), g.artifact(u))
		if _, ok := errors.AsType[*BadBytesError](err); !ok || u.opened.Load() != upstreamAttempts {
			t.Errorf("Fetch = %v after %d attempts", err, u.opened.Load())
		}
	})
}

func TestUpstreamErrorsPassThrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := setUp(t, 10, &fakePeers{none: time.Millisecond})
		u := &fakeUpstream{err: fmt.Errorf("GET x: %w", fs.ErrNotExist)}
		if _, err := f.Fetch(t.Context(), f.artifact(u)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Fetch = %v, want the upstream's error", err)
		}
		if u.opened.Load() != 1 {
			t.Errorf("asked %d times for what does not exist", u.opened.Load())
		}
		if _, err := f.Fetch(t.Context(), f.artifact(nil)); !errors.Is(err, ErrUnavailable) || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Fetch offline = %v, want ErrUnavailable and not ErrNotExist", err)
		}
	})
}

// TestClientsDoNotWaitForNothing: what cannot be had fails within patience of the
// last progress, and in any case in time for cargo to hear of it. REL-9
func TestClientsDoNotWaitForNothing(t *testing.T) {
	noDigest := func(ctx context.Context) ([]artifact.Digest, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	for name, c := range map[string]struct {
		u       *fakeUpstream
		size    int
		digests func(context.Context) ([]artifact.Digest, error) // nil: known
		waited  time.Duration                                    // before
		want    time.Duration
		served  bool
	}{
		"hangs before the headers": {u: &fakeUpstream{wait: time.Hour}, size: 10, want: patience},
		"after waiting elsewhere":  {u: &fakeUpstream{wait: time.Hour}, size: 10, waited: 5 * time.Second, want: patience - 5*time.Second},
		"hangs in the body":        {u: &fakeUpstream{wait: time.Second, hangAt: 100}, size: 10_000, want: time.Second + patience},
		"fails late":               {u: &fakeUpstream{wait: 5 * time.Second, cutAt: 100}, size: 10_000, want: 5 * time.Second},
		"flaps":                    {u: &fakeUpstream{wait: 3 * time.Second, cutAt: 100}, size: 10_000, want: 6 * time.Second},
		"no digest, small file":    {u: &fakeUpstream{wait: time.Second}, size: 100, digests: noDigest, want: digestGrace + time.Second + patience},
		"no digest, large file":    {u: &fakeUpstream{wait: time.Second}, size: 1 << 20, digests: noDigest, want: digestGrace + time.Second + patience},
		"slow, large file":         {u: &fakeUpstream{wait: 5 * time.Second, per64K: 3 * time.Second}, size: 1 << 20, want: 5*time.Second + 17*3*time.Second, served: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := setUp(t, c.size, nil)
				c.u.data = f.data
				a := f.artifact(c.u)
				if a.Since = time.Now().Add(-c.waited); c.digests != nil {
					a.Known, a.Digests = nil, c.digests
				}
				start := time.Now()
				b, err := f.Fetch(t.Context(), a)
				if err == nil {
					_, err = read(b)
				}
				if d := time.Since(start); (err == nil) != c.served || d != c.want {
					t.Errorf("Fetch = %v after %v, want served %v after %v", err, d, c.served, c.want)
				}
			})
		})
	}
}

func TestTooLargeIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := setUp(t, 10, nil)
		u := &fakeUpstream{data: testData(1 << 20), noSize: true}
		if _, err := f.Fetch(t.Context(), &Artifact{Name: "b", Known: []artifact.Digest{{}}, MaxBytes: 100, Upstream: u.open}); err == nil {
			t.Error("a body above MaxBytes was taken")
		}
	})
}

// TestLearn takes a file that nothing proves from the upstream, streaming it, and
// stores it under the digest that it turns out to have.
func TestLearn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := setUp(t, 1<<20, nil)
		u := &fakeUpstream{data: f.data, per64K: time.Second}
		a := f.artifact(u)
		a.Known = nil
		a.Learn = func(r io.ReaderAt, size int64) (artifact.Digest, error) {
			b, err := io.ReadAll(io.NewSectionReader(r, 0, size))
			return digest(b), err
		}
		start := time.Now()
		b, err := f.Fetch(t.Context(), a)
		if err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d > 2*time.Second {
			t.Errorf("first byte after %v", d)
		}
		if got, err := read(b); err != nil || !bytes.Equal(got, f.data) {
			t.Errorf("read %d bytes, %v", len(got), err)
		}
		f.wantStored(t, true)

		wrong := errors.New("not a zip")
		a.Name, a.Learn = "b", func(io.ReaderAt, int64) (artifact.Digest, error) { return artifact.Digest{}, wrong }
		if b, err = f.Fetch(t.Context(), a); err == nil {
			_, err = read(b)
		}
		if !errors.Is(err, wrong) {
			t.Errorf("a file that does not pass: %v", err)
		}
	})
}

func TestPrivateIsNotAskedOfPeers(t *testing.T) { // SEC-60
	synctest.Test(t, func(t *testing.T) {
		p := &fakePeers{none: time.Millisecond}
		f := setUp(t, 100, p)
		a := f.artifact(&fakeUpstream{data: f.data})
		a.Private = true
		f.get(t, a, Upstream)
		f.wantStored(t, true)
		if p.asked.Load() != 0 || !f.store.private[digest(f.data)] {
			t.Errorf("peers asked %d times, stored as private %v", p.asked.Load(), f.store.private)
		}
	})
}

// TestSlowDigest has a checksum database that answers after the upstream.
func TestSlowDigest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := setUp(t, 1<<20, nil)
		u := &fakeUpstream{data: f.data, wait: 20 * time.Millisecond}
		a := f.artifact(u)
		a.Known = nil
		a.Digests = func(ctx context.Context) ([]artifact.Digest, error) {
			return []artifact.Digest{digest(f.data)}, sleep(ctx, time.Second)
		}
		start := time.Now()
		b, err := f.Fetch(t.Context(), a)
		if err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d > 25*time.Millisecond {
			t.Errorf("first byte after %v, want it before the digest is known", d)
		}
		if got, err := read(b); err != nil || !bytes.Equal(got, f.data) || time.Since(start) < time.Second {
			t.Errorf("read %d bytes, %v after %v", len(got), err, time.Since(start))
		}
		f.Wait(t.Context())
		f.get(t, f.artifact(nil), Disk)

		refused := errors.New("the checksum database does not know it")
		a = &Artifact{Name: "r", MaxBytes: 1 << 30, Upstream: u.open}
		a.Digests = func(ctx context.Context) ([]artifact.Digest, error) { return nil, refused }
		if _, err := f.Fetch(t.Context(), a); !errors.Is(err, refused) {
			t.Errorf("Fetch = %v, want %v", err, refused)
		}
	})
}

// TestDiskFullPassesThrough runs out of room at once, and in the middle. REL-7
func TestDiskFullPassesThrough(t *testing.T) {
	for _, room := range []int64{0, 100 << 10, 1<<20 - 1} {
		synctest.Test(t, func(t *testing.T) {
			f := setUp(t, 1<<20, nil)
			f.store.room.Store(room)
			u := &fakeUpstream{data: f.data, per64K: time.Millisecond, noSize: true}
			var wg sync.WaitGroup
			for range 3 {
				wg.Go(func() { f.get(t, f.artifact(u), Upstream) })
			}
			wg.Wait()
			f.wantStored(t, false)
			if n := u.opened.Load(); n != 1 {
				t.Errorf("%d upstream requests, want 1", n)
			}
			f.store.room.Store(1 << 30)
			f.get(t, f.artifact(u), Upstream)
			f.wantStored(t, true)
		})
	}
}

// TestStore: what nobody waits for is in the store when Store returns, and is not
// told of; or it is said why not.
func TestStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		told := 0
		f := setUp(t, 1<<20, nil)
		f.c.Observe = func(Event) { told++ }
		f.c.Peers = &fakePeers{data: f.data, per64K: time.Millisecond}
		a := f.artifact(nil)
		a.Upstream = nil
		f.store.room.Store(100)
		if err := f.Store(t.Context(), a); !errors.Is(err, artifact.ErrNoSpace) { // REL-7
			t.Errorf("without room: %v", err)
		}
		f.store.room.Store(1 << 30)
		for range 2 {
			if err := f.Store(t.Context(), a); err != nil {
				t.Error(err)
			}
			if _, ok := f.store.files[digest(f.data)]; !ok {
				t.Error("not stored")
			}
		}
		other := *a
		other.Name, other.Known = "other", []artifact.Digest{digest([]byte("other"))}
		if err := f.Store(t.Context(), &other); err == nil || told != 0 {
			t.Errorf("of a file that nobody has: %v; %d requests were told of", err, told)
		}
	})
}

func TestPanicIsContained(t *testing.T) { // REL-16
	synctest.Test(t, func(t *testing.T) {
		f := setUp(t, 10, nil)
		a := f.artifact(nil)
		a.Upstream = func(context.Context) (*Download, error) { panic("injected") }
		if _, err := f.Fetch(t.Context(), a); err == nil {
			t.Error("Fetch = nil after a panic")
		}
		f.get(t, f.artifact(&fakeUpstream{data: f.data}), Upstream)
	})
}
