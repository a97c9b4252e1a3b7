package modules

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"time"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"
	"golang.org/x/mod/sumdb/dirhash"
	"golang.org/x/sync/singleflight"

	"github.com/pkgswarm/pkgswarm/internal/filecache"
	"github.com/pkgswarm/pkgswarm/registry/artifact"
	"github.com/pkgswarm/pkgswarm/registry/fetch"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
	"github.com/pkgswarm/pkgswarm/registry/policy"
	"github.com/pkgswarm/pkgswarm/registry/sumdb"
	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

const (
	// DefaultTTL is how long lists and other changing answers are kept.
	DefaultTTL = time.Minute
	// DefaultPatience is how long a client waits for an upstream; the request goes
	// on without it for up to workLimit.
	DefaultPatience = 9 * time.Second
	workLimit       = 55 * time.Second
)

var (
	// ErrPrivate says that a module is private and has no source of its own here.
	ErrPrivate = errors.New("private module")
	// ErrNotHeld says that a module file is not at hand and was not to be fetched. It
	// matches [upstream.ErrNotFound].
	ErrNotHeld = fmt.Errorf("%w: not held here, and fetching was disabled", upstream.ErrNotFound)
	// ErrUnproven says that the checksum database does not vouch for a module that
	// the upstream has.
	ErrUnproven = errors.New("not vouched for by the checksum database")
)

// An Upstream asks proxies; an [upstream.Client] is one.
type Upstream interface {
	Get(ctx context.Context, r upstream.Request) (*upstream.Answer, error)
	Open(ctx context.Context, r upstream.Request) (*upstream.Stream, error)
}

// Sums proves module versions; a [sumdb.DB] does.
type Sums interface {
	Lookup(ctx context.Context, m module.Version) (sumdb.Record, error)
	Held(m module.Version) (sumdb.Record, bool)
}

// Zips gets artifacts; a [fetch.Fetcher] does.
type Zips interface {
	Fetch(ctx context.Context, a *fetch.Artifact) (*fetch.Body, error)
}

// A PrivateSource is where to ask for the modules of some patterns.
type PrivateSource struct {
	Patterns string // comma-separated, like GOPRIVATE
	Proxies  List
}

// A Config says where modules come from and where they are kept.
type Config struct {
	Proxies  List
	Upstream Upstream // nil: offline
	// Sums is the checksum database; nil: none, no module is shared with peers.
	Sums Sums
	// Catalog is asked before the upstream; nil: none.
	Catalog Catalog
	Zips    Zips
	Cache   *filecache.Cache

	// NoProxy are patterns of modules that are private (GOPRIVATE, GONOPROXY): only
	// a PrivateSource may have them.
	NoProxy string
	// NoSums are patterns of modules that the checksum database must not hear of
	// (GONOSUMDB).
	NoSums  string
	Private []PrivateSource // the first match counts

	// Rules say which versions are handed out; with DryRun what they would refuse is
	// logged only. A refusal is a [policy.Refusal].
	Rules  policy.Rules
	DryRun bool

	TTL      time.Duration // of changing answers; 0: DefaultTTL
	Patience time.Duration // 0: DefaultPatience
	TempDir  string        // for zips before they are known; empty: the system's
	Logger   *slog.Logger  // nil discards
}

// Modules has modules. It is safe for concurrent use.
type Modules struct {
	conf    Config
	log     *slog.Logger
	memory  *memory
	flights singleflight.Group
}

// New returns the modules that c describes.
func New(c Config) *Modules {
	if c.TTL == 0 {
		c.TTL = DefaultTTL
	}
	if c.Patience == 0 {
		c.Patience = DefaultPatience
	}
	m := &Modules{conf: c, log: c.Logger, memory: newMemory()}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	return m
}

// A route is where a module is asked for, and who may hear of it.
type route struct {
	list    List
	sums    bool   // the checksum database covers it
	private bool   // from a source of its own
	prefix  string // of cache keys, so that sources never mix
}

