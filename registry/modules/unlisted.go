package modules

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/pkgswarm/pkgswarm/registry/artifact"
	"github.com/pkgswarm/pkgswarm/registry/fetch"
	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

// unlistedZip gets a zip that no checksum database covers. Its hash, as it was
// first seen, is kept, and it is held to that from then on.
func (m *Modules) unlistedZip(ctx context.Context, a *fetch.Artifact) (*fetch.Body, error) {
	key := a.Name + " h1"
	if d, err := m.firstHash(key); err == nil {
		a.Known = []artifact.Digest{d}
		return m.conf.Zips.Fetch(ctx, a)
	}
	if onlyHeld(ctx) {
		return nil, ErrNotHeld
	}
	if a.Upstream == nil {
		return nil, fmt.Errorf("%w: offline", upstream.ErrUnreachable)
	}
	d, err := shared(ctx, m, key, func(ctx context.Context) (artifact.Digest, error) { return m.firstZip(ctx, key, a) })
	if err != nil {
		return nil, err
	}
	again := *a // a is the flight's
	again.Known = []artifact.Digest{d}
	return m.conf.Zips.Fetch(ctx, &again)
}

// firstHash returns the hash that a zip had when it was first seen.
func (m *Modules) firstHash(key string) (artifact.Digest, error) {
	b, err := m.conf.Cache.Get(key)
	if err != nil {
		return artifact.Digest{}, err
	}
	return artifact.ParseH1(string(b))
}

// firstZip downloads a zip, hashes it within the limits of x/mod, stores it, and
// keeps the hash.
func (m *Modules) firstZip(ctx context.Context, key string, a *fetch.Artifact) (artifact.Digest, error) {
	f, err := os.CreateTemp(m.conf.TempDir, "pkgswarm-*.zip")
	if err != nil {
		return artifact.Digest{}, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	d, size, err := download(ctx, f, a)
	if err != nil {
		return d, fmt.Errorf("%s: %w", a.Name, err)
	}
	if err := m.store(ctx, a, d, f, size); err != nil {
		return d, err
	}
	return d, m.conf.Cache.Put(key, []byte(d.String()))
}

func download(ctx context.Context, f *os.File, a *fetch.Artifact) (artifact.Digest, int64, error) {
	body, err := a.Upstream(ctx)
	if err != nil {
		return artifact.Digest{}, 0, err
	}
	defer body.Close()
	n, err := io.Copy(f, io.LimitReader(body, artifact.MaxZip+1))
	if err != nil {
		return artifact.Digest{}, 0, err
	}
	if n > artifact.MaxZip {
		return artifact.Digest{}, 0, fmt.Errorf("%w: zip of more than %d bytes", upstream.ErrBadAnswer, artifact.MaxZip)
	}
	d, err := artifact.HashZip(f, n)
	if err != nil {
		err = fmt.Errorf("%w: %w", upstream.ErrBadAnswer, err)
	}
	return d, n, err
}

// store has the fetcher take the downloaded file for the upstream's.
func (m *Modules) store(ctx context.Context, a *fetch.Artifact, d artifact.Digest, f *os.File, size int64) error {
	local := *a
	local.Name += " first seen"
	local.Known = []artifact.Digest{d}
	local.Upstream = func(context.Context) (*fetch.Download, error) {
		return &fetch.Download{ReadCloser: io.NopCloser(io.NewSectionReader(f, 0, size)), Size: size}, nil
	}
	b, err := m.conf.Zips.Fetch(ctx, &local)
	if err != nil {
		return err
	}
	defer b.Close()
	if b.Stream != nil {
		_, err = io.Copy(io.Discard, b.Stream)
	}
	if errors.Is(err, artifact.ErrNoSpace) {
		return nil // it is fetched again, then
	}
	return err
}
