package replicate

import (
	"context"
	"fmt"
	"testing"
)

// BenchmarkDownload copies a core from one peer to another, both in memory, over
// a connection without encryption: what scheduling, proofs and their checks cost.
func BenchmarkDownload(b *testing.B) {
	for _, v := range []struct{ count, size int }{{256, 64 << 10}, {10_000, 200}} {
		b.Run(fmt.Sprintf("%dx%d", v.count, v.size), func(b *testing.B) {
			ctx, cancel := context.WithCancel(b.Context())
			defer cancel()
			w := singleWriter(1)
			w.appendN(v.count, v.size)
			seeder := newNode(b, 1, w)
			b.SetBytes(int64(v.count * v.size))
			b.ReportAllocs()
			for b.Loop() {
				n := newNode(b, 2)
				l := new(link).connect(ctx, seeder, n)
				s, _ := n.open(w.key, SessionOptions{})
				if _, err := s.Update(ctx); err != nil {
					b.Fatal(err)
				}
				if err := s.Download(ctx, 0, uint64(v.count)); err != nil {
					b.Fatal(err)
				}
				s.Close()
				l.cut()
			}
		})
	}
}
