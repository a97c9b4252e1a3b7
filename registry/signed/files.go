package signed

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/pkgswarm/pkgswarm/registry/pkglog"
	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

// CrateIndex returns the index file of a crate, whose name is in lower case, as the
// catalogs have it, and whether they are stale. Errors are those of Package; an
// absence is never certain, since a catalog need not have all crates. If operators
// disagree on all that there is, the error is a [DisagreementError]. Where they
// disagree, stale is false: no upstream is to settle it. SEC-18
func (r *Registry) CrateIndex(ctx context.Context, name string) (body []byte, stale bool, err error) {
	a, err := r.Package(ctx, pkglog.Header{Ecosystem: pkglog.Cargo, Package: name})
	if err != nil {
		return nil, false, err
	}
	disagreement := a.disagreement()
	if body = a.State.IndexFile(); body != nil {
		return body, a.Stale && disagreement == nil, nil
	}
	if disagreement != nil {
		return nil, false, disagreement
	}
	return nil, false, fmt.Errorf("crate %s: %w", name, fs.ErrNotExist)
}

// Module returns the folded log of a module. The error matches
// [upstream.ErrNotFound] where no catalog has it.
func (r *Registry) Module(ctx context.Context, path string) (*pkglog.State, error) {
	a, err := r.Package(ctx, pkglog.Header{Ecosystem: pkglog.Go, Package: path})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", upstream.ErrNotFound, err)
	}
	if err != nil {
		return nil, err
	}
	return a.State, nil
}

// Fresh reports whether as many catalogs as must agree have been vouched for lately.
func (r *Registry) Fresh() bool {
	now, fresh := time.Now(), 0
	for _, s := range r.Snapshots() {
		if !s.Stale(now) {
			fresh++
		}
	}
	return fresh >= r.c.Agree
}
