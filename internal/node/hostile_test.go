package node

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/internal/testenv"
	"github.com/pkgswarm/pkgswarm/registry/artifact"
	"github.com/pkgswarm/pkgswarm/registry/exchange"
	"github.com/pkgswarm/pkgswarm/registry/fetch"
	"github.com/pkgswarm/pkgswarm/swarm"
	"github.com/pkgswarm/pkgswarm/swarm/protomux"
	"github.com/pkgswarm/pkgswarm/swarm/replicate"
)

// A liar is a peer that says it has every artifact, and gives what it likes.
type liar struct {
	*swarm.Swarm
	answer artifact.Info
	err    error
	cores  *core.Store
	file   string
}

func (l *liar) CheckShared(artifact.Digest) (artifact.Info, error) { return l.answer, l.err }

// newLiar starts a liar that offers the static core of content, announcing size
// bytes. With serve unset it does not open the core for anybody.
func newLiar(t *testing.T, seed byte, content []byte, size int64, serve bool) *liar {
	t.Helper()
	dir := t.TempDir()
	l := &liar{file: filepath.Join(dir, "file")}
	if err := os.WriteFile(l.file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	var err error
	if l.cores, err = core.OpenStore(filepath.Join(dir, "store"), core.Options{}); err != nil {
		t.Fatal(err)
	}
	tree, err := core.HashStatic(bytes.NewReader(content), int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.cores.AddStatic(l.file, tree)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	l.answer = artifact.Info{Key: artifact.Key(tree.Key()), Size: size}
	x := exchange.New(exchange.Config{Shelf: l})
	conf := swarm.Config{
		Key: ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, 32)), Listen: []string{"127.0.0.1:0"},
		Protocols: []swarm.Protocol{{Name: exchange.Protocol, Attach: func(m *protomux.Mux, p swarm.PeerInfo) error {
			return x.Attach(m, exchange.PeerKey(p.Key), false)
		}}},
	}
	if serve {
		conf.Open = func(_ context.Context, dk core.DiscoveryKey) (replicate.Core, func(), error) {
			c, err := l.cores.ByDiscovery(dk)
			if err != nil {
				return nil, nil, err
			}
			return c, func() { c.Close() }, nil
		}
	}
	if l.Swarm, err = swarm.New(conf); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
		l.cores.Close()
	})
	return l
}

// TestLyingPeers: whatever a peer claims or sends, clients get the right bytes in
// time, and what does not match costs it the connection. SEC-1, SEC-22, SEC-23
func TestLyingPeers(t *testing.T) {
	u := newRegistry(t, 300_000)
	good := u.crates["crate00"]
	flipped := bytes.Clone(good)
	flipped[200_000] ^= 1
	for name, c := range map[string]struct {
		content []byte
		size    int64
		serve   bool
		banned  bool
	}{
		"one bit is wrong":       {flipped, int64(len(good)), true, true},
		"another file":           {[]byte("something else"), 14, true, true},
		"announces too little":   {good, 10, true, false},
		"announces too much":     {good, 1 << 30, true, false},
		"announces absurdly":     {good, 1 << 50, true, false},
		"has not got the blocks": {good, int64(len(good)), false, false},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLiar(t, 7, c.content, c.size, c.serve)
			conf := config(t, u, t.TempDir())
			conf.Peers = []string{l.Addrs()[0].String()}
			conf.PeerBudget = 100 * time.Millisecond
			n := start(t, conf)
			n.waitPeers(t, 1)
			before := u.downloads()
			begin := time.Now()
			n.fetchAll(t, u)
			if d := time.Since(begin); d > 2*time.Second {
				t.Errorf("took %v", d)
			}
			if got := u.downloads() - before; got != 1 {
				t.Errorf("%d downloads from the upstream, want 1", got)
			}
			if banned := len(n.swarm.Peers()) == 0; c.banned && !banned {
				t.Error("the liar is still connected")
			}
			_, metrics, _ := n.get("/metrics")
			if counted := bytes.Contains(metrics, []byte(`pkgswarm_peer_bans_total{reason="offered a file that does not match its digest"} 1`)); counted != c.banned {
				t.Errorf("the metrics count a ban: %v, want %v", counted, c.banned)
			}
			n.fetchAll(t, u) // from disk: nothing else was stored
			if files := n.artifacts.Stats().Files; files != 1 {
				t.Errorf("%d files stored", files)
			}
		})
	}
}

