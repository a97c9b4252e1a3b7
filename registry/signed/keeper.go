package signed

import (
	"context"
	"errors"
	"maps"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/registry/catalog"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
)

const (
	logWorkers  = 128 // logs fetched at once: each takes two round trips
	maxFolding  = 4   // logs folded at once
	fileWorkers = 4   // packages whose files are fetched at once

	saveEvery = time.Second // between records of where a keeper is
	retryMin  = 5 * time.Second
	retryMax  = 10 * time.Minute
	maxLate   = 4096 // packages to be tried again; with more, the keeper waits
	maxMissed = 512  // packages in a row that could not be had: it is nobody there
)

var (
	errNobody = errors.New("no peer has what is missing")
	errForked = errors.New("stopped: the catalog is not used any more")
	errStale  = errors.New("stopped: nobody vouches for the catalog any more")
)

// A keeper does one thing for each change in the history of a catalog, in order but
// several at a time: see [Mirror].
type keeper struct {
	f       *follower
	r       *Registry
	name    string // of the place it is at
	files   bool
	workers int
	work    func(ctx context.Context, h pkglog.Header, e catalog.Entry) (bytes uint64, err error)
	goal    func() *catalog.Snapshot // how far to go; nil if that is not known
	then    *keeper                  // goes where this one has been
	news    chan struct{}            // holds a token when there may be a new goal

	// Of the goroutine that runs.
	key      core.Key // of the catalog
	saved    place
	savedAt  time.Time
	retry    time.Duration
	said     time.Time
	saidDone uint64

	mu      sync.Mutex // guards what follows
	at      place      // next change to take up, and bytes so far
	known   uint64     // packages
	end     uint64     // length of the goal
	done    *catalog.Snapshot
	todo    map[uint64]catalog.Change // taken up and not dealt with, by their blocks
	leftOut int                       // dealt with, but not for good
	left    uint64                    // the first of them
	wrong   int
	missed  int // in a row
	state   string
	err     error
}

// A progress is what is told of a keeper.
type progress struct {
	state                string
	known, done, bytes   uint64
	late, wrong, leftOut int
	err                  string
}

func (k *keeper) progress() progress {
	k.mu.Lock()
	defer k.mu.Unlock()
	// Each package has at least one change of its own.
	left := k.end - min(k.at.seq, k.end) + uint64(len(k.todo))
	p := progress{state: k.state, known: k.known, done: k.known - min(left, k.known), bytes: k.at.bytes,
		late: len(k.todo), wrong: k.wrong, leftOut: k.leftOut}
	if p.state == "" {
		p.state = "waiting for the catalog"
	}
	if k.err != nil {
		p.err = k.err.Error()
	}
	return p
}

// reached returns the head up to which everything was dealt with, as far as it could.
func (k *keeper) reached() *catalog.Snapshot {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.done
}

// wake has the keeper look for a new goal.
func (k *keeper) wake() {
	select {
	case k.news <- struct{}{}:
	default:
	}
}

