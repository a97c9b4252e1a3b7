package modules

import (
	"context"
	"io"

	"github.com/pkgswarm/pkgswarm/registry/artifact"
	"github.com/pkgswarm/pkgswarm/registry/fetch"
)

// unlistedZip gets a zip that no checksum database covers. Its hash, as it was
// first seen, is kept, and it is held to that from then on.
func (m *Modules) unlistedZip(ctx context.Context, a *fetch.Artifact) (*fetch.Body, error) {
	key := a.Name + " h1"
	if d, err := m.firstHash(key); err == nil {
		a.Known = []artifact.Digest{d}
	} else if onlyHeld(ctx) {
		return nil, ErrNotHeld
	}
	a.Learn = func(r io.ReaderAt, size int64) (artifact.Digest, error) {
		d, err := artifact.HashZip(r, size) // within the limits of x/mod
		if err != nil {
			return d, err
		}
		return d, m.conf.Cache.Put(key, []byte(d.String()))
	}
	return m.conf.Zips.Fetch(ctx, a)
}

// firstHash returns the hash that a zip had when it was first seen.
func (m *Modules) firstHash(key string) (artifact.Digest, error) {
	b, err := m.conf.Cache.Get(key)
	if err != nil {
		return artifact.Digest{}, err
	}
	return artifact.ParseH1(string(b))
}
