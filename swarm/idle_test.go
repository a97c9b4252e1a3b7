package swarm_test

import (
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/swarm"
)

// memory returns what the heap and the stacks take, in bytes.
func memory() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

// SEC-20: a thousand idle peers, to whom a thousand cores each are shared when they
// ask, take less than 100 KiB each. (Both ends of the connections are in this process,
// and alike: so ours is half of what they take.)
func TestIdlePeers(t *testing.T) {
	peers, cores := 1000, 1000
	if testing.Short() || raceEnabled {
		peers, cores = 100, 50
	}
	const most = 100 << 10
	store, err := core.OpenStore("store", core.Options{FS: vfs.NewMem(), NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	for i := range cores {
		c, err := store.Named(fmt.Sprint("core ", i))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.AppendLazy([]byte("block")); err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	bubbleOf(t, 1, func(int) swarm.Config {
		return swarm.Config{MaxIn: peers, PeerExchange: true, Open: swarm.FromStore(store)}
	}, func(m *memNet, nodes []*swarm.Swarm) {
		before := memory()
		var all []*hostile
		for i := range peers {
			all = append(all, hostileKey(t, nodes[0], newKey(i), fmt.Sprintf("10.%d.%d.1:9", i/250, i%250), 0))
		}
		time.Sleep(time.Minute) // with keep-alives
		synctest.Wait()
		if got := len(nodes[0].Peers()); got != peers {
			t.Errorf("%d peers, want %d", got, peers)
		}
		each := (max(memory(), before) - before) / uint64(peers) / 2
		t.Logf("%d idle peers: %d bytes each", peers, each)
		if each > most && !raceEnabled {
			t.Errorf("an idle peer takes %d bytes, want at most %d", each, most)
		}
		for _, h := range all {
			h.close()
		}
	})
}
