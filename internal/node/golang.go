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
	n.goPrivate = s.NoProxy
	cache, err := n.openCache("go", moduleCache)
	if err != nil {
		return err
	}
	mc := modules.Config{
		Proxies: s.Proxies, Zips: n.fetcher, Cache: cache, NoProxy: s.NoProxy, NoSums: s.NoSums, Logger: n.log,
		TTL:   modules.DefaultTTL,
		Rules: n.c.Policy.Go, DryRun: n.c.Policy.DryRun,
	}
	if ttl := n.c.IndexTTL; ttl > 0 {
		mc.TTL = min(mc.TTL, ttl)
	}
	sc := sumdb.Config{Key: s.SumKey, URL: s.SumURL, Proxies: s.Proxies.Proxies(), StateDir: n.c.State, Cache: cache, Logger: n.log}
	switch {
	case n.c.Source != nil:
		mc.Upstream, sc.Upstream = n.c.Source, n.c.Source
		mc.Proxies = modules.List{{URL: SourceURL + "go"}}
		sc.URL = SourceURL + "sumdb"
	case !n.c.Offline:
		client, err := n.newUpstream("go-upstream", s.Upstream())
		if err != nil {
			return err
		}
		mc.Upstream, sc.Upstream = client, client
		n.upstreamNames = append(n.upstreamNames, s.Proxies.Proxies()...)
	}
	if mc.Private, err = n.privateSources(s); err != nil {
		return err
	}
	const prefix = "/go/"
	hc := goproxy.Config{Prefix: prefix, Logger: n.log}
	n.sumKey = s.SumKey
	if s.SumKey != "" {
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

// goSettings returns what the node was told or, where it was not, what this
// machine's go command is set to use.
func (n *Node) goSettings() (*clientenv.GoSettings, error) {
	env := clientenv.ReadGo()
	list := env.GOPROXY
	if n.c.GoUpstream != "" {
		list = n.c.GoUpstream
	}
	if list = n.withoutSelf(list); list == "" {
		list = registry.GoProxy
	}
	s := &clientenv.GoSettings{
		NoProxy: clientenv.Join(n.c.Private, env.GONOPROXY), NoSums: clientenv.Join(n.c.Private, env.GONOSUMDB),
		OwnProxy: n.c.GoUpstream != "", OwnSums: n.c.SumDB != "",
	}
	var err error
	if s.Proxies, s.Scopes, err = modules.ParseList(list); err != nil {
		return nil, setting("go-upstream", err)
	}
	db := env.GOSUMDB
	if n.c.SumDB != "" {
		db = n.c.SumDB
	}
	if s.SumKey, s.SumURL, err = clientenv.ParseSumDB(db); err != nil {
		return nil, setting("sumdb", err)
	}
	s.Netrc = n.netrc()
	return s, setting("private", clientenv.CheckPatterns(s.NoProxy+","+s.NoSums))
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

// netrc returns the credentials that the user of this machine has for hosts.
func (n *Node) netrc() []upstream.Scope {
	scopes, err := clientenv.Netrc()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.log.Warn("no credentials from netrc", "err", err)
	}
	return scopes
}
