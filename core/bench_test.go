package core_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/pkgswarm/pkgswarm/core"
)

// diskStore returns a store on the disk: what benchmarks measure is the file
// system's as well.
func diskStore(b *testing.B) *core.Store {
	b.Helper()
	s, err := core.OpenStore(b.TempDir(), core.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	return s
}

func benchCore(b *testing.B, s *core.Store) *core.Core {
	b.Helper()
	c, err := s.Named("bench")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	return c
}

// BenchmarkAppend appends batches of blocks: durable before each returns, or lazily.
func BenchmarkAppend(b *testing.B) {
	for _, v := range []struct{ count, size int }{{1, 64}, {1000, 64}, {16, 64 << 10}} {
		blocks := make([][]byte, v.count)
		for i := range blocks {
			blocks[i] = bytes.Repeat([]byte{byte(i)}, v.size)
		}
		for _, durable := range []bool{true, false} {
			b.Run(fmt.Sprintf("%dx%d/durable=%v", v.count, v.size, durable), func(b *testing.B) {
				c := benchCore(b, diskStore(b))
				do := c.AppendLazy
				if durable {
					do = c.Append
				}
				b.SetBytes(int64(v.count * v.size))
				b.ReportAllocs()
				for b.Loop() {
					if _, err := do(blocks...); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkGet reads random blocks; each is checked against the tree.
func BenchmarkGet(b *testing.B) {
	for _, size := range []int{64, 64 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			c := benchCore(b, diskStore(b))
			const count = 2000
			for range count / 100 {
				blocks := make([][]byte, 100)
				for i := range blocks {
					blocks[i] = make([]byte, size)
				}
				if _, err := c.AppendLazy(blocks...); err != nil {
					b.Fatal(err)
				}
			}
			r := rand.New(rand.NewPCG(1, 1))
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.Get(context.Background(), r.Uint64N(count)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkHashStatic computes the key of a file.
func BenchmarkHashStatic(b *testing.B) {
	content := make([]byte, 32<<20)
	b.SetBytes(int64(len(content)))
	for b.Loop() {
		if _, err := core.HashStatic(bytes.NewReader(content), int64(len(content))); err != nil {
			b.Fatal(err)
		}
	}
}
