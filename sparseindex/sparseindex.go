// Package sparseindex serves a cargo registry by the sparse protocol of
// https://doc.rust-lang.org/cargo/reference/registry-index.html#sparse-protocol.
//
//	/config.json                       made here, never taken from the upstream
//	/1/a  /2/ab  /3/a/abc  /ab/cd/abcd…  index files, byte for byte
//	/dl/{crate}/{version}/download     .crate files
//	/api/v1/crates?q=…                 search in what is held
//
// Everything else of a registry's web API is refused: the mirror is read-only.
//
// # Statuses
//
// cargo deletes its cached index file on 404 and tells its user that there is no
// such package, so 404 is for what is known not to exist, and for malformed
// names. Other failures keep the cached copy:
//
//	403  a refusal: withdrawn, blocked
//	502  the upstream's bytes are not what they should be
//	504  nobody answered; cargo tries again
//	500  our own fault
//
// The body of an error is one sentence, which cargo shows.
package sparseindex

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/pkgswarm/pkgswarm/registry"
	"github.com/pkgswarm/pkgswarm/registry/crates"
	"github.com/pkgswarm/pkgswarm/registry/fetch"
)

// Index is what a handler serves; a [crates.Crates] is one. Its methods may be
// called concurrently.
type Index interface {
	Index(ctx context.Context, name registry.CrateName) (*crates.File, error)
	Crate(ctx context.Context, name registry.CrateName, version string) (*fetch.Body, error)
	Search(q string, limit int) ([]crates.Match, int)
}

// Config configures a handler.
type Config struct {
	Index Index
	// Prefix is the path below which the handler is, with a slash at its end; empty: /.
	Prefix string
	// BaseURL returns the URL of the handler's root, without a slash at the end, as
	// the client of r reaches it. r's Host has been checked.
	BaseURL func(r *http.Request) string
	// AuthRequired says that clients must send a token with every request.
	AuthRequired bool
	Logger       *slog.Logger // nil discards
}

const (
	immutable   = "public, max-age=31536000, immutable"
	mutable     = "public, max-age=60"
	staleHeader = "Pkgswarm-Stale"
	maxSearch   = 100
)

type handler struct {
	Config
	rest http.Handler // of what is no index file
}

// New returns a handler for the paths of the package comment, below its prefix.
func New(c Config) http.Handler {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Prefix == "" {
		c.Prefix = "/"
	}
	h := &handler{Config: c}
	r := chi.NewRouter()
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		r.MethodFunc(method, c.Prefix+"config.json", h.serveConfig)
		r.MethodFunc(method, c.Prefix+"dl/{crate}/{version}/download", h.serveCrate)
		r.MethodFunc(method, c.Prefix+"api/v1/crates", h.serveSearch)
		r.MethodFunc(method, c.Prefix+"*", h.serveNoIndex)
	}
	r.HandleFunc(c.Prefix+"api/v1/*", refuseAPI)
	r.MethodNotAllowed(refuseAPI)
	h.rest = r
	return h
}

// ServeHTTP answers for index files, which are most of what is asked for, without
// a router.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		if name, err := h.indexName(r); err == nil {
			h.serveIndex(w, r, name)
			return
		}
	}
	h.rest.ServeHTTP(w, r)
}

// indexName returns the crate whose index file is asked for.
func (h *handler) indexName(r *http.Request) (registry.CrateName, error) {
	return registry.ParseIndexPath(strings.TrimPrefix(r.URL.Path, h.Prefix))
}

func (h *handler) serveNoIndex(w http.ResponseWriter, r *http.Request) {
	_, err := h.indexName(r)
	h.fail(w, r, absent{err})
}

// serveConfig answers with a config.json that leads to this node by the name
// that the client used (SEC-34).
func (h *handler) serveConfig(w http.ResponseWriter, r *http.Request) {
	base := h.BaseURL(r)
	c := struct {
		DL   string `json:"dl"`
		API  string `json:"api"`
		Auth bool   `json:"auth-required,omitempty"`
	}{base + "/dl", base, h.AuthRequired}
	b, err := json.Marshal(c)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-cache")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
}

