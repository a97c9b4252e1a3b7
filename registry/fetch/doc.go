// Package fetch decides where an artifact comes from.
//
// A [Fetcher] looks in the store first. On a miss all who want the artifact
// share one flight, which no single client's leaving ends:
//
//	0 ms    connected peers are asked, if the artifact is known to be public
//	budget  no peer has said that it has the file: the upstream is asked too.
//	        A peer that has it gets stall more for each sign of progress, and
//	        must keep up its share of a least rate
//	first   whoever first delivers bytes that match the digest wins
//
// so that a slow, silent, lying or absent peer costs at most the budget. Without
// peers the upstream is asked at once.
//
// # What a client may see early
//
// Bytes from peers are shown to nobody before the whole file has been checked.
// Bytes from the upstream are streamed to clients while they arrive, except
// that the last [holdback] bytes stay back until the digest is known to match: a
// body that turns out to be wrong ends in an error and never looks complete
// (SEC-3). Only what matches is stored.
//
// When there is no room to store a file, a bounded number of bytes is kept in
// memory instead and the file is served without being stored (REL-7).
package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pkgswarm/pkgswarm/registry/artifact"
	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

// Limits and waits. Times are from the last sign of life unless said otherwise.
const (
	DefaultPeerBudget = 20 * time.Millisecond // until the upstream is asked as well
	peerStall         = 750 * time.Millisecond
	peerMinRate       = 256 << 10        // bytes a second, of all files that are coming from peers together
	peerLimit         = 10 * time.Second // for the whole transfer, until the upstream is asked as well
	upstreamStall     = 10 * time.Second
	upstreamMinRate   = 1 << 10              // bytes a second, over the whole transfer
	upstreamAttempts  = 3                    // while no client has seen a byte
	retryWithin       = 4 * time.Second      // of the flight's start: a client must not wait for long (REL-9)
	digestGrace       = 2 * time.Millisecond // the digest's head start on the upstream, without peers
	patience          = 9 * time.Second      // of a client, without progress (REL-9)
	longest           = 25 * time.Second     // until a client has a first byte or an error; cargo waits 30 s
	maxFlights        = 512                  // artifacts on their way at once; more wait
	memoryBudget      = 128 << 20            // bytes of all files that are kept in memory
	holdback          = 32 << 10             // bytes
	chunk             = 128 << 10            // bytes read from the upstream at once
)

var (
	// ErrUnavailable says that neither the store nor a peer has the artifact and
	// there is no upstream to ask.
	ErrUnavailable = errors.New("neither in the store nor with a peer, and no upstream to ask")
	// ErrStalled says that the upstream sent nothing for too long.
	ErrStalled = errors.New("upstream stalled")
)

// A BadBytesError says that the upstream gave other bytes than its index or the
// checksum database promise.
type BadBytesError struct {
	Name string
	Err  error // an *artifact.MismatchError, or why the file is malformed
}

func (e *BadBytesError) Error() string {
	return fmt.Sprintf("upstream gave wrong bytes for %s: %v", e.Name, e.Err)
}
func (e *BadBytesError) Unwrap() error { return e.Err }

// An Artifact says what is wanted, what proves it, and where it can come from.
type Artifact struct {
	// Name identifies the artifact to people and is the same for all requests
	// that may share a flight, for example "serde-1.0.228.crate".
	Name string
	// Known holds the digests of which the file must match one, if they are at hand.
	Known []artifact.Digest
	// Digests finds the digests if Known is empty. It is called once a flight,
	// while the upstream may already be sending, and may take its time. Its error
	// ends the flight.
	Digests func(ctx context.Context) ([]artifact.Digest, error)
	// Learn takes what the upstream sends for right, as something has to when
	// there is neither Known nor Digests: it returns the digest of the complete
	// file, which is the one to hold it to from then on.
	Learn func(r io.ReaderAt, size int64) (artifact.Digest, error)
	// Since is when the client began to wait; zero: now.
	Since time.Time
	// Private keeps peers out of it: they are not asked, nor given the file.
	Private bool
	// MaxBytes is the largest acceptable size. It must be positive.
	MaxBytes int64
	// Upstream opens the file at its source. Nil: the upstream is not to be asked.
	// The context ends when the flight has no more use for it.
	Upstream func(ctx context.Context) (*Download, error)
}

