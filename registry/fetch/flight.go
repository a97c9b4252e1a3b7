package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"sync"
	"time"

	"github.com/pkgswarm/pkgswarm/registry/artifact"
)

// errEnded says that a flight ended well before its body was asked for.
var errEnded = errors.New("flight ended")

// A flight gets one artifact for all who want it.
type flight struct {
	f *Fetcher
	a *Artifact

	resolved   chan struct{} // closed when digests or digestsErr is set
	digests    []artifact.Digest
	digestsErr error
	finally    func(stored bool) // set by the race's peers, called when it is over

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at each change of what follows
	spool   *spool        // what readers read; nil until there is something to read
	shown   bool          // a reader was given bytes of spool before it was verified
	stored  bool          // the file was in the store all along
	peers   []string      // that delivered
	err     error         // why there will be nothing more
	ended   bool          // run has returned
	users   int           // run and the readers: they keep spool open
}

// A spool is a file as it arrives. Its fields are guarded by flight.mu, but for
// the bytes of w.
type spool struct {
	w        Writer
	size     int64 // announced, in bytes; -1 if unknown
	source   Source
	verified bool        // complete, and its digest matches
	refs     int         // users: the flight, who fills it, and each reader
	old      []io.Closer // earlier w, which readers may still be reading
}

// visible returns how many bytes readers may see.
func (s *spool) visible() int64 {
	if s.verified {
		return s.w.Size()
	}
	return max(0, s.w.Size()-holdback)
}

// release ends one use. The caller holds flight.mu.
func (s *spool) release() {
	if s.refs--; s.refs == 0 {
		s.w.Close()
		for _, c := range s.old {
			c.Close()
		}
	}
}

// join returns the flight for a, starting one if there is none. The caller
// leaves it.
func (f *Fetcher) join(a *Artifact) (*flight, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, context.Canceled
	}
	key := a.Name
	if a.Private {
		key = "private " + key
	}
	if fl := f.flights[key]; fl != nil {
		fl.mu.Lock()
		defer fl.mu.Unlock()
		fl.users++
		return fl, nil
	}
	fl := &flight{f: f, a: a, resolved: make(chan struct{}), changed: make(chan struct{}), users: 2}
	f.flights[key] = fl
	f.wg.Go(func() {
		fl.run(f.ctx)
		f.mu.Lock()
		delete(f.flights, key)
		f.mu.Unlock()
		fl.end()
	})
	return fl, nil
}

// EachFlight calls f with the name of each artifact that is under way and the
// number of clients that wait for it or are reading it.
func (f *Fetcher) EachFlight(visit func(name string, clients int)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, fl := range f.flights {
		fl.mu.Lock()
		n := fl.users
		if !fl.ended {
			n-- // run
		}
		fl.mu.Unlock()
		visit(fl.a.Name, n)
	}
}

// update changes the flight's state under its lock and wakes all who watch.
func (fl *flight) update(change func()) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	change()
	close(fl.changed)
	fl.changed = make(chan struct{})
}

// run gets the artifact and, when it is verified, stores it.
func (fl *flight) run(ctx context.Context) {
	log := fl.f.log.With("artifact", fl.a.Name)
	defer func() {
		if r := recover(); r != nil { // REL-16
			log.Error("panic while fetching", "panic", r, "stack", string(debug.Stack()))
			fl.update(func() { fl.err = fmt.Errorf("fetch %s: internal error", fl.a.Name) })
		}
	}()
	select {
	case fl.f.slots <- struct{}{}:
		defer func() { <-fl.f.slots }()
	case <-ctx.Done():
		fl.update(func() { fl.err = ctx.Err() })
		return
	}
	stored := false
	defer func() {
		if fl.finally != nil {
			fl.finally(stored)
		}
	}()
	winner, err := newRace(fl).run(ctx)
	if err != nil {
		fl.update(func() { fl.err = err })
		return
	}
	if winner == nil {
		return // it was in the store
	}
	_, err = winner.spool.w.Commit(winner.digest, fl.a.Private)
	switch stored = err == nil; {
	case errors.Is(err, artifact.ErrNoSpace):
		log.Debug("artifact served but not stored", "err", err)
	case err != nil:
		log.Warn("artifact served but not stored", "err", err)
	}
}

// end ends the flight's own use of its spool and tells who came too late.
func (fl *flight) end() {
	fl.update(func() { fl.ended = true })
	fl.leave()
}

// leave ends one use of the flight.
func (fl *flight) leave() {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	if fl.users--; fl.users == 0 && fl.spool != nil {
		fl.spool.release()
	}
}

