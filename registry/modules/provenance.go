package modules

import (
	"time"

	"golang.org/x/mod/module"

	"github.com/pkgswarm/pkgswarm/registry/artifact"
	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

// A Provenance is what is held of a version beside its checksum record.
type Provenance struct {
	Private bool             // from a source of its own, and nobody else hears of it
	Covered bool             // the checksum database covers it
	First   *artifact.Digest // of the zip as it was first seen, if it is not covered
	Asked   time.Time        // when the upstream gave the .info; zero if it is not here
}

// Provenance tells what is held of a version without asking anybody.
func (m *Modules) Provenance(v module.Version) (Provenance, error) {
	r, err := m.route(v.Path)
	if err != nil {
		return Provenance{Private: true}, err
	}
	p := Provenance{Private: r.private, Covered: r.sums}
	path, err := module.EscapePath(v.Path)
	if err != nil {
		return p, &upstream.Error{URL: v.Path, Class: upstream.ErrNotFound, Err: err}
	}
	version, err := module.EscapeVersion(v.Version)
	if err != nil {
		return p, &upstream.Error{URL: v.Path, Class: upstream.ErrNotFound, Err: err}
	}
	info := &wanted{path: v.Path, forever: true, check: checkInfo(v.Version)}
	for _, key := range []string{"/@v/" + version + ".info", "/@v/" + version + ".info" + resolved} {
		if f, err := m.heldFile(r.prefix+v.Path+key, info); err == nil {
			p.Asked = f.Asked
			break
		}
	}
	if !r.sums {
		if d, err := m.firstHash(zipName(r, path, version) + " h1"); err == nil {
			p.First = &d
		}
	}
	return p, nil
}
