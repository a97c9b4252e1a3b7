package integration

import (
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/internal/node"
)

// TestHugeLine: an index file of one line of 64 MiB, one of lines within the limits
// that is larger as a whole, and one that has no end, are refused as wrong, not as
// absent, in bounded memory; the largest that is allowed is served. SEC-44
func TestHugeLine(t *testing.T) {
	up, _ := madeUp(t, 1, 1000)
	piece := strings.Repeat("x", 1<<20)
	line := func(n int) string { // of about n bytes
		return `{"name":"huge","vers":"1.0.0","deps":[],"cksum":"` + strings.Repeat("ab", 32) + `","features":{},"yanked":false,"x":"` + piece[:n] + "\"}\n"
	}
	for name, c := range map[string]struct {
		pieces int // -1: without end
		piece  string
		want   int
		body   string
	}{
		"64 MiB line":  {64, piece, 502, "huge"},
		"40 MiB file":  {80, line(1 << 19), 502, "larger than allowed"},
		"without end":  {-1, line(1 << 19), 502, "larger than allowed"},
		"31 MiB file":  {62, line(1 << 19), 200, ""},
		"2 MiB line":   {1, line(1<<20) + line(1<<20), 502, "line 1"},
		"30 MiB line":  {30, piece, 502, "line 1"},
		"30 MiB empty": {30, strings.Repeat("\n", 1<<20), 502, ""},
	} {
		t.Run(name, func(t *testing.T) {
			n, _ := cargoNode(t, up, node.Config{})
			up.Tamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if !strings.HasSuffix(r.URL.Path, "/huge") {
					next.ServeHTTP(w, r)
					return
				}
				for i := 0; i != c.pieces; i++ {
					if _, err := io.WriteString(w, c.piece); err != nil {
						return
					}
				}
			})
			peak := watchHeap()
			resp, err := http.Get(n.URL() + "/cargo/hu/ge/huge")
			if err != nil {
				t.Fatal(err)
			}
			size, start := int64(0), make([]byte, 4096)
			k, _ := io.ReadFull(resp.Body, start)
			rest, err := io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			size = int64(k) + rest
			if grown := peak(); grown > 192<<20 {
				t.Errorf("memory grew by %d MiB", grown>>20)
			}
			if resp.StatusCode != c.want || err != nil || c.want != 200 && !strings.Contains(string(start[:k]), c.body) {
				t.Errorf("%d %.200q, %d bytes, %v; want %d", resp.StatusCode, start[:k], size, err, c.want)
			}
			if c.want == 200 && size != int64(c.pieces*len(c.piece)) {
				t.Errorf("%d bytes, want %d", size, c.pieces*len(c.piece))
			}
		})
	}
	http.DefaultClient.CloseIdleConnections()
}

// watchHeap returns a function that tells by how much the heap has grown at most.
func watchHeap() func() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	before, most, done := m.HeapInuse, m.HeapInuse, make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			runtime.ReadMemStats(&m)
			most = max(most, m.HeapInuse)
			select {
			case <-tick.C:
			case <-done:
				return
			}
		}
	})
	return func() uint64 {
		close(done)
		wg.Wait()
		return most - before
	}
}
