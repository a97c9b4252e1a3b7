package node

import (
	"errors"
	"io/fs"
	"strings"

	"github.com/pkgswarm/pkgswarm/goproxy"
	"github.com/pkgswarm/pkgswarm/internal/clientenv"
	"github.com/pkgswarm/pkgswarm/internal/clients"
	"github.com/pkgswarm/pkgswarm/registry"
	"github.com/pkgswarm/pkgswarm/registry/modules"
	"github.com/pkgswarm/pkgswarm/registry/sumdb"
	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

const (
	moduleCache = 2 << 30 // bytes of cached module files and checksum records on disk
)

// openGo opens the GOPROXY front end.
func (n *Node) openGo() error {
	s, err := n.goSettings()
	if err != nil {
		return err
	}
	n.goPrivate = s.noProxy
	cache, err := n.openCache("go", moduleCache)
	if err != nil {
		return err
	}
	mc := modules.Config{
		Proxies: s.proxies, Zips: n.fetcher, Cache: cache, NoProxy: s.noProxy, NoSums: s.noSums, Logger: n.log,
		TTL:   modules.DefaultTTL,
		Rules: n.c.Policy.Go, DryRun: n.c.Policy.DryRun,
	}
	if ttl := n.c.IndexTTL; ttl > 0 {
		mc.TTL = min(mc.TTL, ttl)
	}
	sc := sumdb.Config{Key: s.sumKey, URL: s.sumURL, Proxies: s.proxies.Proxies(), StateDir: n.c.State, Cache: cache, Logger: n.log}
	switch {
	case n.c.Source != nil:
		mc.Upstream, sc.Upstream = n.c.Source, n.c.Source
		mc.Proxies = modules.List{{URL: SourceURL + "go"}}
		sc.URL = SourceURL + "sumdb"
	case !n.c.Offline:
		client, err := n.newUpstream("go-upstream", s.origins(n))
		if err != nil {
			return err
		}
		mc.Upstream, sc.Upstream = client, client
		n.upstreamNames = append(n.upstreamNames, s.proxies.Proxies()...)
	}
	if mc.Private, err = n.privateSources(s); err != nil {
		return err
	}
	const prefix = "/go/"
	hc := goproxy.Config{Prefix: prefix, Logger: n.log}
	n.sumKey = s.sumKey
	if s.sumKey != "" {
		db, err := sumdb.Open(sc)
		if err != nil {
			return err
		}
		n.sums, mc.Sums, hc.SumDB = db, db, db
	}
	if n.signed != nil {
		mc.Catalog = n.signed
	}
	n.modules = modules.New(mc)
	hc.Modules = n.modules
	n.fronts = append(n.fronts, front{name: "go", prefix: prefix, h: goproxy.New(hc)})
	return nil
}

// goSettings are those of the go command that count for a node.
type goSettings struct {
	proxies modules.List
	scopes  []upstream.Scope // from the URLs of the list
	netrc   []upstream.Scope
	sumKey  string // empty: no checksum database
	sumURL  string // empty: through the proxies, or at its name
	noProxy string // patterns
	noSums  string
}

// origins returns whom the node may ask.
func (s *goSettings) origins(n *Node) upstream.Config {
	c := upstream.Config{Scopes: append(s.scopes, s.netrc...)}
	add := func(url string, public bool) {
		if public {
			c.PublicOrigins = append(c.PublicOrigins, url)
			return
		}
		c.Origins = append(c.Origins, url)
	}
	for _, p := range s.proxies.Proxies() {
		// A network may have its own copy of it, under its name: to be asked for.
		add(p, p == registry.GoProxy && n.c.GoUpstream == "")
	}
	switch name, _, _ := strings.Cut(s.sumKey, "+"); {
	case s.sumURL != "":
		c.Origins = append(c.Origins, s.sumURL)
	case name != "":
		add("https://"+name, s.sumKey == registry.GoSumDB && n.c.SumDB == "")
	}
	return c
}

// goSettings returns what the node was told or, where it was not, what this
// machine's go command is set to use.
func (n *Node) goSettings() (*goSettings, error) {
	env := clientenv.ReadGo()
	list := env.GOPROXY
	if n.c.GoUpstream != "" {
		list = n.c.GoUpstream
	}
	if list = n.withoutSelf(list); list == "" {
		list = registry.GoProxy
	}
	s := &goSettings{noProxy: join(n.c.Private, env.GONOPROXY), noSums: join(n.c.Private, env.GONOSUMDB)}
	var err error
	if s.proxies, s.scopes, err = modules.ParseList(list); err != nil {
		return nil, setting("go-upstream", err)
	}
	db := env.GOSUMDB
	if n.c.SumDB != "" {
		db = n.c.SumDB
	}
	if s.sumKey, s.sumURL, err = clientenv.ParseSumDB(db); err != nil {
		return nil, setting("sumdb", err)
	}
	s.netrc = n.netrc()
	return s, setting("private", clientenv.CheckPatterns(s.noProxy+","+s.noSums))
}

// withoutSelf takes this node out of a list that setup has put it into.
func (n *Node) withoutSelf(list string) string {
	for _, scheme := range []string{"http://", "https://"} {
		list = clients.RemoveGo(list, scheme+n.c.Listen)
		if _, port, ok := strings.Cut(n.c.Listen, ":"); ok {
			list = clients.RemoveGo(list, scheme+"localhost:"+port)
		}
	}
	return list
}

// join joins lists of patterns.
func join(patterns []string, more string) string {
	if more != "" {
		patterns = append(patterns[:len(patterns):len(patterns)], more)
	}
	return strings.Join(patterns, ",")
}

// netrc returns the credentials that the user of this machine has for hosts.
func (n *Node) netrc() []upstream.Scope {
	scopes, err := clientenv.Netrc()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.log.Warn("no credentials from netrc", "err", err)
	}
	return scopes
}