// run goes wherever the goal is until ctx ends.
func (k *keeper) run(ctx context.Context) {
	for ctx.Err() == nil {
		wait := time.Minute
		if s, due := k.next(); due {
			err := k.pass(ctx, s)
			if wait = k.ended(ctx, s, err); wait == 0 {
				continue
			}
		}
		t := time.NewTimer(wait)
		select {
		case <-k.news:
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
	}
	k.save()
}

// next returns the goal, and whether there is anything to do until it is reached.
func (k *keeper) next() (s *catalog.Snapshot, due bool) {
	s = k.goal()
	if err := k.unusable(s); s == nil || err != nil {
		k.stop(err)
		return nil, false
	}
	if s.Key != k.key {
		p, err := k.loadPlace(s)
		if err != nil {
			k.stop(err)
			return nil, false
		}
		k.enter(s, p)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.end, k.known = s.Length, s.Head.Cargo+s.Head.Go
	return s, k.at.seq < k.end || len(k.todo) > 0 || k.done == nil
}

// enter begins with the catalog of s at p.
func (k *keeper) enter(s *catalog.Snapshot, p place) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.key, k.saved = s.Key, p
	k.at, k.done = p, nil
	k.todo = map[uint64]catalog.Change{}
	k.leftOut, k.wrong, k.missed = 0, 0, 0
}

// unusable returns why nothing more is taken from the catalog of s: peers may go on
// with what is here.
func (k *keeper) unusable(s *catalog.Snapshot) error {
	now := k.f.current()
	switch {
	case now == nil && s != nil, now == nil && k.key != (core.Key{}):
		return errForked
	case now != nil && now.Stale(time.Now()):
		return errStale
	}
	return nil
}

// stop says that nothing is done, because of err if there is one.
func (k *keeper) stop(err error) {
	k.mu.Lock()
	changed := err != nil && (k.err == nil || k.err.Error() != err.Error())
	k.err = err
	if err != nil {
		k.state = "stopped"
	}
	k.mu.Unlock()
	if changed && k.r.c.Mirror.Logs {
		k.r.c.Logger.Warn("mirror has stopped", "core", k.key.Short(), "err", err)
	}
}

// ended takes note of how a pass has ended, and returns how long to wait for the next.
func (k *keeper) ended(ctx context.Context, s *catalog.Snapshot, err error) time.Duration {
	k.save()
	if ctx.Err() != nil {
		return time.Minute
	}
	k.mu.Lock()
	late := len(k.todo)
	k.err = err
	switch {
	case errors.Is(err, errForked), errors.Is(err, errStale):
		k.mu.Unlock()
		k.stop(err)
		return 0 // next tells what to wait for
	case err == nil && late == 0:
		k.state, k.done, k.retry = "up to date", s, 0
	case err == nil:
		k.state, k.done = "waiting for peers", s
	default:
		k.state = "waiting"
	}
	k.mu.Unlock()
	if k.then != nil {
		k.then.wake()
	}
	k.say(true)
	if err == nil && late == 0 {
		return time.Minute
	}
	if err != nil && k.r.c.Mirror.Logs {
		k.r.c.Logger.Warn("mirror has to wait", "core", k.key.Short(), "err", err)
	}
	k.retry = min(max(2*k.retry, retryMin), retryMax)
	return k.retry
}

// pass deals with what could not be dealt with before and all changes up to s. A nil
// error means that all were taken up.
func (k *keeper) pass(ctx context.Context, s *catalog.Snapshot) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	k.mu.Lock()
	k.state, k.missed, k.err = "copying", 0, nil
	again := slices.SortedFunc(maps.Values(k.todo), func(a, b catalog.Change) int { return int(a.Seq) - int(b.Seq) })
	from := k.at.seq
	k.mu.Unlock()
	k.said, k.saidDone = time.Now(), k.progress().done

	changes := make(chan catalog.Change)
	var wg sync.WaitGroup
	for range k.workers {
		wg.Go(func() {
			for c := range changes {
				if err := k.deal(ctx, s, c); err != nil {
					cancel(err)
				}
			}
		})
	}
	err := k.list(ctx, s, again, from, changes)
	close(changes)
	wg.Wait()
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// list hands out changes: those of again, and then all of s from the block from on.
func (k *keeper) list(ctx context.Context, s *catalog.Snapshot, again []catalog.Change, from uint64, to chan<- catalog.Change) error {
	give := func(c catalog.Change) error {
		select {
		case to <- c:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		k.say(false)
		if time.Since(k.savedAt) >= saveEvery {
			k.save()
		}
		return k.unusable(s)
	}
	for _, c := range again {
		if err := give(c); err != nil {
			return err
		}
	}
	for c, err := range s.Changes(ctx, from) {
		if err != nil {
			return err
		}
		k.mu.Lock()
		k.todo[c.Seq] = c
		k.at.seq = c.Seq + 1
		full := len(k.todo) > maxLate
		k.mu.Unlock()
		if full {
			return errNobody
		}
		if err := give(c); err != nil {
			return err
		}
	}
	k.mu.Lock()
	k.at.seq = max(k.at.seq, s.Length)
	k.mu.Unlock()
	return nil
}

// deal does what is to be done for one change. An error ends the pass.
func (k *keeper) deal(ctx context.Context, s *catalog.Snapshot, c catalog.Change) error {
	if ctx.Err() != nil {
		return nil // another one has ended it
	}
	h, _ := catalog.ParsePackageKey(c.Key)
	if k.r.c.Mirror.Skip != nil && k.r.c.Mirror.Skip(h) {
		k.dealt(c, 0, nil)
		return nil
	}
	// A later change of the same package is in the list as well.
	if now, err := s.Entry(ctx, h); err == nil && !now.Same(c.Entry) {
		k.dealt(c, 0, nil)
		return nil
	}
	n, err := k.try(ctx, h, c.Entry)
	switch {
	case err == nil || errors.Is(err, ErrLeftOut):
		k.dealt(c, n, err)
		return nil
	case errors.Is(err, ErrOperator):
		k.r.c.Logger.Warn("log is not as its operator signed it", "package", h.Name(), "err", err)
		k.dealt(c, 0, err)
		return nil
	case ctx.Err() != nil:
		return nil
	case errors.Is(err, core.ErrNoSpace), errors.Is(err, ErrFull):
		return err
	}
	k.r.c.Logger.Debug("not mirrored", "package", h.Name(), "err", err)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.missed++; k.missed >= maxMissed {
		return errors.Join(errNobody, err)
	}
	return nil
}

// try does the work for one package. A panic is contained: what is worked on is what
// others have written. REL-16
func (k *keeper) try(ctx context.Context, h pkglog.Header, e catalog.Entry) (n uint64, err error) {
	defer func() {
		if p := recover(); p != nil {
			k.r.c.Logger.Error("panic while mirroring", "package", h.Name(), "panic", p, "stack", string(debug.Stack()))
			err = ErrOperator
		}
	}()
	return k.work(ctx, h, e)
}

// dealt notes that c is dealt with; err is nil, or why that is not for good.
func (k *keeper) dealt(c catalog.Change, bytes uint64, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.todo, c.Seq)
	k.at.bytes += bytes
	k.missed = 0
	switch {
	case errors.Is(err, ErrLeftOut):
		if k.leftOut++; k.leftOut == 1 || c.Seq < k.left {
			k.left = c.Seq
		}
	case err != nil:
		k.wrong++
	}
}

// save keeps the place before which everything is dealt with for good.
func (k *keeper) save() {
	k.mu.Lock()
	p := k.at
	for seq := range k.todo {
		p.seq = min(p.seq, seq)
	}
	if k.leftOut > 0 {
		p.seq = min(p.seq, k.left)
	}
	k.mu.Unlock()
	k.savedAt = time.Now()
	if p == k.saved || k.key == (core.Key{}) {
		return
	}
	if err := k.savePlace(p); err != nil {
		k.r.c.Logger.Debug("place of the mirror not kept", "err", err)
		return
	}
	k.saved = p
}
