package integration

import (
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/integration/synthetic"
	"github.com/pkgswarm/pkgswarm/internal/node"
)

// TestWatchPublishes: what is published upstream while an importer watches is
// signed, seeded, and what clients of a node behind it are told, within seconds,
// though the node keeps index answers for ten minutes.
func TestWatchPublishes(t *testing.T) {
	if testing.Short() {
		t.Skip("builds and runs the program")
	}
	dir := t.TempDir()
	syn := synthetic.Cargo{Crates: 20, Seed: 11}
	if _, _, err := syn.Write(dir); err != nil {
		t.Fatal(err)
	}
	publish := func(k synthetic.Crate) {
		path := filepath.Join(dir, filepath.FromSlash(synthetic.Path(k.Name)))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		next := path + ".next" // nobody reads half a file
		if err := os.WriteFile(next, k.File(), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next, path); err != nil {
			t.Fatal(err)
		}
	}
	o := newOperator(t)
	addr, _ := o.watch("import", "cargo", dir, "--every", "100ms")
	n := startNode(t, t.TempDir(), node.Config{
		Registries: []core.Key{o.key}, Peers: []string{addr}, Offline: true, GoUpstream: "off", SumDB: "off",
	})
	told := func(k synthetic.Crate) func() bool {
		return func() bool {
			resp, err := http.Get(n.URL() + "/cargo/" + cratePath(k.Name))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			var b bytes.Buffer
			b.ReadFrom(resp.Body)
			return resp.StatusCode == http.StatusOK && bytes.Equal(b.Bytes(), k.File())
		}
	}
	changed, added := syn.Crate(3), synthetic.Cargo{Crates: 1, Seed: 12}.Crate(0)
	waitFor(t, told(changed))

	changed.Lines = append(changed.Lines, bytes.Replace(changed.Lines[0], []byte(`"vers":"`), []byte(`"vers":"9999.`), 1))
	start := time.Now()
	publish(changed)
	publish(added)
	waitFor(t, told(changed))
	waitFor(t, told(added))
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("a publish took %v to the clients of a node", d)
	}

	changed.Lines[0] = bytes.Replace(changed.Lines[0], []byte(`"yanked":false`), []byte(`"yanked":true`), 1)
	publish(changed)
	waitFor(t, told(changed))
}
