package core_test

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/goleak"

	"github.com/pkgswarm/pkgswarm/core"
)

// TestFailedOpen fails each change of the disk that opening a store makes, of a
// new one and of one whose log has to be replayed: no goroutine is left, and the
// store opens when the disk is well again. REL-7, REL-12
func TestFailedOpen(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	used := vfs.NewCrashableMem()
	s := openStore(t, used)
	c, err := s.Named("log")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Append([]byte("block"), make([]byte, 50_000)); err != nil {
		t.Fatal(err)
	}
	if err := c.SetUserData("note", []byte("kept")); err != nil {
		t.Fatal(err)
	}
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	crashed := used.CrashClone(vfs.CrashCloneCfg{})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	damaged := used.CrashClone(vfs.CrashCloneCfg{})
	spoilMem(t, damaged, "store/db", "MANIFEST")
	for name, disk := range map[string]*vfs.MemFS{"new": vfs.NewCrashableMem(), "closed": used, "crashed": crashed, "damaged": damaged} {
		for _, kept := range []bool{false, true} {
			for at := int64(1); failedOpen(t, name, disk.CrashClone(vfs.CrashCloneCfg{}), at, kept); at++ {
			}
		}
	}
}

// failedOpen opens the store on disk, failing operation at and all behind it. It
// reports whether there was one.
func failedOpen(t *testing.T, name string, disk *vfs.MemFS, at int64, kept bool) bool {
	t.Helper()
	var count atomic.Int64
	hit := func(string) error {
		if count.Add(1) >= at {
			return errDisk
		}
		return nil
	}
	none := func(string) error { return nil }
	ffs := &faultFS{disk, hit, none}
	if kept {
		ffs.before, ffs.after = none, hit
	}
	s, err := core.OpenStore("store", core.Options{FS: ffs, PrimaryKey: &[32]byte{1}})
	hits := count.Load() >= at
	switch {
	case err == nil && !hits:
		s.Close()
		return false
	case err == nil:
		s.Close() // a failure it could do without
	case !errors.Is(err, errDisk):
		t.Errorf("%s, operation %d, kept %v: %v, want the disk's error", name, at, kept, err)
	}
	s = openStore(t, disk)
	if name == "damaged" {
		// However often it was interrupted, the rebuild has kept what there is.
		c, err := s.Named("log")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Append([]byte("x")); !isLoss(err) {
			t.Errorf("%s, operation %d, kept %v: append = %v, want a LossError", name, at, kept, err)
		}
		if v, err := c.UserData("note"); err != nil || string(v) != "kept" {
			t.Errorf("%s, operation %d, kept %v: user data %q, %v", name, at, kept, v, err)
		}
		c.Close()
	}
	if err := s.Close(); err != nil {
		t.Errorf("%s, operation %d, kept %v: close after: %v", name, at, kept, err)
	}
	return true
}

// spoilMem changes the first byte of the files whose names begin with prefix.
func spoilMem(t *testing.T, disk *vfs.MemFS, dir, prefix string) {
	t.Helper()
	names, err := disk.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if !strings.HasPrefix(n, prefix) {
			continue
		}
		f, err := disk.OpenReadWrite(dir+"/"+n, vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte{0xff}, 0); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRotten damages a table so that it cannot be merged with others any more,
// and goes on writing: it ends with an error that says what to do, not in waiting
// for ever, and the next opening makes a new database. REL-5
func TestRotten(t *testing.T) {
	disk := vfs.NewMem()
	o := core.Options{FS: disk, PrimaryKey: &[32]byte{1}, NoSync: true, LogBytes: 64 << 10}
	fill := func(rounds int) error {
		s, err := core.OpenStore("store", o)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		c, err := s.Named("log")
		if err != nil {
			t.Fatal(err)
		}
		r := newRand(t)
		for range rounds {
			b := make([]byte, 2000)
			for i := range b {
				b[i] = byte(r.Uint32())
			}
			if _, err := c.Append(b); err != nil {
				return err
			}
		}
		return nil
	}
	if err := fill(300); err != nil {
		t.Fatal(err)
	}
	names, err := disk.List("store/db")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if !strings.HasSuffix(n, ".sst") {
			continue
		}
		f, err := disk.OpenReadWrite("store/db/"+n, vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() > 16<<10 { // in the middle are chunks of blocks
			if _, err := f.WriteAt([]byte("damage"), info.Size()/2); err != nil {
				t.Fatal(err)
			}
		}
		f.Close()
	}
	if err := fill(10_000); !errors.Is(err, core.ErrFailed) {
		t.Errorf("writing to a damaged database = %v, want ErrFailed", err)
	}
	if err := fill(1); !isLoss(err) {
		t.Errorf("appending to what is lost = %v, want a LossError", err)
	}
}
