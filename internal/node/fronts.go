package node

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/pkgswarm/pkgswarm/internal/filecache"
	"github.com/pkgswarm/pkgswarm/registry"
	"github.com/pkgswarm/pkgswarm/registry/crates"
	"github.com/pkgswarm/pkgswarm/registry/upstream"
	"github.com/pkgswarm/pkgswarm/sparseindex"
)

const (
	indexCache = 2 << 30 // bytes of cached index files on disk
)

func (n *Node) openFronts() error {
	if err := n.openCargo(); err != nil {
		return fmt.Errorf("cargo upstream: %w", err)
	}
	if err := n.openGo(); err != nil {
		return fmt.Errorf("go upstream: %w", err)
	}
	return nil
}

// openCache opens a cache of upstream answers in the data directory.
func (n *Node) openCache(name string, max int64) (*filecache.Cache, error) {
	c, err := filecache.Open(filepath.Join(n.c.Data, name), max)
	if err == nil {
		n.closers = append(n.closers, c.Close)
	}
	return c, err
}

// userAgent identifies the program and whom to turn to.
func (n *Node) userAgent() string {
	return "pkgswarm/" + n.c.Version + " (+https://github.com/pkgswarm/pkgswarm)"
}

func (n *Node) openCargo() error {
	index, origins, scopes, err := n.cargoUpstream()
	if err != nil {
		return err
	}
	cache, err := n.openCache("cargo", indexCache)
	if err != nil {
		return err
	}
	c := crates.Config{Index: index, Fetcher: n.fetcher, Cache: cache, TTL: n.c.IndexTTL,
		Rules: n.c.Policy.Cargo, DryRun: n.c.Policy.DryRun, Logger: n.log}
	if !n.c.Offline {
		origins.Scopes = scopes
		client, err := n.newUpstream(origins)
		if err != nil {
			return err
		}
		c.Upstream = client
		n.upstreamNames = append(n.upstreamNames, index)
	}
	if n.signed != nil {
		c.Signed = signedCrates{n.signed, n}
	}
	s := crates.New(c)
	n.crates = s
	h := sparseindex.New(sparseindex.Config{
		Index:        s,
		BaseURL:      func(r *http.Request) string { return n.scheme() + "://" + r.Host + "/cargo" },
		AuthRequired: n.c.TokenFile != "",
		Logger:       n.log,
	})
	n.fronts = append(n.fronts, front{name: "cargo", prefix: "/cargo/", h: h,
		loops: map[string]func(context.Context) error{"ahead": s.Run}})
	return nil
}

// cargoUpstream returns the index to mirror, and whom that allows to ask.
func (n *Node) cargoUpstream() (index string, c upstream.Config, scopes []upstream.Scope, err error) {
	configured := n.c.CargoUpstream
	if configured == "" {
		configured = cargoIndex()
	}
	if configured == "" {
		return registry.CargoIndex, upstream.Config{PublicOrigins: []string{registry.CargoIndex}}, nil, nil
	}
	index, ok := strings.CutPrefix(configured, "sparse+")
	u, err := url.Parse(index)
	if !ok || err != nil || u.Host == "" {
		return "", c, nil, fmt.Errorf("%q is not sparse+ and a URL", configured)
	}
	index, scope, err := upstream.SplitUserinfo(index)
	if err != nil {
		return "", c, nil, err
	}
	if scope != (upstream.Scope{}) {
		scopes = append(scopes, scope)
	}
	return index, upstream.Config{Origins: []string{index}}, scopes, nil
}

func (n *Node) scheme() string {
	if n.c.TLSCert != "" {
		return "https"
	}
	return "http"
}

func (n *Node) upstreams() []string { return n.upstreamNames }