// route decides about a module path, before anything else is done with it.
func (m *Modules) route(path string) (route, error) {
	for i, p := range m.conf.Private {
		if module.MatchPrefixPatterns(p.Patterns, path) {
			return route{list: p.Proxies, private: true, prefix: fmt.Sprintf("private %d ", i)}, nil
		}
	}
	if module.MatchPrefixPatterns(m.conf.NoProxy, path) {
		return route{}, fmt.Errorf("%w: %s matches a private pattern, and no private source is configured for it", ErrPrivate, path)
	}
	return route{list: m.conf.Proxies, sums: m.conf.Sums != nil && !module.MatchPrefixPatterns(m.conf.NoSums, path)}, nil
}

// Secret reports whether the checksum database must not hear of a module.
func (m *Modules) Secret(path string) bool {
	r, err := m.route(path)
	return err != nil || r.private || module.MatchPrefixPatterns(m.conf.NoSums, path)
}

type heldOnly struct{}

// HeldOnly returns a context whose requests are answered from what is held here,
// without asking anybody.
func HeldOnly(ctx context.Context) context.Context { return context.WithValue(ctx, heldOnly{}, true) }

func onlyHeld(ctx context.Context) bool { return ctx.Value(heldOnly{}) != nil }

// A wanted is a small file as it is asked for.
type wanted struct {
	path    string // of the module
	name    string // of the file, below the escaped module path: "@v/list"
	kind    upstream.Kind
	forever bool
	check   func(body []byte) error                   // an error makes it a bad answer
	h1      func(ctx context.Context) (string, error) // of the right go.mod; nil: nothing proves it
	signed  func(st *pkglog.State) []byte             // the file in a package log; nil where it is not
}

// List returns the version list of a module.
func (m *Modules) List(ctx context.Context, path string) (*File, error) {
	f, err := m.file(ctx, &wanted{path: path, name: "@v/list", kind: upstream.ModuleList, check: checkList, signed: (*pkglog.State).List})
	if err != nil {
		return nil, err
	}
	return m.allowedList(ctx, path, f), nil
}

// Latest returns the .info of a module's latest version, as the upstream sees it.
func (m *Modules) Latest(ctx context.Context, path string) (*File, error) {
	f, err := m.file(ctx, &wanted{path: path, name: "@latest", kind: upstream.ModuleInfo, check: checkInfo(""), signed: signedLatest})
	if err != nil {
		return nil, err
	}
	return f, m.refuseResolved(path, f)
}

// Info returns the .info of a version or, if version is not canonical, of what it
// names: a branch, tag or commit.
func (m *Modules) Info(ctx context.Context, path, version string) (*File, error) {
	if err := m.withdrawn(ctx, path, version); err != nil {
		return nil, err
	}
	f, err := m.info(ctx, path, version)
	if err != nil {
		return nil, err
	}
	return f, m.refuseResolved(path, f)
}

func (m *Modules) info(ctx context.Context, path, version string) (*File, error) {
	esc, err := module.EscapeVersion(version)
	if err != nil {
		return nil, &upstream.Error{URL: path, Class: upstream.ErrNotFound, Err: err}
	}
	w := &wanted{path: path, name: "@v/" + esc + ".info", kind: upstream.ModuleInfo, check: checkInfo("")}
	if Canonical(version) {
		w.forever, w.check = true, checkInfo(version)
		w.signed = func(st *pkglog.State) []byte {
			if v := st.Module(version); v != nil {
				return v.Info
			}
			return nil
		}
	}
	return m.file(ctx, w)
}

func signedLatest(st *pkglog.State) []byte {
	if v := st.Latest(); v != nil {
		return v.Info
	}
	return nil
}

// Canonical reports whether version names one version for ever, and no branch.
func Canonical(version string) bool {
	return module.CanonicalVersion(version) == version && version != ""
}

