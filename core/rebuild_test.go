package core_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/goleak"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/core/merkle"
)

// content returns the files below dir, by name.
func content(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		out[path] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestNewerStore: a store of a newer program is refused before anything in it is
// touched. REL-13
func TestNewerStore(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	dir := t.TempDir()
	s, err := core.OpenStore(dir, core.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "format"), core.FormatLine(2), 0o600); err != nil {
		t.Fatal(err)
	}
	before := content(t, dir)
	if _, err := core.OpenStore(dir, core.Options{}); !errors.Is(err, core.ErrVersion) {
		t.Errorf("open a newer store = %v, want ErrVersion", err)
	}
	after := content(t, dir)
	for path := range after {
		if _, ok := before[path]; !ok {
			t.Errorf("%s was made", path)
		}
	}
	for path, b := range before {
		if after[path] != b {
			t.Errorf("%s was changed, or removed", path)
		}
	}
}

// spoil overwrites the middle of the files in dir whose names begin with prefix.
func spoil(t *testing.T, dir, prefix string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, prefix+"*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no files %s* in %s: %v", prefix, dir, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)/2] ^= 0x55
		if err := os.WriteFile(f, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// copyBlocks brings a replica what another store has of the core.
func copyBlocks(t *testing.T, to, from *core.Core) {
	t.Helper()
	up, err := from.Prove(merkle.Request{Upgrade: &merkle.UpgradeRequest{Start: to.Length(), Length: from.Length() - to.Length()}, Manifest: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := to.Apply(up); err != nil {
		t.Fatal(err)
	}
	for i := range from.Length() {
		if to.Has(i) {
			continue
		}
		n, err := to.MissingNodes(2 * i)
		if err != nil {
			t.Fatal(err)
		}
		p, err := from.Prove(merkle.Request{Block: &merkle.BlockRequest{Index: i, Nodes: n}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := to.Apply(p); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRebuild damages the list of the database's files: the store opens all the
// same. Static cores are there from their files, replicas are known and can be
// fetched again, and cores that are signed here say what they have lost and are
// not appended to before it is back. REL-5
func TestRebuild(t *testing.T) {
	t.Run("damaged", func(t *testing.T) { rebuild(t, false) })
	t.Run("asked for", func(t *testing.T) { rebuild(t, true) })
}

func rebuild(t *testing.T, asked bool) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	primary := &[32]byte{7}
	other, err := core.OpenStore("other", core.Options{FS: vfs.NewMem(), PrimaryKey: primary})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, bytes.Repeat([]byte("static"), 30_000), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	open := func() *core.Store {
		s, err := core.OpenStore(dir, core.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s, err := core.OpenStore(dir, core.Options{PrimaryKey: primary})
	if err != nil {
		t.Fatal(err)
	}
	log, replica, static := fillAll(t, s, other, file)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	if asked {
		if err := core.Rebuild(dir); err != nil {
			t.Fatal(err)
		}
	} else {
		spoil(t, filepath.Join(dir, "db"), "MANIFEST")
	}
	s = open()
	if _, err := os.Stat(filepath.Join(dir, "damaged-1", "db")); err != nil {
		t.Errorf("the damaged database is not set aside: %v", err)
	}
	var keys []core.Key
	for k, err := range s.Cores() {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, k)
	}
	for _, k := range []core.Key{log, replica, static} {
		if !slices.Contains(keys, k) {
			t.Errorf("core %s is not known any more", k.Short())
		}
	}

	c, err := s.OpenExisting(static)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := c.Get(t.Context(), c.Length()-1); err != nil || len(b) == 0 || c.ContiguousLength() != c.Length() {
		t.Errorf("static core after the rebuild: %v, %d of %d blocks", err, c.ContiguousLength(), c.Length())
	}
	c.Close()

	if c, err = s.OpenExisting(replica); err != nil {
		t.Fatal(err)
	}
	from, err := other.OpenExisting(replica)
	if err != nil {
		t.Fatal(err)
	}
	if v, err := c.UserData("note"); err != nil || string(v) != "kept" {
		t.Errorf("user data after the rebuild = %q, %v", v, err)
	}
	copyBlocks(t, c, from)
	c.Close()
	from.Close()

	healed(t, s, other)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open()
	if _, err := os.Stat(filepath.Join(dir, "damaged-2")); err == nil {
		t.Error("the new database was set aside, too")
	}
	for _, k := range []core.Key{log, replica, static} {
		c, err := s.OpenExisting(k)
		if err != nil {
			t.Fatal(err)
		}
		c.Check(t.Context(), func(err error) bool { t.Error(err); return true }, nil)
		c.Close()
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// fillAll makes a core of each kind in s: one that both stores write, a replica of
// one of other's, and a static one.
func fillAll(t *testing.T, s, other *core.Store, file string) (log, replica, static core.Key) {
	t.Helper()
	for _, store := range []*core.Store{s, other} {
		c, err := store.Named("log")
		if err != nil {
			t.Fatal(err)
		}
		for i := range 10 {
			if _, err := c.Append(fmt.Appendf(nil, "block %d", i)); err != nil {
				t.Fatal(err)
			}
		}
		log = c.Key()
		c.Close()
	}
	from, err := other.Named("other")
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	if _, err := from.Append([]byte("a"), make([]byte, 70_000), []byte("c")); err != nil {
		t.Fatal(err)
	}
	to, err := s.Open(from.Key())
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	copyBlocks(t, to, from)
	if err := to.SetUserData("note", []byte("kept")); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	tree, err := core.HashStatic(f, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.AddStatic(file, tree)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return log, to.Key(), c.Key()
}

// healed brings back what the core "log" of s has lost, from other.
func healed(t *testing.T, s, other *core.Store) {
	t.Helper()
	c, err := s.Named("log")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = c.Append([]byte("another history"))
	loss, ok := errors.AsType[*core.LossError](err)
	if !ok || loss.Length != 10 || loss.Have != 0 || !strings.Contains(err.Error(), "fetch them from a peer") {
		t.Errorf("append after the rebuild = %v, want a LossError of 10 blocks", err)
	}
	if _, err := c.Get(t.Context(), 9); !errors.Is(err, core.ErrMissing) {
		t.Errorf("get of a lost block = %v, want ErrMissing", err)
	}
	damages := 0
	c.Check(t.Context(), func(err error) bool {
		if _, ok := errors.AsType[*core.LossError](err); ok {
			damages++
		}
		return true
	}, nil)
	if damages != 1 {
		t.Errorf("check finds %d losses, want 1", damages)
	}
	from, err := other.Named("log")
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	copyBlocks(t, c, from)
	if n, err := c.Append([]byte("block 10")); err != nil || n != 11 {
		t.Errorf("append when all is back = %d, %v, want 11", n, err)
	}
}

// TestGiveUp truncates a core that has lost blocks: the new fork is above all that
// was acknowledged.
func TestGiveUp(t *testing.T) {
	disk := vfs.NewCrashableMem()
	s := openStore(t, disk)
	c, err := s.Named("log")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Append([]byte("a"), []byte("b"), []byte("c")); err != nil {
		t.Fatal(err)
	}
	if err := c.Truncate(2); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := disk.RemoveAll("store/db"); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, disk)
	defer s.Close()
	if c, err = s.Named("log"); err != nil {
		t.Fatal(err)
	}
	if err := c.TruncateFork(0, 1); !errors.Is(err, core.ErrRange) {
		t.Errorf("truncate to the fork that was acknowledged = %v, want ErrRange", err)
	}
	if err := c.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Append([]byte("anew")); err != nil || n != 1 || c.Fork() != 2 {
		t.Errorf("append after truncate = %d, %v, fork %d", n, err, c.Fork())
	}
}

// TestKeyLost: without its database and the file of its primary key, a store with
// cores asks for the key. REL-5
func TestKeyLost(t *testing.T) {
	disk := vfs.NewMem()
	s := openStore(t, disk)
	c, err := s.Named("log")
	if err != nil {
		t.Fatal(err)
	}
	key := c.Key()
	if _, err := c.Append([]byte("block")); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(disk.RemoveAll("store/db"), disk.Remove("store/primary")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := core.OpenStore("store", core.Options{FS: disk}); !errors.Is(err, core.ErrKeyLost) {
			t.Fatalf("open without the key = %v, want ErrKeyLost", err)
		}
	}
	s = openStore(t, disk)
	defer s.Close()
	if c, err = s.Named("log"); err != nil || c.Key() != key {
		t.Fatalf("core of that name: %v", err)
	}
	if _, err := c.Append([]byte("x")); !isLoss(err) {
		t.Errorf("append = %v, want a LossError", err)
	}
}

func isLoss(err error) bool {
	_, ok := errors.AsType[*core.LossError](err)
	return ok
}

// TestCutLog cuts the database's log, as it is after the process was killed, at
// every place: no core is silently shorter. REL-1, REL-4
func TestCutLog(t *testing.T) {
	disk := vfs.NewCrashableMem()
	s := openStore(t, disk)
	c, err := s.Named("log")
	if err != nil {
		t.Fatal(err)
	}
	const blocks = 8
	for i := range blocks {
		if _, err := c.Append([]byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
	}
	killed := disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: newDice(1)})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	names, err := killed.List("store/db")
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(names, func(n string) bool { return strings.HasSuffix(n, ".log") })
	path := "store/db/" + names[i]
	log := readAll(t, killed, path)
	whole, cut := 0, 0
	for at := 0; ; at = min(len(log), at+1+at/20) { // the last one cuts nothing
		fsys := vfs.NewMem()
		if _, err := vfs.Clone(killed, fsys, "store", "store"); err != nil {
			t.Fatal(err)
		}
		f, err := fsys.Create(path, vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		f.Write(bytes.Clone(log[:at])) // with the race detector, it is changed
		f.Close()
		s := openStore(t, fsys)
		c, err := s.Named("log")
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Append([]byte("next"))
		switch n := c.Length(); {
		case err == nil && n == blocks+1:
			whole++
		case isLoss(err) && n < blocks:
			cut++
		default:
			t.Errorf("log cut at %d: append = %v, length %d", at, err, n)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if at == len(log) {
			break
		}
	}
	if whole == 0 || cut == 0 {
		t.Errorf("%d whole, %d cut: the test cuts nothing, or all", whole, cut)
	}
}

// TestCheckNames flips a byte in each kind of file: the check of the core says
// which core, block and file, and the other core is as it was.
func TestCheckNames(t *testing.T) {
	for _, test := range []struct{ file, what string }{
		{"blocks/00000001", "block"}, {"db/*.sst", "tree page"}, {"static", "block"},
	} {
		t.Run(filepath.Base(test.file), func(t *testing.T) {
			dir := t.TempDir()
			static := filepath.Join(dir, "static")
			if err := os.WriteFile(static, bytes.Repeat([]byte("0123456789"), 20_000), 0o600); err != nil {
				t.Fatal(err)
			}
			s, err := core.OpenStore(dir, core.Options{})
			if err != nil {
				t.Fatal(err)
			}
			damagedKey, sound := fillForCheck(t, s, static)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			spoilTarget(t, dir, test.file)
			if s, err = core.OpenStore(dir, core.Options{}); err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			var found []*core.DamageError
			for _, k := range damagedKey {
				c, err := s.OpenExisting(k)
				if err != nil {
					t.Fatal(err)
				}
				c.Check(context.Background(), func(err error) bool {
					d, ok := errors.AsType[*core.DamageError](err)
					if !ok || d.Core != k {
						t.Errorf("%v: want a DamageError of core %s", err, k.Short())
					}
					found = append(found, d)
					return true
				}, nil)
				c.Close()
			}
			said := map[string]bool{}
			for _, d := range found {
				if said[d.Error()] || strings.Contains(d.Error(), "\n") {
					t.Errorf("check says more than once, or in several lines: %v", d)
				}
				said[d.Error()] = true
			}
			if len(found) == 0 || found[0].What != test.what {
				t.Errorf("check finds %v, want damage of a %s", found, test.what)
			}
			c, err := s.OpenExisting(sound)
			if err != nil {
				t.Fatal(err)
			}
			c.Check(context.Background(), func(err error) bool { t.Error(err); return true }, nil)
			c.Close()
		})
	}
}

// fillForCheck makes a core of large blocks, one of many small ones and a static
// one, and one that is to stay sound.
func fillForCheck(t *testing.T, s *core.Store, static string) (damaged []core.Key, sound core.Key) {
	t.Helper()
	r := newRand(t)
	add := func(name string, count, size int) core.Key {
		c, err := s.Named(name)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for range count {
			b := make([]byte, size)
			for i := range b {
				b[i] = byte(r.Uint32())
			}
			if _, err := c.Append(b); err != nil {
				t.Fatal(err)
			}
		}
		return c.Key()
	}
	sound = add("sound", 3, 10) // the first: at the beginning of the table
	damaged = append(damaged, add("large", 2, 50_000), add("small", 4000, 20))
	f, err := os.Open(static)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	tree, err := core.HashStatic(f, 200_000)
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.AddStatic(static, tree)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return append(damaged, c.Key()), sound
}

// spoilTarget flips a byte late in the largest file that matches.
func spoilTarget(t *testing.T, dir, pattern string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(files) == 0 {
		t.Fatalf("no file %s: %v", pattern, err)
	}
	size := func(name string) int64 {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	largest := slices.MaxFunc(files, func(a, b string) int { return int(size(a) - size(b)) })
	b, err := os.ReadFile(largest)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)*3/4] ^= 1
	if err := os.WriteFile(largest, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestKeptAside damages the database again and again: what is set aside does not
// fill the disk. REL-2
func TestKeptAside(t *testing.T) {
	disk := vfs.NewMem()
	for range 5 {
		s := openStore(t, disk)
		c, err := s.Named("log")
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		spoilMem(t, disk, "store/db", "MANIFEST")
	}
	names, err := disk.List("store")
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	aside := slices.DeleteFunc(names, func(n string) bool { return !strings.HasPrefix(n, "damaged-") })
	if !slices.Equal(aside, []string{"damaged-3", "damaged-4"}) {
		t.Errorf("%q are kept, want the last two", aside)
	}
}
