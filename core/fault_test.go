package core_test

import (
	"bytes"
	ctx "context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/pkgswarm/pkgswarm/core"
)

var errDisk = errors.New("injected disk fault")

// A faultFS calls before and after around everything that changes what is on
// the disk. An error of before keeps the operation from happening; one of after
// is returned though it has happened.
type faultFS struct {
	vfs.FS
	before, after func(op string) error
}

func (f *faultFS) around(op string, do func() error) error {
	if err := f.before(op); err != nil {
		return err
	}
	if err := do(); err != nil {
		return err
	}
	return f.after(op)
}

func (f *faultFS) wrap(file vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return &faultFile{file, f}, nil
}

func (f *faultFS) Create(name string, c vfs.DiskWriteCategory) (file vfs.File, err error) {
	err = f.around("create", func() error { file, err = f.FS.Create(name, c); return err })
	return f.wrap(file, err)
}

func (f *faultFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	return f.wrap(f.FS.OpenReadWrite(name, c, o...))
}

func (f *faultFS) ReuseForWrite(old, name string, c vfs.DiskWriteCategory) (file vfs.File, err error) {
	err = f.around("reuse", func() error { file, err = f.FS.ReuseForWrite(old, name, c); return err })
	return f.wrap(file, err)
}

func (f *faultFS) OpenDir(name string) (vfs.File, error) { return f.wrap(f.FS.OpenDir(name)) }

func (f *faultFS) Rename(old, name string) error {
	return f.around("rename", func() error { return f.FS.Rename(old, name) })
}

func (f *faultFS) Remove(name string) error {
	return f.around("remove", func() error { return f.FS.Remove(name) })
}

type faultFile struct {
	vfs.File
	fs *faultFS
}

func (f *faultFile) Write(b []byte) (n int, err error) {
	err = f.fs.around("write", func() error { n, err = f.File.Write(b); return err })
	return n, err
}

func (f *faultFile) WriteAt(b []byte, off int64) (n int, err error) {
	err = f.fs.around("write", func() error { n, err = f.File.WriteAt(b, off); return err })
	return n, err
}

func (f *faultFile) Sync() error     { return f.fs.around("sync", f.File.Sync) }
func (f *faultFile) SyncData() error { return f.fs.around("sync", f.File.SyncData) }

func (f *faultFile) SyncTo(n int64) (full bool, err error) {
	err = f.fs.around("sync", func() error { full, err = f.File.SyncTo(n); return err })
	return full, err
}

// A version is what a core may be found to be: after each operation that was
// tried there is a new one.
type version struct {
	model
}

// A history is what was done to a core, by one goroutine. durable and tried are
// indexes of versions: after a crash the core must be one of [durable, tried].
type history struct {
	mu       sync.Mutex
	versions []version
	durable  int
}

// try adds the version that an operation, now begun, will give.
func (h *history) try(m model) {
	h.mu.Lock()
	h.versions = append(h.versions, version{model: m})
	h.mu.Unlock()
}

// acknowledge says that the last version is durable.
func (h *history) acknowledge() {
	h.mu.Lock()
	h.durable = len(h.versions) - 1
	h.mu.Unlock()
}

func (h *history) bounds() (durable, tried int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.durable, len(h.versions) - 1
}

// work does random things to the core "log" of a store on fsys until steps are
// done or an operation fails. What it has done stands in h.
func work(r *rand.Rand, fsys vfs.FS, h *history, steps int) error {
	open := func() (*core.Store, *core.Core, error) {
		s, err := core.OpenStore("store", core.Options{FS: fsys, PrimaryKey: &[32]byte{1}})
		if err != nil {
			return nil, nil, err
		}
		c, err := s.Named("log")
		if err != nil {
			return nil, nil, errors.Join(err, s.Close())
		}
		return s, c, nil
	}
	var m model
	h.try(m)
	s, c, err := open()
	if err != nil {
		return err
	}
	defer func() {
		if s != nil {
			s.Close()
		}
	}()
	for range steps {
		next := m.clone()
		durable := true
		var do func() error
		switch op := r.IntN(20); {
		case op < 14:
			blocks := make([][]byte, 1+r.IntN(4))
			for i := range blocks {
				blocks[i] = randomBlock(r)
			}
			next.blocks = append(next.blocks, blocks...)
			if durable = op < 7; durable {
				do = func() error { _, err := c.Append(blocks...); return err }
			} else {
				do = func() error { _, err := c.AppendLazy(blocks...); return err }
			}
		case op < 16:
			n := r.IntN(len(m.blocks) + 1)
			next.blocks, next.fork = next.blocks[:n], next.fork+1
			do = func() error { return c.Truncate(uint64(n)) }
		case op < 17:
			durable = false
			lo := r.IntN(len(m.blocks) + 1)
			hi := min(len(m.blocks), lo+r.IntN(5))
			for i := lo; i < hi; i++ {
				next.blocks[i] = nil
			}
			do = func() error { return c.Clear(uint64(lo), uint64(hi)) }
		case op < 18:
			do = func() error { return s.Sync() }
		default:
			do = func() error {
				if err := s.Close(); err != nil {
					return err
				}
				s, c, err = open()
				return err
			}
		}
		h.try(next)
		if err := do(); err != nil {
			return err
		}
		m = next
		if durable {
			h.acknowledge()
		}
	}
	return nil
}

