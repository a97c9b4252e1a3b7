package core_test

import (
	"errors"
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
	crashed := used.CrashClone(vfs.CrashCloneCfg{})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for name, disk := range map[string]*vfs.MemFS{"new": vfs.NewCrashableMem(), "closed": used, "crashed": crashed} {
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
	if err := s.Close(); err != nil {
		t.Errorf("%s, operation %d, kept %v: close after: %v", name, at, kept, err)
	}
	return true
}
