package modules

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"time"

	"golang.org/x/mod/module"

	"github.com/pkgswarm/pkgswarm/registry/pkglog"
	"github.com/pkgswarm/pkgswarm/registry/sumdb"
	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

// A Catalog is an operator's signed index. Its methods may be called concurrently.
type Catalog interface {
	// Module returns the log of a module, folded exactly as far as the newest
	// accepted head of the catalog says (SEC-12). The state is not changed any more.
	// The error matches [upstream.ErrNotFound] where the catalog does not name the
	// module.
	Module(ctx context.Context, path string) (*pkglog.State, error)
	// Fresh reports whether that head is recent enough to say what is new (SEC-11).
	Fresh() bool
}

// ErrWithdrawn says that an operator has removed a version, or the whole module.
var ErrWithdrawn = errors.New("withdrawn by the registry's operator")

// signed returns w as the catalog has it; nil if it does not, or cannot be read,
// and the upstream is to be asked.
func (m *Modules) signed(ctx context.Context, r route, w *wanted) *File {
	st := m.packageLog(ctx, r, w.path)
	if st == nil || w.signed == nil {
		return nil
	}
	body := w.signed(st)
	if body == nil || w.check(body) != nil {
		return nil
	}
	f := newFile(body, upstream.Validators{}, time.Now(), w.forever)
	f.Stale = !w.forever && !m.conf.Catalog.Fresh()
	return f
}

// packageLog returns the signed log of a module, nil if there is none to be had.
func (m *Modules) packageLog(ctx context.Context, r route, path string) *pkglog.State {
	if m.conf.Catalog == nil || r.private {
		return nil
	}
	if r.from != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, logPatience)
		defer cancel()
	}
	st, err := m.conf.Catalog.Module(ctx, path)
	if err != nil {
		if !errors.Is(err, upstream.ErrNotFound) {
			m.log.Debug("catalog not used", "module", path, "err", err)
		}
		return nil
	}
	return st
}

// withdrawn returns [ErrWithdrawn] if the catalog says so of a version, whatever is
// held of it (SEC-19).
func (m *Modules) withdrawn(ctx context.Context, path, version string) error {
	r, err := m.route(path)
	if err != nil {
		return err
	}
	st := m.packageLog(ctx, r, path)
	if st == nil {
		return nil
	}
	for _, gone := range st.Withdrawn() {
		if gone.Version == version {
			return fmt.Errorf("%w: %s@%s", ErrWithdrawn, path, version)
		}
	}
	return nil
}

// vouch returns what proves the files of v: the checksum database's record or,
// while the database cannot be reached, what the operator's importer found there.
func (m *Modules) vouch(ctx context.Context, v module.Version) (sumdb.Record, error) {
	rec, err := m.lookup(ctx, v)
	if m.conf.Catalog == nil || !errors.Is(err, upstream.ErrUnreachable) {
		return rec, err
	}
	st, catalogErr := m.conf.Catalog.Module(ctx, v.Path)
	if catalogErr != nil {
		return rec, err
	}
	mv := st.Module(v.Version)
	if mv == nil {
		return rec, err
	}
	m.log.Info("module proven by the catalog alone", "module", v.Path, "version", v.Version)
	h1 := func(sum [32]byte) string { return "h1:" + base64.StdEncoding.EncodeToString(sum[:]) }
	return sumdb.Record{Zip: h1(mv.ZipHash), Mod: h1(mv.ModHash)}, nil
}