// inspect opens the store on fsys after a crash and checks that the core is one
// of the versions [durable, tried] of h, and can be worked with.
func inspect(fsys vfs.FS, h *history, durable, tried int) error {
	s, err := core.OpenStore("store", core.Options{FS: fsys})
	if err != nil {
		return fmt.Errorf("open after the crash: %w", err)
	}
	defer s.Close()
	c, err := s.Named("log")
	if err != nil {
		return err
	}
	h.mu.Lock()
	versions := h.versions[durable : tried+1]
	h.mu.Unlock()
	var why error
	for i := len(versions) - 1; i >= 0; i-- {
		if why = matches(c, versions[0].model, versions[i].model); why == nil {
			break
		}
	}
	if why != nil {
		info := c.Info()
		return fmt.Errorf("length %d, fork %d is none of versions %d to %d: %w", info.Length, info.Fork, durable, tried, why)
	}
	var damage error
	c.Check(ctx.Background(), func(err error) bool { damage = errors.Join(damage, err); return true }, nil)
	if damage != nil {
		return damage
	}
	before := c.Length()
	if n, err := c.Append([]byte("after"), bytes.Repeat([]byte("large"), 5000)); err != nil || n != before+2 {
		return fmt.Errorf("append after the crash = %d, %v, want %d", n, err, before+2)
	}
	if b, err := c.Get(ctx.Background(), before); err != nil || string(b) != "after" {
		return fmt.Errorf("get after the crash = %q, %v", b, err)
	}
	return nil
}

// matches compares c with m. A block may be missing if it was cleared, or if it
// is not in old, what was durable.
func matches(c *core.Core, old, m model) error {
	if info := c.Info(); info.Length != uint64(len(m.blocks)) || info.Fork != m.fork {
		return fmt.Errorf("want length %d, fork %d", len(m.blocks), m.fork)
	}
	for i, want := range m.blocks {
		got, err := c.Get(ctx.Background(), uint64(i))
		kept := m.fork == old.fork && i < len(old.blocks) && old.blocks[i] != nil
		switch {
		case err == nil && want == nil && (!kept || bytes.Equal(got, old.blocks[i])):
			// A clear that was not durable.
		case err == nil && bytes.Equal(got, want):
		case errors.Is(err, core.ErrMissing) && (want == nil || !kept):
		default:
			return fmt.Errorf("block %d: %v, or another one", i, err)
		}
	}
	return nil
}

// TestCrash cuts the power before and after every sync, with and without what
// was written since, and looks at what is left. REL-1, REL-3
func TestCrash(t *testing.T) {
	seeds := 200
	if testing.Short() {
		seeds = 40
	}
	r := newRand(t)
	for range seeds {
		seed := r.Uint64()
		crashes, err := crash(seed)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if crashes == 0 {
			t.Fatal("nothing was synced")
		}
	}
}

