package modules

import (
	"context"
	"errors"
	"time"

	"golang.org/x/mod/module"

	"github.com/pkgswarm/pkgswarm/registry/artifact"
	"github.com/pkgswarm/pkgswarm/registry/fetch"
	"github.com/pkgswarm/pkgswarm/registry/sumdb"
	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

// Zip returns the zip of a canonical version. The caller closes it. Errors are
// those of Mod and of [fetch.Fetcher].
func (m *Modules) Zip(ctx context.Context, path, version string) (*fetch.Body, error) {
	began := time.Now()
	r, err := m.route(path)
	if err != nil {
		return nil, err
	}
	if err := m.refuse(ctx, path, version); err != nil {
		return nil, err
	}
	esc, err := module.EscapePath(path)
	if err != nil {
		return nil, &upstream.Error{URL: path, Class: upstream.ErrNotFound, Err: err}
	}
	escVersion, err := module.EscapeVersion(version)
	if err != nil {
		return nil, &upstream.Error{URL: path, Class: upstream.ErrNotFound, Err: err}
	}
	a := &fetch.Artifact{
		Name:     zipName(r, esc, escVersion),
		Private:  !r.sums,
		Since:    began,
		MaxBytes: artifact.MaxZip,
	}
	if r.from != nil && !onlyHeld(ctx) {
		a.Upstream = func(ctx context.Context) (*fetch.Download, error) {
			return r.openZip(ctx, esc+"/@v/"+escVersion+".zip")
		}
	}
	v := module.Version{Path: path, Version: version}
	if !r.sums {
		b, err := m.unlistedZip(ctx, a)
		return b, m.zipError(ctx, v, err)
	}
	if rec, ok := m.conf.Sums.Held(v); ok {
		if d, err := artifact.ParseH1(rec.Zip); err == nil {
			a.Known = []artifact.Digest{d}
		}
	}
	a.Digests = func(ctx context.Context) ([]artifact.Digest, error) {
		rec, err := m.vouch(ctx, v)
		if err != nil {
			return nil, err
		}
		d, err := artifact.ParseH1(rec.Zip)
		return []artifact.Digest{d}, err
	}
	b, err := m.conf.Zips.Fetch(ctx, a)
	if errors.Is(err, ErrUnproven) {
		// Neither vouched for nor, perhaps, existing.
		if _, modErr := m.Mod(ctx, path, version); errors.Is(modErr, upstream.ErrNotFound) {
			return nil, modErr
		}
	}
	return b, m.zipError(ctx, v, err)
}

// zipName is the name of a zip among artifacts. path and version are escaped.
func zipName(r route, path, version string) string { return r.prefix + path + "@" + version + ".zip" }

// zipError logs what is wrong with a zip, and translates what only fetch knows.
func (m *Modules) zipError(ctx context.Context, v module.Version, err error) error {
	var bad *fetch.BadBytesError
	switch {
	case errors.As(err, &bad), errors.Is(err, ErrUnproven), errors.Is(err, sumdb.ErrMismatch), errors.Is(err, sumdb.ErrFork):
		m.log.Error("module zip refused", "module", v.Path, "version", v.Version, "err", err)
	case errors.Is(err, fetch.ErrUnavailable) && onlyHeld(ctx):
		return ErrNotHeld
	}
	return err
}

func (r *route) openZip(ctx context.Context, name string) (*fetch.Download, error) {
	var d *fetch.Download
	err := r.list.Try(ctx, func(base string, hurry bool) error {
		url := base + "/" + name
		s, err := r.from.Open(ctx, upstream.Request{URL: url, Kind: kind(upstream.ModuleZip, hurry), Once: hurry})
		if err != nil {
			return err
		}
		d = fetch.NewDownload(s, url)
		return nil
	})
	return d, err
}
