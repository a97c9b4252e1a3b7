package importer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/integration/synthetic"
	"github.com/pkgswarm/pkgswarm/registry/catalog"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
)

// An operatorNode is an operator's store, catalog and importer in a directory.
type operatorNode struct {
	store    *core.Store
	catalog  *catalog.Writer
	importer *Importer
	problems []Problem
}

var testSeed = catalog.Seed{1, 2, 3}

func openNode(t testing.TB, dir string, change func(*Config)) *operatorNode {
	t.Helper()
	n, err := newNode(dir, change)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.close)
	return n
}

func newNode(dir string, change func(*Config)) (*operatorNode, error) {
	store, err := core.OpenStore(filepath.Join(dir, "data", "store"), core.Options{})
	if err != nil {
		return nil, err
	}
	n := &operatorNode{store: store}
	op := catalog.NewOperator(testSeed)
	memory, err := catalog.OpenMemory(filepath.Join(dir, "state", "heads"))
	if err != nil {
		return nil, err
	}
	m, pairs := op.Catalog()
	c, err := store.Create(m, pairs...)
	if err != nil {
		return nil, err
	}
	if n.catalog, err = catalog.OpenWriter(context.Background(), c, memory); err != nil {
		store.Close()
		return nil, err
	}
	conf := Config{
		Logs:    &CoreLogs{store, op},
		Catalog: n.catalog,
		Dir:     filepath.Join(dir, "data", "importer"),
		Report:  func(p Problem) { n.problems = append(n.problems, p) },
		Now:     func() time.Time { return time.Unix(1700000000, 0) },
	}
	if change != nil {
		change(&conf)
	}
	n.importer = New(conf)
	return n, nil
}

func (n *operatorNode) close() {
	if n.store != nil {
		n.store.Close()
		n.store = nil
	}
}

