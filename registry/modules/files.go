package modules

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/mod/module"

	"github.com/pkgswarm/pkgswarm/registry/sumdb"
	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

// file returns the file called name below a module's path from memory, disk or
// upstream. want describes it where it is not in memory.
func (m *Modules) file(ctx context.Context, path, name string, want func() *wanted) (*File, error) {
	r, err := m.route(path)
	if err != nil {
		return nil, err
	}
	key := r.prefix + path + "/" + name
	if f, ok := m.memory.get(key); ok && f.proven && f.fresh(m.conf.TTL, time.Now()) {
		return f, nil
	}
	w := want()
	w.path, w.name = path, name
	if onlyHeld(ctx) {
		f, err := m.held(ctx, key, w)
		if err != nil {
			return nil, ErrNotHeld
		}
		return f, nil
	}
	return shared(ctx, m, key, func(ctx context.Context) (*File, error) { return m.renew(ctx, key, r, w) })
}

// shared calls f once for all who ask for key at the same time. f goes on when
// they leave, for up to workLimit.
func shared[T any](ctx context.Context, m *Modules, key string, f func(context.Context) (T, error)) (T, error) {
	var zero T
	ch := m.flights.DoChan(key, func() (v any, err error) {
		defer func() {
			if p := recover(); p != nil { // REL-16: singleflight would end the process
				m.log.Error("panic while getting a module file", "panic", p, "stack", string(debug.Stack()))
				err = errors.New("internal error")
			}
		}()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), workLimit)
		defer cancel()
		return f(ctx)
	})
	patience := time.NewTimer(m.conf.Patience)
	defer patience.Stop()
	select {
	case res := <-ch:
		if res.Err != nil {
			return zero, res.Err
		}
		return res.Val.(T), nil
	case <-patience.C:
		return zero, fmt.Errorf("%w: no answer for %v", upstream.ErrUnreachable, m.conf.Patience)
	case <-ctx.Done():
		return zero, ctx.Err()
	}
}

// held returns the file that is on disk or in memory, fresh or not, if it is proven
// or needs no proof.
func (m *Modules) held(ctx context.Context, key string, w *wanted) (*File, error) {
	f, ok := m.memory.get(key)
	if !ok {
		var err error
		if f, err = m.heldFile(key, w); err != nil {
			return nil, err
		}
	}
	if err := m.proveFile(ctx, w, f); err != nil {
		return nil, err
	}
	if !ok {
		m.memory.put(key, f)
	}
	return f, nil
}

// proveFile proves f, which is not shared yet, unless it has been.
func (m *Modules) proveFile(ctx context.Context, w *wanted, f *File) error {
	if f.proven {
		return nil
	}
	if w.h1 == nil {
		f.proven = true
		return nil
	}
	h1, err := w.h1(ctx)
	if err == nil {
		err = w.prove(f.Body, h1)
	}
	if err != nil {
		return err
	}
	f.proven = true
	return nil
}

// heldFile returns the file that is on disk, unproven.
func (m *Modules) heldFile(key string, w *wanted) (*File, error) {
	b, err := m.conf.Cache.Get(key)
	if err != nil {
		return nil, err
	}
	f, err := decodeFile(b, w.forever)
	if err != nil {
		return nil, err
	}
	return f, w.check(f.Body)
}

