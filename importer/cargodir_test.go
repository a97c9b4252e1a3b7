package importer

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/integration/synthetic"
)

// TestJustChanged: a file that is read soon after it has changed may change once
// more and have the same size and times. It is looked at again, until it is older.
func TestJustChanged(t *testing.T) {
	dir := t.TempDir()
	k := synthetic.Cargo{Crates: 1, Seed: 7}.Crate(0)
	path := filepath.Join(dir, "index", filepath.FromSlash(synthetic.Path(k.Name)))
	write(t, path, k.File())
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	n := openNode(t, dir, nil)
	src := cargoDir(t, filepath.Join(dir, "index"))
	src.now = func() time.Time { return info.ModTime().Add(tick / 2) }
	if sum := n.run(t, src); sum.Events != int64(len(k.Lines))+1 {
		t.Fatalf("first run: %+v", sum)
	}

	last := &k.Lines[len(k.Lines)-1]
	*last = bytes.Replace(*last, []byte(`"yanked":false`), []byte(`"yanked":null `), 1)
	*last = bytes.Replace(*last, []byte(`"yanked":true`), []byte(`"yanked":null`), 1)
	write(t, path, k.File())
	if err := os.Chtimes(path, time.Time{}, info.ModTime()); err != nil {
		t.Fatal(err)
	}
	if sum := n.run(t, src); sum.Changed != 1 || !bytes.Equal(n.fold(t, crate(k.Name)).IndexFile(), k.File()) {
		t.Errorf("run after a change: %+v", sum)
	}

	if sum := n.run(t, src); sum.Versions != int64(len(k.Lines)) || sum.Events != 0 {
		t.Errorf("while the file is fresh: %+v", sum)
	}
	src.now = func() time.Time { return time.Now().Add(time.Hour) }
	n.run(t, src)
	if sum := n.run(t, src); sum.Versions != 0 || sum.Unchanged != 1 {
		t.Errorf("once the file is old: %+v", sum)
	}
}

// TestStampTable compares the table with a map.
func TestStampTable(t *testing.T) {
	table, want := newStampTable(), map[string]string{}
	for i := range 3000 {
		name := fmt.Sprint("name", i*7%1000)
		switch stamp := fmt.Sprint(i * i % 100000); {
		case i%11 == 0:
			table.remove(name)
			delete(want, name)
		default:
			table.put(name, stamp)
			want[name] = stamp
		}
	}
	if table.live != len(want) {
		t.Errorf("%d names, want %d", table.live, len(want))
	}
	for i := range 1100 {
		name := fmt.Sprint("name", i)
		r := table.get(name)
		if stamp, ok := want[name]; ok != (r != nil) || ok && string(table.stamp(r)) != stamp {
			t.Errorf("%s: have %v, want %q", name, r, stamp)
		}
	}
}