// over waits until the flight has ended, and returns why it failed.
func (fl *flight) over(ctx context.Context) error {
	for {
		fl.mu.Lock()
		ended, changed, err := fl.ended, fl.changed, fl.err
		fl.mu.Unlock()
		if ended {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// resolve finds the digests of the artifact. It is called once.
func (fl *flight) resolve(ctx context.Context) {
	defer close(fl.resolved)
	defer func() {
		if r := recover(); r != nil { // REL-16
			fl.f.log.Error("panic while finding a digest", "artifact", fl.a.Name, "panic", r, "stack", string(debug.Stack()))
		}
	}()
	if fl.digests = fl.a.Known; len(fl.digests) > 0 || fl.a.Learn != nil {
		return
	}
	fl.digestsErr = fmt.Errorf("no digest is known for %s", fl.a.Name)
	if fl.a.Digests == nil {
		return
	}
	ds, err := fl.a.Digests(ctx)
	if err == nil && len(ds) == 0 {
		return
	}
	fl.digests, fl.digestsErr = ds, err
}

// wait waits for the digests.
func (fl *flight) wait(ctx context.Context) ([]artifact.Digest, error) {
	select {
	case <-fl.resolved:
		return fl.digests, fl.digestsErr
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// show makes s what readers read, in place of what they read before.
func (fl *flight) show(s *spool) {
	fl.update(func() {
		s.refs++
		if fl.spool != nil {
			fl.spool.release()
		}
		fl.spool = s
	})
}

// body waits until there is something for a client to read. since is when the
// client began to wait.
func (fl *flight) body(ctx context.Context, since time.Time) (*Body, []string, error) {
	late := time.NewTimer(patience - time.Since(since))
	defer late.Stop()
	for {
		fl.mu.Lock()
		b, changed, err := fl.bodyLocked(ctx), fl.changed, fl.err
		peers, stored, ended := fl.peers, fl.stored, fl.ended
		fl.mu.Unlock()
		switch {
		case b != nil:
			return b, peers, nil
		case err != nil:
			return nil, nil, err
		case stored:
			b, err := fl.f.Stored(fl.digests) // set before stored was
			if errors.Is(err, artifact.ErrNotFound) {
				err = errEnded // evicted in this very moment
			}
			return b, nil, err
		case ended:
			return nil, nil, errEnded
		}
		select {
		case <-changed: // progress
			late.Reset(min(patience, longest-time.Since(since)))
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		case <-late.C:
			return nil, nil, fmt.Errorf("fetch %s: %w", fl.a.Name, ErrStalled)
		}
	}
}

// bodyLocked returns a body if one can be begun. The caller holds fl.mu.
func (fl *flight) bodyLocked(ctx context.Context) *Body {
	s := fl.spool
	if s == nil || fl.users == 0 || !s.verified && (fl.err != nil || s.visible() == 0) {
		return nil
	}
	s.refs++
	fl.users++
	r := &reader{ctx: ctx, fl: fl, spool: s}
	b := &Body{Size: s.size, Source: s.source, close: r.close}
	if s.verified {
		b.Size = s.w.Size()
		b.Content = io.NewSectionReader(s.w, 0, b.Size)
	} else {
		fl.shown = true
		b.Stream = r
	}
	return b
}

// A reader follows a flight's file as it arrives.
type reader struct {
	ctx   context.Context // of the client's request
	fl    *flight
	spool *spool // in use; nil after close
	off   int64
}

func (r *reader) Read(p []byte) (int, error) {
	var silent *time.Timer
	for {
		w, n, changed, err := r.next()
		if err != nil {
			return 0, err
		}
		if n > 0 {
			// The bytes below n do not change, and w stays open while we use the spool.
			m, err := w.ReadAt(p[:min(int64(len(p)), n)], r.off)
			r.off += int64(m)
			if err == io.EOF && m > 0 {
				err = nil
			}
			return m, err
		}
		if silent == nil {
			silent = time.NewTimer(patience)
			defer silent.Stop()
		}
		select {
		case <-changed:
			silent.Reset(patience)
		case <-r.ctx.Done():
			return 0, r.ctx.Err()
		case <-silent.C: // the file is here, and what proves it is not
			return 0, fmt.Errorf("fetch %s: %w", r.fl.a.Name, ErrStalled)
		}
	}
}

// next returns where bytes can be read now, and how many. If there are none and
// no error, changed tells when to look again.
func (r *reader) next() (w io.ReaderAt, n int64, changed <-chan struct{}, err error) {
	fl := r.fl
	fl.mu.Lock()
	defer fl.mu.Unlock()
	if s := fl.spool; s != r.spool {
		// The same file from another source was complete first. Only files of
		// one SHA-256 are exchanged under a reader.
		s.refs++
		r.spool.release()
		r.spool = s
	}
	switch n := r.spool.visible() - r.off; {
	case n > 0:
		return r.spool.w, n, nil, nil
	case r.spool.verified:
		return nil, 0, nil, io.EOF
	case fl.err != nil:
		return nil, 0, nil, fl.err
	}
	return nil, 0, fl.changed, nil
}

func (r *reader) close() error {
	r.fl.mu.Lock()
	s := r.spool
	if r.spool = nil; s != nil {
		s.release()
	}
	r.fl.mu.Unlock()
	if s != nil {
		r.fl.leave()
	}
	return nil
}