// renew returns the file from disk if it is fresh, else from an upstream, else from
// disk all the same.
func (m *Modules) renew(ctx context.Context, key string, r route, w *wanted) (*File, error) {
	old, heldErr := m.held(ctx, key, w)
	if heldErr == nil && old.fresh(m.conf.TTL, time.Now()) {
		return old, nil
	}
	signed := m.signed(ctx, r, w)
	if signed != nil && !signed.Stale && m.proveFile(ctx, w, signed) == nil {
		m.memory.put(key, signed)
		return signed, nil
	}
	f, err := m.ask(ctx, r, w, old)
	switch {
	case err != nil && signed != nil && signed.Stale && errors.Is(err, upstream.ErrUnreachable):
		return signed, nil
	case err == nil:
		m.memory.put(key, f)
		m.keep(key, f)
		m.keepResolved(r, w, f)
		return f, nil
	case errors.Is(err, upstream.ErrNotFound):
		m.memory.remove(key)
		m.conf.Cache.Remove(key)
		return nil, err
	case old != nil && (errors.Is(err, upstream.ErrUnreachable) || errors.Is(err, upstream.ErrBadAnswer)):
		stale := *old
		stale.Stale = true
		return &stale, nil
	case errors.Is(heldErr, ErrUnproven), errors.Is(heldErr, sumdb.ErrMismatch):
		m.conf.Cache.Remove(key)
	case errors.Is(err, upstream.ErrUnreachable):
		if f, err := m.heldFile(key+resolved, w); err == nil {
			f.Permanent, f.Stale = false, true
			return f, nil
		}
	}
	return nil, err
}

func (m *Modules) keep(key string, f *File) {
	if err := m.conf.Cache.Put(key, f.encode()); err != nil {
		m.log.Warn("module file not kept", "err", err)
	}
}

// resolved marks the key of an .info that a branch or @latest was answered with.
// The version's own .info may differ from it in unimportant members; without an
// upstream it does instead, as it does in go's own cache.
const resolved = " resolved"

// keepResolved keeps the answer to a query under the version that it names.
func (m *Modules) keepResolved(r route, w *wanted, f *File) {
	if w.forever || w.kind.Name != upstream.ModuleInfo.Name {
		return
	}
	var info struct{ Version string }
	if json.Unmarshal(f.Body, &info) != nil {
		return // cannot be: w.check has accepted it
	}
	if esc, err := module.EscapeVersion(info.Version); err == nil {
		m.keep(r.prefix+w.path+"/@v/"+esc+".info"+resolved, f)
	}
}

// literal escapes what would not be read literally in a URL: of a query such as the
// name of a branch, an upstream is to see no more than that name (SEC-40).
var literal = strings.NewReplacer("%", "%25", "#", "%23", "?", "%3F")

// ask gets the file from the upstream, and proves it. old is a copy that may
// still be right, or nil.
func (m *Modules) ask(ctx context.Context, r route, w *wanted, old *File) (*File, error) {
	if r.from == nil {
		return nil, fmt.Errorf("%w: offline", upstream.ErrUnreachable)
	}
	esc, err := module.EscapePath(w.path)
	if err != nil {
		return nil, &upstream.Error{URL: w.path, Class: upstream.ErrNotFound, Err: err}
	}
	proof := w.startProof(ctx)
	var f *File
	err = r.list.Try(ctx, func(base string, hurry bool) error {
		req := upstream.Request{URL: base + "/" + esc + "/" + literal.Replace(w.name), Kind: kind(w.kind, hurry), Once: hurry}
		if old != nil {
			req.Validators = old.validators
		}
		a, err := r.from.Get(ctx, req)
		if err != nil {
			return err
		}
		f, err = w.accept(req.URL, a, old)
		return err
	})
	if err != nil {
		return nil, err
	}
	if w.h1 == nil {
		f.proven = true
		return f, nil
	}
	p := <-proof
	if p.err == nil {
		p.err = w.prove(f.Body, p.h1)
	}
	if p.err != nil {
		if !errors.Is(p.err, upstream.ErrUnreachable) {
			m.log.Error("module file refused", "module", w.path, "file", w.name, "err", p.err)
		}
		return nil, p.err
	}
	f.proven = true
	return f, nil
}

type proof struct {
	h1  string
	err error
}

// startProof looks w's hash up while w itself is on its way.
func (w *wanted) startProof(ctx context.Context) <-chan proof {
	found := make(chan proof, 1)
	if w.h1 != nil {
		go func() { // ends with the look-up, which has its own limit
			h1, err := w.h1(ctx)
			found <- proof{h1, err}
		}()
	}
	return found
}

// kind returns k with less patience if there is another proxy to ask.
func kind(k upstream.Kind, hurry bool) upstream.Kind {
	if hurry {
		k.FirstByte = impatience
	}
	return k
}
