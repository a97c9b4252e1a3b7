package node

import (
	"context"

	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

// SourceURL begins the URLs that a [Source] is asked for: those of a mirror.
//
//	cargo/se/rd/serde  cargo/dl/serde/1.0.0
//	go/MODULE/@v/VERSION.mod  sumdb/lookup/MODULE@VERSION  sumdb/tile/...
const SourceURL = "http://source.invalid/"

// A Source is something that has files of upstreams, such as a bundle. What it gives
// is checked as an upstream's answers are, and believed as far.
type Source interface {
	Get(ctx context.Context, r upstream.Request) (*upstream.Answer, error)
	Open(ctx context.Context, r upstream.Request) (*upstream.Stream, error)
	AddNamed(rawURL, by string) error
	AddScope(s upstream.Scope) error
}
