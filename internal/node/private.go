package node

import (
	"errors"
	"fmt"
	"strings"

	"github.com/pkgswarm/pkgswarm/internal/clientenv"
	"github.com/pkgswarm/pkgswarm/registry/modules"
	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

// A privateGo is where private modules come from.
type privateGo struct {
	modules.PrivateSource
	scopes []upstream.Scope
}

// parsePrivateGo parses [PATTERN=]URL. Without a pattern the source is for all
// names that are private anyway.
func parsePrivateGo(s, patterns string) (privateGo, error) {
	if pattern, url, ok := strings.Cut(s, "="); ok && !strings.Contains(pattern, "://") {
		patterns, s = pattern, url
	}
	if err := clientenv.CheckPatterns(patterns); err != nil {
		return privateGo{}, err
	}
	if patterns == "" {
		return privateGo{}, fmt.Errorf("%s is the source of which modules? Name them with --private PATTERNS, or as PATTERN=URL", upstream.Redact(s))
	}
	list, scopes, err := modules.ParseList(s)
	if err != nil {
		return privateGo{}, err
	}
	if len(list) != 1 {
		return privateGo{}, errors.New("want [PATTERN=]URL, or direct")
	}
	return privateGo{modules.PrivateSource{Patterns: patterns, Proxies: list}, scopes}, nil
}

// privateSources returns where private modules are asked for. Each has a client of
// its own, so that not even a redirect leads from one to another or to the public
// upstream (SEC-62).
func (n *Node) privateSources(s *clientenv.GoSettings) ([]modules.PrivateSource, error) {
	var sources []modules.PrivateSource
	for _, text := range n.c.GoPrivate {
		const flag = "go-private-upstream"
		p, err := parsePrivateGo(text, s.NoProxy)
		if err != nil {
			return nil, setting(flag, err)
		}
		if !n.c.Offline {
			client, err := n.newUpstream(flag, upstream.Config{Origins: p.Proxies.Proxies(), Scopes: append(p.scopes, s.Netrc...)})
			if err != nil {
				return nil, err
			}
			p.Upstream = client
		}
		sources = append(sources, p.PrivateSource)
	}
	return sources, nil
}

// newUpstream opens a client, for what that flag has named, that is closed with the
// node.
func (n *Node) newUpstream(flag string, c upstream.Config) (*upstream.Client, error) {
	c.UserAgent, c.Logger = upstream.UserAgent(n.c.Version), n.log
	client, err := upstream.New(c)
	if err != nil {
		return nil, setting(flag, err)
	}
	n.clients = append(n.clients, client)
	n.closers = append(n.closers, func() error { client.Close(); return nil })
	return client, nil
}