func (h *handler) serveIndex(w http.ResponseWriter, r *http.Request, name registry.CrateName) {
	f, err := h.Index.Index(r.Context(), name)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	head := w.Header()
	head["Content-Type"] = plainText
	head["Cache-Control"] = mutableValue
	head["Vary"] = varyValue
	if f.Stale {
		head.Set(staleHeader, "true")
	}
	body, own := f.Body, [2]string{f.ETag}
	if z := f.Gzip(); z != nil && acceptsGzip(r) {
		body = z
		head["Content-Encoding"] = gzipValue
		own[0] = "W/" + f.ETag
	}
	head["Etag"] = own[:1:1]
	if matches(r.Header["If-None-Match"], f.ETag) {
		delete(head, "Content-Encoding")
		delete(head, "Content-Type")
		w.WriteHeader(http.StatusNotModified)
		return
	}
	own[1] = strconv.Itoa(len(body))
	head["Content-Length"] = own[1:]
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		w.Write(body)
	}
}

// Header values, made once.
var (
	plainText    = []string{"text/plain; charset=utf-8"}
	mutableValue = []string{mutable}
	varyValue    = []string{"Accept-Encoding"}
	gzipValue    = []string{"gzip"}
)

// matches reports whether a list of entity tags has etag, by the weak comparison
// of RFC 9110 §8.8.3.2.
func matches(values []string, etag string) bool {
	for _, v := range values {
		for tag := range strings.SplitSeq(v, ",") {
			tag = strings.TrimSpace(tag)
			if tag == "*" || strings.TrimPrefix(tag, "W/") == etag {
				return true
			}
		}
	}
	return false
}

// acceptsGzip reports whether the client says that it reads gzip.
func acceptsGzip(r *http.Request) bool {
	for coding := range strings.SplitSeq(strings.Join(r.Header["Accept-Encoding"], ","), ",") {
		name, q, _ := strings.Cut(strings.TrimSpace(coding), ";")
		if strings.EqualFold(strings.TrimSpace(name), "gzip") {
			q = strings.ReplaceAll(q, " ", "")
			return !strings.HasPrefix(q, "q=0") || strings.Trim(q, "q=0.") != ""
		}
	}
	return false
}

func (h *handler) serveCrate(w http.ResponseWriter, r *http.Request) {
	name, err := registry.ParseCrate(chi.URLParam(r, "crate"))
	version := chi.URLParam(r, "version")
	if err == nil {
		err = registry.CheckCrateVersion(version)
	}
	if err != nil {
		h.fail(w, r, absent{err})
		return
	}
	b, err := h.Index.Crate(r.Context(), name, version)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	defer b.Close()
	head := w.Header()
	head.Set("Content-Type", "application/gzip")
	head.Set("Cache-Control", immutable)
	head.Set("Content-Disposition", "attachment")
	head.Set("Pkgswarm-Source", string(b.Source))
	if b.Content != nil {
		http.ServeContent(w, r, "", time.Time{}, b.Content)
		return
	}
	if b.Size >= 0 {
		head.Set("Content-Length", strconv.FormatInt(b.Size, 10))
	}
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return
	}
	if _, err := io.Copy(w, b.Stream); err != nil {
		if r.Context().Err() == nil {
			h.Logger.Warn("answer cut off", "crate", name, "version", version, "err", err)
		}
		panic(http.ErrAbortHandler) // the body must not look complete (SEC-3)
	}
}

// serveSearch answers what cargo search asks.
func (h *handler) serveSearch(w http.ResponseWriter, r *http.Request) {
	limit, err := strconv.Atoi(r.URL.Query().Get("per_page"))
	if err != nil || limit < 1 {
		limit = 10
	}
	matches, total := h.Index.Search(r.URL.Query().Get("q"), min(limit, maxSearch))
	type found struct {
		Name        string `json:"name"`
		MaxVersion  string `json:"max_version"`
		Description string `json:"description"`
	}
	answer := struct {
		Crates []found `json:"crates"`
		Meta   struct {
			Total int `json:"total"`
		} `json:"meta"`
	}{Crates: []found{}}
	for _, m := range matches {
		answer.Crates = append(answer.Crates, found{m.Name, m.MaxVersion, ""})
	}
	answer.Meta.Total = total
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	json.NewEncoder(w).Encode(answer)
}

// refuseAPI refuses what would change a registry. cargo shows the detail.
func refuseAPI(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusForbidden)
	io.WriteString(w, `{"errors":[{"detail":"this is a read-only mirror: publish to the registry itself, for example with cargo publish --registry crates-io"}]}`)
}

// absent marks errors that mean that a thing cannot exist.
type absent struct{ error }

func isAbsent(err error) bool {
	_, ok := errors.AsType[absent](err)
	return ok
}
