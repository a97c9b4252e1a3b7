package catalog

import (
	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
)

// A Seed is the secret of an operator, from which all its keys derive. Never
// log one.
type Seed [32]byte

// String hides the secret.
func (Seed) String() string { return "(secret)" }

// GoString hides the secret.
func (Seed) GoString() string { return "(secret)" }

// catalogName is the name of the catalog's key pair.
const catalogName = "catalog"

var registryNamespace = core.Namespace{}.Sub("pkgswarm").Sub("registry")

// An Operator signs a catalog and its package logs.
type Operator struct {
	seeds  []Seed
	quorum int
}

// NewOperator returns the operator with one seed.
func NewOperator(seed Seed) *Operator { return &Operator{seeds: []Seed{seed}, quorum: 1} }

// NewOperators returns the operator of a catalog that quorum of the holders of
// all given public keys must sign; the seeds at hand must be enough. Package
// logs derive from the first seed.
func NewOperators(quorum int, seeds ...Seed) *Operator {
	return &Operator{seeds: seeds, quorum: quorum}
}

// Catalog returns the manifest of the catalog's core and its signers' key pairs.
func (o *Operator) Catalog() (core.Manifest, []core.KeyPair) {
	pairs := make([]core.KeyPair, len(o.seeds))
	pubs := make([]core.PublicKey, len(o.seeds))
	for i, s := range o.seeds {
		pairs[i] = core.DeriveKeyPair(s, registryNamespace, catalogName)
		pubs[i] = pairs[i].Public()
	}
	if len(pubs) == 1 {
		return core.SingleSigner(pubs[0]), pairs
	}
	return core.MultiSigner(o.quorum, pubs...), pairs
}

// RegistryKey returns the key that users configure.
func (o *Operator) RegistryKey() core.Key {
	m, _ := o.Catalog()
	return m.Key()
}

// Log returns the manifest and key pair of a package's log.
func (o *Operator) Log(h pkglog.Header) (core.Manifest, core.KeyPair, error) {
	name, err := PackageKey(h)
	if err != nil {
		return core.Manifest{}, core.KeyPair{}, err
	}
	p := core.DeriveKeyPair(o.seeds[0], registryNamespace, name)
	return core.SingleSigner(p.Public()), p, nil
}
