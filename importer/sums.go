package importer

import (
	"context"

	"golang.org/x/mod/module"

	"github.com/pkgswarm/pkgswarm/registry/sumdb"
)

// SumsOf returns the hashes that a checksum database proves.
func SumsOf(db *sumdb.DB) Sums {
	return func(ctx context.Context, path, version string) (mod, zip [32]byte, err error) {
		r, err := db.Lookup(ctx, module.Version{Path: path, Version: version})
		if err != nil {
			return mod, zip, err
		}
		if mod, err = ParseH1(r.Mod); err != nil {
			return mod, zip, err
		}
		zip, err = ParseH1(r.Zip)
		return mod, zip, err
	}
}
