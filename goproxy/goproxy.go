// Package goproxy serves Go modules and the checksum database to the go command:
// the GOPROXY protocol of https://go.dev/ref/mod#goproxy-protocol.
//
//	/M/@v/list  /M/@v/V.info  /M/@v/V.mod  /M/@v/V.zip  /M/@latest
//	/sumdb/NAME/supported  latest  lookup/M@V  tile/8/L/K[.p/W]
//
// M and V are escaped; the "!" of the escape may come percent-encoded. Methods are
// GET and HEAD. A request with Disable-Module-Fetch: true is answered from what is
// held.
//
// # Statuses
//
// 404 makes go try its next proxy, so it is for what is known not to exist, and for
// malformed names. Other failures keep it from doing so after a comma:
//
//	400  a path that means different things to different readers
//	403  a refusal: private, blocked, not vouched for by the checksum database
//	502  the upstream's bytes are not what they should be
//	504  nobody answered
//	500  our own fault
//
// Errors are text/plain, which go shows to its user.
package goproxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/pkgswarm/pkgswarm/registry/fetch"
	"github.com/pkgswarm/pkgswarm/registry/modules"
)

// Modules is what a handler reads modules from; a [modules.Modules] is one. Paths
// and versions are unescaped and valid. Its methods may be called concurrently.
type Modules interface {
	List(ctx context.Context, path string) (*modules.File, error)
	Latest(ctx context.Context, path string) (*modules.File, error)
	Info(ctx context.Context, path, version string) (*modules.File, error)
	Mod(ctx context.Context, path, version string) (*modules.File, error)
	Zip(ctx context.Context, path, version string) (*fetch.Body, error)
	// Secret reports whether the checksum database must not hear of a module.
	Secret(path string) bool
}

// SumDB is a verified checksum database; a sumdb.DB is one. Its methods may be
// called concurrently, and what they return is not changed.
type SumDB interface {
	Name() string
	Answer(ctx context.Context, m module.Version) ([]byte, error)
	Latest(ctx context.Context) ([]byte, error)
	Tile(ctx context.Context, t tlog.Tile) ([]byte, error)
}

// A Config says what a handler serves.
type Config struct {
	// Prefix is the path below which the handler's paths are as well as at its root,
	// with a slash at its end, such as "/go/"; may be empty.
	Prefix  string
	Modules Modules
	SumDB   SumDB        // nil: none is proxied
	Logger  *slog.Logger // nil discards
}

// Cache-Control of what never changes, and of what may.
const (
	immutable = "public, max-age=31536000, immutable"
	mutable   = "public, max-age=60"
	tileCache = "public, max-age=604800, immutable"
)

// staleHeader tells that an answer may be out of date.
const staleHeader = "Pkgswarm-Stale"

// patience is how long a client waits for a small file, or the checksum database,
// whatever it takes to get it (REL-9). The work goes on without it, so that the
// next try finds an answer.
const patience = 9 * time.Second

// maxPath bounds the paths that are looked at, in bytes.
const maxPath = 8 << 10

type handler struct {
	prefix  string // without its first slash
	modules Modules
	sumdb   SumDB
	log     *slog.Logger
}

// New returns a handler for the paths of the package comment.
func New(c Config) http.Handler {
	h := &handler{prefix: strings.TrimPrefix(c.Prefix, "/"), modules: c.Modules, sumdb: c.SumDB, log: c.Logger}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	return h
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	p, err := cleanPath(r.URL)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	p = strings.TrimPrefix(p, h.prefix)
	if file, ok := strings.CutPrefix(p, "sumdb/"); ok {
		h.serveSumDB(w, r, file)
		return
	}
	h.serveModule(w, r, p)
}

// Handles reports whether a path at a server's root is the GOPROXY's: whether a
// bare GOPROXY=http://host:port asked for it.
func Handles(path string) bool {
	return strings.HasPrefix(path, "/sumdb/") || strings.Contains(path, "/@v/") || strings.HasSuffix(path, "/@latest")
}

func (h *handler) serveModule(w http.ResponseWriter, r *http.Request, clean string) {
	p, err := parsePath(clean)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	ctx := r.Context()
	if v := r.Header["Disable-Module-Fetch"]; len(v) > 0 && v[0] == "true" {
		ctx = modules.HeldOnly(ctx)
	}
	if p.file == "zip" {
		h.serveZip(ctx, w, r, p)
		return
	}
	limit := withPatience(ctx, patience)
	defer limit.cancel()
	var f *modules.File
	switch p.file {
	case "list":
		f, err = h.modules.List(limit, p.module)
	case "latest":
		f, err = h.modules.Latest(limit, p.module)
	case "info":
		f, err = h.modules.Info(limit, p.module, p.version)
	case "mod":
		f, err = h.modules.Mod(limit, p.module, p.version)
	}
	if err != nil {
		h.fail(w, r, fmt.Errorf("%s: %w", p, err))
		return
	}
	serveFile(w, r, f, contentTypes[p.file])
}

var contentTypes = map[string][]string{
	"list": {"text/plain; charset=utf-8"}, "latest": {"application/json"},
	"info": {"application/json"}, "mod": {"text/plain; charset=utf-8"},
}

