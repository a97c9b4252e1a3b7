// Package crates has what a mirror of a cargo registry serves: index files and
// .crate files, from memory, disk, peers or the upstream.
//
// # Index files
//
// An index file is kept exactly as the upstream gave it, once it has been found
// well-formed. It is fresh for [Config.TTL]; after that the upstream is asked
// whether it has changed. When the upstream fails, the old copy is served and
// marked stale. Requests for one file share one question to the upstream.
//
// cargo over plain HTTP asks for nearly one index file at a time. So a request
// for one makes those of its dependencies be fetched ahead, and theirs, within
// the limits below: the client's next request finds its answer in memory. The
// lines tell which optional dependencies the features in use turn on.
//
// # Crates
//
// A .crate is identified by the cksum of its index line. Some old crates have
// several lines of one version with different checksums: a file that matches any
// of them is right.
//
// # Private names and registries
//
// Crates of a registry that is [Config.Unshared] are neither asked of peers nor
// given to them. In a public registry a name that matches [Config.Private] is
// asked of nobody: it belongs to another registry, and whoever publishes it in
// this one is not meant (SEC-60, SEC-62).
//
// # On disk
//
// The cache holds an entry "index <name> of <index URL>" for each file: version 1
// (byte), when it was last known to be current (uint, Unix seconds), the upstream's
// ETag and Last-Modified (strings), and the file. Version 2 has before the time what
// brought the file in place of the upstream (string). "config of <index URL>" is the
// upstream's config.json in the same form. What one upstream has said is never taken
// for the word of another.
package crates

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/pkgswarm/pkgswarm/internal/compact"
	"github.com/pkgswarm/pkgswarm/internal/filecache"
	"github.com/pkgswarm/pkgswarm/registry"
	"github.com/pkgswarm/pkgswarm/registry/artifact"
	"github.com/pkgswarm/pkgswarm/registry/fetch"
	"github.com/pkgswarm/pkgswarm/registry/policy"
	"github.com/pkgswarm/pkgswarm/registry/upstream"
	"golang.org/x/mod/module"
	"golang.org/x/sync/singleflight"
)

const (
	// DefaultTTL is how long an index file is fresh: what crates.io allows.
	DefaultTTL = 10 * time.Minute

	patience     = 9 * time.Second // until a client is told that nobody answers
	logPatience  = 3 * time.Second // for a catalog, while the upstream can be asked instead
	workLimit    = 25 * time.Second
	configTTL    = 24 * time.Hour
	aheadWorkers = 24   // files fetched ahead at once
	aheadQueue   = 1024 // names waiting to be fetched ahead; more are left out
	aheadDepth   = 8    // steps from what a client asked for
	aheadRecent  = time.Minute
	tellEvery    = 5 * time.Minute // how often the log says that the upstream fails
	maxHidden    = 4096            // versions hidden by the policy that the log is remembered to have told
)

// indexKey begins the keys of index files, in the cache and among flights.
const indexKey = "index "

// ErrNoVersion says that a crate exists and has no such version. It matches
// [upstream.ErrNotFound].
var ErrNoVersion = fmt.Errorf("%w: no such version", upstream.ErrNotFound)

// ErrPrivate says that a name is not to be asked of this registry.
var ErrPrivate = errors.New("private name")

// ErrDisputed says that operators of whom several must agree do not: nothing else is
// asked to settle it. SEC-18
var ErrDisputed = errors.New("refused")

// An Upstream asks the upstream registry; an [upstream.Client] is one.
type Upstream interface {
	Get(ctx context.Context, r upstream.Request) (*upstream.Answer, error)
	Open(ctx context.Context, r upstream.Request) (*upstream.Stream, error)
	AddNamed(rawURL, by string) error
	AddScope(s upstream.Scope) error
}

// Signed has what operators have signed; a the catalogs' registry does.
type Signed interface {
	// CrateIndex returns the index file of a crate, whose name is in lower case, and
	// whether it may be out of date. An error says nothing about the crate but where
	// it matches ErrDisputed.
	CrateIndex(ctx context.Context, name string) (body []byte, stale bool, err error)
}

// A Fetcher gets artifacts; a [fetch.Fetcher] is one.
type Fetcher interface {
	Fetch(ctx context.Context, a *fetch.Artifact) (*fetch.Body, error)
	Stored(ds []artifact.Digest) (*fetch.Body, error)
}

