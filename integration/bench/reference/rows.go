//go:build unix

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/pkgswarm/pkgswarm/bee"
	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/internal/testenv"
)

// rows is the table. entries is the size of the bee that is read.
func rows(entries int) []row {
	const perCPUs, perSecond = "per CPU second", "per second"
	limit := new(syncs)
	return []row{
		{"A1", "append 64 B, one at a time", perCPUs, "6x, 10x", perCPU, params{"n": 2000}, appendOne(true), "appendOne", nil},
		{"A2", "the same, durable (reference: not)", perSecond, "1x, 1.2x", perWall, params{"n": 2000}, appendOne(false), "appendOne", nil},
		{"A2c", "the same, 100 at once", perSecond, "8x, 12x", perWall, params{"n": 2000}, appendConcurrently, "appendOne", nil},
		{"A2l", "the same, beside one fdatasync alone", perSecond, "", perWall, params{"n": 1000}, limit.ours, "", limit.theirs},
		{"A3", "append 1000 x 64 B", perCPUs, "4x, 6x", perCPU, params{"n": 40, "batch": 1000, "size": 64}, appendBatch, "appendBatch", nil},
		{"A4", "append 16 x 64 KiB, blocks", perCPUs, "2x, 2.4x", perCPU, params{"n": 60, "batch": 16, "size": 65536}, appendBatch, "appendBatch", nil},
		{"A5", "get 64 B at random", perCPUs, "4x, 6x", perCPU, params{"n": 10_000}, getRandom, "getRandom", nil},
		{"A5s", "stream of 64 KiB blocks, bytes", perSecond, "3x, 6x", perWall, params{"n": 1600}, stream, "stream", nil},
		{"A6", "disk beyond the data", "bytes a block", "0.8x, 0.7x", func(r result) float64 { return r.Work / 100_000 }, params{"n": 100_000}, disk, "disk", nil},
		{"B1", "bee put, batches of 1000", perCPUs, "10x, 20x", perCPU, params{"n": 10_000, "batch": 1000}, beePut, "beePut", nil},
		{"B1s", "bee put, one at a time", perCPUs, "6x, 12x", perCPU, params{"n": 2000, "batch": 1}, beePut, "beePut", nil},
		{"B2", "bee get at random", perCPUs, "15x, 30x", perCPU, params{"n": 3000, "entries": entries}, beeGet, "beeGet", nil},
		{"B2s", "bee read stream", perCPUs, "10x, 30x", perCPU, params{"entries": entries}, beeRange, "beeRange", nil},
		{"C1", "open 10 000 cores", perSecond, "10x, 30x", perWall, params{"n": 10_000}, openCores, "", openCoresJS},
		{"C1m", "memory of an open core", "bytes", "0.2x, 0.04x", func(r result) float64 { return r.Memory / r.Work }, params{"n": 10_000}, openCores, "", openCoresJS},
		{"C1d", "disk of a core of one block", "bytes", "0.25x, 0.1x", func(r result) float64 { return r.Bytes / r.Work }, params{"n": 10_000}, openCores, "", openCoresJS},
	}
}

// block makes one that does not compress, as bench.mjs does.
func block(size, i int) []byte {
	b := make([]byte, size)
	x := uint32(i) + 1
	for j := range b {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		b[j] = byte(x)
	}
	return b
}

func blocks(n, size int) [][]byte {
	out := make([][]byte, n)
	for i := range out {
		out[i] = block(size, i)
	}
	return out
}

func (p params) int(name string) int { return p[name].(int) }

// fresh opens a core in a store that syncs, or in the common one that does not.
func (s *side) opened(nosync bool, f func(*core.Core) (result, error)) (result, error) {
	store := s.store
	if !nosync {
		dir, err := os.MkdirTemp("", "pkgswarm-bench-")
		if err != nil {
			return result{}, err
		}
		defer os.RemoveAll(dir)
		if store, err = core.OpenStore(dir, core.Options{}); err != nil {
			return result{}, err
		}
		defer store.Close()
	}
	s.fresh++
	c, err := store.Named(fmt.Sprint("bench ", s.fresh))
	if err != nil {
		return result{}, err
	}
	defer c.Close()
	return f(c)
}

func appendOne(nosync bool) func(*side, params) (result, error) {
	return func(s *side, p params) (result, error) {
		return s.opened(nosync, func(c *core.Core) (result, error) {
			list := blocks(p.int("n"), 64)
			return measure(len(list), func() error {
				for _, b := range list {
					if _, err := c.Append(b); err != nil {
						return err
					}
				}
				return nil
			})
		})
	}
}

// syncs compares durable appends with what none can be faster than: one sync of
// as much data, which is written over what the file has already. Both are done in
// turn, so that they meet the same load.
type syncs struct{ alone result }

