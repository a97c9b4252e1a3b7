package swarm_test

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"sync"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/core/merkle"
	"github.com/pkgswarm/pkgswarm/internal/compact"
	"github.com/pkgswarm/pkgswarm/swarm"
	"github.com/pkgswarm/pkgswarm/swarm/protomux"
	"github.com/pkgswarm/pkgswarm/swarm/secretstream"
)

// Numbers of messages of hypercore/alpha, see package replicate.
const (
	msgSync = iota
	msgRequest
	_
	msgData
	_
	msgWant
	_
	msgBitfield
	msgRange
	msgExtension
)

// An attacker has a connection to a node and a channel of a core on it.
type attacker struct {
	stream *secretstream.Conn
	mux    *protomux.Mux
	ch     *protomux.Channel
	deaf   chan struct{} // closed: it reads again
}

func (a *attacker) Opened([]byte) error       { return nil }
func (a *attacker) Message(int, []byte) error { <-a.deaf; return nil }
func (a *attacker) Closed()                   {}

// uints returns numbers as a message has them.
func uints(n ...uint64) (b []byte) {
	for _, v := range n {
		b = compact.AppendUint(b, v)
	}
	return b
}

// attacks are what peers do to take a node's memory; each returns when it has done
// it often enough, or is cut off.
var attacks = []struct {
	name string
	run  func(a *attacker) error
}{
	{"frames of 16 MiB", func(a *attacker) error {
		return many(20, func(uint64) error { return a.ch.Send(200, make([]byte, 1<<24-100)) })
	}},
	{"data of 15 MiB", func(a *attacker) error {
		return many(20, func(i uint64) error {
			p := merkle.Proof{Block: &merkle.BlockProof{Index: i, Value: make([]byte, 15<<20)}}
			return a.ch.Send(msgData, p.AppendMessage(nil, 0))
		})
	}},
	{"a length of 2^50", func(a *attacker) error {
		return many(20_000, func(i uint64) error { return a.ch.Send(msgSync, uints(7, 0, 1<<50+i, 0)) })
	}},
	{"ranges of 2^40", func(a *attacker) error {
		return many(300_000, func(i uint64) error { return a.ch.Send(msgRange, uints(0, i<<41, 1<<40)) })
	}},
	{"20 000 pages of bitfield", func(a *attacker) error {
		page := bytes.Repeat([]byte{0xaa}, 4096)
		return many(20_000, func(i uint64) error { return a.ch.Send(msgBitfield, append(uints(i<<15, 1024), page...)) })
	}},
	{"100 000 wants", func(a *attacker) error {
		return many(100_000, func(i uint64) error { return a.ch.Send(msgWant, uints(i<<5, 32)) })
	}},
	{"100 000 requests", func(a *attacker) error {
		return many(100_000, func(i uint64) error {
			r := merkle.Request{Block: &merkle.BlockRequest{Index: i % 10}}
			return a.ch.Send(msgRequest, r.AppendMessage(nil, i+1, 0))
		})
	}},
	{"extensions", func(a *attacker) error {
		return many(100_000, func(i uint64) error {
			return a.ch.Send(msgExtension, append(compact.AppendString(nil, fmt.Sprint("extension ", i)), make([]byte, 1000)...))
		})
	}},
	{"100 000 channels", func(a *attacker) error {
		return many(100_000, func(i uint64) error {
			id := make([]byte, 32)
			binary.LittleEndian.PutUint64(id, i)
			_, err := a.mux.Open("hypercore/alpha", id, make([]byte, 33), a)
			return err
		})
	}},
	{"unknown protocols", func(a *attacker) error {
		return many(100_000, func(i uint64) error {
			_, err := a.mux.Open(fmt.Sprint("protocol ", i), nil, make([]byte, 1000), a)
			return err
		})
	}},
}

func many(n uint64, f func(i uint64) error) error {
	for i := range n {
		if err := f(i); err != nil {
			return err
		}
	}
	return nil
}

// victimOf is the environment variable that makes the test program the node that
// TestAttacks attacks; its value is the node's directory.
const victimOf = "PKGSWARM_TEST_VICTIM"

const victimBlocks = 100

func init() { programs[victimOf] = runVictim }

// runVictim serves a core until in ends. For each line that it reads it writes the
// most bytes by which its heap has grown since the line before.
func runVictim(dir string, in io.Reader, out io.Writer) error {
	return serveSource(dir, victimBlocks, out, func() {
		peak := peakMemory()
		for lines := bufio.NewScanner(in); lines.Scan(); {
			fmt.Fprintln(out, peak())
			peak = peakMemory()
		}
	})
}

// peakMemory measures the heap until stop is called, which returns how much it has
// grown at most.
func peakMemory() (stop func() uint64) {
	read := func() uint64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	debug.FreeOSMemory()
	before, peak := read(), uint64(0)
	end, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-end:
				return
			case <-time.After(2 * time.Millisecond):
				if now := read(); now > before {
					peak = max(peak, now-before)
				}
			}
		}
	}()
	return func() uint64 { close(end); <-done; return peak }
}

// TestAttacks lets eight peers at once do each of what takes memory, and not read:
// the node's memory stays within what security allows for any attack, and an honest
// peer is served. SEC-20, REL-8
func TestAttacks(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 15 s")
	}
	const peers, limit = 8, 128 << 20
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), victimOf+"="+t.TempDir())
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	out := bufio.NewReader(pipe)
	var name, addr string
	if _, err := fmt.Fscan(out, &name, &addr); err != nil {
		t.Fatal(err)
	}
	k, err := core.ParseKey(name)
	if err != nil {
		t.Fatal(err)
	}
	for i, attack := range attacks {
		t.Run(attack.name, func(t *testing.T) {
			var grown uint64
			fmt.Fprintln(in)
			fmt.Fscan(out, &grown) // by what was before
			var runs sync.WaitGroup
			var all []*attacker
			for p := range peers {
				a := newAttacker(t, addr, newKey(500+10*i+p), k)
				all = append(all, a)
				runs.Go(func() { a.mux.Run() })
				runs.Go(func() {
					attack.run(a)
					a.stream.Flush()
				})
			}
			start(t, swarm.Config{Key: newKey(400 + i), Peers: []string{addr}}).fetch(t, k, victimBlocks)
			finished := make(chan struct{})
			go func() { runs.Wait(); close(finished) }()
			select { // those whose answers nobody reads wait for ever
			case <-finished:
			case <-time.After(500 * time.Millisecond):
			}
			fmt.Fprintln(in)
			if fmt.Fscan(out, &grown); grown > limit {
				t.Errorf("memory grew by %d MiB", grown>>20)
			}
			t.Logf("memory grew by %d KiB", grown>>10)
			for _, a := range all {
				close(a.deaf)
				a.mux.Close(nil)
				a.stream.Close()
			}
			runs.Wait()
		})
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("the node ended with %v", err)
	}
}

// newAttacker connects to addr.
func newAttacker(t *testing.T, addr string, id ed25519.PrivateKey, k core.Key) *attacker {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := secretstream.Client(t.Context(), conn, secretstream.Config{Key: id})
	if err != nil {
		t.Fatal(err)
	}
	a := &attacker{stream: stream, mux: protomux.New(stream), deaf: make(chan struct{})}
	capability := core.Capability(k, stream.HandshakeHash(), true)
	dk := k.Discovery()
	if a.ch, err = a.mux.Open("hypercore/alpha", dk[:], append([]byte{1}, capability[:]...), a); err != nil {
		t.Fatal(err)
	}
	return a
}