// Config configures Crates.
type Config struct {
	// Index is the URL of the upstream's sparse index.
	Index string
	// For is the index that the files are of, where Index stands in for it; empty: Index.
	For string
	// Token is sent to where config.json says crates are, if that wants it and is
	// at the index's own host. A [upstream.Scope] has it for the index.
	Token string
	// Name tells the artifacts of this registry from those of others; empty for one.
	Name string
	// Unshared keeps peers out of it.
	Unshared bool
	// Private are patterns of names that are not asked for, as in GOPRIVATE.
	Private string

	Upstream Upstream // nil: offline
	// DL is where the .crate files are; empty: where the upstream's config.json says.
	DL      string
	Signed  Signed // asked before the upstream; nil: nobody
	Fetcher Fetcher
	Cache   *filecache.Cache
	TTL     time.Duration // 0: DefaultTTL
	NoAhead bool          // do not fetch ahead
	// Rules say which versions are handed out; with DryRun what they would refuse is
	// logged only. A refusal is a [policy.Refusal].
	Rules  policy.Rules
	DryRun bool
	Logger *slog.Logger // nil discards
}

// Crates has the crates of one registry. Its methods may be called concurrently.
type Crates struct {
	c       Config
	index   string // ends in a slash
	of      string // the same of Config.For
	log     *slog.Logger
	memory  *memory
	known   nameList
	flights singleflight.Group
	ahead   ahead
	hidden  *lru.Cache[string, struct{}] // what tellHidden has told
	stale   atomic.Int64                 // when tellStale last did, Unix nanoseconds
}

