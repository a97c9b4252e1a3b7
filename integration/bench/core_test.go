package bench

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/internal/testenv"
)

// A cost is what some work took.
type cost struct {
	CPU    float64 `json:"cpu"`    // seconds of all threads
	Wall   float64 `json:"wall"`   // seconds
	Memory float64 `json:"memory"` // bytes
	Disk   float64 `json:"disk"`   // bytes
}

func cpuSeconds() float64 {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}

func measure(work func()) cost {
	runtime.GC()
	before, start := cpuSeconds(), time.Now()
	work()
	return cost{CPU: cpuSeconds() - before, Wall: time.Since(start).Seconds()}
}

// numbered returns blocks of size bytes, each another one, in batches.
func numbered(count, size, batch int) [][][]byte {
	var out [][][]byte
	for i := 0; i < count; i += batch {
		group := make([][]byte, batch)
		for k := range group {
			group[k] = make([]byte, size)
			binary.LittleEndian.PutUint32(group[k], uint32(i+k))
		}
		out = append(out, group)
	}
	return out
}

// A logStore is a store with one core.
type logStore struct {
	b     testing.TB
	dir   string
	store *core.Store
	log   *core.Core
}

func newLogStore(b testing.TB) *logStore {
	dir := b.TempDir()
	s, err := core.OpenStore(dir, core.Options{})
	if err != nil {
		b.Fatal(err)
	}
	c, err := s.Named("log")
	if err != nil {
		b.Fatal(err)
	}
	return &logStore{b, dir, s, c}
}

func (l *logStore) append(blocks [][]byte, durable bool) {
	do := l.log.AppendLazy
	if durable {
		do = l.log.Append
	}
	if _, err := do(blocks...); err != nil {
		l.b.Fatal(err)
	}
}

func (l *logStore) close() {
	if err := l.store.Close(); err != nil {
		l.b.Fatal(err)
	}
}

// goAppend appends in this process.
func goAppend(b testing.TB, count, size, batch int, durable bool) cost {
	l := newLogStore(b)
	defer l.close()
	work := numbered(count, size, batch)
	return measure(func() {
		for _, blocks := range work {
			l.append(blocks, durable)
		}
	})
}

// goAppenders appends durably from many goroutines at once.
func goAppenders(b testing.TB, count, size, appenders int) cost {
	l := newLogStore(b)
	defer l.close()
	work := numbered(count, size, 1)
	return measure(func() {
		var wg sync.WaitGroup
		for a := range appenders {
			wg.Go(func() {
				for i := a; i < len(work); i += appenders {
					l.append(work[i], true)
				}
			})
		}
		wg.Wait()
	})
}

