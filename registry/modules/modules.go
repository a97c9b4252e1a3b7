package modules

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/dirhash"
	"golang.org/x/sync/singleflight"

	"github.com/pkgswarm/pkgswarm/internal/filecache"
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
	// logPatience is how long a catalog is waited for that the upstream can stand in
	// for.
	logPatience = 3 * time.Second
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

// A PrivateSource is where to ask for the modules of some patterns. Without any
// proxy to ask, "direct" answers that there is no such module here, so that go
// fetches it from version control itself.
type PrivateSource struct {
	Patterns string // comma-separated, like GOPRIVATE
	Proxies  List
	Upstream Upstream // asks these proxies and nobody else; nil: offline
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
	from    Upstream // nil: offline
	sums    bool     // the checksum database covers it
	private bool     // from a source of its own
	prefix  string   // of cache keys, so that sources never mix
}

// route decides about a module path, before anything else is done with it.
func (m *Modules) route(path string) (route, error) {
	for _, p := range m.conf.Private {
		if module.MatchPrefixPatterns(p.Patterns, path) {
			from := strings.Join(append(p.Proxies.Proxies(), ""), " ")
			return route{list: p.Proxies, from: p.Upstream, private: true, prefix: "private " + from}, nil
		}
	}
	if module.MatchPrefixPatterns(m.conf.NoProxy, path) {
		return route{}, fmt.Errorf("%w: %s matches a private pattern, and this node has no source for it: give it one with --go-private-upstream, or set GOPRIVATE where go runs to have it fetched without the node", ErrPrivate, path)
	}
	return route{list: m.conf.Proxies, from: m.conf.Upstream, sums: m.conf.Sums != nil && !module.MatchPrefixPatterns(m.conf.NoSums, path)}, nil
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
	f, err := m.file(ctx, path, "@v/list", func() *wanted {
		return &wanted{kind: upstream.ModuleList, check: checkList, signed: (*pkglog.State).List}
	})
	if err != nil {
		return nil, err
	}
	return m.allowedList(ctx, path, f), nil
}

// Latest returns the .info of a module's latest version, as the upstream sees it.
func (m *Modules) Latest(ctx context.Context, path string) (*File, error) {
	f, err := m.file(ctx, path, "@latest", func() *wanted {
		return &wanted{kind: upstream.ModuleInfo, check: checkInfo(""), signed: signedLatest}
	})
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
	return m.file(ctx, path, "@v/"+esc+".info", func() *wanted {
		if !Canonical(version) {
			return &wanted{kind: upstream.ModuleInfo, check: checkInfo("")}
		}
		return &wanted{kind: upstream.ModuleInfo, forever: true, check: checkInfo(version), signed: func(st *pkglog.State) []byte {
			if v := st.Module(version); v != nil {
				return v.Info
			}
			return nil
		}}
	})
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
	return m.file(ctx, path, "@v/"+esc+".mod", func() *wanted {
		w := &wanted{kind: upstream.ModuleFile, forever: true, check: checkMod, signed: func(st *pkglog.State) []byte {
			if v := st.Module(version); v != nil {
				return v.Mod
			}
			return nil
		}}
		if r.sums {
			w.h1 = func(ctx context.Context) (string, error) {
				rec, err := m.vouch(ctx, module.Version{Path: path, Version: version})
				return rec.Mod, err
			}
		}
		return w
	})
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