// New returns the crates that c describes.
func New(c Config) *Crates {
	if c.TTL == 0 {
		c.TTL = DefaultTTL
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Crates{c: c, index: strings.TrimSuffix(c.Index, "/") + "/", log: c.Logger, memory: newMemory()}
	s.hidden, _ = lru.New[string, struct{}](maxHidden) // fails for sizes below 1 only
	s.of = s.index
	if c.For != "" {
		s.of = strings.TrimSuffix(c.For, "/") + "/"
	}
	s.ahead.queue = make(chan job, aheadQueue)
	s.ahead.recent = make(map[string]time.Time)
	return s
}

// key returns what an entry is called in the cache.
func (s *Crates) key(what string) string { return what + " of " + s.of }

// A File is an index file. It is not changed once it is handed out.
type File struct {
	Body  []byte
	ETag  string // of Body, quoted; the same on every node
	Stale bool   // the upstream could not be asked whether it is current
	Lines []registry.CargoLine

	signed     bool   // by an operator, not had from the upstream
	via        string // what brought it in place of the upstream; see [upstream.Via]
	validators upstream.Validators
	checked    time.Time
	cost       int // bytes in memory: see memoryCost

	gzipOnce sync.Once
	gzipped  []byte
}

func newFile(name registry.CrateName, body []byte) (*File, error) {
	lines, err := registry.ParseCargoIndex(name, body)
	if err != nil {
		return nil, err
	}
	if len(lines) == 0 && len(body) > 0 {
		return nil, fmt.Errorf("index file of %s: %d bytes without a line", name, len(body))
	}
	sum := sha256.Sum256(body)
	return &File{Body: body, Lines: lines, ETag: `"` + hex.EncodeToString(sum[:16]) + `"`, cost: memoryCost(body, len(lines))}, nil
}

// renewed returns f as of now.
func (f *File) renewed(v upstream.Validators) *File {
	if v == (upstream.Validators{}) {
		v = f.validators
	}
	return &File{Body: f.Body, ETag: f.ETag, Lines: f.Lines, validators: v, checked: time.Now(), cost: f.cost} // via the upstream now
}

// fresh reports whether f was current less than ttl ago. A clock that was set
// back makes nothing fresh (REL-10).
func (f *File) fresh(ttl time.Duration) bool {
	age := time.Since(f.checked)
	return age >= 0 && age < ttl
}

func (f *File) encode() []byte {
	b := []byte{1}
	if f.via != "" {
		b = compact.AppendString([]byte{2}, f.via)
	}
	b = compact.AppendUint(b, uint64(max(0, f.checked.Unix())))
	b = compact.AppendString(b, f.validators.ETag)
	b = compact.AppendString(b, f.validators.LastModified)
	return append(b, f.Body...)
}

func decodeFile(name registry.CrateName, b []byte) (*File, error) {
	d := compact.NewDecoder(b)
	version, via := d.Byte(), ""
	if version == 2 {
		via = d.String()
	}
	checked := d.Uint()
	v := upstream.Validators{ETag: d.String(), LastModified: d.String()}
	body := d.Rest()
	if d.Err() != nil || version != 1 && version != 2 {
		return nil, fmt.Errorf("cached index file of %s: version %d, %w", name, version, d.Err())
	}
	f, err := newFile(name, body)
	if err != nil {
		return nil, err
	}
	f.validators, f.checked, f.via = v, time.Unix(int64(checked), 0), via
	return f, nil
}

// Index returns the index file of a crate. The error matches
// [upstream.ErrNotFound] if the upstream says that there is none.
func (s *Crates) Index(ctx context.Context, name registry.CrateName) (*File, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	f, err := s.file(ctx, name)
	if err != nil {
		return nil, err
	}
	if f, err = s.allowed(name, f); err == nil {
		s.lookFrom(name, f)
	}
	return f, err
}

func (s *Crates) file(ctx context.Context, name registry.CrateName) (*File, error) {
	if s.private(name) {
		return nil, fmt.Errorf("%w: %s is not asked of this registry: if it is a crate of another one, say so with registry = \"…\" where it is depended on", ErrPrivate, name)
	}
	if s.c.Signed == nil {
		return s.unsigned(ctx, name)
	}
	f, err := s.signed(ctx, name)
	if err == nil && !f.Stale || errors.Is(err, ErrDisputed) {
		return f, err
	}
	u, err := s.unsigned(ctx, name)
	if err != nil && f != nil && !errors.Is(err, upstream.ErrNotFound) {
		return f, nil // stale, but signed
	}
	return u, err
}

// private reports whether a name matches a private pattern. cargo takes "-" and "_"
// for the same when it looks for a crate.
func (s *Crates) private(name registry.CrateName) bool {
	if s.c.Private == "" {
		return false
	}
	same := func(s string) string { return strings.ReplaceAll(strings.ToLower(s), "_", "-") }
	return module.MatchPrefixPatterns(same(s.c.Private), same(string(name)))
}

// signed returns the file as operators have signed it.
func (s *Crates) signed(ctx context.Context, name registry.CrateName) (*File, error) {
	if s.c.Upstream != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, logPatience)
		defer cancel()
	}
	body, stale, err := s.c.Signed.CrateIndex(ctx, string(name))
	if err != nil {
		s.log.Debug("crate not in a catalog", "crate", name, "err", err)
		return nil, err
	}
	if f, ok := s.memory.get(name); ok && !stale && !f.Stale && bytes.Equal(f.Body, body) {
		return f, nil
	}
	f, err := newFile(name, body)
	if err != nil {
		s.log.Warn("signed index file refused", "crate", name, "err", err)
		return nil, err
	}
	f.Stale, f.signed, f.checked = stale, true, time.Now()
	if !stale {
		s.memory.put(name, f)
	}
	return f, nil
}

// unsigned returns the file as the upstream has it.
func (s *Crates) unsigned(ctx context.Context, name registry.CrateName) (*File, error) {
	if f, ok := s.memory.get(name); ok && f.fresh(s.c.TTL) {
		return f, nil
	}
	return shared(ctx, s, indexKey+string(name), func(ctx context.Context) (*File, error) { return s.renew(ctx, name) })
}

// held returns the file that we have, fresh or not.
func (s *Crates) held(name registry.CrateName) (*File, error) {
	if f, ok := s.memory.get(name); ok {
		return f, nil
	}
	b, err := s.c.Cache.Get(s.key(indexKey + string(name)))
	if err != nil {
		return nil, err
	}
	f, err := decodeFile(name, b)
	if err != nil {
		s.c.Cache.Remove(s.key(indexKey + string(name)))
		return nil, err
	}
	s.memory.put(name, f)
	return f, nil
}