func (l *syncs) ours(s *side, p params) (result, error) {
	name := filepath.Join(s.dir, "sync")
	f, err := vfs.Default.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return result{}, err
	}
	defer vfs.Default.Remove(name)
	defer f.Close()
	const size = 1200 // what an append of 64 B takes in the log
	n := p.int("n")
	if _, err := f.Write(make([]byte, n*size)); err != nil {
		return result{}, err
	}
	if err := f.Sync(); err != nil {
		return result{}, err
	}
	return s.opened(false, func(c *core.Core) (result, error) {
		ours, alone := result{Work: float64(n)}, result{Work: float64(n)}
		small, data := block(64, 0), block(size, 0)
		for i := range n {
			start := time.Now()
			if _, err := c.Append(small); err != nil {
				return ours, err
			}
			between := time.Now()
			if _, err := f.WriteAt(data, int64(i)*size); err != nil {
				return ours, err
			}
			if err := f.SyncData(); err != nil {
				return ours, err
			}
			ours.Wall += between.Sub(start).Seconds()
			alone.Wall += time.Since(between).Seconds()
		}
		l.alone = alone
		return ours, nil
	})
}

func (l *syncs) theirs(*testenv.Node, params) (result, error) { return l.alone, nil }

func appendConcurrently(s *side, p params) (result, error) {
	return s.opened(false, func(c *core.Core) (result, error) {
		list := blocks(10*p.int("n"), 64)
		return measure(len(list), func() error {
			errs := make([]error, 100)
			var wg sync.WaitGroup
			for w := range errs {
				wg.Go(func() {
					for i := w; i < len(list) && errs[w] == nil; i += len(errs) {
						_, errs[w] = c.Append(list[i])
					}
				})
			}
			wg.Wait()
			for _, err := range errs {
				if err != nil {
					return err
				}
			}
			return nil
		})
	})
}

