//go:build unix

// Command imports measures what importing a registry costs.
//
//	go run ./integration/bench/imports -crates 250000
//
// makes a synthetic index, imports it, imports it again unchanged, and once more
// with five packages changed, and prints lines per second, CPU time, peak memory,
// and what the result takes on disk.
//
//	go run ./integration/bench/imports -crates 5000 -compare 5
//
// imports an index five times in turn with a program that does no more with its
// lines than must be done, and with a JavaScript Hyperbee.
//
//	go run ./integration/bench/imports -modules 100000
//
// imports Go modules, some ten versions each, from a proxy and a checksum
// database on a loopback port, and again unchanged.
//
// Goals: I1 and I2 of the performance document.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"strings"
	"syscall"
	"time"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/importer"
	"github.com/pkgswarm/pkgswarm/integration/synthetic"
	"github.com/pkgswarm/pkgswarm/registry/catalog"
)

// profiles is where CPU profiles go, if anywhere.
var profiles string

func main() {
	crates := flag.Int("crates", 25000, "number of `CRATES`; the real registry has 250000")
	modules := flag.Int("modules", 0, "import `MODULES` instead of crates")
	dir := flag.String("dir", "", "work in `DIR`, which keeps the index for the next time (default: a temporary one)")
	only := flag.Bool("generate", false, "only make the index")
	rounds := flag.Int("compare", 0, "compare with others in `ROUNDS`")
	serve := flag.Int("serve", 0, "serve `MODULES` until standard input ends")
	flag.StringVar(&profiles, "profiles", "", "write profiles of each run to `DIR`: of the CPU, and of the heap in the end")
	flag.Parse()
	debug.SetGCPercent(40) // as the command does
	if *serve > 0 {
		if err := serveModules(*serve); err != nil {
			log.Fatal(err)
		}
		return
	}
	if err := inDir(*dir, func(dir string) error {
		if *modules > 0 {
			return measureModules(dir, *modules)
		}
		return run(dir, *crates, *rounds, *only)
	}); err != nil {
		log.Fatal(err)
	}
}

func inDir(dir string, f func(dir string) error) error {
	if dir != "" {
		return f(dir)
	}
	tmp, err := os.MkdirTemp("", "pkgswarm-imports-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	return f(tmp)
}

func run(dir string, crates, rounds int, only bool) error {
	syn := synthetic.Cargo{Crates: crates, Seed: 1}
	index := filepath.Join(dir, fmt.Sprintf("index-%d", crates))
	raw, err := generate(syn, index)
	if err != nil || only {
		return err
	}
	work := filepath.Join(dir, "work")
	if err := os.RemoveAll(work); err != nil {
		return err
	}
	fmt.Printf("index: %d crates, %d lines, %.1f MB\n", crates, raw.Lines, float64(raw.Bytes)/1e6)
	if rounds > 0 {
		return compare(index, work, raw.Lines, rounds)
	}
	if err := report("first run", work, index); err != nil {
		return err
	}
	sizes(work, raw.Bytes)
	if err := report("second run, unchanged", work, index); err != nil {
		return err
	}
	for i := range 5 {
		restore, err := change(index, syn.Crate(i*crates/5))
		if err != nil {
			return err
		}
		defer restore()
	}
	return report("third run, 5 packages changed", work, index)
}

// A rawSize is how large an index is.
type rawSize struct{ Lines, Bytes int64 }

func generate(syn synthetic.Cargo, index string) (s rawSize, err error) {
	note := index + ".json"
	if b, err := os.ReadFile(note); err == nil {
		return s, json.Unmarshal(b, &s)
	}
	if s.Lines, s.Bytes, err = syn.Write(index); err != nil {
		return s, err
	}
	b, err := json.Marshal(s)
	if err != nil {
		return s, err
	}
	return s, os.WriteFile(note, b, 0o644)
}

// change yanks the last version of a crate, until restore is called.
func change(index string, k synthetic.Crate) (restore func(), err error) {
	path := filepath.Join(index, filepath.FromSlash(synthetic.Path(k.Name)))
	last := &k.Lines[len(k.Lines)-1]
	yanked := bytes.Replace(*last, []byte(`"yanked":false`), []byte(`"yanked":true`), 1)
	if bytes.Equal(yanked, *last) {
		yanked = bytes.Replace(*last, []byte(`"yanked":true`), []byte(`"yanked":false`), 1)
	}
	old := k.File()
	*last = yanked
	return func() { os.WriteFile(path, old, 0o644) }, os.WriteFile(path, k.File(), 0o644)
}

// profile starts a CPU profile of that name and returns what ends it.
func profile(name string) (stop func(), err error) {
	if profiles == "" {
		return func() {}, nil
	}
	f, err := os.Create(profilePath(name))
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, err
	}
	return func() { pprof.StopCPUProfile(); f.Close() }, nil
}

