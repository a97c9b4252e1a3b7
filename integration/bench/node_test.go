package bench

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/internal/cargoupstream"
	"github.com/pkgswarm/pkgswarm/internal/node"
)

// runNode runs a node in this process until stop is called.
func runNode(b testing.TB, c node.Config) (n *node.Node, stop func()) {
	b.Helper()
	dir, err := os.MkdirTemp("", "pkgswarm-bench-")
	if err != nil {
		b.Fatal(err)
	}
	c.Listen, c.Data, c.State = "127.0.0.1:0", filepath.Join(dir, "data"), filepath.Join(dir, "state")
	n, err = node.Open(c)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	return n, func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
		n.Close()
		os.RemoveAll(dir)
	}
}

// startNode runs a node in this process until the benchmark ends.
func startNode(b testing.TB, c node.Config) *node.Node {
	n, stop := runNode(b, c)
	b.Cleanup(stop)
	return n
}

// cargoNode is startNode with the cargo front end alone.
func cargoNode(b testing.TB, up *cargoupstream.Server, c node.Config) *node.Node {
	c.CargoUpstream, c.GoUpstream, c.SumDB = up.Index(), "off", "off"
	return startNode(b, c)
}

// noise returns size bytes that do not compress.
func noise(seed byte, size int) []byte {
	b := make([]byte, size)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// madeUp returns a registry with a crate of each size, "crate" and its number.
func madeUp(b testing.TB, sizes ...int) *cargoupstream.Server {
	up := cargoupstream.New(b)
	r := rand.NewChaCha8([32]byte{1})
	for i, n := range sizes {
		data := make([]byte, n)
		r.Read(data)
		up.Add(b, fmt.Sprintf("crate%d", i), "1.0.0", data)
	}
	return up
}

func slicesOf(n, size int) []int { return slices.Repeat([]int{size}, n) }

// crate and indexPath are where a node has what madeUp made, and its index file.
func crate(i int) string     { return fmt.Sprintf("/cargo/dl/crate%d/1.0.0/download", i) }
func indexPath(i int) string { return fmt.Sprintf("cr/at/crate%d", i) }

// get reads an answer and returns the time to its first byte and in all.
func get(b testing.TB, url string) (first, all time.Duration) {
	b.Helper()
	start := time.Now()
	resp, err := http.Get(url)
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	r := bufio.NewReader(resp.Body)
	if _, err := r.Peek(1); err != nil || resp.StatusCode != 200 {
		b.Fatalf("%s: %s %v", url, resp.Status, err)
	}
	first = time.Since(start)
	if _, err := io.Copy(io.Discard, r); err != nil {
		b.Fatal(err)
	}
	return first, time.Since(start)
}
