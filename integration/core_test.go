package integration

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/core/merkle"
	"github.com/pkgswarm/pkgswarm/internal/testenv"
	"github.com/pkgswarm/pkgswarm/internal/vectors"
)

// jsState is what the reference says of a core of its own.
type jsState struct {
	Key, DiscoveryKey  string
	Length, ByteLength uint64
	Fork               uint64
	TreeHash           string
	Signature          vectors.Hex
}

// TestSameCores does the same random things to cores of equal names in two
// stores of one primary key, ours and the reference's: keys, trees, forks and
// signatures are the same at every step, so that each verifies the other's.
func TestSameCores(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	var primary [32]byte
	for i := range primary {
		primary[i] = byte(r.Uint32())
	}
	js := testenv.StartNode(t, "core.mjs")
	js.MustCall(t, "open", hex.EncodeToString(primary[:]), nil)
	store, err := core.OpenStore(t.TempDir(), core.Options{PrimaryKey: &primary})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	for step := range 120 {
		name := fmt.Sprint("core ", r.IntN(3))
		c, err := store.Named(name)
		if err != nil {
			t.Fatal(err)
		}
		var theirs jsState
		if n := c.Length(); n > 0 && r.IntN(5) == 0 {
			length := r.Uint64N(n)
			if err := c.Truncate(length); err != nil {
				t.Fatal(err)
			}
			js.MustCall(t, "truncate", params{"name": name, "length": length}, &theirs)
		} else {
			blocks := someBlocks(r)
			if _, err := c.Append(blocks...); err != nil {
				t.Fatal(err)
			}
			var sent []string
			for _, b := range blocks {
				sent = append(sent, hex.EncodeToString(b))
			}
			js.MustCall(t, "append", params{"name": name, "blocks": sent}, &theirs)
		}
		i := c.Info()
		ours := jsState{i.Key.Hex(), c.DiscoveryKey().String(), i.Length, i.ByteLength, i.Fork, hex.EncodeToString(i.TreeHash[:]), c.Signature()}
		if fmt.Sprint(ours) != fmt.Sprint(theirs) {
			t.Fatalf("seed %d, step %d: %s is\n%+v, there\n%+v", seed, step, name, ours, theirs)
		}
		if i.Length > 0 {
			at := r.Uint64N(i.Length)
			var want vectors.Hex
			js.MustCall(t, "get", params{"name": name, "index": at}, &want)
			if got, err := c.Get(t.Context(), at); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("seed %d, step %d: block %d differs: %v", seed, step, at, err)
			}
		}
		c.Close()
	}
}

// someBlocks returns one block mostly, sometimes a thousand.
func someBlocks(r *rand.Rand) [][]byte {
	n := 1
	switch r.IntN(10) {
	case 0:
		n = 1000
	case 1, 2, 3:
		n = r.IntN(20) + 1
	}
	blocks := make([][]byte, n)
	for i := range blocks {
		blocks[i] = make([]byte, 1+r.IntN(100))
		for k := range blocks[i] {
			blocks[i][k] = byte(r.Uint32())
		}
	}
	return blocks
}

// TestSameStaticKeys compares the keys of static cores of many sizes.
func TestSameStaticKeys(t *testing.T) {
	js := testenv.StartNode(t, "core.mjs")
	js.MustCall(t, "open", hex.EncodeToString(make([]byte, 32)), nil)
	counts := []int{1, 2, 3, 4, 5, 31, 32, 33, 64, 1000, 1023, 1024, 1025}
	if !testing.Short() {
		counts = append(counts, 32768, 32769, 70_000)
	}
	for _, count := range counts {
		nb := merkle.NewBatch(merkle.Tree{})
		for i := range count {
			nb.Append(fmt.Append(nil, i))
		}
		m := core.StaticManifest(nb.Tree.Hash(), nb.Tree.Length)
		var want string
		js.MustCall(t, "staticKey", count, &want)
		if got := m.Key().Hex(); got != want {
			t.Errorf("static core of %d blocks has key %s, there %s", count, got, want)
		}
	}
}