func goGet(b testing.TB, count, size, reads int) cost {
	l := newLogStore(b)
	defer l.close()
	for _, blocks := range numbered(count, size, 1000) {
		l.append(blocks, false)
	}
	r := rand.New(rand.NewPCG(1, 1))
	return measure(func() {
		for range reads {
			if _, err := l.log.Get(b.Context(), r.Uint64N(uint64(count))); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func goStream(b testing.TB, count, size int) cost {
	l := newLogStore(b)
	defer l.close()
	for _, blocks := range numbered(count, size, 16) {
		l.append(blocks, false)
	}
	return measure(func() {
		for _, err := range l.log.Blocks(b.Context(), 0, uint64(count)) {
			if err != nil {
				b.Fatal(err)
			}
		}
	})
}

// diskUsed returns the bytes that the files below dir take.
func diskUsed(b testing.TB, dir string) (n float64) {
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := os.Lstat(path)
		if err == nil {
			n += float64(info.Sys().(*syscall.Stat_t).Blocks * 512)
		}
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	return n
}

func reopen(b testing.TB, dir string) *core.Store {
	s, err := core.OpenStore(dir, core.Options{})
	if err != nil {
		b.Fatal(err)
	}
	return s
}

func goDisk(b testing.TB, count, size, batch int) float64 {
	l := newLogStore(b)
	for _, blocks := range numbered(count, size, batch) {
		l.append(blocks, false)
	}
	l.close()
	if err := reopen(b, l.dir).Close(); err != nil { // settles it
		b.Fatal(err)
	}
	return diskUsed(b, l.dir)
}

func goOpenMany(b testing.TB, count int) cost {
	dir := b.TempDir()
	s := reopen(b, dir)
	for i := range count {
		c, err := s.Named(fmt.Sprint("core ", i))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := c.AppendLazy([]byte("x")); err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	s = reopen(b, dir)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	cores := make([]*core.Core, 0, count)
	used := measure(func() {
		for i := range count {
			c, err := s.Named(fmt.Sprint("core ", i))
			if err != nil {
				b.Fatal(err)
			}
			cores = append(cores, c)
		}
	})
	runtime.GC()
	runtime.ReadMemStats(&after)
	used.Memory = float64(after.HeapAlloc-before.HeapAlloc) / float64(count)
	for _, c := range cores {
		c.Close()
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	used.Disk = diskUsed(b, dir) / float64(count)
	return used
}

// A comparison is one goal of the performance document: ours against the
// reference's. The ratio is theirs divided by ours.
type comparison struct {
	goal, what   string
	want         string
	ours, theirs []float64
}

func sorted(v []float64) []float64 { return slices.Sorted(slices.Values(v)) }

func median(v []float64) float64 { return sorted(v)[len(v)/2] }

// BenchmarkCore is goals A1 to A6 and C1: rounds of both sides, one after the
// other, and the medians. -benchtime 5x is five rounds.
//
//	go test -bench '^BenchmarkCore$' -benchtime 5x ./integration/bench
func BenchmarkCore(b *testing.B) {
	js := testenv.StartNode(b, "core-bench.mjs")
	type params = map[string]int
	reference := func(method string, p params) (c cost) {
		js.MustCall(b, method, p, &c)
		return c
	}
	var table []*comparison
	add := func(goal, what, want string, ours, theirs float64) {
		i := slices.IndexFunc(table, func(c *comparison) bool { return c.goal == goal && c.what == what })
		if i < 0 {
			i = len(table)
			table = append(table, &comparison{goal: goal, what: what, want: want})
		}
		table[i].ours, table[i].theirs = append(table[i].ours, ours), append(table[i].theirs, theirs)
	}
	for b.Loop() {
		const n = 4000
		one := params{"count": n, "size": 64, "batch": 1}
		ref := reference("append", one)
		add("A1", "append 64 B, us of CPU", "6x", 1e6*goAppend(b, n, 64, 1, false).CPU/n, 1e6*ref.CPU/n)
		add("A2", "durable append 64 B, us", "1x", 1e6*goAppend(b, n/4, 64, 1, true).Wall/(n/4), 1e6*ref.Wall/n)
		add("A2", "100 durable appenders, us", "8x", 1e6*goAppenders(b, n*4, 64, 100).Wall/(n*4), 1e6*ref.Wall/n)
		const many = 200_000
		ref = reference("append", params{"count": many, "size": 64, "batch": 1000})
		add("A3", "append 1000 x 64 B, us of CPU a block", "4x", 1e6*goAppend(b, many, 64, 1000, false).CPU/many, 1e6*ref.CPU/many)
		ref = reference("append", params{"count": 1600, "size": 64 << 10, "batch": 16})
		add("A4", "append 16 x 64 KiB, us of CPU a block", "2x", 1e6*goAppend(b, 1600, 64<<10, 16, false).CPU/1600, 1e6*ref.CPU/1600)
		const reads = 20_000
		ref = reference("get", params{"count": 50_000, "size": 64, "reads": reads})
		add("A5", "get 64 B at random, us of CPU", "4x", 1e6*goGet(b, 50_000, 64, reads).CPU/reads, 1e6*ref.CPU/reads)
		ref = reference("stream", params{"count": 1600, "size": 64 << 10})
		add("A5", "read stream of 64 KiB, us a block", "3x", 1e6*goStream(b, 1600, 64<<10).Wall/1600, 1e6*ref.Wall/1600)
		var disk float64
		js.MustCall(b, "disk", params{"count": 50_000, "size": 200, "batch": 100}, &disk)
		add("A6", "bytes on disk beyond 200 B blocks", "1.25x", goDisk(b, 50_000, 200, 100)/50_000-200, disk/50_000-200)
		const cores = 2000
		ref = reference("openMany", params{"count": cores})
		ours := goOpenMany(b, cores)
		add("C1", "open a core, us", "10x", 1e6*ours.Wall/cores, 1e6*ref.Wall/cores)
		add("C1", "memory of a core, bytes", "5x", ours.Memory, ref.Memory)
		add("C1", "disk of a one-block core, bytes", "4x", ours.Disk, ref.Disk)
	}
	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "goal\twhat\tours\treference\tratio\twanted")
	for _, c := range table {
		ours, theirs := median(c.ours), median(c.theirs)
		fmt.Fprintf(w, "%s\t%s\t%.1f\t%.1f\t%.1fx\t%s\n", c.goal, c.what, ours, theirs, theirs/ours, c.want)
	}
	w.Flush()
	fmt.Print("\n", out.String()) // b.Log cuts it
}
