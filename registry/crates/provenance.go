package crates

import (
	"time"

	"github.com/pkgswarm/pkgswarm/registry"
)

// A Provenance is what is held of a version, and where its index lines came from.
type Provenance struct {
	Lines []registry.CargoLine // of the version; more than one for some old crates
	Index string               // URL of the upstream's index file; empty if they came from a catalog
	Via   string               // what brought them in place of the upstream; empty: nothing
	Asked time.Time            // when the index last said so; zero if it never did here
}

// Provenance tells what is held of a version without asking anybody. The error
// matches fs.ErrNotExist if no index file is held.
func (s *Crates) Provenance(name registry.CrateName, version string) (Provenance, error) {
	p := Provenance{Index: s.index + name.IndexPath()}
	f, err := s.held(name)
	if err != nil {
		return p, err
	}
	p.Lines = f.version(version)
	if f.signed {
		p.Index = ""
	} else {
		p.Asked, p.Via = f.checked, f.via
	}
	return p, nil
}
