package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/pkgswarm/pkgswarm/registry/artifact"
	"github.com/pkgswarm/pkgswarm/registry/fetch"
	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

// Refetch gets a stored file anew that is damaged or gone: from peers by its digest,
// or from where it once came. It is dropped first, whatever comes of the rest.
func (n *Node) Refetch(ctx context.Context, info artifact.Info) (fetch.Source, error) {
	a := &fetch.Artifact{
		Name:     "again " + info.SHA256.String(),
		Known:    []artifact.Digest{info.Digest()},
		Private:  info.Private,
		MaxBytes: artifact.MaxZip,
	}
	if o := info.Origin; o.Source == artifact.FromUpstream && len(o.From) == 1 && len(n.clients) > 0 {
		a.Upstream = func(ctx context.Context) (*fetch.Download, error) { return n.download(ctx, o.From[0]) }
	}
	b, err := n.fetcher.Fetch(ctx, a)
	if err != nil {
		return "", err
	}
	defer b.Close()
	if b.Stream != nil {
		if _, err := io.Copy(io.Discard, b.Stream); err != nil {
			return "", err
		}
	}
	n.fetcher.Wait(ctx) // until it is stored
	_, err = n.artifacts.Stat(info.Digest())
	return b.Source, err
}

// peerWait is how long a configured peer is waited for.
const peerWait = 3 * time.Second

// AwaitPeer waits until a peer is connected, if any are configured, but not long.
func (n *Node) AwaitPeer(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, peerWait)
	defer cancel()
	tick := time.NewTicker(peerWait / 100)
	defer tick.Stop()
	for len(n.c.Peers) > 0 && n.exchange.Connected() == 0 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// download opens url at the upstream that may be asked for it.
func (n *Node) download(ctx context.Context, url string) (*fetch.Download, error) {
	for _, m := range n.mirrors { // an index says where its crates are
		if err := m.Locate(ctx); err != nil {
			n.log.Debug("index does not say where its crates are", "err", err)
		}
	}
	err := errors.New("no upstream is configured")
	for _, c := range n.clients {
		s, openErr := c.Open(ctx, upstream.Request{URL: url, Kind: upstream.ModuleZip}) // its limits are the widest
		if openErr == nil {
			return fetch.NewDownload(s, url), nil
		}
		if err = openErr; !errors.Is(err, upstream.ErrRefused) {
			break
		}
	}
	return nil, fmt.Errorf("fetch %s again: %w", url, err)
}
