package sumdb

import (
	"testing"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/tlog"
)

// FuzzRecord: a record's hashes are those on its own lines, or it is refused. SEC-8
func FuzzRecord(f *testing.F) {
	f.Add([]byte("example.com/a v1.0.0 h1:A=\nexample.com/a v1.0.0/go.mod h1:B=\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		m := module.Version{Path: "example.com/a", Version: "v1.0.0"}
		r, err := newRecord(m, 1, text)
		if err == nil && (r.Zip == "" || r.Mod == "") {
			t.Errorf("%q: %+v", text, r)
		}
	})
}

// FuzzTilePath: a tile that a client names has one name, and none makes us panic. SEC-8
func FuzzTilePath(f *testing.F) {
	fake := newFake(f)
	fake.grow(f, "a", 300)
	db := openDB(f, fake, &dirs{})
	if _, err := db.Lookup(f.Context(), mod("a", 1)); err != nil {
		f.Fatal(err)
	}
	for _, p := range []string{"tile/8/0/000", "tile/8/1/000.p/1", "tile/8/data/000", "tile/8/0/x999/x999/999", "tile/30/63/000", "tile/8/0/x036/x028/x797/x018/x963/x967/935", "tile/8/7/x036/x028/x797/x018/x963/x967/935.p/1"} {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, path string) {
		tile, err := tlog.ParseTilePath(path)
		if err != nil {
			return
		}
		data, err := db.Tile(t.Context(), tile)
		if err == nil && tile.L >= 0 && len(data) != tile.W*tlog.HashSize {
			t.Errorf("%s: %d bytes", path, len(data))
		}
	})
}
