package integration

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/internal/goupstream"
	"github.com/pkgswarm/pkgswarm/internal/node"
	"github.com/pkgswarm/pkgswarm/internal/testenv"
)

// selfSigned writes a certificate for 127.0.0.1 and its key to dir.
func selfSigned(t *testing.T, dir string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "node.test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for name, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

// TestTLSAndToken: the real cargo and the real go use a node that wants TLS and a
// token, as one does off loopback, with the settings that they have for that; without
// the token they get nothing. SEC-53
func TestTLSAndToken(t *testing.T) {
	const token = "a-token-of-some-length"
	up := goupstream.New(t)
	up.Add(t, "example.com/pub", "v1.0.0", map[string]string{"pub.go": "package pub\n\nconst X = \"public\"\n"})
	up.Add(t, "corp.example/team/x", "v1.0.0", map[string]string{"x.go": "package x\n\nconst X = \"x\"\n"})
	crates, _ := madeUp(t, 0, 1)
	crates.Add(t, "lib", "1.0.0", library(t, "lib", "", `"hello"`))
	dir := t.TempDir()
	c := node.Config{CargoUpstream: crates.Index(), GoUpstream: up.URL, SumDB: up.Key, TokenFile: filepath.Join(dir, "token")}
	c.TLSCert, c.TLSKey = selfSigned(t, dir)
	if err := os.WriteFile(c.TokenFile, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	n := startNode(t, t.TempDir(), c)
	if !strings.HasPrefix(n.URL(), "https://") {
		t.Fatal(n.URL())
	}

	t.Run("go", func(t *testing.T) {
		host, err := url.Parse(n.URL())
		if err != nil {
			t.Fatal(err)
		}
		netrc := filepath.Join(t.TempDir(), "netrc")
		if err := os.WriteFile(netrc, []byte("machine "+host.Host+" login any password "+token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		user := func(env ...string) *goClient {
			c := newPrivateUser(t, n.URL()+"/go", up.Key)
			c.env = append(append(c.env, "SSL_CERT_FILE="+filepath.Join(dir, "cert.pem"), "GONOSUMDB="), env...)
			return c
		}
		if out, err := user("NETRC=/nonexistent").try("mod", "tidy"); err == nil || !strings.Contains(out, "netrc") {
			t.Errorf("without a token: %v\n%s", err, out)
		}
		c := user("NETRC=" + netrc)
		c.run("mod", "tidy")
		if out := c.run("run", "."); out != "x public\n" {
			t.Errorf("the program prints %q", out)
		}
	})
	t.Run("cargo", func(t *testing.T) {
		testenv.Need(t, "cargo")
		user := func(env ...string) *cargoClient {
			c := newCargoClient(t, "sparse+"+n.URL()+"/cargo/", false)
			c.env = append(append(c.env, "CARGO_HTTP_CAINFO="+filepath.Join(dir, "cert.pem"), "CARGO_REGISTRY_GLOBAL_CREDENTIAL_PROVIDERS=cargo:token"), env...)
			c.write("Cargo.toml", "[package]\nname = \"app\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[dependencies]\nlib = \"1\"\n")
			c.write("src/main.rs", "fn main() { println!(\"{}\", lib::x()) }\n")
			return c
		}
		if out, err := user().try("fetch"); err == nil || !strings.Contains(out, "token") {
			t.Errorf("without a token: %v\n%s", err, out)
		}
		if out := user("CARGO_REGISTRIES_M_TOKEN="+token).run("run", "-q"); out != "hello\n" {
			t.Errorf("the program prints %q", out)
		}
	})
}
