package sumdb

import (
	"context"
	"fmt"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/tlog"
)

// An Inclusion is a record with the proof that it is in the kept tree.
type Inclusion struct {
	Record
	Tree  tlog.Tree
	Proof tlog.RecordProof // checked
}

// Inclusion proves the record of a module version anew, with what is held here
// alone. The error matches fs.ErrNotExist if it is not held.
func (db *DB) Inclusion(ctx context.Context, m module.Version) (Inclusion, error) {
	r, err := db.heldRecord(m)
	if err != nil {
		return Inclusion{}, err
	}
	tree, _ := db.head.load()
	local := &reader{db: db, ctx: ctx, local: true}
	proof, err := tlog.ProveRecord(tree.N, r.ID, tlog.TileHashReader(tree, local))
	if err == nil {
		err = tlog.CheckRecord(proof, tree.N, tree.Hash, r.ID, tlog.RecordHash(r.Text))
	}
	if err != nil {
		return Inclusion{}, fmt.Errorf("%w: record %d in tree %d: %w", ErrMismatch, r.ID, tree.N, err)
	}
	return Inclusion{Record: r, Tree: tree, Proof: proof}, nil
}

// Show proves that the first n records of the kept tree are one history with it, and
// so has all tiles at hand that show this. It returns the size of the kept tree.
func (db *DB) Show(ctx context.Context, n int64) (int64, error) {
	tree, _ := db.head.load()
	if n > tree.N {
		return tree.N, fmt.Errorf("the newest tree known has %d records, not %d", tree.N, n)
	}
	err := db.proving(ctx, func(r tlog.TileReader) error {
		_, err := tlog.TreeHash(n, tlog.TileHashReader(tree, r))
		return err
	})
	if err != nil {
		return tree.N, fmt.Errorf("tree %d in tree %d: %w", n, tree.N, err)
	}
	return tree.N, nil
}

// TreeSize returns the number of records of the newest tree that was verified.
func (db *DB) TreeSize() int64 {
	tree, _ := db.head.load()
	return tree.N
}

// heldRecord returns the record of a version from memory or disk, unproven.
func (db *DB) heldRecord(m module.Version) (Record, error) {
	if r, ok := db.Held(m); ok {
		return r, nil
	}
	key, err := escape(m)
	if err != nil {
		return Record{}, err
	}
	data, err := db.cache.Get(db.cacheKey("lookup/" + key))
	if err != nil {
		return Record{}, err
	}
	id, text, _, err := tlog.ParseRecord(data)
	if err != nil {
		return Record{}, err
	}
	return newRecord(m, id, text)
}
