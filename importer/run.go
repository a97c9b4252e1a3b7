package importer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"slices"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/sync/errgroup"

	"github.com/pkgswarm/pkgswarm/registry/catalog"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

// A run is one pass over a source.
type run struct {
	*Importer
	src    Source
	at     time.Time // recorded in all entries
	stamps *stamps
	sum    Summary

	pending   []pendingChange // of the catalog, in order
	unreached int             // packages in a row that could not be asked about
	leftOut   int64           // private packages; of list until that has ended
}

// A pendingChange waits for the next flush.
type pendingChange struct {
	change catalog.Change // Key is empty if only the stamp is new
	name   string
	stamp  Stamp
	gone   bool // the source does not list it
}

// A job is what was listed, on its way through the workers: packages whose stamp
// says that nothing changed, and then one to look at.
type job struct {
	unchanged int
	p         Package     // nil if there were unchanged ones only
	last      Stamp       // of p
	done      chan result // gets one result if there is p
}

type result struct {
	name     string
	change   catalog.Change // Key is empty if the catalog has it already
	stamp    Stamp
	events   int
	versions int
	files    int // fetched
	absent   int // files that a cache does not hold
	bytes    int64
	problems []Problem

	unreached error // the upstream could not be asked
	err       error // ends the run
}

func (im *Importer) begin(src Source) (*run, error) {
	at, err := im.beginRecord(src)
	if err != nil {
		return nil, err
	}
	st, err := openStamps(im.c.Dir, src, im.c.Catalog.Key(), im.c.Catalog.Length())
	if err != nil {
		return nil, err
	}
	return &run{Importer: im, src: src, at: at, stamps: st}, nil
}

// jobsAhead is how many jobs may wait to be collected: so many that workers do not
// stand still during a flush.
const jobsAhead = 4096

// run lists, works and collects. Jobs are collected in the order listed: the
// capacity of the queue bounds how far workers run ahead of the slowest.
func (r *run) run(ctx context.Context) error {
	g, work := errgroup.WithContext(ctx)
	todo := make(chan *job)
	queue := make(chan *job, jobsAhead)
	g.Go(func() error {
		defer close(queue)
		defer close(todo)
		return r.list(work, r.src.Packages(work), todo, queue)
	})
	for range r.c.Workers {
		g.Go(func() error {
			for j := range todo {
				j.done <- r.work(work, j)
			}
			return nil
		})
	}
	g.Go(func() error { return r.collect(work, queue) })
	err := g.Wait()
	r.sum.Private = r.leftOut
	if err != nil {
		return err
	}
	if err := r.removeUnlisted(ctx); err != nil {
		return err
	}
	return r.flush(ctx)
}

// end closes what the run used; done says that all of the source was signed.
func (r *run) end(done bool) error {
	defer r.stamps.close()
	if !done {
		return nil
	}
	if d, ok := r.src.(interface{ Done() error }); ok {
		if err := d.Done(); err != nil {
			return err
		}
	}
	if r.src.Complete() {
		n := r.c.Catalog.Length()
		r.stamps.setWhole(n)
		if err := r.stamps.save(n); err != nil {
			return err
		}
	}
	return r.endRecord(r.src)
}

func (r *run) list(ctx context.Context, packages iter.Seq2[Package, error], todo, queue chan<- *job) error {
	listed, unchanged := int64(0), 0
	for p, err := range packages {
		if err != nil {
			return fmt.Errorf("%w: %w", ErrSource, err)
		}
		if r.private(p.Name()) {
			r.leftOut++
			continue
		}
		listed++
		last, changed := r.changed(p)
		if !changed {
			if unchanged++; unchanged < maxUnchanged && listed%r.c.flushEvery != 0 {
				continue
			}
		}
		j := &job{unchanged: unchanged}
		unchanged = 0
		if changed {
			j.p, j.last, j.done = p, last, make(chan result, 1)
		}
		if err := r.send(ctx, j, todo, queue); err != nil {
			return err
		}
	}
	return r.send(ctx, &job{unchanged: unchanged}, todo, queue)
}

// private reports whether a name is to be left alone. SEC-60
func (r *run) private(name string) bool {
	return r.c.Private != "" && module.MatchPrefixPatterns(r.c.Private, name)
}

// maxUnchanged is how many unchanged packages pass without being counted, so
// that progress is seen.
const maxUnchanged = 1024