// Mod returns the go.mod file of a canonical version, proven where the checksum
// database covers the module. An error matches [ErrUnproven] where it does not
// vouch for it.
func (m *Modules) Mod(ctx context.Context, path, version string) (*File, error) {
	r, err := m.route(path)
	if err != nil {
		return nil, err
	}
	if err := m.refuse(ctx, path, version); err != nil {
		return nil, err
	}
	esc, err := module.EscapeVersion(version)
	if err != nil {
		return nil, &upstream.Error{URL: path, Class: upstream.ErrNotFound, Err: err}
	}
	w := &wanted{path: path, name: "@v/" + esc + ".mod", kind: upstream.ModuleFile, forever: true, check: checkMod}
	w.signed = func(st *pkglog.State) []byte {
		if v := st.Module(version); v != nil {
			return v.Mod
		}
		return nil
	}
	if r.sums {
		w.h1 = func(ctx context.Context) (string, error) {
			rec, err := m.vouch(ctx, module.Version{Path: path, Version: version})
			return rec.Mod, err
		}
	}
	return m.file(ctx, w)
}

// prove checks the go.mod file body against its proven hash.
func (w *wanted) prove(body []byte, h1 string) error {
	h, err := dirhash.Hash1([]string{"go.mod"}, func(string) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(body)), nil
	})
	if err != nil {
		return err
	}
	if h != h1 {
		return fmt.Errorf("%w: %s/%s: this file is %s, the checksum database has %s", sumdb.ErrMismatch, w.path, w.name, h, h1)
	}
	return nil
}

// lookup returns the checksum database's record of v. Its not knowing v is no
// absence: the caller knows that the upstream has it, or finds out.
func (m *Modules) lookup(ctx context.Context, v module.Version) (sumdb.Record, error) {
	rec, err := m.conf.Sums.Lookup(ctx, v)
	if errors.Is(err, upstream.ErrNotFound) || errors.Is(err, upstream.ErrRefused) {
		return rec, &unproven{err}
	}
	return rec, err
}

// An unproven is an [ErrUnproven]. It does not match the class of its cause.
type unproven struct{ cause error }

func (e *unproven) Error() string        { return fmt.Sprintf("%v: %v", ErrUnproven, e.cause) }
func (e *unproven) Is(target error) bool { return target == ErrUnproven }