// A Download is a file on its way from the upstream. Its reader must fail, not
// end, when the file is cut short.
type Download struct {
	io.ReadCloser
	Size int64 // in bytes; -1 if the upstream did not say

	// For the record: the way by which it comes, artifact.FromUpstream if empty, and
	// its URL, or the name of what brings it.
	Source, From string
}

// NewDownload returns the file that s, the upstream's answer for url, is.
func NewDownload(s *upstream.Stream, url string) *Download {
	if s.Via.Name != "" {
		return &Download{ReadCloser: s, Size: s.Size, Source: artifact.FromBundle, From: s.Via.Name}
	}
	return &Download{ReadCloser: s, Size: s.Size, Source: artifact.FromUpstream, From: url}
}

// A File is a complete file of a Store.
type File interface {
	io.ReadSeekCloser
	io.ReaderAt
}

// A Writer is a file on its way into a Store; see [artifact.Writer].
type Writer interface {
	io.Writer
	io.ReaderAt
	io.Closer
	Size() int64
	Verify(artifact.Digest) error
	SetOrigin(source string, from ...string)
	Commit(d artifact.Digest, private bool) (artifact.Info, error)
}

// A Store keeps verified artifacts. Its errors are those of [artifact.Store].
type Store interface {
	Open(artifact.Digest) (File, artifact.Info, error)
	Create(size int64) (Writer, error)
}

// OnDisk returns s as a Store.
func OnDisk(s *artifact.Store) Store { return onDisk{s} }

type onDisk struct{ s *artifact.Store }

func (o onDisk) Open(d artifact.Digest) (File, artifact.Info, error) {
	f, err := o.s.Open(d)
	if err != nil {
		return nil, artifact.Info{}, err
	}
	return f, f.Info, nil
}

func (o onDisk) Create(size int64) (Writer, error) { return o.s.Create(size) }

// Peers gets artifacts from the swarm.
type Peers interface {
	// Connected returns how many peers could be asked.
	Connected() int
	// Fetch gets the file of one of the digests. It returns an error as soon as it
	// knows that no peer will deliver.
	Fetch(ctx context.Context, want []artifact.Digest, t *Transfer) (Writer, error)
}

// A Transfer is one attempt at peers. Its functions may be called from any
// goroutine and do not block.
type Transfer struct {
	// Create makes the file to fill. size is in bytes; it is refused if the
	// artifact may not be that big.
	Create func(size int64) (Writer, error)
	// Progress is to be called with the bytes received since the last call: with
	// 0 when a peer says that it has the file.
	Progress func(n int64)
	// Expect asks for patience: a peer is getting the file, and more will be heard
	// of it within d.
	Expect func(d time.Duration)

	// Peers is set by Fetch: the names of the peers that delivered.
	Peers []string
	// Finally may be set by Fetch. It is called when the flight has ended, however
	// it did; stored says whether the file is in the store now.
	Finally func(stored bool)
}

// A Source says where the bytes of an answer came from.
type Source string

const (
	Disk     Source = "disk"
	Peer     Source = "peer"
	Upstream Source = "upstream"
)

// An Event describes one answered request for an artifact.
type Event struct {
	Name    string
	Source  Source   // empty after an error
	Bytes   int64    // size of the artifact, -1 if unknown
	Peers   []string // that delivered, if Source is Peer
	Elapsed time.Duration
	Err     error
}

// Config configures a Fetcher.
type Config struct {
	Store Store // required
	Peers Peers // nil: none
	// PeerBudget is how long peers are waited for before the upstream is asked as
	// well. 0 means DefaultPeerBudget.
	PeerBudget time.Duration
	// Observe is called for each answered request; it must not block. May be nil.
	Observe func(Event)
	Logger  *slog.Logger // nil discards
}

// A Fetcher gets artifacts. Its methods may be called concurrently.
type Fetcher struct {
	c      Config
	log    *slog.Logger
	slots  chan struct{} // one per flight that may run
	memory budget

	receiving atomic.Int64 // files that are coming from peers

	ctx    context.Context // of all flights; they outlive the requests that start them
	cancel context.CancelFunc
	wg     sync.WaitGroup // flights

	mu      sync.Mutex
	flights map[string]*flight
	closed  bool
}

