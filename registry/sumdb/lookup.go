package sumdb

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"runtime/debug"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

// prove looks a record up, from the cache or else the database, and verifies it.
// A cache that does not verify is passed over: it may be damaged, or hostile.
func (db *DB) prove(ctx context.Context, m module.Version, key string) (r Record, err error) {
	defer func() {
		if p := recover(); p != nil { // REL-16: singleflight would end the process
			db.log.Error("panic in a look-up", "module", m.Path, "version", m.Version, "panic", p, "stack", string(debug.Stack()))
			err = errors.New("internal error")
		}
	}()
	name := "lookup/" + key
	if db.keepRecords {
		if r, err := db.proveCached(ctx, m, name); err == nil {
			return r, nil
		}
	}
	answer, err := db.remote.get(ctx, "/"+name)
	if err == nil {
		r, err = db.proveAnswer(ctx, m, answer)
	}
	if err != nil && ctx.Err() != nil {
		err = &upstream.Error{URL: db.name, Class: upstream.ErrUnreachable, Err: ctx.Err()}
	}
	if err != nil {
		return Record{}, err
	}
	if db.keepRecords {
		if err := db.cache.Put(db.cacheKey(name), answer); err != nil {
			db.log.Warn("checksum record not kept", "err", err)
		}
	}
	return r, nil
}

// proveCached proves a record of the cache to be in the kept tree.
func (db *DB) proveCached(ctx context.Context, m module.Version, name string) (Record, error) {
	data, err := db.cache.Get(db.cacheKey(name))
	if err != nil {
		return Record{}, err
	}
	id, text, _, err := tlog.ParseRecord(data)
	if err != nil {
		return Record{}, err
	}
	return db.proveRecord(ctx, m, id, text)
}

// proveAnswer proves what the database has answered: the tree that came with the
// record is one history with the kept one, and the record is in the newer of them,
// which is kept.
func (db *DB) proveAnswer(ctx context.Context, m module.Version, answer []byte) (Record, error) {
	id, text, signed, err := tlog.ParseRecord(answer)
	if err != nil {
		return Record{}, fmt.Errorf("%w: %w", ErrMismatch, err)
	}
	if err := db.follow(ctx, signed); err != nil {
		return Record{}, err
	}
	return db.proveRecord(ctx, m, id, text)
}

// follow is advance for a note that most likely came before.
func (db *DB) follow(ctx context.Context, signed []byte) error {
	sum := sha256.Sum256(signed)
	if _, kept := db.head.load(); bytes.Equal(signed, kept) || db.trees.Contains(sum) {
		return nil
	}
	err := db.advance(ctx, signed)
	if err == nil {
		db.trees.Add(sum, struct{}{})
	}
	return err
}

// proveRecord proves that the kept tree has the record, and that it is of m.
func (db *DB) proveRecord(ctx context.Context, m module.Version, id int64, text []byte) (Record, error) {
	tree, _ := db.head.load()
	if id < 0 || id >= tree.N {
		return Record{}, fmt.Errorf("%w: record %d in a tree of %d", ErrMismatch, id, tree.N)
	}
	if want := tlog.RecordHash(text); !db.proven(id, want) {
		var got []tlog.Hash
		err := db.proving(ctx, func(r tlog.TileReader) (err error) {
			got, err = tlog.TileHashReader(tree, r).ReadHashes([]int64{tlog.StoredHashIndex(0, id)})
			return err
		})
		if err != nil {
			return Record{}, mismatch(err)
		}
		if got[0] != want {
			return Record{}, fmt.Errorf("%w: record %d is not in the tree", ErrMismatch, id)
		}
	}
	return newRecord(m, id, text)
}

// proven reports whether a proven tile says that record id has that hash. Its way
// to the root was hashed when the tile was proven.
func (db *DB) proven(id int64, h tlog.Hash) bool {
	leaf := tlog.Tile{H: tileHeight, N: id >> tileHeight, W: int(id&(1<<tileHeight-1)) + 1}
	data, ok := db.recall(leaf)
	return ok && bytes.Equal(data[len(data)-tlog.HashSize:], h[:])
}

// mismatch makes an error of a proof, unless it says that the upstream did not
// answer, one that matches [ErrMismatch].
func mismatch(err error) error {
	var e *upstream.Error
	if errors.As(err, &e) || errors.Is(err, ErrMismatch) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrMismatch, err)
}
