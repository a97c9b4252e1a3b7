package importer

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/url"
	"strconv"
	"strings"

	"golang.org/x/mod/module"

	"github.com/pkgswarm/pkgswarm/registry/modules"
	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

// A HTTPProxy is a GOPROXY over HTTP, or a list of them.
type HTTPProxy struct {
	Client  *upstream.Client
	Proxies modules.List // may not be empty
}

// List returns the list of a module's versions.
func (p *HTTPProxy) List(ctx context.Context, path string) ([]byte, error) {
	return p.get(ctx, path, "list", upstream.ModuleList)
}

// Info returns the .info file of a version.
func (p *HTTPProxy) Info(ctx context.Context, path, version string) ([]byte, error) {
	return p.version(ctx, path, version, ".info", upstream.ModuleInfo)
}

// Mod returns the .mod file of a version.
func (p *HTTPProxy) Mod(ctx context.Context, path, version string) ([]byte, error) {
	return p.version(ctx, path, version, ".mod", upstream.ModuleFile)
}

// Zip opens the zip of a version.
func (p *HTTPProxy) Zip(ctx context.Context, path, version string) (io.ReadCloser, error) {
	escPath, escVersion, err := escape(path, version)
	if err != nil {
		return nil, err
	}
	var zip *upstream.Stream
	err = p.Proxies.Try(ctx, func(base string, _ bool) (err error) {
		zip, err = p.Client.Open(ctx, upstream.Request{URL: base + "/" + escPath + "/@v/" + escVersion + ".zip", Kind: upstream.ModuleZip})
		return err
	})
	if err != nil {
		return nil, err
	}
	return zip, nil
}

func (p *HTTPProxy) version(ctx context.Context, path, version, ext string, k upstream.Kind) ([]byte, error) {
	escVersion, err := module.EscapeVersion(version)
	if err != nil {
		return nil, err
	}
	return p.get(ctx, path, escVersion+ext, k)
}

func (p *HTTPProxy) get(ctx context.Context, path, file string, k upstream.Kind) ([]byte, error) {
	escPath, err := module.EscapePath(path)
	if err != nil {
		return nil, err
	}
	var body []byte
	err = p.Proxies.Try(ctx, func(base string, _ bool) error {
		a, err := p.Client.Get(ctx, upstream.Request{URL: base + "/" + escPath + "/@v/" + file, Kind: k})
		if err == nil {
			body = a.Body
		}
		return err
	})
	return body, err
}

// A ModuleFeed is a module index: which versions a proxy has first seen since a
// time. It gives the same versions again for the same cursor.
type ModuleFeed struct {
	Client *upstream.Client
	URL    string // without query
	Limit  int    // entries a page, at most; 0 means 2000
}

const feedPage = 2000

var moduleIndex = upstream.Kind{Name: "module index", MaxExpanded: 4 << 20, Empty: true}

// A feedEntry is a line of the index.
type feedEntry struct {
	Path, Version, Timestamp string
}

// Next returns the modules named after the cursor, a time stamp as the index
// writes it, up to pages pages, and the cursor to go on from. seen holds the
// entries that bear the cursor's time and were returned before: the index
// includes them again.
func (f *ModuleFeed) Next(ctx context.Context, since string, seen map[string]bool, pages int) (modules []GoModule, next string, nextSeen map[string]bool, err error) {
	limit := f.Limit
	if limit == 0 {
		limit = feedPage
	}
	next, nextSeen = since, maps.Clone(seen)
	if nextSeen == nil {
		nextSeen = make(map[string]bool)
	}
	for range pages {
		entries, err := f.page(ctx, next, limit)
		if err != nil {
			return nil, since, seen, err
		}
		fresh := 0
		for _, e := range entries {
			id := e.Path + "@" + e.Version
			if e.Timestamp != next {
				next, nextSeen = e.Timestamp, make(map[string]bool)
			} else if nextSeen[id] {
				continue
			}
			nextSeen[id] = true
			fresh++
			modules = append(modules, GoModule{Path: e.Path, Versions: []string{e.Version}})
		}
		if len(entries) < limit || fresh == 0 {
			break
		}
	}
	return modules, next, nextSeen, nil
}

func (f *ModuleFeed) page(ctx context.Context, since string, limit int) ([]feedEntry, error) {
	q := url.Values{"limit": {strconv.Itoa(limit)}}
	if since != "" {
		q.Set("since", since)
	}
	a, err := f.Client.Get(ctx, upstream.Request{URL: f.URL + "?" + q.Encode(), Kind: moduleIndex, Fresh: true})
	if err != nil {
		return nil, err
	}
	return parseFeed(a.Body)
}

func parseFeed(b []byte) ([]feedEntry, error) {
	var entries []feedEntry
	lines := bufio.NewScanner(bytes.NewReader(b))
	for lines.Scan() {
		if strings.TrimSpace(lines.Text()) == "" {
			continue
		}
		var e feedEntry
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return nil, fmt.Errorf("module index: %w", err)
		}
		entries = append(entries, e)
	}
	return entries, lines.Err()
}