// New returns a Fetcher, which runs until Close.
func New(c Config) *Fetcher {
	if c.PeerBudget == 0 {
		c.PeerBudget = DefaultPeerBudget
	}
	if c.Observe == nil {
		c.Observe = func(Event) {}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	f := &Fetcher{
		c:       c,
		log:     c.Logger,
		slots:   make(chan struct{}, maxFlights),
		flights: make(map[string]*flight),
	}
	f.memory.left.Store(memoryBudget)
	// Flights must outlive the clients that caused them.
	f.ctx, f.cancel = context.WithCancel(context.Background())
	return f
}

// Close ends all flights and waits for them.
func (f *Fetcher) Close() {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.cancel()
	f.wg.Wait()
}

// Flights returns how many artifacts are under way. Those that were answered before
// and are not any more are stored for good, where there was room for them.
func (f *Fetcher) Flights() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.flights)
}

// Wait waits until no flight is under way, or ctx ends.
func (f *Fetcher) Wait(ctx context.Context) {
	done := make(chan struct{})
	go func() { f.wg.Wait(); close(done) }() // ends with the last flight
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// A Body is an answer: a complete file or a stream of one. The caller closes it.
type Body struct {
	// Content is the whole, verified file, or nil. It is an *os.File in disguise
	// where it can be, for sendfile.
	Content io.ReadSeeker
	// Stream is the file as it arrives, if Content is nil. A Read error other than
	// io.EOF means that the answer must not look complete.
	Stream io.Reader
	Size   int64 // in bytes; -1 if not yet known
	Source Source

	close func() error
}

// Close releases the body.
func (b *Body) Close() error {
	if b.close == nil {
		return nil
	}
	return b.close()
}

// Fetch returns the artifact, from the nearest place that has it. It returns as
// soon as the file is complete or may be streamed. Its error is that of
// a.Digests or a.Upstream where these fail, an [artifact.WithdrawnError], a
// [BadBytesError], or matches [ErrUnavailable] or [ErrStalled].
func (f *Fetcher) Fetch(ctx context.Context, a *Artifact) (*Body, error) {
	start := time.Now()
	b, peers, err := f.fetch(ctx, a)
	if ctx.Err() != nil && err != nil {
		return nil, err // the client left: nobody was answered
	}
	e := Event{Name: a.Name, Bytes: -1, Peers: peers, Elapsed: time.Since(start), Err: err}
	if err == nil {
		e.Source, e.Bytes = b.Source, b.Size
	}
	f.c.Observe(e)
	return b, err
}

// Store gets an artifact that no client waits for, and returns once it is in the
// store, or with an error as Fetch does. What peers bring and the store has no room
// for is [artifact.ErrNoSpace]. Observe is not told.
func (f *Fetcher) Store(ctx context.Context, a *Artifact) error {
	b, err := f.Stored(a.Known)
	if err == nil {
		return b.Close()
	}
	if !errors.Is(err, artifact.ErrNotFound) {
		return err
	}
	fl, err := f.join(a)
	if err != nil {
		return err
	}
	defer fl.leave()
	if err := fl.over(ctx); err != nil {
		return err
	}
	if b, err = f.Stored(a.Known); errors.Is(err, artifact.ErrNotFound) {
		return fmt.Errorf("%s: %w", a.Name, artifact.ErrNoSpace)
	} else if err != nil {
		return err
	}
	return b.Close()
}

func (f *Fetcher) fetch(ctx context.Context, a *Artifact) (*Body, []string, error) {
	since := a.Since
	if since.IsZero() {
		since = time.Now()
	}
	for {
		if b, err := f.Stored(a.Known); !errors.Is(err, artifact.ErrNotFound) {
			return b, nil, err
		}
		fl, err := f.join(a)
		if err != nil {
			return nil, nil, err
		}
		b, peers, err := fl.body(ctx, since)
		fl.leave()
		if err != errEnded {
			return b, peers, err
		}
	}
}

// Stored returns the artifact if the store has it. The error matches
// artifact.ErrNotFound if not.
func (f *Fetcher) Stored(ds []artifact.Digest) (*Body, error) {
	for _, d := range ds {
		file, info, err := f.c.Store.Open(d)
		if err == nil {
			return &Body{Content: file, Size: info.Size, Source: Disk, close: file.Close}, nil
		}
		if !errors.Is(err, artifact.ErrNotFound) {
			return nil, err
		}
	}
	return nil, artifact.ErrNotFound
}
