package sumdb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

// maxTileIndex is above that of every tile of any database.
const maxTileIndex = 1 << 40

// errNoTile says that the database has no such tile yet.
func (db *DB) errNoTile(t tlog.Tile) error {
	return &upstream.Error{URL: db.name + "/" + t.Path(), Class: upstream.ErrNotFound, Err: errors.New("beyond the newest tree")}
}

// Tile returns a tile, or with t.L = -1 the records of one, proven to be of the
// newest verified tree, after trying to get a newer one if this one has no such
// tile. The bytes are not to be changed. The error matches [upstream.ErrNotFound]
// if there is no such tile, or is like that of Lookup.
func (db *DB) Tile(ctx context.Context, t tlog.Tile) ([]byte, error) {
	if t.H != tileHeight || t.L > 7 || t.N > maxTileIndex { // beyond what can be counted in 63 bits
		return nil, db.errNoTile(t)
	}
	if t.L < 0 {
		return db.dataTile(ctx, t)
	}
	if data, ok := db.recall(t); ok {
		return data, nil
	}
	tree, err := db.treeWith(ctx, t)
	if err != nil {
		return nil, err
	}
	// Reading its last hash proves a tile, as wide as it is in the tree.
	last := tlog.StoredHashIndex(t.L*t.H, t.N<<t.H+int64(t.W)-1)
	err = db.proving(ctx, func(r tlog.TileReader) error {
		_, err := tlog.TileHashReader(tree, r).ReadHashes([]int64{last})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("checksum database %s: prove %s: %w", db.name, t.Path(), err)
	}
	data, ok := db.recall(t)
	if !ok {
		return nil, fmt.Errorf("checksum database %s: %s was not kept", db.name, t.Path())
	}
	return data, nil
}

// treeWith returns the kept tree if it has t.
func (db *DB) treeWith(ctx context.Context, t tlog.Tile) (tlog.Tree, error) {
	has := func(tree tlog.Tree) bool { return t.N<<t.H+int64(t.W) <= tree.N>>(t.L*t.H) }
	tree, _ := db.head.load()
	if has(tree) {
		return tree, nil
	}
	err := db.refresh(ctx, latestNeeded)
	if tree, _ = db.head.load(); has(tree) {
		return tree, nil
	}
	if err != nil {
		return tree, err
	}
	return tree, db.errNoTile(t)
}

// dataTile returns the records of a tile of level 0. They are not kept: only
// auditors ask for them.
func (db *DB) dataTile(ctx context.Context, t tlog.Tile) ([]byte, error) {
	leaves := t
	leaves.L = 0
	hashes, err := db.Tile(ctx, leaves)
	if err != nil {
		return nil, err
	}
	data, err := db.remote.get(ctx, "/"+t.Path())
	if err != nil {
		return nil, err
	}
	rest := data
	for i := range t.W {
		_, text, after, err := tlog.ParseRecord(append([]byte("0\n"), rest...))
		if err != nil {
			return nil, fmt.Errorf("%w: %s: record %d: %w", ErrMismatch, t.Path(), i, err)
		}
		h := tlog.RecordHash(text)
		if !bytes.Equal(h[:], hashes[i*tlog.HashSize:(i+1)*tlog.HashSize]) {
			return nil, fmt.Errorf("%w: %s: record %d is not in the tree", ErrMismatch, t.Path(), i)
		}
		rest = after
	}
	if len(rest) > 0 {
		return nil, fmt.Errorf("%w: %s: more than its records", ErrMismatch, t.Path())
	}
	return data, nil
}

// proving calls f with what is at hand, and if that does not lead to a proof, again
// with what is fetched now: the cache may be damaged, or hostile.
func (db *DB) proving(ctx context.Context, f func(tlog.TileReader) error) error {
	err := f(&reader{db: db, ctx: ctx})
	if err == nil || errors.Is(err, upstream.ErrUnreachable) || ctx.Err() != nil {
		return err
	}
	return f(&reader{db: db, ctx: ctx, fresh: true})
}

// A reader reads tiles for one request, for [tlog.TileHashReader].
type reader struct {
	db    *DB
	ctx   context.Context
	fresh bool // use only what is fetched now
	bare  bool // keep nothing
	local bool // ask nobody
}

// Height implements [tlog.TileReader].
func (r *reader) Height() int { return tileHeight }

// ReadTiles implements [tlog.TileReader].
func (r *reader) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	data := make([][]byte, len(tiles))
	for i, t := range tiles {
		var err error
		if data[i], err = r.read(t); err != nil {
			return nil, err
		}
	}
	return data, nil
}

