//go:build unix

package swarm_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/swarm"
	"github.com/pkgswarm/pkgswarm/swarm/protomux"
	"github.com/pkgswarm/pkgswarm/swarm/replicate"
	"github.com/pkgswarm/pkgswarm/swarm/secretstream"
)

// fewDescriptors is the environment variable that makes the test program the node
// of TestFewDescriptors; its value is the node's directory.
const fewDescriptors = "PKGSWARM_TEST_FEW_DESCRIPTORS"

const fewBlocks = 20

func init() { programs[fewDescriptors] = runFewDescriptors }

// runFewDescriptors serves a core with 128 descriptors until in ends.
func runFewDescriptors(dir string, in io.Reader, out io.Writer) error {
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 128, Max: 128}); err != nil {
		return err
	}
	return serveSource(dir, fewBlocks, out, func() { io.Copy(io.Discard, in) })
}

// TestFewDescriptors takes all descriptors of a node with connections: it sheds new
// ones, goes on to serve those that it has, and takes new ones when there is room
// again. REL-8
func TestFewDescriptors(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), fewDescriptors+"="+t.TempDir())
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var name, addr string
	if _, err := fmt.Fscan(bufio.NewReader(out), &name, &addr); err != nil {
		t.Fatal(err)
	}
	k, err := core.ParseKey(name)
	if err != nil {
		t.Fatal(err)
	}

	old := start(t, swarm.Config{Key: key(2), Peers: []string{addr}})
	c, err := old.store.Open(k)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := old.Open(c, replicate.SessionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Get(t.Context(), 0); err != nil {
		t.Fatal(err)
	}

	full := crowd(t, addr, 150)
	if n := full.connected(); n < 60 || n > 127 {
		t.Errorf("%d of 150 connections were taken by a node with 128 descriptors", n)
	}
	for i := uint64(1); i < fewBlocks; i++ {
		if b, err := s.Get(t.Context(), i); err != nil || string(b) != fmt.Sprintf("block %d", i) {
			t.Fatalf("block %d = %q, %v", i, b, err)
		}
	}
	full.close()
	start(t, swarm.Config{Key: key(3), Peers: []string{addr}}).fetch(t, k, fewBlocks)
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("the node ended with %v", err)
	}
}

// A crowdOf is many peers that connect and do nothing.
type crowdOf struct {
	mux  []*protomux.Mux
	runs sync.WaitGroup
	raw  []net.Conn
}

func crowd(t *testing.T, addr string, n int) *crowdOf {
	c := &crowdOf{}
	for i := range n {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			continue
		}
		c.raw = append(c.raw, conn)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		s, err := secretstream.Client(ctx, conn, secretstream.Config{Key: newKey(1000 + i)})
		cancel()
		if err != nil {
			break // it is full
		}
		m := protomux.New(s)
		c.mux = append(c.mux, m)
		c.runs.Go(func() { m.Run() })
	}
	return c
}

func (c *crowdOf) connected() int { return len(c.mux) }

func (c *crowdOf) close() {
	for _, m := range c.mux {
		m.Close(nil)
	}
	for _, r := range c.raw {
		r.Close()
	}
	c.runs.Wait()
}
