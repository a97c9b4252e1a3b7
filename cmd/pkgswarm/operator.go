package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/gofrs/flock"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/importer"
	"github.com/pkgswarm/pkgswarm/registry/artifact"
	"github.com/pkgswarm/pkgswarm/registry/catalog"
)

// An operator is what an importing command works on.
type operator struct {
	keys    *catalog.Operator
	lock    *flock.Flock // in the state directory: one writer for a seed
	store   *core.Store
	core    *core.Core // of the catalog
	catalog *catalog.Writer
	memory  *catalog.Memory
	dir     string // of the importer

	artifacts *artifact.Store // nil unless files are imported
}

// openOperator opens the store, catalog and memory of the operator whose seed
// is in the state directory.
func openOperator(ctx context.Context, f *importFlags) (_ *operator, err error) {
	keys, err := operatorKeys(f)
	if err != nil {
		return nil, keyError(err)
	}
	op := &operator{keys: keys}
	defer func() {
		if err != nil {
			op.close()
			err = operatorError(err)
		}
	}()
	if err := op.open(f.dirs); err != nil {
		return nil, err
	}
	m, pairs := keys.Catalog()
	if op.core, err = op.store.Create(m, pairs...); err != nil {
		return nil, err
	}
	op.dir = filepath.Join(f.data, "importer", op.core.Key().String())
	if op.catalog, err = catalog.OpenWriter(ctx, op.core, op.memory); err != nil {
		return nil, err
	}
	return op, catalog.CheckRecovered(f.state, op.catalog.Length())
}

// open takes the lock and opens the store and the memory.
func (op *operator) open(d dirs) (err error) {
	if err := os.MkdirAll(d.data, 0o700); err != nil {
		return err
	}
	op.lock = flock.New(filepath.Join(d.state, "operator.lock"), flock.SetPermissions(0o600))
	locked, err := op.lock.TryLock()
	if err != nil {
		return err
	}
	if !locked {
		return &exitError{exitInUse, errors.New("another process writes with this seed"), "wait until it is done"}
	}
	if op.store, err = core.OpenStore(storeDir(d.data), importer.StoreOptions()); err != nil {
		return err
	}
	op.memory, err = catalog.OpenMemory(headsDir(d.state))
	return err
}

// headsDir returns where a state directory remembers catalog heads.
func headsDir(state string) string { return filepath.Join(state, "heads") }

// operatorKeys reads the seeds of all signers.
func operatorKeys(f *importFlags) (*catalog.Operator, error) {
	seed, err := catalog.LoadSeed(f.state)
	if err != nil {
		return nil, err
	}
	if len(f.cosigners) == 0 {
		return catalog.NewOperator(seed), nil
	}
	seeds := []catalog.Seed{seed}
	for _, path := range f.cosigners {
		s, err := catalog.LoadSeedFile(path)
		if err != nil {
			return nil, err
		}
		seeds = append(seeds, s)
	}
	quorum := f.quorum
	if quorum == 0 {
		quorum = len(seeds)/2 + 1
	}
	if quorum < 1 || quorum > len(seeds) {
		return nil, &exitError{exitUsage, fmt.Errorf("quorum of %d among %d signers", quorum, len(seeds)), ""}
	}
	return catalog.NewOperators(quorum, seeds...), nil
}

func (op *operator) close() error {
	var errs []error
	if op.artifacts != nil {
		errs = append(errs, op.artifacts.Close())
	}
	if op.core != nil {
		errs = append(errs, op.core.Close())
	}
	if op.store != nil {
		errs = append(errs, op.store.Close())
	}
	if op.lock != nil {
		errs = append(errs, op.lock.Unlock())
	}
	return errors.Join(errs...)
}
