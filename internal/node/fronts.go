package node

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/pkgswarm/pkgswarm/internal/clientenv"
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
		return err
	}
	return n.openGo()
}

// openCache opens a cache of upstream answers in the data directory.
func (n *Node) openCache(name string, max int64) (*filecache.Cache, error) {
	c, err := filecache.Open(filepath.Join(n.c.Data, name), max)
	if err == nil {
		n.closers = append(n.closers, c.Close)
	}
	return c, err
}

// openCargo opens the mirror of the public registry, and of the private ones.
func (n *Node) openCargo() error {
	cargo := clientenv.ReadCargo()
	if err := n.openPublicCargo(cargo); err != nil {
		return err
	}
	for _, text := range n.c.CargoPrivate {
		if err := n.openPrivateCargo(cargo, text); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) openPublicCargo(cargo clientenv.Cargo) error {
	s, public, err := n.cargoUpstream(cargo)
	if err != nil {
		return setting("cargo-upstream", err)
	}
	c := crates.Config{Private: strings.Join(n.c.Private, ",")}
	if err := clientenv.CheckPatterns(c.Private); err != nil {
		return setting("private", err)
	}
	if n.signed != nil {
		c.Signed = signedCrates{n.signed, n}
	}
	n.crates, err = n.mirrorCargo("cargo-upstream", c, s, public, "cargo", "/cargo/")
	return err
}

// cargoUpstream returns the registry to mirror, and whether it is a default one.
func (n *Node) cargoUpstream(cargo clientenv.Cargo) (s clientenv.CargoSource, public bool, err error) {
	configured, name := n.c.CargoUpstream, ""
	if configured == "" {
		name, configured = cargo.Replacement()
	}
	if configured == "" {
		return clientenv.CargoSource{Index: registry.CargoIndex}, true, nil
	}
	if s, err = cargo.Source(configured, name); err != nil && name != "" {
		err = fmt.Errorf("from cargo's configuration, registry %s: %w", name, err)
	}
	return s, false, err
}

// registryName is what a private registry may be called: it is part of a path.
var registryName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_-]{0,63}$`)

// openPrivateCargo opens the mirror of a registry that is not public, given as
// NAME=sparse+URL, or as the NAME by which cargo knows it.
func (n *Node) openPrivateCargo(cargo clientenv.Cargo, text string) error {
	const flag = "cargo-private-registry"
	name, configured, _ := strings.Cut(text, "=")
	if !registryName.MatchString(name) {
		return setting(flag, fmt.Errorf("%q: want NAME=sparse+URL", name))
	}
	if configured == "" {
		if configured = cargo.Index(name); configured == "" {
			return setting(flag, fmt.Errorf("%s: cargo knows no registry of that name: give its index, as %s=sparse+URL", name, name))
		}
	}
	s, err := cargo.Source(configured, name)
	if err != nil {
		return setting(flag, fmt.Errorf("%s: %w", name, err))
	}
	c := crates.Config{Name: name, Unshared: true, Token: s.Token}
	_, err = n.mirrorCargo(flag, c, s, false, filepath.Join("registries", name), "/registries/"+name+"/")
	return err
}

// mirrorCargo opens a mirror of s, which that flag has named, at prefix. Its cached
// index files are in dir.
func (n *Node) mirrorCargo(flag string, c crates.Config, s clientenv.CargoSource, public bool, dir, prefix string) (*crates.Crates, error) {
	cache, err := n.openCache(dir, indexCache)
	if err != nil {
		return nil, err
	}
	c.Index, c.Token, c.Fetcher, c.Cache, c.TTL, c.Logger = s.Index, s.Token, n.fetcher, cache, n.c.IndexTTL, n.log
	c.Rules, c.DryRun = n.c.Policy.Cargo, n.c.Policy.DryRun
	switch {
	case n.c.Source != nil && !c.Unshared:
		c.Upstream = n.c.Source
		c.For = s.Index
		c.Index, c.DL, c.NoAhead = SourceURL+"cargo/", SourceURL+"cargo/dl/{crate}/{version}", true
	case !n.c.Offline:
		uc := upstream.Config{Origins: []string{s.Index}, Scopes: append(s.Scopes, n.netrc()...)}
		if public {
			uc.Origins, uc.PublicOrigins = nil, uc.Origins
		}
		client, err := n.newUpstream(flag, uc)
		if err != nil {
			return nil, err
		}
		c.Upstream = client
		n.upstreamNames = append(n.upstreamNames, s.Index)
	}
	if s.Provider != "" {
		n.log.Warn("no token for a registry: cargo's credential provider is not run by a node, which takes tokens from credentials.toml and CARGO_REGISTRIES_NAME_TOKEN",
			"registry", s.Index, "provider", s.Provider)
	}
	mirror := crates.New(c)
	if c.Upstream != nil {
		n.mirrors = append(n.mirrors, mirror)
	}
	h := sparseindex.New(sparseindex.Config{
		Index:        mirror,
		Prefix:       prefix,
		BaseURL:      func(r *http.Request) string { return n.baseURL(r.Host) + strings.TrimSuffix(prefix, "/") },
		AuthRequired: n.c.TokenFile != "",
		Logger:       n.log,
	})
	n.fronts = append(n.fronts, front{name: "cargo", prefix: prefix, h: h,
		loops: map[string]func(context.Context) error{"ahead": mirror.Run}})
	return mirror, nil
}

// baseURL returns how a client reaches the node that asked for that host, which
// has been checked.
func (n *Node) baseURL(host string) string {
	if n.public != nil && strings.EqualFold(host, n.public.Host) {
		return n.public.String()
	}
	return n.scheme() + "://" + host
}

// parsePublicURL parses the node's address as others know it. It may lead through
// a proxy that ends TLS and takes a path away.
func parsePublicURL(s string) (*url.URL, error) {
	if s == "" {
		return nil, nil
	}
	u, err := url.Parse(strings.TrimRight(s, "/"))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" {
		return nil, fmt.Errorf("%q is not http(s)://HOST", upstream.Redact(s))
	}
	return u, nil
}

func (n *Node) scheme() string {
	if n.c.TLSCert != "" {
		return "https"
	}
	return "http"
}

func (n *Node) upstreams() []string { return n.upstreamNames }