func (n *operatorNode) run(t testing.TB, src Source) Summary {
	t.Helper()
	sum, err := n.importer.Run(t.Context(), src)
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// fold returns the folded log of a package as the catalog names it.
func (n *operatorNode) fold(t testing.TB, h pkglog.Header) *pkglog.State {
	t.Helper()
	key, err := catalog.PackageKey(h)
	if err != nil {
		t.Fatal(err)
	}
	e, ok, err := n.catalog.Entry(t.Context(), key)
	if err != nil || !ok {
		t.Fatalf("entry of %s: %v, %v", key, ok, err)
	}
	c, err := n.store.OpenExisting(e.Log)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := catalog.ReadLog(t.Context(), c, e, h)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// head names all that is signed: the catalog commits to every log.
func (n *operatorNode) head() string {
	return fmt.Sprintf("%d %x", n.catalog.Length(), catalog.PredecessorOf(n.catalogCore()).TreeHash)
}

func (n *operatorNode) catalogCore() *core.Core {
	c, err := n.store.OpenExisting(n.catalog.Key())
	if err != nil {
		panic(err)
	}
	return c
}

func crate(name string) pkglog.Header { return pkglog.Header{Ecosystem: pkglog.Cargo, Package: name} }

func cargoDir(t testing.TB, dir string) *CargoDir {
	t.Helper()
	src, err := OpenCargoDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return src
}

func TestImportDirectory(t *testing.T) {
	dir := t.TempDir()
	idx := filepath.Join(dir, "registry", "index")
	syn := synthetic.Cargo{Crates: 200, Seed: 7}
	lines, _, err := syn.Write(idx)
	if err != nil {
		t.Fatal(err)
	}
	n := openNode(t, dir, nil)
	src := cargoDir(t, filepath.Join(dir, "registry"))
	sum := n.run(t, src)
	if sum.Packages != 200 || sum.Changed != 200 || sum.Versions != lines || sum.Problems != 0 {
		t.Errorf("first run: %+v", sum)
	}
	for i := range syn.Crates {
		k := syn.Crate(i)
		if got := n.fold(t, crate(k.Name)).IndexFile(); !bytes.Equal(got, k.File()) {
			t.Errorf("index file of %s differs from the upstream's", k.Name)
		}
	}
	if h := n.catalog.Head(); h.Cargo != 200 || h.Go != 0 || !h.Time.Equal(time.Unix(1700000000, 0)) {
		t.Errorf("head is %+v", h)
	}

	t.Run("again", func(t *testing.T) {
		before := n.head()
		if sum := n.run(t, src); sum.Unchanged != 200 || sum.Events != 0 || n.head() != before {
			t.Errorf("second run: %+v, head %s, before %s", sum, n.head(), before)
		}
		os.RemoveAll(filepath.Join(dir, "data", "importer")) // no stamps: look at everything
		if sum := n.run(t, src); sum.Unchanged != 200 || sum.Events != 0 || n.head() != before {
			t.Errorf("third run: %+v, head %s, before %s", sum, n.head(), before)
		}
	})
	t.Run("changes", func(t *testing.T) {
		k, gone := syn.Crate(3), syn.Crate(4)
		path := filepath.Join(idx, filepath.FromSlash(synthetic.Path(k.Name)))
		k.Lines[0] = bytes.Replace(k.Lines[0], []byte(`"yanked":false`), []byte(`"yanked":true`), 1)
		if err := os.WriteFile(path, k.File(), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(idx, filepath.FromSlash(synthetic.Path(gone.Name)))); err != nil {
			t.Fatal(err)
		}
		if sum := n.run(t, src); sum.Changed != 2 || sum.Events != 2 {
			t.Errorf("run with a yank and a removal: %+v", sum)
		}
		if got := n.fold(t, crate(k.Name)).IndexFile(); !bytes.Equal(got, k.File()) {
			t.Errorf("index file of %s differs after the yank", k.Name)
		}
		if s := n.fold(t, crate(gone.Name)); s.Exists() || len(s.Withdrawn()) != len(gone.Lines) { // SEC-19
			t.Errorf("%s was not removed", gone.Name)
		}
		before := n.head()
		if n.run(t, src); n.head() != before {
			t.Error("a run over nothing new signed something")
		}
	})
	t.Run("added by others", func(t *testing.T) {
		// What another source has added since is found to be gone, too, by the
		// source that is the whole registry.
		other := filepath.Join(dir, "other")
		k := synthetic.Cargo{Crates: 1, Seed: 99}.Crate(0)
		home := "registry/index/r/.cache/"
		write(t, filepath.Join(other, home, synthetic.Path(k.Name)), cacheFile(k.Lines...))
		homes, err := OpenCargoHome(other)
		if err != nil {
			t.Fatal(err)
		}
		if sum := n.run(t, homes[0]); sum.Changed != 1 {
			t.Errorf("run over a CARGO_HOME: %+v", sum)
		}
		if sum := n.run(t, src); sum.Changed != 1 || sum.Events != 1 || n.fold(t, crate(k.Name)).Exists() {
			t.Errorf("run after it: %+v", sum)
		}
		before := n.head()
		if sum := n.run(t, src); sum.Events != 0 || n.head() != before {
			t.Errorf("run once more: %+v", sum)
		}
		k = syn.Crate(4) // removed above
		write(t, filepath.Join(idx, filepath.FromSlash(synthetic.Path(k.Name))), k.File())
		if sum := n.run(t, src); sum.Changed != 1 || !bytes.Equal(n.fold(t, crate(k.Name)).IndexFile(), k.File()) {
			t.Errorf("run with a crate that is back: %+v", sum)
		}
	})
	t.Run("broken source", func(t *testing.T) {
		before, broken := n.head(), t.TempDir()
		_, err := n.importer.Run(t.Context(), cargoDir(t, broken))
		if !errors.Is(err, ErrSource) || n.head() != before {
			t.Errorf("empty directory: %v", err)
		}
		write(t, filepath.Join(broken, filepath.FromSlash(synthetic.Path(syn.Name(3)))), syn.Crate(3).File())
		_, err = n.importer.Run(t.Context(), cargoDir(t, broken))
		if !errors.Is(err, ErrTooManyGone) {
			t.Errorf("directory with one file: %v", err)
		}
	})
}

func TestBadEntriesAreNotSigned(t *testing.T) {
	good := func(vers string) string {
		return `{"name":"Foo","vers":"` + vers + `","deps":[],"cksum":"` + strings.Repeat("ab", 32) + `","features":{},"yanked":false}`
	}
	bad := []string{ // SEC-7
		strings.Replace(good("0.1.1"), "Foo", "bar", 1),
		strings.Replace(good("1.0.0"), "abab", "cdcd", 1),
		strings.Replace(good("0.1.2"), strings.Repeat("ab", 32), "", 1),
		"{\"name\":\"Foo\",\"vers\":\"0.1.3\xff\"}",
		`{"name":"foo","vers":` + strings.Repeat("[", 200000),
		`{"name":"foo"}`,
		"no json",
	}
	dir := t.TempDir()
	idx := filepath.Join(dir, "up", "3", "f")
	if err := os.MkdirAll(idx, 0o755); err != nil {
		t.Fatal(err)
	}
	file := good("1.0.0") + "\n" + strings.Join(bad, "\n") + "\n" + good("1.0.1") + "\n"
	for name, content := range map[string]string{"foo": file, "Foo": file, "fo": good("1.0.0"), "foo.lock": "x"} {
		if err := os.WriteFile(filepath.Join(idx, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	n := openNode(t, dir, nil)
	sum := n.run(t, cargoDir(t, filepath.Join(dir, "up")))
	if sum.Packages != 1 || sum.Problems != int64(len(bad)) || len(n.problems) != len(bad) {
		t.Errorf("%+v, problems %v", sum, n.problems)
	}
	for _, p := range n.problems {
		if p.Package != "foo" || p.Reason == "" {
			t.Errorf("problem %+v", p)
		}
	}
	want := good("1.0.0") + "\n" + good("1.0.1") + "\n"
	if got := string(n.fold(t, crate("foo")).IndexFile()); got != want {
		t.Errorf("signed\n%s\nwant\n%s", got, want)
	}
	before := n.head()
	if sum := n.run(t, cargoDir(t, filepath.Join(dir, "up"))); sum.Problems != int64(len(bad)) || sum.Events != 0 || n.head() != before {
		t.Errorf("second run: %+v", sum)
	}
}

// countedLogs counts how logs are appended to.
type countedLogs struct {
	Logs
	durable, lazy atomic.Int64 // appends
}

func (l *countedLogs) Log(h pkglog.Header) (Log, error) {
	log, err := l.Logs.Log(h)
	return &countedLog{log, l}, err
}

type countedLog struct {
	Log
	of *countedLogs
}

func (l *countedLog) Append(blocks ...[]byte) (uint64, error) {
	l.of.durable.Add(1)
	return l.Log.Append(blocks...)
}

func (l *countedLog) AppendLazy(blocks ...[]byte) (uint64, error) {
	l.of.lazy.Add(1)
	return l.Log.AppendLazy(blocks...)
}

// TestServed appends to logs that peers can read. One that they can know is never
// seen longer than it will be after a crash; a new one is as cheap as without peers.
// SEC-16
func TestServed(t *testing.T) {
	dir := t.TempDir()
	idx := filepath.Join(dir, "index")
	syn := synthetic.Cargo{Crates: 40, Seed: 2}
	if _, _, err := syn.Write(idx); err != nil {
		t.Fatal(err)
	}
	var logs *countedLogs
	n := openNode(t, dir, func(c *Config) {
		logs = &countedLogs{Logs: c.Logs}
		c.Logs, c.Served = logs, true
	})
	n.run(t, cargoDir(t, idx))
	if d, l := logs.durable.Load(), logs.lazy.Load(); d != 0 || l != 40 {
		t.Errorf("first import: %d durable appends and %d others", d, l)
	}
	logs.lazy.Store(0)
	for i := range 3 {
		k := syn.Crate(i)
		k.Lines = append(k.Lines, bytes.Replace(k.Lines[0], []byte(`"vers":"`), []byte(`"vers":"9999.`), 1))
		write(t, filepath.Join(idx, filepath.FromSlash(synthetic.Path(k.Name))), k.File())
	}
	if sum := n.run(t, cargoDir(t, idx)); sum.Changed != 3 || sum.Problems != 0 {
		t.Errorf("second import: %+v, %v", sum, n.problems)
	}
	if d, l := logs.durable.Load(), logs.lazy.Load(); d != 3 || l != 0 {
		t.Errorf("three changed: %d durable appends and %d others", d, l)
	}
}

// A cutSource ends the run it is in after some packages.
type cutSource struct {
	Source
	left atomic.Int64
	cut  func()
}

func (c *cutSource) Packages(ctx context.Context) iter.Seq2[Package, error] {
	return func(yield func(Package, error) bool) {
		for p, err := range c.Source.Packages(ctx) {
			if c.left.Add(-1) < 0 {
				c.cut()
			}
			if !yield(p, err) {
				return
			}
		}
	}
}

// TestInterrupted: a run that is cut off again and again ends where one that is
// not does. REL-14
func TestInterrupted(t *testing.T) {
	dir := t.TempDir()
	if _, _, err := (synthetic.Cargo{Crates: 300, Seed: 3}).Write(filepath.Join(dir, "up")); err != nil {
		t.Fatal(err)
	}
	want := openNode(t, filepath.Join(dir, "a"), nil)
	want.run(t, cargoDir(t, filepath.Join(dir, "up")))

	n := openNode(t, filepath.Join(dir, "b"), nil)
	for i := range 12 {
		ctx, cancel := context.WithCancel(t.Context())
		src := &cutSource{Source: cargoDir(t, filepath.Join(dir, "up")), cut: cancel}
		src.left.Store(int64(i * 25))
		if _, err := n.importer.Run(ctx, src); err == nil {
			t.Fatal("run was not cut off")
		}
		cancel()
		if i%3 == 2 {
			n.close()
			n = openNode(t, filepath.Join(dir, "b"), func(c *Config) {
				c.Now = func() time.Time { return time.Unix(1800000000, 0) } // the run goes on with its first time
			})
		}
	}
	n.run(t, cargoDir(t, filepath.Join(dir, "up")))
	if got := n.head(); got != want.head() {
		t.Errorf("head after interruptions is %s, want %s", got, want.head())
	}
}

// TestRestoredBackup: an older store under a newer memory is not written to. SEC-16
func TestRestoredBackup(t *testing.T) {
	dir := t.TempDir()
	if _, _, err := (synthetic.Cargo{Crates: 20, Seed: 3}).Write(filepath.Join(dir, "up")); err != nil {
		t.Fatal(err)
	}
	n := openNode(t, filepath.Join(dir, "n"), nil)
	n.run(t, cargoDir(t, filepath.Join(dir, "up")))
	n.close()
	if err := os.RemoveAll(filepath.Join(dir, "n", "data")); err != nil {
		t.Fatal(err)
	}
	if _, err := newNode(filepath.Join(dir, "n"), nil); !errors.Is(err, catalog.ErrRollback) {
		t.Errorf("opened over an older store: %v", err)
	}
}

// TestRotate copies all logs under the new keys, block for block, and may be run
// again.
func TestRotate(t *testing.T) {
	dir := t.TempDir()
	syn := synthetic.Cargo{Crates: 30, Seed: 9}
	if _, _, err := syn.Write(filepath.Join(dir, "up")); err != nil {
		t.Fatal(err)
	}
	n := openNode(t, dir, nil)
	n.run(t, cargoDir(t, filepath.Join(dir, "up")))
	memory, err := catalog.OpenMemory(filepath.Join(dir, "state", "heads"))
	if err != nil {
		t.Fatal(err)
	}
	old, next := catalog.NewOperator(testSeed), catalog.NewOperator(catalog.Seed{4, 5, 6})
	var lengths []uint64
	for range 2 {
		if err := Rotate(t.Context(), n.store, old, next, memory); err != nil {
			t.Fatal(err)
		}
		c, err := n.store.OpenExisting(next.RegistryKey())
		if err != nil {
			t.Fatal(err)
		}
		lengths = append(lengths, c.Length())
		defer c.Close()
	}
	if lengths[0] != lengths[1] {
		t.Errorf("the second rotation wrote: catalog of %d, then %d blocks", lengths[0], lengths[1])
	}
	if err := Rotate(t.Context(), n.store, old, catalog.NewOperator(catalog.Seed{7}), memory); err == nil {
		t.Error("a catalog got a second successor")
	}
	c, err := n.store.OpenExisting(next.RegistryKey())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := catalog.OpenReader(c, memory, 0).Update(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range syn.Crates {
		k := syn.Crate(i)
		e, err := s.Entry(t.Context(), crate(k.Name))
		if err != nil {
			t.Fatal(err)
		}
		log, err := n.store.OpenExisting(e.Log)
		if err != nil {
			t.Fatal(err)
		}
		st, err := catalog.ReadLog(t.Context(), log, e, crate(k.Name))
		if err != nil || !bytes.Equal(st.IndexFile(), k.File()) {
			t.Errorf("%s after the rotation: %v", k.Name, err)
		}
		log.Close()
	}
}
