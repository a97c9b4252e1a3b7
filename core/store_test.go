package core_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/internal/vectors"
)

// TestConcurrent uses a few cores from many goroutines at once.
func TestConcurrent(t *testing.T) {
	fsys := vfs.NewMem()
	s := openStore(t, fsys)
	const workers, each = 12, 60
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			c, err := s.Named(fmt.Sprint("core", w%3))
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			for i := range each {
				block := fmt.Appendf(nil, "%d of %d", i, w)
				if i%10 == 0 {
					block = append(block, make([]byte, 20_000)...)
				}
				do := c.Append
				if i%2 == 0 {
					do = c.AppendLazy
				}
				n, err := do(block)
				if err != nil {
					t.Error(err)
					return
				}
				if got, err := c.Get(context.Background(), n-1); err != nil || !bytes.Equal(got, block) {
					t.Errorf("block %d is not what was appended there: %v", n-1, err)
				}
				switch i % 20 {
				case 3:
					snap := c.Snapshot()
					if _, err := snap.Get(context.Background(), snap.Length()-1); err != nil {
						t.Error(err)
					}
					snap.Close()
				case 7:
					if err := s.Sync(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, fsys)
	defer s.Close()
	for k := range 3 {
		c, err := s.Named(fmt.Sprint("core", k))
		if err != nil {
			t.Fatal(err)
		}
		if n := c.ContiguousLength(); n != workers/3*each {
			t.Errorf("core %d has %d blocks, want %d", k, n, workers/3*each)
		}
		c.Check(context.Background(), func(err error) bool { t.Error(err); return true }, nil)
		c.Close()
	}
}

func TestInUse(t *testing.T) {
	dir := t.TempDir()
	s, err := core.OpenStore(dir, core.Options{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = core.OpenStore(dir, core.Options{})
	if e, ok := errors.AsType[*core.InUseError](err); !ok || e.PID != os.Getpid() {
		t.Errorf("second open = %v, want in use by process %d", err, os.Getpid())
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = core.OpenStore(dir, core.Options{}); err != nil {
		t.Fatalf("open after close: %v", err)
	}
	s.Close()
}

// TestDirectoryInTheWay puts a directory, empty or not, where each of the small files
// was. What was appended is there all the same, and can be appended to. Found by
// TestDamagedAnywhere, seed 1799739362835566194. REL-4, REL-5
func TestDirectoryInTheWay(t *testing.T) {
	for _, name := range []string{"lock", "process", "heads", "format", "primary", "rebuild"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			appendOne := func(want uint64) {
				t.Helper()
				s, err := core.OpenStore(dir, core.Options{})
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				c, err := s.Named("log")
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				if _, err := c.Append([]byte("block")); err != nil || c.Length() != want {
					t.Errorf("length %d after an append, %v; want %d", c.Length(), err, want)
				}
			}
			appendOne(1)
			for i := range uint64(3) {
				path := filepath.Join(dir, name)
				if err := errors.Join(os.RemoveAll(path), os.MkdirAll(filepath.Join(path, "sub"), 0o700)); err != nil {
					t.Fatal(err)
				}
				if i == 0 {
					os.Remove(filepath.Join(path, "sub"))
				}
				appendOne(i + 2)
			}
		})
	}
}

// A fullFS has as much space left as it says.
type fullFS struct {
	vfs.FS
	free atomic.Uint64
}

func (f *fullFS) GetDiskUsage(string) (vfs.DiskUsage, error) {
	return vfs.DiskUsage{AvailBytes: f.free.Load(), TotalBytes: 1 << 30}, nil
}

// REL-7
func TestDiskFull(t *testing.T) {
	fsys := &fullFS{FS: vfs.NewMem()}
	fsys.free.Store(1 << 30)
	s := openStore(t, fsys)
	defer s.Close()
	c, err := s.Named("log")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Append([]byte("before")); err != nil {
		t.Fatal(err)
	}
	fsys.free.Store(1 << 20)
	large := bytes.Repeat([]byte("x"), 5000)
	for n := 0; ; n++ {
		_, err := c.AppendLazy(large, large)
		if errors.Is(err, core.ErrNoSpace) {
			break
		}
		if err != nil || n > 10_000 {
			t.Fatalf("append to a full disk = %v, want ErrNoSpace", err)
		}
	}
	length := c.Length()
	if b, err := c.Get(t.Context(), 0); err != nil || string(b) != "before" {
		t.Errorf("get from a full disk = %q, %v", b, err)
	}
	fsys.free.Store(1 << 30)
	if n, err := c.Append([]byte("after")); err != nil || n != length+1 {
		t.Errorf("append when there is space again = %d, %v, want %d", n, err, length+1)
	}
}

// REL-13
func TestNewerFormat(t *testing.T) {
	fsys := vfs.NewMem()
	if err := openStore(t, fsys).Close(); err != nil {
		t.Fatal(err)
	}
	db, err := pebble.Open("store/db", &pebble.Options{FS: fsys, Merger: core.AddMerger})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Set([]byte("v"), []byte{2}, pebble.Sync), db.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := core.OpenStore("store", core.Options{FS: fsys}); !errors.Is(err, core.ErrVersion) {
		t.Errorf("open a newer store = %v, want ErrVersion", err)
	}
}

// TestStoreVectors opens the named cores of the reference's corestore, and makes
// its static cores, with a store.
func TestStoreVectors(t *testing.T) {
	var names struct {
		PrimaryKey vectors.Hex
		Derived    []struct {
			Namespaces []string
			Name       string
			Key        vectors.Hex
		}
	}
	vectors.Load(t, "corestore.json", &names)
	s, err := core.OpenStore("store", core.Options{FS: vfs.NewMem(), PrimaryKey: (*[32]byte)(names.PrimaryKey)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, v := range names.Derived {
		var ns core.Namespace
		for _, n := range v.Namespaces {
			ns = ns.Sub(n)
		}
		c, err := s.NamedIn(ns, v.Name)
		if err != nil {
			t.Fatal(err)
		}
		if k := c.Key(); !bytes.Equal(k[:], v.Key) || !c.Writable() {
			t.Errorf("core %q %q is %x, want %x", v.Namespaces, v.Name, k, v.Key)
		}
		c.Close()
	}
	var static struct {
		Cores []struct {
			Name                   string
			Blocks                 []vectors.Hex
			TreeHash, Key          string
			Manifest, DiscoveryKey vectors.Hex
		}
	}
	vectors.Load(t, "static-cores.json", &static)
	for _, v := range static.Cores {
		if v.Blocks == nil {
			continue
		}
		m, err := core.DecodeManifest(v.Manifest)
		if err != nil {
			t.Fatal(err)
		}
		c, err := s.Create(m)
		if err != nil {
			t.Fatal(err)
		}
		var blocks [][]byte
		for _, b := range v.Blocks {
			blocks = append(blocks, b)
		}
		wrong := append([][]byte{[]byte("another one")}, blocks[1:]...)
		if _, err := c.AppendSigned(nil, wrong...); err == nil {
			t.Errorf("%s: other content was taken", v.Name)
		}
		if _, err := c.AppendSigned(nil, blocks...); err != nil {
			t.Errorf("%s: %v", v.Name, err)
		}
		hash, dk := c.TreeHash(), c.DiscoveryKey()
		if c.Key().Hex() != v.Key || hex.EncodeToString(hash[:]) != v.TreeHash || !bytes.Equal(dk[:], v.DiscoveryKey) || c.Writable() {
			t.Errorf("%s: key %s, tree hash %x, want %s, %s", v.Name, c.Key().Hex(), hash, v.Key, v.TreeHash)
		}
		c.Close()
	}
}

// TestOneSync counts what a durable append of small blocks waits for: one sync.
func TestOneSync(t *testing.T) {
	var syncs atomic.Int64
	none := func(string) error { return nil }
	s := openStore(t, &faultFS{vfs.NewMem(), none, func(op string) error {
		if op == "sync" {
			syncs.Add(1)
		}
		return nil
	}})
	defer s.Close()
	c, err := s.Named("log")
	if err != nil {
		t.Fatal(err)
	}
	const appends = 100 // fewer than fill the log, which is then changed for another
	for i := range appends {
		if i == 1 {
			syncs.Store(0) // those of a core that is new
		}
		if _, err := c.Append(bytes.Repeat([]byte{byte(i)}, 64)); err != nil {
			t.Fatal(err)
		}
	}
	if n := syncs.Load(); n != appends-1 {
		t.Errorf("%d appends took %d syncs", appends-1, n)
	}
}

// TestSettled closes a store: what it takes on the disk beyond its data is little
// at once, not only when it was opened and closed again.
func TestSettled(t *testing.T) {
	fsys := vfs.NewMem()
	s := openStore(t, fsys)
	c, err := s.Named("log")
	if err != nil {
		t.Fatal(err)
	}
	const blocks, size = 5000, 200
	r := newRand(t)
	for range blocks {
		b := make([]byte, size)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		if _, err := c.Append(b); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	total := int64(0)
	for _, dir := range []string{"store", "store/db", "store/blocks"} {
		names, err := fsys.List(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			info, err := fsys.Stat(dir + "/" + n)
			if err != nil {
				t.Fatal(err)
			}
			if !info.IsDir() {
				total += info.Size()
			}
		}
	}
	if beyond := total/blocks - size; beyond > 98 { // A6: 0.8 of the reference's 122
		t.Errorf("%d bytes a block beyond the data, want at most 98", beyond)
	}
}

// TestLookups looks for cores in tables of every age: the filters must not hide
// what is there, nor what has been deleted since.
func TestLookups(t *testing.T) {
	fsys := vfs.NewMem()
	key := func(i int) core.Key { return core.Key{byte(i), byte(i >> 8), 1} }
	for round := range 6 { // each leaves a table
		s := openStore(t, fsys)
		for i := round * 100; i < round*100+100; i++ {
			c, err := s.Open(key(i))
			if err != nil {
				t.Fatal(err)
			}
			c.Close()
		}
		for i := range round * 10 { // again and again
			if err := s.Delete(key(i)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	s := openStore(t, fsys)
	defer s.Close()
	for i := range 700 {
		c, err := s.OpenExisting(key(i))
		if there := i >= 50 && i < 600; there != (err == nil) || err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("core %d: %v", i, err)
		}
		if err == nil {
			c.Close()
		}
	}
}