// heapProfile writes what is on the heap.
func heapProfile(name string) error {
	if profiles == "" {
		return nil
	}
	f, err := os.Create(profilePath(name + " heap"))
	if err != nil {
		return err
	}
	return errors.Join(pprof.WriteHeapProfile(f), f.Close())
}

func profilePath(name string) string {
	return filepath.Join(profiles, strings.ReplaceAll(name, " ", "-")+".pprof")
}

// A cost is what a run took.
type cost struct {
	wall, cpu time.Duration
	sum       importer.Summary
	catalog   uint64 // bytes that the catalog has grown by
}

func cargoDir(index string) func() (importer.Source, error) {
	return func() (importer.Source, error) { return importer.OpenCargoDir(index) }
}

// measure runs one import from opening the store to closing it.
func measure(what, work string, open func() (importer.Source, error)) (c cost, err error) {
	runtime.GC()
	stop, err := profile(what)
	if err != nil {
		return c, err
	}
	defer stop()
	start, cpu := time.Now(), cpuTime()
	store, err := core.OpenStore(filepath.Join(work, "store"), importer.StoreOptions())
	if err != nil {
		return c, err
	}
	op := catalog.NewOperator(catalog.Seed{1})
	memory, err := catalog.OpenMemory(filepath.Join(work, "heads"))
	if err != nil {
		return c, err
	}
	m, pairs := op.Catalog()
	cat, err := store.Create(m, pairs...)
	if err != nil {
		return c, err
	}
	before := cat.ByteLength()
	w, err := catalog.OpenWriter(context.Background(), cat, memory)
	if err != nil {
		return c, err
	}
	src, err := open()
	if err != nil {
		return c, err
	}
	im := importer.New(importer.Config{
		Logs: &importer.CoreLogs{Store: store, Operator: op}, Catalog: w, Dir: filepath.Join(work, "importer"),
		Report: func(p importer.Problem) { log.Print(p) },
	})
	if c.sum, err = im.Run(context.Background(), src); err != nil {
		return c, err
	}
	c.catalog = cat.ByteLength() - before
	err = errors.Join(heapProfile(what), store.Close())
	c.wall, c.cpu = time.Since(start), cpuTime()-cpu
	return c, err
}

func report(what, work, index string) error {
	c, err := measure(what, work, cargoDir(index))
	if err == nil {
		c.print(what)
	}
	return err
}

func (c cost) print(what string) {
	fmt.Printf("%s: %.2f s (%.2f s of CPU), %d changed, %d events, %.0f versions/s, %.1f us of CPU each, catalog +%d bytes, peak RSS %d MB\n",
		what, c.wall.Seconds(), c.cpu.Seconds(), c.sum.Changed, c.sum.Events, float64(c.sum.Versions)/c.wall.Seconds(),
		float64(c.cpu.Microseconds())/float64(max(c.sum.Versions, 1)), c.catalog, peakRSS()/1e6)
}

func sizes(work string, raw int64) {
	var total int64
	filepath.WalkDir(filepath.Join(work, "store"), func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		if info, err := e.Info(); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				total += st.Blocks * 512
			}
		}
		return nil
	})
	fmt.Printf("on disk: %.1f MB, %.1f %% of the index\n", float64(total)/1e6, 100*float64(total)/float64(raw))
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func peakRSS() int64 {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return u.Maxrss << 10
}
