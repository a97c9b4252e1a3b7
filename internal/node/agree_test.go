package node

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/registry/catalog"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
)

// TestOperatorsDisagree: a crate of which two operators who must agree sign other
// digests is refused, with who said what, though the upstream has it; what they
// agree on is answered, and what neither has signed comes from the upstream. SEC-18
func TestOperatorsDisagree(t *testing.T) {
	u := newRegistry(t, 1000, 1000, 1000)
	var keys []core.Key
	var peers []string
	for i := range 2 {
		o := startOperatorOf(t, u, catalog.Seed{byte(i + 1)})
		lie := fmt.Appendf(nil, `{"name":"crate01","vers":"1.0.0","deps":[],"cksum":"%064x","features":{},"yanked":false}`, i)
		o.flush(t, time.Now(), o.publish(t, u, "crate00"), o.sign(t, "crate01", pkglog.Event{Kind: pkglog.Published, Line: lie}))
		keys, peers = append(keys, o.w.Key()), append(peers, o.swarm.Addrs()[0].String())
	}
	c := config(t, u, t.TempDir())
	c.Registries, c.Peers, c.Agree = keys, peers, 2
	var said lockedBuffer
	c.Logger = slog.New(slog.NewTextHandler(&said, nil))
	n := start(t, c)
	n.waitFor(t, "catalogs", func() bool {
		for _, r := range n.Status().Registries {
			if r.Length == 0 {
				return false
			}
		}
		return true
	})
	for name, want := range map[string]int{"crate00": http.StatusOK, "crate01": http.StatusForbidden, "crate02": http.StatusOK} {
		code, body, err := n.get("/cargo/cr/at/" + name)
		if code != want || err != nil {
			t.Errorf("%s: %d, %v\n%s", name, code, err, body)
		}
		for _, k := range keys {
			if who := k.Short() + " says "; want == http.StatusForbidden && (!strings.Contains(string(body), who) || !strings.Contains(said.String(), who)) {
				t.Errorf("%s: %s, logged %s: no %q", name, body, said.String(), who)
			}
		}
	}
}

// A lockedBuffer is written and read concurrently.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