func crash(seed uint64) (crashes int, err error) {
	type clone struct {
		fs             vfs.FS
		durable, tried int
	}
	var (
		mu     sync.Mutex
		clones []clone
		h      history
		mem    = vfs.NewCrashableMem()
		dice   = newDice(seed)
	)
	snap := func(op string) error {
		if op != "sync" {
			return nil
		}
		durable, _ := h.bounds()
		mu.Lock()
		defer mu.Unlock()
		cfg := vfs.CrashCloneCfg{}
		if dice.IntN(2) == 0 {
			cfg = vfs.CrashCloneCfg{UnsyncedDataPercent: 1 + dice.IntN(100), RNG: dice}
		}
		fs := mem.CrashClone(cfg)
		_, tried := h.bounds()
		if dice.IntN(4) == 0 { // each sync has two, and there are many
			clones = append(clones, clone{fs, durable, max(tried, 0)})
		}
		return nil
	}
	ffs := &faultFS{mem, snap, snap}
	if err := work(newDice(seed+1), ffs, &h, 15); err != nil {
		return 0, err
	}
	mu.Lock()
	defer mu.Unlock()
	for i, c := range clones {
		if err := inspect(c.fs, &h, c.durable, c.tried); err != nil {
			return 0, fmt.Errorf("crash %d: %w", i, err)
		}
	}
	return len(clones), nil
}

func newDice(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 1)) }

// TestFaults fails one operation of the disk, once having done it and once not,
// goes on until a call fails, and looks at what is left: at once, and after a
// crash. REL-1, REL-7
func TestFaults(t *testing.T) {
	r := newRand(t)
	runs := 200
	if testing.Short() {
		runs = 60
	}
	for range runs {
		seed := r.Uint64()
		if err := fault(seed); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

func fault(seed uint64) error {
	dice := newDice(seed)
	mem := vfs.NewCrashableMem()
	var count atomic.Int64
	at := 1 + dice.Int64N(150)
	kept := dice.IntN(2) == 0
	forever := dice.IntN(3) == 0 // as a full disk is
	hit := func() error {
		if n := count.Add(1); n == at || forever && n > at {
			return errDisk
		}
		return nil
	}
	none := func(string) error { return nil }
	ffs := &faultFS{mem, func(string) error { return hit() }, none}
	if kept {
		ffs.before, ffs.after = none, ffs.before
	}
	var h history
	err := work(newDice(seed+1), ffs, &h, 25)
	if err != nil && !errors.Is(err, errDisk) && !errors.Is(err, core.ErrFailed) {
		return fmt.Errorf("fault %d: %w", at, err)
	}
	durable, tried := h.bounds()
	crashed := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: dice})
	lost := mem.CrashClone(vfs.CrashCloneCfg{})
	for i, fs := range []vfs.FS{mem, crashed, lost} {
		if err := inspect(fs, &h, durable, tried); err != nil {
			return fmt.Errorf("fault %d, kept %v, forever %v, look %d: %w", at, kept, forever, i, err)
		}
	}
	return nil
}

// A readFS fails reads of block data while err is set.
type readFS struct {
	vfs.FS
	err atomic.Pointer[error]
}

type readFile struct {
	vfs.File
	fs *readFS
}

func (f *readFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	file, err := f.FS.OpenReadWrite(name, c, o...)
	if err != nil {
		return nil, err
	}
	return &readFile{file, f}, nil
}

func (f *readFile) ReadAt(b []byte, off int64) (int, error) {
	if err := f.fs.err.Load(); err != nil {
		return 0, *err
	}
	return f.File.ReadAt(b, off)
}

// TestReadErrors: a block is given up when the disk cannot return it, but not
// when the process is short of descriptors. REL-4, REL-8
func TestReadErrors(t *testing.T) {
	fsys := &readFS{FS: vfs.NewMem()}
	s := openStore(t, fsys)
	defer s.Close()
	c, err := s.Named("log")
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 100_000) // in a segment
	if _, err := c.Append(block, block); err != nil {
		t.Fatal(err)
	}
	short := fmt.Errorf("open: %w", syscall.EMFILE)
	fsys.err.Store(&short)
	if _, err := c.Get(t.Context(), 0); !errors.Is(err, syscall.EMFILE) || isDamage(err) {
		t.Errorf("get without descriptors = %v, want that error", err)
	}
	fsys.err.Store(nil)
	if b, err := c.Get(t.Context(), 0); err != nil || !bytes.Equal(b, block) {
		t.Errorf("get later: %v", err)
	}
	broken := fmt.Errorf("read: %w", syscall.EIO)
	fsys.err.Store(&broken)
	if _, err := c.Get(t.Context(), 1); !isDamage(err) {
		t.Errorf("get from a broken disk = %v, want a DamageError", err)
	}
	fsys.err.Store(nil)
	if c.Has(1) || !c.Has(0) {
		t.Error("the damaged block is still offered, or another one is not")
	}
}
