package sumdb

import (
	"context"
	"errors"
	"strings"
	"sync"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/singleflight"

	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

// A remote is where the database is asked: at its own address, or through the
// first proxy that carries it.
type remote struct {
	name    string
	up      Getter // nil offline
	proxies []string

	tiles  singleflight.Group         // requests for tiles, by path
	recent *lru.Cache[string, []byte] // tiles that arrived lately and may not be proven yet

	mu    sync.Mutex // held while finding out
	bases []string   // roots to ask in turn; nil until known
}

// maxRecent tiles are kept while those who asked prove them, so that others who
// look up at the same time need not ask again.
const maxRecent = 256

func newRemote(name string, c Config) *remote {
	r := &remote{name: name, up: c.Upstream, proxies: c.Proxies}
	r.recent, _ = lru.New[string, []byte](maxRecent) // fails for sizes below 1 only
	if c.URL != "" {
		r.bases = []string{strings.TrimSuffix(c.URL, "/")}
	}
	return r
}

var errOffline = errors.New("offline")

// get returns the file at path, which begins with a slash. An error is an
// [*upstream.Error], or the context's.
func (r *remote) get(ctx context.Context, path string) ([]byte, error) {
	if r.up == nil {
		return nil, &upstream.Error{URL: r.name + path, Class: upstream.ErrUnreachable, Err: errOffline}
	}
	var first error
	for _, base := range r.roots(ctx) {
		a, err := r.up.Get(ctx, upstream.Request{URL: base + path, Kind: kindOf(path)})
		if err == nil {
			return a.Body, nil
		}
		if errors.Is(err, upstream.ErrNotFound) || ctx.Err() != nil {
			return nil, err
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

// tile is like get for a tile, and shared by all who ask at once. With fresh set
// it does not take one that arrived before.
func (r *remote) tile(ctx context.Context, path string, fresh bool) ([]byte, error) {
	if data, ok := r.recent.Get(path); ok && !fresh {
		return data, nil
	}
	ch := r.tiles.DoChan(path, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookupLimit)
		defer cancel()
		data, err := r.get(ctx, path)
		if err == nil {
			r.recent.Add(path, data)
		}
		return data, err
	})
	select {
	case res := <-ch:
		if res.Err != nil {
			return nil, res.Err
		}
		return res.Val.([]byte), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func kindOf(path string) upstream.Kind {
	switch {
	case strings.HasPrefix(path, "/tile/"):
		return upstream.SumTile
	case path == "/latest":
		return upstream.SumLatest
	}
	return upstream.SumLookup
}

// roots returns the URLs to ask, finding out once which proxies carry the
// database. A proxy that does not answer the question is asked again next time.
func (r *remote) roots(ctx context.Context) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.bases != nil {
		return r.bases
	}
	supported := upstream.Kind{Name: "answer about the checksum database", MaxExpanded: 64 << 10, Empty: true}
	var bases []string
	certain := true
	for _, p := range r.proxies {
		base := strings.TrimSuffix(p, "/") + "/sumdb/" + r.name
		_, err := r.up.Get(ctx, upstream.Request{URL: base + "/supported", Kind: supported})
		if errors.Is(err, upstream.ErrNotFound) {
			continue
		}
		bases = append(bases, base)
		if err == nil {
			break
		}
		certain = false
	}
	bases = append(bases, "https://"+r.name)
	if certain {
		r.bases = bases
	}
	return bases
}