// TestPeersDoNotGetPrivate asks a node for what it must not give, over the real
// protocol: by digest and by core key. SEC-25
func TestPeersDoNotGetPrivate(t *testing.T) {
	u := newRegistry(t, 1000)
	n := start(t, config(t, u, t.TempDir()))
	secret := []byte("private module zip")
	w, err := n.artifacts.Create(int64(len(secret)))
	if err != nil {
		t.Fatal(err)
	}
	w.Write(secret)
	d := artifact.Digest{Alg: artifact.SHA256, Sum: sha256.Sum256(secret)}
	if _, err := w.Commit(d, true); err != nil {
		t.Fatal(err)
	}
	w.Close()
	tree, err := core.HashStatic(bytes.NewReader(secret), int64(len(secret)))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := n.openShared(t.Context(), tree.Key().Discovery()); err == nil {
		t.Error("a private artifact's core is opened for peers")
	}
	c := config(t, u, t.TempDir())
	c.Peers = []string{n.SwarmAddr()}
	b := start(t, c)
	b.waitPeers(t, 1)
	begin := time.Now()
	if _, err := b.exchange.Fetch(t.Context(), []artifact.Digest{d}, noTransfer()); err == nil {
		t.Error("a private artifact was given to a peer")
	}
	if d := time.Since(begin); d > 2*time.Second {
		t.Errorf("the refusal took %v", d)
	}
	n.artifacts.Withdraw(artifact.Sum(sha256.Sum256(u.crates["crate00"])), "malware")
	n.fetch(u, "crate00")
	if status, body, _ := n.get("/cargo/dl/crate00/1.0.0/download"); status != 403 || !bytes.Contains(body, []byte("malware")) { // SEC-19
		t.Errorf("a withdrawn crate: %d %s", status, body)
	}
}

// TestHTTPS serves with a certificate, and HTTP/2. SEC-53
func TestHTTPS(t *testing.T) {
	openssl := testenv.Need(t, "openssl")
	u := newRegistry(t, 100_000)
	c := config(t, u, t.TempDir())
	dir := t.TempDir()
	c.TLSCert, c.TLSKey = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	out, err := exec.Command(openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
		"-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", c.TLSKey, "-out", c.TLSCert).CombinedOutput()
	if err != nil {
		t.Fatalf("openssl: %v\n%s", err, out)
	}
	n := start(t, c)
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
	defer tr.CloseIdleConnections()
	hc := &http.Client{Transport: tr}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			resp, err := hc.Get(n.URL() + "/cargo/dl/crate00/1.0.0/download")
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			if err != nil || resp.ProtoMajor != 2 || !bytes.Equal(b, u.crates["crate00"]) {
				t.Errorf("%s %s: %d bytes, %v", resp.Proto, resp.Status, len(b), err)
			}
		})
	}
	wg.Wait()
	resp, err := hc.Get(n.URL() + "/cargo/config.json")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); !bytes.Contains(b, []byte(fmt.Sprintf(`"dl":"%s/cargo/dl"`, n.URL()))) {
		t.Errorf("config.json: %s", b)
	}
}

// noTransfer returns a transfer that takes nothing.
func noTransfer() *fetch.Transfer {
	return &fetch.Transfer{
		Create:   func(int64) (fetch.Writer, error) { return nil, io.ErrShortWrite },
		Progress: func(int64) {},
		Expect:   func(time.Duration) {},
	}
}
