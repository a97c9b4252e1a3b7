// Package feed renders what happened in a registry as Atom feeds (RFC 4287),
// straight from signed package logs: new versions, yanks, removals. Feeds work
// with the upstream down, and everybody who reads the same logs gets the same
// bytes.
//
//	/registry.atom        the packages that changed last
//	/cargo/NAME.atom      the versions of a crate
//	/go/MODULE.atom       the versions of a module
//
// An item's id is urn:pkgswarm:KEY:INDEX, the package log's key and the block's
// index, so that it stays the same for ever.
package feed

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io/fs"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/gorilla/feeds"
	"golang.org/x/mod/module"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
)

// MaxItems is the number of items in a feed; the newest are kept.
const MaxItems = 100

// A Registry is what feeds are made from. Its methods may be called
// concurrently. Errors match fs.ErrNotExist for what does not exist.
type Registry interface {
	// Log returns a package's log.
	Log(ctx context.Context, h pkglog.Header) (*Log, error)
	// Recent returns the logs of the n packages that changed last, the newest
	// first. Packages whose logs cannot be had now are left out.
	Recent(ctx context.Context, n int) ([]*Log, error)
}

// A Log is a package log as far as feeds need it.
type Log struct {
	Header   pkglog.Header
	Key      core.Key
	Recorded time.Time      // when the catalog took up its newest event
	Events   []pkglog.Event // of blocks 1 and on
}

// Fold reads the events of a log from its blocks, the header first. Slices of
// the result alias the blocks.
func Fold(h pkglog.Header, key core.Key, recorded time.Time, blocks [][]byte) (*Log, error) {
	l := &Log{Header: h, Key: key, Recorded: recorded}
	if len(blocks) == 0 {
		return l, nil
	}
	s := pkglog.NewState(h)
	for _, b := range blocks[1:] {
		e, err := s.Apply(b)
		if err != nil {
			return nil, err
		}
		l.Events = append(l.Events, e)
	}
	return l, nil
}

// items returns the items of l, the newest first.
func (l *Log) items() []*feeds.Item {
	var items []*feeds.Item
	for i := len(l.Events) - 1; i >= 0 && len(items) < MaxItems; i-- {
		what, at := describe(l.Header, &l.Events[i])
		if what == "" {
			continue
		}
		if at.IsZero() {
			at = l.Recorded
		}
		title := clean(l.Header.Package + " " + what)
		items = append(items, &feeds.Item{
			Id:          fmt.Sprintf("urn:pkgswarm:%s:%d", l.Key, i+1),
			Title:       title,
			Description: html.EscapeString(title),
			Link:        &feeds.Link{Href: path(l.Header)},
			Updated:     at,
		})
	}
	return items
}

// An indexLine is what feeds say about a line of an index file.
type indexLine struct {
	Vers    string    `json:"vers"`
	Yanked  bool      `json:"yanked"`
	Pubtime time.Time `json:"pubtime"`
}

func parseLine(b []byte) (l indexLine) {
	if json.Unmarshal(b, &l) != nil {
		l.Pubtime = time.Time{} // of a kind we do not know; the rest may be set
	}
	return l
}

// describe says what an event means to a reader and when it happened, if it
// says so. Events that mean nothing to readers have no text.
func describe(h pkglog.Header, e *pkglog.Event) (what string, at time.Time) {
	switch e.Kind {
	case pkglog.Published, pkglog.Changed:
		if e.Module != nil {
			if e.Kind == pkglog.Changed {
				return "", at
			}
			return e.Module.Version + " published", time.Unix(e.Module.Time, 0).UTC()
		}
		return describeLine(e)
	case pkglog.Removed:
		switch {
		case e.All:
			return "removed", at
		case h.Ecosystem == pkglog.Cargo:
			return parseLine(e.Line).Vers + " removed", at
		}
		return e.Version + " removed", at
	}
	return "", at
}

func describeLine(e *pkglog.Event) (string, time.Time) {
	l := parseLine(e.Line)
	if e.Kind == pkglog.Published {
		what := l.Vers + " published"
		if l.Yanked {
			what = l.Vers + " published, yanked since"
		}
		return what, l.Pubtime
	}
	switch old := parseLine(e.Replaced); {
	case l.Yanked && !old.Yanked:
		return l.Vers + " yanked", time.Time{}
	case !l.Yanked && old.Yanked:
		return l.Vers + " un-yanked", time.Time{}
	}
	return "", time.Time{}
}

