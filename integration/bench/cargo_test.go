package bench

import (
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/internal/cargoupstream"
	"github.com/pkgswarm/pkgswarm/internal/node"
	"github.com/pkgswarm/pkgswarm/internal/testenv"
)

// BenchmarkCargo is goal P7: cargo resolving and fetching the sample's two
// hundred crates with cold caches and the upstream 50 ms away, directly and through
// a cold node, where the upstream speaks HTTP/1.1, and where it speaks HTTP/2.
func BenchmarkCargo(b *testing.B) {
	testenv.Need(b, "cargo")
	home := filepath.Join(cacheDir(), "pkgswarm-test", "cargo-home") // made by the tests in package integration
	if _, err := os.Stat(filepath.Join(home, "registry", "cache")); err != nil {
		testenv.Missing(b, "run the tests of package integration first: %v", err)
	}
	plain, secure := cargoupstream.New(b), cargoupstream.NewTLS(b)
	authority := filepath.Join(b.TempDir(), "ca.pem")
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw})
	if err := os.WriteFile(authority, cert, 0o644); err != nil {
		b.Fatal(err)
	}
	b.Setenv("SSL_CERT_FILE", authority) // for the node; read at the first TLS connection of a process
	for _, up := range []*cargoupstream.Server{plain, secure} {
		up.AddHome(b, home)
		up.Delay(50 * time.Millisecond)
	}
	through := func(up *cargoupstream.Server) func() float64 {
		return func() float64 {
			n, stop := runNode(b, node.Config{CargoUpstream: up.Index(), GoUpstream: "off", SumDB: "off"})
			defer stop()
			return cargoFetch(b, "sparse+"+n.URL()+"/cargo/", authority)
		}
	}
	got := turns(b,
		side{"h1", func() float64 { return cargoFetch(b, plain.Index(), authority) }},
		side{"node h1", through(plain)},
		side{"h2", func() float64 { return cargoFetch(b, secure.Index(), authority) }},
		side{"node h2", through(secure)},
	)
	for _, c := range []struct {
		what, ours, theirs string
		want               float64
	}{
		{"upstream HTTP/1.1", "node h1", "h1", 1},
		{"upstream HTTP/2", "node h2", "h2", 1.5},
	} {
		ours, theirs := got[c.ours], got[c.theirs]
		add(figure{"P7", "cargo fetch, " + c.what, "s", median(ours), median(theirs), "direct", ratio(ours, theirs), "%.2fx", c.want, false})
	}
}

// cargoFetch returns how long cargo took with a registry and empty caches, in seconds.
func cargoFetch(b *testing.B, index, authority string) float64 {
	b.Helper()
	dir, err := os.MkdirTemp(memoryDir(), "pkgswarm-bench-")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	toml, err := os.ReadFile("../testdata/sample/Cargo.toml")
	if err != nil {
		b.Fatal(err)
	}
	os.MkdirAll(filepath.Join(dir, "src"), 0o755)
	os.WriteFile(filepath.Join(dir, "Cargo.toml"), toml, 0o644)
	os.WriteFile(filepath.Join(dir, "src", "main.rs"), []byte("fn main() {}"), 0o644)
	cmd := exec.Command("cargo", "--config", `source.crates-io.replace-with="m"`, "--config", fmt.Sprintf("registries.m.index=%q", index), "fetch")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CARGO_HOME="+filepath.Join(dir, "home"), "CARGO_HTTP_CAINFO="+authority, "NO_PROXY=127.0.0.1")
	start := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("cargo fetch: %v\n%s", err, out)
	}
	return time.Since(start).Seconds()
}

func cacheDir() string {
	dir, err := os.UserCacheDir()
	if err != nil {
		return os.TempDir()
	}
	return dir
}