// shared calls f once for all who ask for key at the same time. f goes on when
// they leave, for up to workLimit.
func shared[T any](ctx context.Context, s *Crates, key string, f func(context.Context) (T, error)) (T, error) {
	var zero T
	ch := s.flights.DoChan(key, func() (v any, err error) {
		defer func() {
			if p := recover(); p != nil { // REL-16: singleflight would end the process
				s.log.Error("panic while getting an index file", "panic", p, "stack", string(debug.Stack()))
				err = errors.New("internal error")
			}
		}()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), workLimit)
		defer cancel()
		return f(ctx)
	})
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case res := <-ch:
		if res.Err != nil {
			return zero, res.Err
		}
		return res.Val.(T), nil
	case <-late.C:
		return zero, fmt.Errorf("%w: no answer for %v", upstream.ErrUnreachable, patience)
	case <-ctx.Done():
		return zero, ctx.Err()
	}
}

// renew returns the file from disk if it is fresh, else from the upstream, else
// from disk all the same.
func (s *Crates) renew(ctx context.Context, name registry.CrateName) (*File, error) {
	old, _ := s.held(name)
	if old != nil && old.fresh(s.c.TTL) {
		return old, nil
	}
	f, err := s.ask(ctx, name, old)
	switch {
	case err == nil:
		s.keep(name, f)
		return f, nil
	case errors.Is(err, upstream.ErrNotFound) && errors.Is(err, errAnswered):
		// The upstream has spoken: the crate was removed.
		s.memory.remove(name)
		s.c.Cache.Remove(s.key(indexKey + string(name)))
		return nil, err
	case old != nil:
		s.tellStale(name, old, err)
		return &File{Body: old.Body, ETag: old.ETag, Lines: old.Lines, Stale: true}, nil
	}
	return nil, err
}

// tellStale logs that an index file at hand is served since the upstream has failed:
// once in [tellEvery] for all files, of which a build asks for hundreds (REL-17).
func (s *Crates) tellStale(name registry.CrateName, old *File, err error) {
	now, last := time.Now().UnixNano(), s.stale.Load()
	level := slog.LevelDebug
	if (last == 0 || now-last >= int64(tellEvery)) && s.stale.CompareAndSwap(last, now) {
		level = slog.LevelWarn
	}
	s.log.Log(context.Background(), level, "upstream failed, serving the index files at hand", "crate", name, "age", time.Since(old.checked).Round(time.Second), "err", err)
}

// Expire makes the next request for a crate's index file ask for it again.
func (s *Crates) Expire(name registry.CrateName) {
	if f, ok := s.memory.peek(name); ok {
		s.memory.put(name, &File{Body: f.Body, ETag: f.ETag, Lines: f.Lines, validators: f.validators, via: f.via, cost: f.cost})
	}
}

// errAnswered marks errors that are the upstream's answer.
var errAnswered = errors.New("answered by the upstream")

type answered struct{ error }

func (e answered) Unwrap() []error { return []error{e.error, errAnswered} }

// ask asks the upstream for the file, of which old, if not nil, is at hand.
func (s *Crates) ask(ctx context.Context, name registry.CrateName, old *File) (*File, error) {
	if s.c.Upstream == nil {
		return nil, fmt.Errorf("index file of %s: %w", name, fetch.ErrUnavailable)
	}
	r := upstream.Request{URL: s.index + name.IndexPath(), Kind: upstream.IndexFile}
	if old != nil {
		r.Validators = old.validators
	}
	a, err := s.c.Upstream.Get(ctx, r)
	if errors.Is(err, upstream.ErrNotFound) {
		return nil, answered{err}
	}
	if err != nil {
		return nil, err
	}
	if a.NotModified && old != nil {
		return old.renewed(a.Validators), nil
	}
	f, err := newFile(name, a.Body)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", upstream.ErrBadAnswer, err)
	}
	f.validators, f.checked = a.Validators, time.Now()
	if f.via = a.Via.Name; f.via != "" {
		f.checked = a.Via.Time
		if old != nil && !old.checked.Before(f.checked) {
			return old, nil // what is here is newer
		}
	}
	return f, nil
}

func (s *Crates) keep(name registry.CrateName, f *File) {
	s.memory.put(name, f)
	s.known.add(name)
	if err := s.c.Cache.Put(s.key(indexKey+string(name)), f.encode()); err != nil {
		s.log.Debug("index file not kept on disk", "crate", name, "err", err)
	}
}