func (r *reader) read(t tlog.Tile) ([]byte, error) {
	if !r.fresh {
		if data, ok := r.db.recall(t); ok {
			return data, nil
		}
		if wide, err := r.db.load(t); err == nil {
			return wide[:t.W*tlog.HashSize], nil
		}
	}
	if r.local {
		return nil, fmt.Errorf("tile %s: %w", t.Path(), fs.ErrNotExist)
	}
	data, err := r.db.remote.tile(r.ctx, "/"+t.Path(), r.fresh)
	if full := (tlog.Tile{H: t.H, L: t.L, N: t.N, W: 1 << t.H}); errors.Is(err, upstream.ErrNotFound) && t != full {
		if data, err = r.db.remote.tile(r.ctx, "/"+full.Path(), r.fresh); err == nil && len(data) == full.W*tlog.HashSize {
			data = data[:t.W*tlog.HashSize]
		}
	}
	if err == nil && len(data) != t.W*tlog.HashSize {
		err = fmt.Errorf("%w: tile %s has %d bytes", ErrMismatch, t.Path(), len(data))
	}
	return data, err
}

// SaveTiles implements [tlog.TileReader]. It is called with proven tiles.
func (r *reader) SaveTiles(tiles []tlog.Tile, data [][]byte) {
	if r.bare {
		return
	}
	for i, t := range tiles {
		r.db.save(t, data[i])
	}
}

func (db *DB) cacheKey(name string) string { return "sumdb " + db.name + " " + name }

// place is a tile's coordinates without its width.
func place(t tlog.Tile) tlog.Tile {
	t.W = 0
	return t
}

func (db *DB) tileKey(t tlog.Tile) string {
	t.W = 1 << t.H // so that all widths have one name
	return db.cacheKey(t.Path())
}

// recall returns a tile from memory, where only proven ones are.
func (db *DB) recall(t tlog.Tile) ([]byte, bool) {
	wide, ok := db.tiles.Get(place(t))
	if n := t.W * tlog.HashSize; ok && len(wide) >= n {
		return wide[:n:n], true
	}
	return nil, false
}

// remember puts a proven tile in memory, unless it is a part of what is there. A
// tile of another content replaces what is there: that was of a fork.
func (db *DB) remember(t tlog.Tile, data []byte) bool {
	if wide, ok := db.tiles.Get(place(t)); ok && bytes.HasPrefix(wide, data) {
		return false
	}
	db.tiles.Add(place(t), bytes.Clone(data))
	return true
}

// load returns a tile from disk, at least as wide as t. It is not proven.
func (db *DB) load(t tlog.Tile) ([]byte, error) {
	data, err := db.cache.Get(db.tileKey(t))
	if err != nil {
		return nil, err
	}
	if len(data) < t.W*tlog.HashSize || len(data) > tlog.HashSize<<t.H {
		return nil, fs.ErrNotExist
	}
	return data, nil
}

// save keeps a proven tile.
func (db *DB) save(t tlog.Tile, data []byte) {
	if !db.remember(t, data) {
		return
	}
	if have, err := db.load(t); err == nil && bytes.HasPrefix(have, data) {
		return
	}
	if err := db.cache.Put(db.tileKey(t), data); err != nil {
		db.log.Warn("checksum tile not kept", "err", err)
	}
}
