package fetch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"time"

	"github.com/pkgswarm/pkgswarm/registry/artifact"
)

// A race lets peers and the upstream deliver one artifact, the peers with a
// head start, and ends with the first verified file.
type race struct {
	fl       *flight
	askPeers bool
	progress chan news   // of the peers; coalesced
	peers    chan result // nil until peers are asked
	upstream chan result // nil until the upstream is asked
	timer    *time.Timer // until the upstream is asked, if it is not yet

	firstByte time.Time // from a peer
	received  int64     // bytes, from peers
	due       float64   // bytes that should have been received by the time counted
	counted   time.Time
	peerErr   error
	failed    error // of the upstream
}

// news is what peers have done since last looked at.
type news struct {
	bytes  int64         // received
	expect time.Duration // until more is heard; 0: the usual
}

// A result is a verified file, or why there is none.
type result struct {
	spool  *spool
	digest artifact.Digest
	peers  []string
	err    error
}

func newRace(fl *flight) *race {
	p := fl.f.c.Peers
	return &race{
		fl:       fl,
		askPeers: !fl.a.Private && p != nil && p.Connected() > 0,
		progress: make(chan news, 1),
	}
}

// run returns the winner, whose file readers already see, or nil if the file
// was in the store. It waits for all it started.
func (r *race) run(ctx context.Context) (*result, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer r.drain()
	defer cancel() // runs before drain
	defer func() {
		if !r.firstByte.IsZero() {
			r.fl.f.receiving.Add(-1)
		}
	}()
	headStart := digestGrace
	if r.askPeers {
		headStart = r.fl.f.c.PeerBudget
	}
	r.timer = time.NewTimer(headStart)
	defer r.timer.Stop()
	go r.fl.resolve(ctx)
	resolved := r.fl.resolved
	for {
		select {
		case <-resolved:
			if resolved = nil; r.fl.digestsErr != nil {
				return nil, r.fl.digestsErr
			}
			if r.inStore() {
				return nil, nil
			}
			r.start(ctx)
		case <-r.timer.C:
			r.startUpstream(ctx)
		case n := <-r.progress:
			r.onProgress(ctx, n)
		case res := <-r.peers:
			r.peers = nil
			if r.onPeers(ctx, &res) {
				return &res, nil
			}
		case res := <-r.upstream:
			r.upstream = nil
			if res.err == nil {
				r.release(res.spool) // the flight has it
				return &res, nil
			}
			r.failed = res.err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if resolved == nil && r.peers == nil && r.upstream == nil {
			return nil, r.defeat()
		}
	}
}

// drain waits for what is still running, after its context has ended.
func (r *race) drain() {
	for _, c := range []chan result{r.peers, r.upstream} {
		if c == nil {
			continue
		}
		if res := <-c; res.err == nil {
			r.release(res.spool)
		}
	}
	<-r.fl.resolved
}

// release ends the use of s by who filled it.
func (r *race) release(s *spool) {
	r.fl.mu.Lock()
	defer r.fl.mu.Unlock()
	s.release()
}

// defeat returns why nobody delivered.
func (r *race) defeat() error {
	switch {
	case r.failed != nil:
		return r.failed
	case r.peerErr != nil:
		return fmt.Errorf("fetch %s: %w (peers: %w)", r.fl.a.Name, ErrUnavailable, r.peerErr)
	}
	return fmt.Errorf("fetch %s: %w", r.fl.a.Name, ErrUnavailable)
}

// inStore looks for the file under digests that were not known before the flight.
func (r *race) inStore() bool {
	if len(r.fl.a.Known) > 0 {
		return false
	}
	b, err := r.fl.f.Stored(r.fl.digests)
	if errors.Is(err, artifact.ErrNotFound) {
		return false
	}
	if err == nil {
		b.Close()
	}
	shown := false
	r.fl.update(func() {
		if shown = r.fl.shown; !shown {
			r.fl.stored = true
		}
	})
	return !shown
}

// start begins once the digests are known.
func (r *race) start(ctx context.Context) {
	if !r.askPeers {
		r.startUpstream(ctx)
		return
	}
	r.peers = r.launch(func() result { return r.fromPeers(ctx) })
}

// launch runs get and returns where its result comes. A panic of what it calls
// is a failure of this artifact only (REL-16).
func (r *race) launch(get func() result) chan result {
	c := make(chan result, 1)
	go func() {
		res := result{err: fmt.Errorf("fetch %s: internal error", r.fl.a.Name)}
		defer func() {
			if p := recover(); p != nil {
				r.fl.f.log.Error("panic while fetching", "artifact", r.fl.a.Name, "panic", p, "stack", string(debug.Stack()))
			}
			c <- res
		}()
		res = get()
	}()
	return c
}

func (r *race) startUpstream(ctx context.Context) {
	r.timer.Stop()
	if r.upstream != nil || r.failed != nil || r.fl.a.Upstream == nil {
		return
	}
	r.upstream = r.launch(func() result { return r.fl.fromUpstream(ctx) })
}

// onProgress gives peers more time as long as they are good for it.
func (r *race) onProgress(ctx context.Context, n news) {
	r.fl.update(func() {}) // clients wait for this as well
	if r.upstream != nil || r.failed != nil {
		return
	}
	if n.bytes > 0 && r.firstByte.IsZero() {
		r.firstByte = time.Now()
		r.counted = r.firstByte
		r.fl.f.receiving.Add(1)
	}
	r.received += n.bytes
	if r.tooSlow() {
		r.startUpstream(ctx)
		return
	}
	r.timer.Reset(max(peerStall, n.expect, r.fl.f.c.PeerBudget))
}

// tooSlow reports whether what comes from peers comes too slowly. Files that come at
// once share what there is, and are not to be fetched again for that.
func (r *race) tooSlow() bool {
	if r.firstByte.IsZero() {
		return false
	}
	now := time.Now()
	r.due += now.Sub(r.counted).Seconds() * peerMinRate / float64(r.fl.f.receiving.Load())
	r.counted = now
	d := now.Sub(r.firstByte)
	return d > peerLimit || d > time.Second && float64(r.received) < r.due
}

// onPeers reports whether the peers have won.
func (r *race) onPeers(ctx context.Context, res *result) bool {
	if res.err != nil {
		r.peerErr = res.err
		r.startUpstream(ctx)
		return false
	}
	defer r.release(res.spool)
	fl := r.fl
	fl.mu.Lock()
	// Two zips of one h1: may differ in bytes: a reader stays with the one it
	// has begun.
	late := fl.shown && res.digest.Alg != artifact.SHA256
	if !late {
		fl.peers = res.peers
	}
	fl.mu.Unlock()
	if !late {
		fl.show(res.spool)
	}
	return !late
}

// fromPeers gets the file from peers and verifies it.
func (r *race) fromPeers(ctx context.Context) result {
	fl := r.fl
	t := &Transfer{
		Create: func(size int64) (Writer, error) {
			if size > fl.a.MaxBytes {
				return nil, fmt.Errorf("%s is offered with %d bytes, more than %d", fl.a.Name, size, fl.a.MaxBytes)
			}
			return fl.f.c.Store.Create(size)
		},
		Progress: func(n int64) { r.tell(news{bytes: n}) },
		Expect:   func(d time.Duration) { r.tell(news{expect: d}) },
	}
	fl.finally = func(stored bool) {
		if t.Finally != nil {
			t.Finally(stored)
		}
	}
	w, err := fl.f.c.Peers.Fetch(ctx, fl.digests, t)
	if err != nil {
		return result{err: err}
	}
	d, err := matching(w, fl.digests)
	if err != nil {
		w.Close()
		return result{err: fmt.Errorf("peer gave wrong bytes: %w", err)}
	}
	w.SetOrigin(artifact.FromPeers, t.Peers...)
	return result{&spool{w: w, size: w.Size(), source: Peer, verified: true, refs: 1}, d, t.Peers, nil}
}

// tell passes n on without blocking, added to what has not been seen yet.
func (r *race) tell(n news) {
	for {
		select {
		case r.progress <- n:
			return
		case m := <-r.progress:
			n = news{n.bytes + m.bytes, max(n.expect, m.expect)}
		}
	}
}

// matching returns the digest that w matches.
func matching(w Writer, ds []artifact.Digest) (artifact.Digest, error) {
	var err error
	for _, d := range ds {
		if err = w.Verify(d); err == nil {
			return d, nil
		}
	}
	return artifact.Digest{}, err
}

// fromUpstream gets the file from the upstream, again after a failure in the
// middle as long as no client has seen a byte.
func (fl *flight) fromUpstream(ctx context.Context) result {
	start := time.Now()
	for attempt := 1; ; attempt++ {
		s, d, opened, err := fl.tryUpstream(ctx)
		if err == nil {
			return result{spool: s, digest: d}
		}
		fl.mu.Lock()
		again := opened && !fl.shown && attempt < upstreamAttempts && time.Since(start) < retryWithin && ctx.Err() == nil
		fl.mu.Unlock()
		if !again {
			return result{err: err}
		}
		fl.f.log.Warn("upstream failed in the middle, trying again", "artifact", fl.a.Name, "err", err)
	}
}

// tryUpstream downloads the file once, showing it to readers as it comes.
// opened tells whether the upstream had the file.
func (fl *flight) tryUpstream(ctx context.Context) (s *spool, d artifact.Digest, opened bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(upstreamStall, func() { cancel(ErrStalled) })
	defer watchdog.Stop()
	defer func() {
		if err != nil && errors.Is(context.Cause(ctx), ErrStalled) && !errors.Is(err, ErrStalled) {
			err = fmt.Errorf("fetch %s: %w: %w", fl.a.Name, ErrStalled, err)
		}
	}()
	body, err := fl.a.Upstream(ctx)
	if err != nil {
		return nil, d, false, err
	}
	defer body.Close()
	if body.Size > fl.a.MaxBytes {
		return nil, d, false, &BadBytesError{fl.a.Name, tooBig(body.Size, fl.a.MaxBytes)}
	}
	w, err := fl.f.create(body.Size)
	if err != nil {
		return nil, d, false, err
	}
	s = &spool{w: w, size: body.Size, source: Upstream, refs: 1}
	fl.show(s)
	defer func(s *spool) {
		if err != nil {
			fl.mu.Lock()
			s.release()
			fl.mu.Unlock()
		}
	}(s)
	alive := func() { watchdog.Reset(upstreamStall) }
	if err := fl.copy(s, body, alive); err != nil {
		return nil, d, true, fmt.Errorf("fetch %s: %w", fl.a.Name, err)
	}
	watchdog.Stop()
	if d, err = fl.verify(ctx, s.w); err != nil {
		return nil, d, true, err
	}
	s.w.SetOrigin(cmp.Or(body.Source, artifact.FromUpstream), body.From)
	fl.update(func() { s.verified = true })
	return s, d, true, nil
}

// verify returns the digest that the complete file w of the upstream matches.
func (fl *flight) verify(ctx context.Context, w Writer) (artifact.Digest, error) {
	ds, err := fl.wait(ctx)
	if err != nil {
		return artifact.Digest{}, err
	}
	if len(ds) == 0 && fl.a.Learn != nil {
		d, err := fl.a.Learn(w, w.Size())
		if err != nil {
			return d, &BadBytesError{fl.a.Name, err}
		}
		ds = []artifact.Digest{d}
	}
	d, err := matching(w, ds)
	if err != nil {
		return d, &BadBytesError{fl.a.Name, err}
	}
	return d, nil
}

func tooBig(size, limit int64) error {
	return fmt.Errorf("%d bytes, more than %d", size, limit)
}

// copy reads all of body into s, calling alive whenever something arrives.
func (fl *flight) copy(s *spool, body *Download, alive func()) error {
	start, buf := time.Now(), make([]byte, chunk)
	for total := int64(0); ; {
		n, err := body.Read(buf)
		if n > 0 {
			alive()
			if total += int64(n); total > fl.a.MaxBytes {
				return &BadBytesError{fl.a.Name, tooBig(total, fl.a.MaxBytes)}
			}
			if err := fl.append(s, buf[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			if body.Size >= 0 && total != body.Size {
				return fmt.Errorf("%w after %d of %d bytes", io.ErrUnexpectedEOF, total, body.Size)
			}
			return nil
		}
		if err != nil {
			return err
		}
		if d := time.Since(start); d > upstreamStall && float64(total) < d.Seconds()*upstreamMinRate {
			return fmt.Errorf("%w: %d bytes in %v", ErrStalled, total, d.Round(time.Second))
		}
	}
}

// append adds p to the file, in memory from when the disk is full.
func (fl *flight) append(s *spool, p []byte) error {
	n, err := s.w.Write(p)
	if err != nil && errors.Is(err, artifact.ErrNoSpace) {
		if _, already := s.w.(*memoryFile); already {
			return err
		}
		m, merr := fl.f.toMemory(s.w)
		if merr != nil {
			return errors.Join(err, merr)
		}
		fl.update(func() {
			s.old = append(s.old, s.w)
			s.w = m
		})
		_, err = m.Write(p[n:])
	}
	if err != nil {
		return err
	}
	fl.update(func() {})
	return nil
}
