package core_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/pkgswarm/pkgswarm/core"
)

// TestDamage damages every kind of file of a store in every way, and reads all
// of it: what comes back is right, or an error. REL-4, REL-5
func TestDamage(t *testing.T) {
	r := newRand(t)
	intact := vfs.NewMem()
	want := fillStore(t, r, intact)
	rounds := 300
	if testing.Short() {
		rounds = 100
	}
	var good, refused, lost int
	for range rounds {
		fsys := vfs.NewMem()
		if _, err := vfs.Clone(intact, fsys, "store", "store"); err != nil {
			t.Fatal(err)
		}
		what := damage(t, r, fsys)
		s, err := core.OpenStore("store", core.Options{FS: fsys})
		if err != nil {
			t.Errorf("%s: open: %v", what, err)
			continue
		}
		for name, blocks := range want {
			g, b, err := readDamaged(s, name, blocks)
			if err != nil {
				t.Errorf("%s: core %s: %v", what, name, err)
			}
			good, refused = good+g, refused+b
			if short, err := lostBlocks(s, name, blocks); err != nil {
				t.Errorf("%s: core %s: %v", what, name, err)
			} else if short {
				lost++
			}
		}
		if err := s.Close(); err != nil && !errors.Is(err, core.ErrFailed) {
			t.Logf("%s: close: %v", what, err)
		}
	}
	t.Logf("%d rounds: %d blocks right, %d refused, %d cores shorter", rounds, good, refused, lost)
	if good == 0 || refused == 0 || lost == 0 {
		t.Error("the test does not damage anything, or everything")
	}
}

// fillStore makes a store with cores of all kinds, and returns their blocks.
func fillStore(t *testing.T, r *rand.Rand, fsys vfs.FS) map[string][][]byte {
	t.Helper()
	want := map[string][][]byte{}
	for round := range 3 { // each leaves files of its own in the database
		s, err := core.OpenStore("store", core.Options{FS: fsys, PrimaryKey: &[32]byte{1}})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 6 {
			name := fmt.Sprint("core", i)
			c, err := s.Named(name)
			if err != nil {
				t.Fatal(err)
			}
			blocks := make([][]byte, 1+r.IntN(50))
			for k := range blocks {
				blocks[k] = randomBlock(r)
			}
			if _, err := c.Append(blocks...); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
			want[name] = append(want[name], blocks...)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return want
}

// readDamaged reads a core; the error is of a wrong answer.
func readDamaged(s *core.Store, name string, want [][]byte) (good, refused int, err error) {
	c, err := s.NamedExisting(core.Namespace{}, name)
	if err != nil {
		return 0, len(want), nil
	}
	defer c.Close()
	if n := c.Length(); n > uint64(len(want)) {
		return 0, 0, fmt.Errorf("length %d, want at most %d", n, len(want))
	}
	for i := range c.Length() {
		b, err := c.Get(context.Background(), i)
		switch {
		case err != nil:
			refused++
			if d, ok := errors.AsType[*core.DamageError](err); ok && d.What == "block" && c.Has(i) && !errors.Is(err, core.ErrFailed) {
				return good, refused, fmt.Errorf("block %d is damaged (%w), and still offered", i, err)
			}
		case !bytes.Equal(b, want[i]):
			return good, refused, fmt.Errorf("block %d is another one", i)
		default:
			good++
		}
	}
	return good, refused, nil
}

// lostBlocks looks for blocks that are gone without a trace: a core that is
// shorter than it was says so, and is not appended to.
func lostBlocks(s *core.Store, name string, want [][]byte) (short bool, err error) {
	c, err := s.Named(name)
	if err != nil {
		return false, nil // refused
	}
	defer c.Close()
	length := c.Length()
	if length == uint64(len(want)) {
		return false, nil
	}
	_, err = c.Append([]byte("another history"))
	if loss, ok := errors.AsType[*core.LossError](err); !ok || loss.Length != uint64(len(want)) || loss.Have != length {
		return true, fmt.Errorf("append to a core that has lost blocks = %w, want a LossError", err)
	}
	if _, err := c.Get(context.Background(), length); !errors.Is(err, core.ErrMissing) {
		return true, fmt.Errorf("get of a lost block = %w, want ErrMissing", err)
	}
	return true, nil
}

func isDamage(err error) bool {
	_, ok := errors.AsType[*core.DamageError](err)
	return ok
}

// damage does something to one file of the store and says what.
func damage(t *testing.T, r *rand.Rand, fsys *vfs.MemFS) string {
	t.Helper()
	var files []string
	for _, dir := range []string{"store/db", "store/blocks"} {
		names, err := fsys.List(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			files = append(files, dir+"/"+n)
		}
	}
	files = append(files, "store/format", "store/heads", "store/primary")
	name, other := files[r.IntN(len(files))], files[r.IntN(len(files))]
	b := readAll(t, fsys, name)
	at := 0
	if len(b) > 0 {
		at = r.IntN(len(b))
	}
	kind := r.IntN(9)
	switch kind {
	case 0: // a bit
		if len(b) > 0 {
			b[at] ^= 1 << r.IntN(8)
		}
	case 1: // a page of zeros
		clear(b[at:min(len(b), at+4096)])
	case 2: // cut
		b = b[:at]
	case 3: // torn tail
		b = append(b[:at], make([]byte, len(b)-at)...)
	case 4: // grown
		b = append(b, make([]byte, 1+r.IntN(5000))...)
	case 5: // missing
		if err := fsys.Remove(name); err != nil {
			t.Fatal(err)
		}
		return "removed " + name
	case 6: // swapped for another one
		b = readAll(t, fsys, other)
	case 7: // misdirected write
		from := r.IntN(len(b) + 1)
		copy(b[at:], append([]byte{}, b[from:min(len(b), from+4096)]...))
	case 8: // a directory
		if err := errors.Join(fsys.Remove(name), fsys.MkdirAll(name, 0o700)); err != nil {
			t.Fatal(err)
		}
		return "directory " + name
	}
	f, err := fsys.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(b); err != nil {
		t.Fatal(err)
	}
	f.Close()
	return fmt.Sprintf("damage %d at %d of %s", kind, at, name)
}

func readAll(t *testing.T, fsys vfs.FS, name string) []byte {
	t.Helper()
	f, err := fsys.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