// file returns a file from memory, disk or upstream.
func (m *Modules) file(ctx context.Context, w *wanted) (*File, error) {
	r, err := m.route(w.path)
	if err != nil {
		return nil, err
	}
	key := r.prefix + w.path + "/" + w.name
	if f, ok := m.memory.get(key); ok && (f.proven || w.h1 == nil) && f.fresh(m.conf.TTL, time.Now()) {
		return f, nil
	}
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

// proveFile proves f, which is not shared yet, unless it needs none or has been.
func (m *Modules) proveFile(ctx context.Context, w *wanted, f *File) error {
	if w.h1 == nil || f.proven {
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

// ask gets the file from the upstream, and proves it. old is a copy that may
// still be right, or nil.
func (m *Modules) ask(ctx context.Context, r route, w *wanted, old *File) (*File, error) {
	if m.conf.Upstream == nil {
		return nil, fmt.Errorf("%w: offline", upstream.ErrUnreachable)
	}
	esc, err := module.EscapePath(w.path)
	if err != nil {
		return nil, &upstream.Error{URL: w.path, Class: upstream.ErrNotFound, Err: err}
	}
	proof := w.startProof(ctx)
	var f *File
	err = r.list.try(ctx, func(base string, hurry bool) error {
		req := upstream.Request{URL: base + "/" + esc + "/" + w.name, Kind: kind(w.kind, hurry), Once: hurry}
		if old != nil {
			req.Validators = old.validators
		}
		a, err := m.conf.Upstream.Get(ctx, req)
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

// accept returns the file of an answer.
func (w *wanted) accept(url string, a *upstream.Answer, old *File) (*File, error) {
	if a.NotModified && old != nil {
		f := *old
		f.Asked, f.Stale = time.Now(), false
		return &f, nil
	}
	if err := w.check(a.Body); err != nil {
		return nil, &upstream.Error{URL: url, Class: upstream.ErrBadAnswer, Err: err}
	}
	return newFile(a.Body, a.Validators, time.Now(), w.forever), nil
}

// checkList accepts a list that is empty or names a version.
func checkList(body []byte) error {
	blank := true
	for line := range bytes.Lines(body) {
		f := bytes.Fields(line)
		if len(f) == 0 {
			continue
		}
		if semver.IsValid(string(f[0])) {
			return nil
		}
		blank = false
	}
	if !blank {
		return errors.New("not a list of versions")
	}
	return nil
}

// checkInfo returns a check for an .info of a version, or of any if it is empty.
func checkInfo(version string) func([]byte) error {
	return func(body []byte) error {
		var info struct{ Version string }
		if err := json.Unmarshal(body, &info); err != nil {
			return fmt.Errorf("not an .info file: %w", err)
		}
		if version == "" && !Canonical(info.Version) || version != "" && info.Version != version {
			return fmt.Errorf("info of version %.80q", info.Version)
		}
		return nil
	}
}

func checkMod(body []byte) error {
	if modfile.ModulePath(body) == "" {
		return errors.New("go.mod without a module line")
	}
	return nil
}

// Zip returns the zip of a canonical version. The caller closes it. Errors are
// those of Mod and of [fetch.Fetcher].
func (m *Modules) Zip(ctx context.Context, path, version string) (*fetch.Body, error) {
	r, err := m.route(path)
	if err != nil {
		return nil, err
	}
	if err := m.refuse(ctx, path, version); err != nil {
		return nil, err
	}
	esc, err := module.EscapePath(path)
	if err != nil {
		return nil, &upstream.Error{URL: path, Class: upstream.ErrNotFound, Err: err}
	}
	escVersion, err := module.EscapeVersion(version)
	if err != nil {
		return nil, &upstream.Error{URL: path, Class: upstream.ErrNotFound, Err: err}
	}
	a := &fetch.Artifact{
		Name:     r.prefix + esc + "@" + escVersion + ".zip",
		Private:  !r.sums,
		MaxBytes: artifact.MaxZip,
	}
	if m.conf.Upstream != nil && !onlyHeld(ctx) {
		a.Upstream = func(ctx context.Context) (*fetch.Download, error) {
			return m.openZip(ctx, r, esc+"/@v/"+escVersion+".zip")
		}
	}
	v := module.Version{Path: path, Version: version}
	if !r.sums {
		return m.unlistedZip(ctx, a)
	}
	if rec, ok := m.conf.Sums.Held(v); ok {
		if d, err := artifact.ParseH1(rec.Zip); err == nil {
			a.Known = []artifact.Digest{d}
		}
	}
	a.Digests = func(ctx context.Context) ([]artifact.Digest, error) {
		rec, err := m.vouch(ctx, v)
		if err != nil {
			return nil, err
		}
		d, err := artifact.ParseH1(rec.Zip)
		return []artifact.Digest{d}, err
	}
	b, err := m.conf.Zips.Fetch(ctx, a)
	if errors.Is(err, ErrUnproven) {
		// Neither vouched for nor, perhaps, existing.
		if _, modErr := m.Mod(ctx, path, version); errors.Is(modErr, upstream.ErrNotFound) {
			return nil, modErr
		}
	}
	return b, m.zipError(ctx, v, err)
}

// zipError logs what is wrong with a zip, and translates what only fetch knows.
func (m *Modules) zipError(ctx context.Context, v module.Version, err error) error {
	var bad *fetch.BadBytesError
	switch {
	case errors.As(err, &bad), errors.Is(err, ErrUnproven), errors.Is(err, sumdb.ErrMismatch), errors.Is(err, sumdb.ErrFork):
		m.log.Error("module zip refused", "module", v.Path, "version", v.Version, "err", err)
	case errors.Is(err, fetch.ErrUnavailable) && onlyHeld(ctx):
		return ErrNotHeld
	}
	return err
}

func (m *Modules) openZip(ctx context.Context, r route, name string) (*fetch.Download, error) {
	var d *fetch.Download
	err := r.list.try(ctx, func(base string, hurry bool) error {
		s, err := m.conf.Upstream.Open(ctx, upstream.Request{URL: base + "/" + name, Kind: kind(upstream.ModuleZip, hurry), Once: hurry})
		if err != nil {
			return err
		}
		d = &fetch.Download{ReadCloser: s, Size: s.Size}
		return nil
	})
	return d, err
}