// path returns where the feed of a package is.
func path(h pkglog.Header) string {
	name := h.Package
	if h.Ecosystem == pkglog.Go {
		name, _ = module.EscapePath(name) // was checked when it was signed
	}
	return "/feeds/" + string(h.Ecosystem) + "/" + name + ".atom"
}

// clean drops what could mislead a reader or a terminal: control characters and
// those that change the direction of text. SEC-52
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == unicode.ReplacementChar {
			return -1
		}
		return r
	}, s)
}

// render returns a feed of items, the newest first.
func render(title, self string, items []*feeds.Item) ([]byte, error) {
	slices.SortStableFunc(items, func(a, b *feeds.Item) int { return b.Updated.Compare(a.Updated) })
	items = items[:min(len(items), MaxItems)]
	f := &feeds.Feed{
		Title:  clean(title),
		Link:   &feeds.Link{Href: self, Rel: "self"},
		Author: &feeds.Author{Name: "pkgswarm"},
		Items:  items,
	}
	if len(items) > 0 {
		f.Updated = items[0].Updated
	} else {
		f.Updated = time.Unix(0, 0).UTC()
	}
	atom := (&feeds.Atom{Feed: f}).AtomFeed()
	atom.Id = "urn:pkgswarm:" + strings.TrimPrefix(self, "/") // must be absolute, where links need not
	s, err := feeds.ToXML(atom)
	return []byte(s), err
}

// Handler serves the feeds of r under the paths above, relative to where it is
// mounted with http.StripPrefix.
func Handler(r Registry) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method != http.MethodGet && req.Method != http.MethodHead {
			http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
			return
		}
		body, err := page(req.Context(), r, req.URL.Path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			http.Error(w, "no such feed", http.StatusNotFound)
			return
		case err != nil:
			http.Error(w, "the registry cannot be read now", http.StatusServiceUnavailable)
			return
		}
		sum := sha256.Sum256(body)
		w.Header().Set("Content-Type", "application/atom+xml; charset=utf-8")
		w.Header().Set("Cache-Control", "max-age=60")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("ETag", `"`+hex.EncodeToString(sum[:16])+`"`)
		http.ServeContent(w, req, "", time.Time{}, strings.NewReader(string(body)))
	})
}

func page(ctx context.Context, r Registry, p string) ([]byte, error) {
	name, ok := strings.CutSuffix(strings.TrimPrefix(p, "/"), ".atom")
	if !ok {
		return nil, fs.ErrNotExist
	}
	if name == "registry" {
		logs, err := r.Recent(ctx, MaxItems)
		if err != nil {
			return nil, err
		}
		var items []*feeds.Item
		for _, l := range logs {
			items = append(items, newest(l)...)
		}
		return render("Registry: what is new", "/feeds/registry.atom", items)
	}
	h, err := parseName(name)
	if err != nil {
		return nil, err
	}
	l, err := r.Log(ctx, h)
	if err != nil {
		return nil, err
	}
	return render(string(h.Ecosystem)+" "+h.Package, path(h), l.items())
}

// perPackage is how many items of one package the feed of a registry shows.
const perPackage = 5

func newest(l *Log) []*feeds.Item {
	items := l.items()
	return items[:min(len(items), perPackage)]
}

// parseName turns "cargo/NAME" or "go/ESCAPED" into a package.
func parseName(name string) (pkglog.Header, error) {
	eco, name, _ := strings.Cut(name, "/")
	switch pkglog.Ecosystem(eco) {
	case pkglog.Cargo:
		if name == "" || len(name) > 64 || strings.ContainsFunc(name, notCrate) {
			return pkglog.Header{}, fs.ErrNotExist
		}
		return pkglog.Header{Ecosystem: pkglog.Cargo, Package: strings.ToLower(name)}, nil
	case pkglog.Go:
		m, err := module.UnescapePath(name)
		if err != nil {
			return pkglog.Header{}, fs.ErrNotExist
		}
		return pkglog.Header{Ecosystem: pkglog.Go, Package: m}, nil
	}
	return pkglog.Header{}, fs.ErrNotExist
}

func notCrate(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_')
}
