//go:build unix

// Command reference measures cores and bees beside the reference implementation
// and prints a table: goals A1 to A6, B1, B2 and C1 of the performance document.
//
//	go run ./integration/bench/reference [-rounds N] [-entries N] [name...]
//
// Names are prefixes of rows, such as "A" or "B2"; none means all. Every round
// runs one side and then the other; a figure is the median of the rounds, and
// the ratio that of the medians. Processor time is user + system of all threads.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/internal/testenv"
)

// A result is a piece of work done, in a row's unit, and what it took.
type result struct {
	Work      float64
	CPU, Wall float64 // seconds
	Memory    float64 // bytes, of C1
	Bytes     float64 // on disk, of C1
}

type params map[string]any

// A row is one line of the table.
type row struct {
	name, what string
	unit       string
	goal       string
	figure     func(result) float64 // of one round
	params     params
	ours       func(*side, params) (result, error)
	js         string                                      // method of bench.mjs that does the same
	theirs     func(*testenv.Node, params) (result, error) // instead of js
}

func perCPU(r result) float64  { return r.Work / r.CPU }
func perWall(r result) float64 { return r.Work / r.Wall }

// A side is our half of a measurement: a store for its cores, and what rows keep
// between rounds.
type side struct {
	dir   string
	store *core.Store
	fresh int
	kept  map[int]*core.Core
}

// core opens a new one.
func (s *side) core() (*core.Core, error) {
	s.fresh++
	return s.store.Named(fmt.Sprint("bench ", s.fresh))
}

// measure times f.
func measure(work int, f func() error) (result, error) {
	cpu, start := cpuTime(), time.Now()
	err := f()
	return result{Work: float64(work), CPU: (cpuTime() - cpu).Seconds(), Wall: time.Since(start).Seconds()}, err
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func main() {
	rounds := flag.Int("rounds", 5, "rounds of each row, interleaved")
	entries := flag.Int("entries", 100_000, "entries of the bee that B2 reads")
	flag.Parse()
	if err := run(*rounds, *entries, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(rounds, entries int, names []string) error {
	if len(names) == 1 && strings.HasPrefix(names[0], openFlag) {
		return openAlone(strings.TrimPrefix(names[0], openFlag))
	}
	node, err := exec.LookPath("node")
	if err != nil {
		return err
	}
	js, err := testenv.NewNode(node, "bench.mjs")
	if err != nil {
		return err
	}
	defer js.Close()
	dir, err := os.MkdirTemp("", "pkgswarm-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	store, err := core.OpenStore(dir, core.Options{NoSync: true})
	if err != nil {
		return err
	}
	defer store.Close()
	s := &side{dir: dir, store: store, kept: map[int]*core.Core{}}
	fmt.Printf("%-4s %-44s %12s %12s %8s  %s\n", "", "", "ours", "reference", "ratio", "goal")
	for _, r := range rows(entries) {
		if !wanted(r.name, names) {
			continue
		}
		if err := r.run(s, js, rounds); err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
	}
	return nil
}

func wanted(name string, names []string) bool {
	return len(names) == 0 || slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(name, n) })
}

func (r row) run(s *side, js *testenv.Node, rounds int) error {
	var ours, theirs []float64
	for range rounds {
		a, err := r.ours(s, r.params)
		if err != nil {
			return err
		}
		b, err := r.reference(js)
		if err != nil {
			return err
		}
		ours, theirs = append(ours, r.figure(a)), append(theirs, r.figure(b))
	}
	a, b := median(ours), median(theirs)
	fmt.Printf("%-4s %-44s %12.4g %12.4g %7.2fx  %s\n", r.name, r.what+", "+r.unit, a, b, a/b, r.goal)
	return nil
}

func (r row) reference(js *testenv.Node) (b result, err error) {
	if r.theirs != nil {
		return r.theirs(js, r.params)
	}
	return b, js.Call(r.js, r.params, &b)
}

func median(v []float64) float64 {
	slices.Sort(v)
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}
