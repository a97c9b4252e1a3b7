// Command imports measures what importing a registry costs: it makes a
// synthetic index, imports it, imports it again unchanged, and once more with
// five packages changed.
//
//	go run ./integration/bench/imports -crates 250000
//
// prints lines per second, CPU time, peak memory, and what the result takes on
// disk. Goals: docs of performance I1 and I2.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io/fs"
	"log"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strings"
	"syscall"
	"time"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/importer"
	"github.com/pkgswarm/pkgswarm/integration/synthetic"
	"github.com/pkgswarm/pkgswarm/registry/catalog"
)

func main() {
	crates := flag.Int("crates", 25000, "number of `CRATES`; the real registry has 250000")
	dir := flag.String("dir", "", "work in `DIR`, which keeps the index for the next time (default: a temporary one)")
	only := flag.Bool("generate", false, "only make the index")
	flag.StringVar(&profiles, "profiles", "", "write a CPU profile of each run to `DIR`")
	flag.Parse()
	if err := run(*dir, *crates, *only); err != nil {
		log.Fatal(err)
	}
}

func run(dir string, crates int, only bool) error {
	if dir == "" {
		tmp, err := os.MkdirTemp("", "pkgswarm-imports-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(tmp)
		dir = tmp
	}
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
	if err := measure("first run", work, index); err != nil {
		return err
	}
	sizes(work, raw.Bytes)
	if err := measure("second run, unchanged", work, index); err != nil {
		return err
	}
	for i := range 5 {
		k := syn.Crate(i * crates / 5)
		line := append(k.Lines[len(k.Lines)-1:len(k.Lines)-1:len(k.Lines)-1], k.Lines[0])
		k.Lines = append(k.Lines[1:], line...)
		path := filepath.Join(index, filepath.FromSlash(synthetic.Path(k.Name)))
		old, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		defer os.WriteFile(path, old, 0o644)
		if err := os.WriteFile(path, k.File(), 0o644); err != nil {
			return err
		}
	}
	return measure("third run, 5 packages changed", work, index)
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

// profiles is where CPU profiles go, if anywhere.
var profiles string

// profile starts a CPU profile of that name and returns what ends it.
func profile(name string) (stop func(), err error) {
	if profiles == "" {
		return func() {}, nil
	}
	f, err := os.Create(filepath.Join(profiles, strings.ReplaceAll(name, " ", "-")+".pprof"))
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, err
	}
	return func() { pprof.StopCPUProfile(); f.Close() }, nil
}

// measure runs one import from opening the store to closing it.
func measure(what, work, index string) error {
	runtime.GC()
	stop, err := profile(what)
	if err != nil {
		return err
	}
	defer stop()
	start, cpu := time.Now(), cpuTime()
	store, err := core.OpenStore(filepath.Join(work, "store"), core.Options{})
	if err != nil {
		return err
	}
	op := catalog.NewOperator(catalog.Seed{1})
	memory, err := catalog.OpenMemory(filepath.Join(work, "heads"))
	if err != nil {
		return err
	}
	m, pairs := op.Catalog()
	c, err := store.Create(m, pairs...)
	if err != nil {
		return err
	}
	before := c.ByteLength()
	w, err := catalog.OpenWriter(context.Background(), c, memory)
	if err != nil {
		return err
	}
	src, err := importer.OpenCargoDir(index)
	if err != nil {
		return err
	}
	im := importer.New(importer.Config{
		Logs: &importer.CoreLogs{Store: store, Operator: op}, Catalog: w, Dir: filepath.Join(work, "importer"),
		Report: func(p importer.Problem) { log.Print(p) },
	})
	sum, err := im.Run(context.Background(), src)
	if err != nil {
		return err
	}
	after := c.ByteLength()
	if err := store.Close(); err != nil {
		return err
	}
	elapsed, used := time.Since(start), cpuTime()-cpu
	fmt.Printf("%s: %.2f s (%.2f s of CPU), %d changed, %d events, %.0f lines/s, %.1f us of CPU a line, catalog +%d bytes, peak RSS %d MB\n",
		what, elapsed.Seconds(), used.Seconds(), sum.Changed, sum.Events, float64(sum.Versions)/elapsed.Seconds(),
		float64(used.Microseconds())/float64(max(sum.Versions, 1)), after-before, peakRSS()>>20)
	return nil
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