// changed reports whether a package has to be looked at, and its last stamp.
func (r *run) changed(p Package) (last Stamp, yes bool) {
	s := p.Stamp()
	last, same := r.stamps.list(p.Name(), s)
	return last, s == "" || !same || r.c.Artifacts != nil
}

func (r *run) send(ctx context.Context, j *job, todo, queue chan<- *job) error {
	select {
	case queue <- j:
	case <-ctx.Done():
		return ctx.Err()
	}
	if j.p == nil {
		return nil
	}
	select {
	case todo <- j:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

func (r *run) collect(ctx context.Context, queue <-chan *job) error {
	for j := range queue {
		r.sum.Packages += int64(j.unchanged)
		r.sum.Unchanged += int64(j.unchanged)
		if j.p != nil {
			var res result
			select {
			case res = <-j.done:
			case <-ctx.Done():
				return ctx.Err()
			}
			if res.err != nil {
				return fmt.Errorf("%s %s: %w", r.src.Ecosystem(), res.name, res.err)
			}
			if err := r.reached(&res); err != nil {
				return err
			}
			r.count(&res)
		}
		r.c.Status(Progress{r.sum.Packages, r.sum.Versions, r.sum.Bytes})
		if r.sum.Packages%r.c.flushEvery == 0 {
			if err := r.flush(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// maxUnreached is how many packages in a row cannot be asked about before the
// upstream is taken for down.
const maxUnreached = 50

// reached ends the run if the upstream is down: the same would be said of each
// package that is left.
func (r *run) reached(res *result) error {
	if res.unreached == nil {
		r.unreached = 0
		return nil
	}
	if r.unreached++; r.unreached < maxUnreached {
		return nil
	}
	return fmt.Errorf("%w: %d packages in a row: %w", ErrSource, r.unreached, res.unreached)
}

func (r *run) count(res *result) {
	r.sum.Packages++
	r.sum.Versions += int64(res.versions)
	r.sum.Bytes += res.bytes
	r.sum.Events += int64(res.events)
	r.sum.Problems += int64(len(res.problems))
	r.sum.Files += int64(res.files)
	r.sum.NotCached += int64(res.absent)
	if res.events > 0 {
		r.sum.Changed++
	} else if len(res.problems) == 0 {
		r.sum.Unchanged++
	}
	for _, p := range res.problems {
		r.c.Report(p)
	}
	r.pending = append(r.pending, pendingChange{change: res.change, name: res.name, stamp: res.stamp})
}

// work brings one package's log up to date.
func (r *run) work(ctx context.Context, j *job) result {
	res := result{name: j.p.Name()}
	h := pkglog.Header{Ecosystem: r.src.Ecosystem(), Package: res.name}
	res.err = r.update(ctx, h, &res, func(s *pkglog.State) (*Update, error) { return j.p.Update(ctx, s, j.last) })
	return res
}

// update folds the log of h, appends what more returns, and says in res what
// the catalog has to learn.
func (r *run) update(ctx context.Context, h pkglog.Header, res *result, more func(*pkglog.State) (*Update, error)) error {
	w, err := r.openLog(ctx, h)
	if err != nil {
		return err
	}
	defer w.close()
	up, err := more(w.state)
	defer up.release()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		up, err = gone(h, w.state), nil
	case err != nil && ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		res.problems = append(res.problems, Problem{Ecosystem: h.Ecosystem, Package: h.Package, Reason: err.Error()})
		if errors.Is(err, upstream.ErrUnreachable) {
			res.unreached = err
		}
		r.learn(w, res)
		return nil
	}
	res.versions, res.bytes, res.stamp = up.Versions, up.Bytes, up.Stamp
	res.problems = append(res.problems, up.Problems...)
	if err := w.append(up.Events, res); err != nil {
		return err
	}
	if r.c.Artifacts != nil {
		if err := r.artifacts(ctx, w, res); err != nil {
			return err
		}
	}
	if len(res.problems) > 0 {
		res.stamp = "" // look again next time
	}
	r.learn(w, res)
	return nil
}

// artifacts fetches and names the files of a package, and withdraws those of
// removed versions.
func (r *run) artifacts(ctx context.Context, w *logWriter, res *result) error {
	if err := r.c.Artifacts.Withdraw(w.state); err != nil {
		return err
	}
	if !w.state.Exists() {
		return nil
	}
	got, err := r.c.Artifacts.Fetch(ctx, w.state)
	if err != nil {
		return err
	}
	res.files, res.absent = got.Files, got.NotCached
	res.problems = append(res.problems, got.Problems...)
	return w.append(got.Events, res)
}

// gone is the update for a package that the source does not have.
func gone(h pkglog.Header, s *pkglog.State) *Update {
	if s.Exists() {
		return &Update{Events: []pkglog.Event{{Kind: pkglog.Removed, All: true}}}
	}
	if s.Length() > 1 {
		return &Update{} // was removed before
	}
	return &Update{Problems: []Problem{{Ecosystem: h.Ecosystem, Package: h.Package, Reason: "does not exist upstream"}}}
}

// learn puts the state of a log into res if the catalog does not have it.
func (r *run) learn(w *logWriter, res *result) {
	t := w.log.Tree()
	e := catalog.Entry{Log: w.log.Key(), Length: t.Length, TreeHash: t.Hash(), Time: r.at}
	if t.Length > 0 && !w.entry.Same(e) {
		res.change = catalog.Change{Key: w.key, Entry: e}
	}
}

// flush makes all pending changes durable, logs first.
func (r *run) flush(ctx context.Context) error {
	if len(r.pending) == 0 {
		return nil
	}
	var changes []catalog.Change
	for _, p := range r.pending {
		if p.change.Key != "" {
			changes = append(changes, p.change)
		}
	}
	if len(changes) > 0 {
		if err := r.c.Logs.Sync(); err != nil {
			return fmt.Errorf("sync logs: %w", err)
		}
		if err := r.c.Catalog.Flush(ctx, changes, r.at); err != nil {
			return fmt.Errorf("flush catalog: %w", err)
		}
	}
	for _, p := range r.pending {
		if p.gone {
			r.stamps.forget(p.name)
		} else {
			r.stamps.set(p.name, p.stamp)
		}
	}
	r.pending = r.pending[:0]
	return r.stamps.save(r.c.Catalog.Length())
}

// removeUnlisted removes the packages that a complete source does not list.
func (r *run) removeUnlisted(ctx context.Context) error {
	if !r.src.Complete() {
		return nil
	}
	gone, err := r.unlisted(ctx)
	if err != nil {
		return err
	}
	head := r.c.Catalog.Head()
	total := head.Packages(r.src.Ecosystem())
	if len(gone) > max(int(total)/10, 10) && !r.c.AllowRemoval {
		return fmt.Errorf("%w: %w: %d of %d packages", ErrSource, ErrTooManyGone, len(gone), total)
	}
	for _, name := range gone {
		res := result{name: name}
		h := pkglog.Header{Ecosystem: r.src.Ecosystem(), Package: name}
		err := r.update(ctx, h, &res, func(*pkglog.State) (*Update, error) { return nil, fs.ErrNotExist })
		if err != nil {
			return fmt.Errorf("%s %s: %w", h.Ecosystem, name, err)
		}
		r.sum.Events += int64(res.events)
		if res.change.Key != "" {
			r.sum.Changed++
		}
		r.pending = append(r.pending, pendingChange{change: res.change, name: name, gone: true})
	}
	return nil
}

// unlisted returns the packages of the catalog that this run has not listed,
// sorted, but for some that were removed before. Where a run has ended before,
// they are among those that it knew of and those that the catalog got since.
func (r *run) unlisted(ctx context.Context) ([]string, error) {
	if err := r.flush(ctx); err != nil { // stamps are all set then
		return nil, err
	}
	var names []string
	packages := r.c.Catalog.Packages(ctx, r.src.Ecosystem())
	if since := r.stamps.whole; since > 0 {
		names = r.stamps.unlisted()
		packages = r.c.Catalog.Changed(ctx, r.src.Ecosystem(), since)
	}
	for h, err := range packages {
		if err != nil {
			return nil, err
		}
		if !r.stamps.wasListed(h.Package) {
			names = append(names, h.Package)
		}
	}
	names = slices.DeleteFunc(names, r.private)
	slices.Sort(names)
	return slices.Compact(names), nil
}

// ErrSource means that a source could not be read to its end. What it listed
// before is signed, nothing is lost, and a later run may fare better.
var ErrSource = errors.New("source cannot be read")

// ErrTooManyGone means that a source lacks so many packages that it is more
// likely broken than right.
var ErrTooManyGone = errors.New("source lacks packages that it had before")
