package integration

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/internal/node"
)

// newFleet starts that many processes, each with an empty store and one join token,
// which find each other through the first.
func newFleet(t *testing.T, size int, c node.Config) (fleet []*nodeProcess) {
	t.Helper()
	c.FleetTokenFile = filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(c.FleetTokenFile, []byte("0123456789abcdef0123456789abcdef\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.SwarmListen, c.PeerExchange, c.PeerBudget = "127.0.0.1:0", true, 5*time.Second // this machine may be busy
	for range size {
		p := startProcess(t, t.TempDir(), c)
		fleet = append(fleet, p)
		c.Peers = append(c.Peers, p.status(t).Swarm.Listen[0])
	}
	// All are connected when none of the connections that were made twice, by both
	// ends, is given up any more.
	want := []byte(fmt.Sprintf("\npkgswarm_peers %d\n", size-1))
	since, end := time.Now(), time.Now().Add(20*time.Second)
	for time.Since(since) < time.Second {
		for _, p := range fleet {
			if _, metrics, err := p.get("/metrics"); !bytes.Contains(metrics, want) {
				since = time.Now()
				if since.After(end) {
					t.Fatalf("a member has %d peers, %v", len(p.status(t).Swarm.Peers), err)
				}
			}
		}
	}
	return fleet
}

// TestColdFleet: ten cold nodes that want the same at once cost the upstream one
// download of each artifact. REL-9
func TestColdFleet(t *testing.T) {
	if testing.Short() {
		t.Skip("starts ten processes")
	}
	up, crates := madeUp(t, 20, 200_000)
	up.Delay(50 * time.Millisecond)
	var wg sync.WaitGroup
	for _, p := range newFleet(t, 10, node.Config{CargoUpstream: up.Index(), GoUpstream: "off", SumDB: "off"}) {
		for name, want := range crates {
			wg.Go(func() {
				if status, b, err := p.get("/cargo/dl/" + name + "/1.0.0/download"); err != nil || status != 200 || !bytes.Equal(b, want) {
					t.Errorf("%s: %d, %d bytes, %v", name, status, len(b), err)
				}
			})
		}
	}
	wg.Wait()
	downloads := up.Downloads()
	if len(downloads) != len(crates) {
		t.Errorf("%d artifacts were downloaded, want %d", len(downloads), len(crates))
	}
	for path, n := range downloads {
		if n != 1 {
			t.Errorf("%s was downloaded %d times", path, n)
		}
	}
}

// TestFleetProcessKilled kills one of ten nodes with SIGKILL while it fetches what the
// others wait for: they all finish, for at most one download more of each artifact.
func TestFleetProcessKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("starts ten processes")
	}
	up, crates := madeUp(t, 8, 400_000)
	up.Delay(500 * time.Millisecond)
	fleet := newFleet(t, 10, node.Config{CargoUpstream: up.Index(), GoUpstream: "off", SumDB: "off"})
	victim := fleet[4]
	var wg sync.WaitGroup
	for name := range crates { // the victim is the first to want everything
		wg.Go(func() { victim.get("/cargo/dl/" + name + "/1.0.0/download") })
	}
	for len(up.Downloads()) < len(crates) {
		time.Sleep(time.Millisecond) // until it is fetching everything
	}
	for i, p := range fleet {
		if i == 4 {
			continue
		}
		for name, want := range crates {
			wg.Go(func() {
				if status, b, err := p.get("/cargo/dl/" + name + "/1.0.0/download"); err != nil || status != 200 || !bytes.Equal(b, want) {
					t.Errorf("%s: %d, %d bytes, %v", name, status, len(b), err)
				}
			})
		}
	}
	victim.kill()
	wg.Wait()
	for path, n := range up.Downloads() {
		if n > 2 {
			t.Errorf("%s was downloaded %d times, want 2 at most", path, n)
		}
	}
}