// Header values, made once.
var (
	immutableValue = []string{immutable}
	mutableValue   = []string{mutable}
	staleValue     = []string{"true"}
	nosniffValue   = []string{"nosniff"}
)

// serveFile answers with a file from memory.
func serveFile(w http.ResponseWriter, r *http.Request, f *modules.File, contentType []string) {
	own := [...]string{f.ETag, strconv.Itoa(len(f.Body))}
	head := w.Header()
	head["Content-Type"] = contentType
	head["X-Content-Type-Options"] = nosniffValue
	head["Etag"] = own[:1:1]
	head["Cache-Control"] = mutableValue
	if f.Permanent {
		head["Cache-Control"] = immutableValue
	}
	if f.Stale {
		head[staleHeader] = staleValue
	}
	if conditional(r) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(f.Body))
		return
	}
	head["Content-Length"] = own[1:]
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		w.Write(f.Body)
	}
}

// conditional reports whether the answer to r may be something else than all of
// the file.
func conditional(r *http.Request) bool {
	for name := range r.Header {
		if strings.HasPrefix(name, "If-") || name == "Range" {
			return true
		}
	}
	return false
}

func (h *handler) serveZip(ctx context.Context, w http.ResponseWriter, r *http.Request, p path) {
	b, err := h.modules.Zip(ctx, p.module, p.version)
	if err != nil {
		h.fail(w, r, fmt.Errorf("%s: %w", p, err))
		return
	}
	defer b.Close()
	head := w.Header()
	head.Set("Content-Type", "application/zip")
	head.Set("X-Content-Type-Options", "nosniff")
	head.Set("Cache-Control", immutable)
	head.Set("Pkgswarm-Source", string(b.Source))
	if b.Content != nil {
		http.ServeContent(w, r, "", time.Time{}, b.Content)
		return
	}
	if b.Size >= 0 {
		head.Set("Content-Length", strconv.FormatInt(b.Size, 10))
	}
	if r.Method == http.MethodHead {
		return
	}
	if _, err := io.Copy(w, b.Stream); err != nil {
		if r.Context().Err() == nil {
			h.log.Warn("module zip broken off", "module", p.module, "version", p.version, "err", err)
		}
		panic(http.ErrAbortHandler) // SEC-3: the client must not take it for complete
	}
}

func (h *handler) serveSumDB(w http.ResponseWriter, r *http.Request, clean string) {
	name, file, err := parseSumPath(clean)
	if err == nil && (h.sumdb == nil || name != h.sumdb.Name()) {
		err = notFound("checksum database %s is not proxied here", printable(name))
	}
	if err != nil {
		h.fail(w, r, err)
		return
	}
	limit := withPatience(r.Context(), patience)
	defer limit.cancel()
	body, cache, err := h.sumFile(limit, file)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	head := w.Header()
	head.Set("Content-Type", "text/plain; charset=utf-8")
	if strings.HasPrefix(file, "tile/") {
		head.Set("Content-Type", "application/octet-stream")
	}
	head.Set("X-Content-Type-Options", "nosniff")
	head.Set("Cache-Control", cache)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
}

// sumFile returns a file of the checksum database and its Cache-Control.
func (h *handler) sumFile(ctx context.Context, file string) ([]byte, string, error) {
	kind, rest, _ := strings.Cut(file, "/")
	switch {
	case file == "supported":
		return nil, mutable, nil
	case file == "latest":
		body, err := h.sumdb.Latest(ctx)
		return body, mutable, err
	case kind == "tile":
		t, err := tlog.ParseTilePath(file)
		if err != nil {
			return nil, "", notFound("no tile %s", printable(rest))
		}
		body, err := h.sumdb.Tile(ctx, t)
		return body, tileCache, err
	case kind == "lookup":
		m, err := parseLookup(rest)
		if err != nil {
			return nil, "", err
		}
		if h.modules.Secret(m.Path) { // SEC-60
			return nil, "", fmt.Errorf("%s: %w: not asked of a checksum database; set GONOSUMDB (or GOPRIVATE) where go runs", m, modules.ErrPrivate)
		}
		body, err := h.sumdb.Answer(ctx, m)
		return body, mutable, err
	}
	return nil, "", notFound("no such file of a checksum database")
}

// fail answers with an error.
func (h *handler) fail(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil || errors.Is(err, context.Canceled) {
		panic(http.ErrAbortHandler) // nobody listens
	}
	status := statusOf(err)
	head := w.Header()
	head.Set("Content-Type", "text/plain; charset=utf-8")
	head.Set("X-Content-Type-Options", "nosniff")
	head.Set("Cache-Control", "no-store")
	if s := retryAfter(err); s > 0 {
		head.Set("Retry-After", strconv.Itoa(s))
	}
	w.WriteHeader(status)
	if status == http.StatusInternalServerError {
		h.log.Error("request failed", "path", r.URL.Path, "err", err)
	}
	if r.Method != http.MethodHead {
		io.WriteString(w, message(status, err))
	}
}