func appendBatch(s *side, p params) (result, error) {
	return s.opened(true, func(c *core.Core) (result, error) {
		list := blocks(p.int("batch"), p.int("size"))
		return measure(p.int("n")*len(list), func() error {
			for range p.int("n") {
				if _, err := c.Append(list...); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// A lehmer is the sequence of numbers that bench.mjs draws too.
type lehmer int

func (l *lehmer) next(n int) int {
	*l = *l * 16807 % 2147483647
	return int(*l) % n
}

func getRandom(s *side, p params) (result, error) {
	const length = 20_000
	return s.opened(true, func(c *core.Core) (result, error) {
		if _, err := c.Append(blocks(length, 64)...); err != nil {
			return result{}, err
		}
		x := lehmer(1)
		return measure(p.int("n"), func() error {
			for range p.int("n") {
				if _, err := c.Get(context.Background(), uint64(x.next(length))); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

func stream(s *side, p params) (result, error) {
	return s.opened(true, func(c *core.Core) (result, error) {
		list := blocks(16, 1<<16)
		for range p.int("n") / len(list) {
			if _, err := c.Append(list...); err != nil {
				return result{}, err
			}
		}
		return measure(p.int("n")<<16, func() error {
			for b, err := range c.Blocks(context.Background(), 0, c.Length()) {
				if err != nil || len(b) != 1<<16 {
					return fmt.Errorf("block of %d bytes: %v", len(b), err)
				}
			}
			return nil
		})
	})
}

// diskUse is what files take, sparse or not.
func diskUse(dir string) (sum float64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			sum += float64(info.Sys().(*syscall.Stat_t).Blocks * 512)
		}
		return err
	})
	return sum, err
}

func disk(_ *side, p params) (result, error) {
	n := p.int("n")
	dir, err := os.MkdirTemp("", "pkgswarm-bench-")
	if err != nil {
		return result{}, err
	}
	defer os.RemoveAll(dir)
	sum, err := filled(dir, func(s *core.Store) error {
		c, err := s.Named("disk")
		if err != nil {
			return err
		}
		defer c.Close()
		for i := range n / 1000 {
			list := make([][]byte, 1000)
			for k := range list {
				list[k] = block(200, 1000*i+k)
			}
			if _, err := c.Append(list...); err != nil {
				return err
			}
		}
		return nil
	})
	return result{Work: sum - float64(n*200)}, err
}

// filled fills a store and returns what it takes on disk when it is closed.
func filled(dir string, fill func(*core.Store) error) (float64, error) {
	if err := within(dir, fill); err != nil {
		return 0, err
	}
	return diskUse(dir)
}

// within opens the store in dir for f.
func within(dir string, f func(*core.Store) error) error {
	s, err := core.OpenStore(dir, core.Options{NoSync: true})
	if err != nil {
		return err
	}
	return errors.Join(f(s), s.Close())
}

// openFlag is the argument with which the program runs itself to open the cores
// of a directory, so that the memory measured is that of nothing else.
const openFlag = "open-cores="

func openCores(_ *side, p params) (result, error) {
	dir, err := os.MkdirTemp("", "pkgswarm-bench-")
	if err != nil {
		return result{}, err
	}
	defer os.RemoveAll(dir)
	bytes, err := filled(dir, func(s *core.Store) error {
		for i := range p.int("n") {
			c, err := s.Named(fmt.Sprint("core ", i))
			if err != nil {
				return err
			}
			if _, err := c.Append(block(64, i)); err != nil {
				return err
			}
			c.Close()
		}
		return nil
	})
	if err != nil {
		return result{}, err
	}
	exe, err := os.Executable()
	if err != nil {
		return result{}, err
	}
	out, err := exec.Command(exe, openFlag+dir).Output()
	if err != nil {
		return result{}, err
	}
	var r result
	err = json.Unmarshal(out, &r)
	r.Bytes = bytes
	return r, err
}

// openAlone is the work of that process: its result goes to standard output.
func openAlone(dir string) error {
	return within(dir, func(s *core.Store) error {
		var keys []core.Key
		for k, err := range s.Cores() {
			if err != nil {
				return err
			}
			keys = append(keys, k)
		}
		open := make([]*core.Core, 0, len(keys))
		before := rss()
		r, err := measure(len(keys), func() error {
			for _, k := range keys {
				c, err := s.OpenExisting(k)
				if err != nil {
					return err
				}
				open = append(open, c)
			}
			return nil
		})
		if err != nil {
			return err
		}
		r.Memory = rss() - before
		for _, c := range open {
			c.Close()
		}
		return json.NewEncoder(os.Stdout).Encode(r)
	})
}

func openCoresJS(js *testenv.Node, p params) (r result, err error) {
	var made struct {
		Dir   string   `json:"dir"`
		Keys  []string `json:"keys"`
		Bytes float64
	}
	if err := js.Call("fillCores", p.int("n"), &made); err != nil {
		return r, err
	}
	alone, err := testenv.NewNode(js.Process().Path, "bench.mjs")
	if err != nil {
		return r, err
	}
	err = errors.Join(alone.Call("openCores", made, &r), alone.Close())
	r.Bytes = made.Bytes
	return r, err
}

// rss is the resident memory in bytes, after a garbage collection.
func rss() float64 {
	runtime.GC()
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	pages, err := strconv.ParseFloat(strings.Fields(string(b))[1], 64)
	if err != nil {
		return 0
	}
	return pages * float64(os.Getpagesize())
}

func key(i int) []byte   { return fmt.Appendf(nil, "key %09d", i*7919%1000003) }
func value(i int) []byte { return fmt.Appendf(nil, "value %d", i) }

// put stores entries [0, n) in batches; a batch of 1 is a single put.
func put(tree *bee.Tree, n, batch int) error {
	ctx := context.Background()
	for i := 0; i < n; {
		if batch == 1 {
			if err := tree.Put(ctx, key(i), value(i)); err != nil {
				return err
			}
			i++
			continue
		}
		b := tree.Batch()
		for range min(batch, n-i) {
			if err := b.Put(ctx, key(i), value(i)); err != nil {
				return err
			}
			i++
		}
		if err := b.Flush(ctx); err != nil {
			return err
		}
	}
	return nil
}

func beePut(s *side, p params) (result, error) {
	return s.opened(true, func(c *core.Core) (result, error) {
		tree := bee.Open(c, bee.Options{})
		return measure(p.int("n"), func() error { return put(tree, p.int("n"), p.int("batch")) })
	})
}

// filled returns a bee of n entries, opened anew: nothing is cached.
func (s *side) filled(n int) (*bee.Tree, error) {
	if s.kept[n] == nil {
		c, err := s.core()
		if err != nil {
			return nil, err
		}
		if err := put(bee.Open(c, bee.Options{}), n, 1000); err != nil {
			return nil, err
		}
		s.kept[n] = c
	}
	return bee.Open(s.kept[n], bee.Options{}), nil
}

func beeGet(s *side, p params) (result, error) {
	entries := p.int("entries")
	tree, err := s.filled(entries)
	if err != nil {
		return result{}, err
	}
	x := lehmer(1)
	return measure(p.int("n"), func() error {
		for range p.int("n") {
			if _, err := tree.Get(context.Background(), key(x.next(entries))); err != nil {
				return err
			}
		}
		return nil
	})
}

func beeRange(s *side, p params) (result, error) {
	entries := p.int("entries")
	tree, err := s.filled(entries)
	if err != nil {
		return result{}, err
	}
	return measure(entries, func() error {
		n := 0
		for _, err := range tree.Range(context.Background(), bee.Range{}) {
			if err != nil {
				return err
			}
			n++
		}
		if n != entries {
			return fmt.Errorf("%d entries, want %d", n, entries)
		}
		return nil
	})
}
