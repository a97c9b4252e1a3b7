package integration

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ed25519"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/internal/cargoupstream"
	"github.com/pkgswarm/pkgswarm/internal/goupstream"
	"github.com/pkgswarm/pkgswarm/internal/node"
	"github.com/pkgswarm/pkgswarm/internal/testenv"
	"github.com/pkgswarm/pkgswarm/registry/artifact"
	"github.com/pkgswarm/pkgswarm/registry/exchange"
	"github.com/pkgswarm/pkgswarm/swarm"
	"github.com/pkgswarm/pkgswarm/swarm/protomux"
	"github.com/pkgswarm/pkgswarm/swarm/replicate"
)

// An ear is a peer that has nothing and writes down all that it is asked.
type ear struct {
	*swarm.Swarm

	mu    sync.Mutex
	heard []string
}

func (e *ear) hear(what string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.heard = append(e.heard, what)
	return artifact.ErrNotFound
}

// all returns what was heard since the last call.
func (e *ear) all() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	heard := e.heard
	e.heard = nil
	return heard
}

func (e *ear) CheckShared(d artifact.Digest) (artifact.Info, error) {
	return artifact.Info{}, e.hear(d.String())
}

func newEar(t *testing.T) *ear {
	e := &ear{}
	x := exchange.New(exchange.Config{Shelf: e})
	var err error
	e.Swarm, err = swarm.New(swarm.Config{
		Key: ed25519.NewKeyFromSeed(make([]byte, 32)), Listen: []string{"127.0.0.1:0"},
		Open: func(_ context.Context, dk core.DiscoveryKey) (replicate.Core, func(), error) {
			return nil, nil, e.hear(fmt.Sprintf("%x", dk))
		},
		Protocols: []swarm.Protocol{{Name: exchange.Protocol, Attach: func(m *protomux.Mux, p swarm.PeerInfo) error {
			return x.Attach(m, exchange.PeerKey(p.Key), false)
		}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return e
}

// A guarded upstream wants a password, which it lets pass by.
func password(user, pass string) goupstream.Tamper {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if u, p, ok := r.BasicAuth(); !ok || u != user || p != pass {
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	}
}

func credentials(url, user, pass string) string {
	return strings.Replace(url, "://", "://"+user+":"+pass+"@", 1)
}

// newPrivateUser returns a user of a program that needs a public and a private
// module.
func newPrivateUser(t *testing.T, goproxy, gosumdb string) *goClient {
	testenv.Need(t, "go")
	home := t.TempDir()
	c := &goClient{t: t, dir: filepath.Join(home, "src")}
	c.env = append(os.Environ(), "HOME="+home, "GOPATH="+filepath.Join(home, "go"), "GOMODCACHE="+filepath.Join(home, "modcache"),
		"GOCACHE="+goEnv(t, "GOCACHE"), "GOENV=off", "GOWORK=off", "GOFLAGS=-mod=mod -modcacherw", "GOTOOLCHAIN=local", "CGO_ENABLED=0",
		"GOPROXY="+goproxy, "GOSUMDB="+gosumdb, "GOPRIVATE=", "GONOPROXY=", "GONOSUMDB=corp.example", "HTTPS_PROXY=http://127.0.0.1:1", "HTTP_PROXY=http://127.0.0.1:1", "NO_PROXY=127.0.0.1")
	for name, text := range map[string]string{
		"go.mod":  "module app.test\n\ngo 1.24\n",
		"main.go": "package main\n\nimport (\n\t\"corp.example/team/x\"\n\t\"example.com/pub\"\n)\n\nfunc main() { println(x.X, pub.X) }\n",
	} {
		os.MkdirAll(c.dir, 0o755)
		if err := os.WriteFile(filepath.Join(c.dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// try runs go and returns what it prints.
func (c *goClient) try(args ...string) (string, error) {
	cmd := exec.Command("go", args...)
	cmd.Dir, cmd.Env = c.dir, c.env
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestPrivateModules builds with a company's modules through a node: they come
// from the company's proxy alone, and neither the public proxy, nor the checksum
// database, nor a peer hears of them, whatever becomes of that proxy. SEC-60, SEC-62
func TestPrivateModules(t *testing.T) {
	pkg := func(name, x string) map[string]string {
		return map[string]string{name + ".go": "package " + name + "\n\nconst X = \"" + x + "\"\n"}
	}
	public, corp, e := goupstream.New(t), goupstream.New(t), newEar(t)
	public.Add(t, "example.com/pub", "v1.0.0", pkg("pub", "public"))
	corp.Add(t, "corp.example/team/x", "v1.0.0", pkg("x", "ours"))
	for _, v := range []string{"v1.0.0", "v1.1.0", "v1.9.9"} { // somebody squats on the name
		public.Add(t, "corp.example/team/x", v, pkg("x", "evil"))
	}
	corp.Tamper(password("ci", "s3cret"))

	n := startNode(t, t.TempDir(), node.Config{
		GoUpstream: public.URL, SumDB: public.Key, CargoUpstream: "sparse+" + public.URL + "/index/",
		GoPrivate: []string{"corp.example=" + credentials(corp.URL, "ci", "s3cret")},
		Peers:     []string{e.Addrs()[0].String()}, PeerBudget: 200 * time.Millisecond,
	})
	n.waitPeers(1)
	wantSilence := func(t *testing.T, what string) {
		t.Helper()
		for _, p := range public.Asked() {
			if strings.Contains(p, "corp.example") {
				t.Errorf("%s: the public upstream was asked for %s", what, p)
			}
		}
	}

	c := newPrivateUser(t, n.URL()+"/go", public.Key)
	c.run("mod", "tidy")
	if out := c.run("run", "."); out != "ours public\n" {
		t.Errorf("the program prints %q", out)
	}
	if asked := strings.Join(public.Asked(), "\n"); strings.Contains(asked, "corp.example") || !strings.Contains(asked, "/sumdb/sum.test/lookup/example.com/pub@v1.0.0") {
		t.Errorf("the public upstream was asked for\n%s", asked)
	}
	// One zip is public. Its digest is all that a peer may have heard.
	if heard := slices.Compact(e.all()); len(heard) != 1 {
		t.Errorf("peers heard %q, want one digest", heard)
	}
	for _, page := range []string{"/metrics", "/api/v1/status"} {
		if b := string(httpGet(t, n.URL()+page)); strings.Contains(b, "corp.example") || strings.Contains(b, "s3cret") {
			t.Errorf("%s tells of private modules", page) // SEC-56, SEC-57
		}
	}

	t.Run("source fails", func(t *testing.T) {
		// A second proxy stands after a comma: only an absence may lead to it.
		for what, tamper := range map[string]goupstream.Tamper{
			"wrong password": password("ci", "changed"),
			"down": func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
				w.WriteHeader(http.StatusServiceUnavailable)
			},
		} {
			corp.Tamper(tamper)
			c := newPrivateUser(t, n.URL()+"/go,"+public.URL, "off")
			if out, err := c.try("get", "corp.example/team/x@v1.1.0"); err == nil {
				t.Errorf("%s: go get succeeded: %s", what, out)
			}
			wantSilence(t, what)
		}
		if heard := e.all(); len(heard) > 0 {
			t.Errorf("peers heard %q", heard)
		}
	})
	t.Run("no source", func(t *testing.T) {
		n := startNode(t, t.TempDir(), node.Config{GoUpstream: public.URL, SumDB: public.Key, CargoUpstream: "sparse+" + public.URL + "/index/", Private: []string{"corp.example"}})
		out, err := newPrivateUser(t, n.URL()+"/go,"+public.URL, "off").try("get", "corp.example/team/x@v1.0.0")
		if err == nil || !strings.Contains(out, "--go-private-upstream") {
			t.Errorf("go get: %v, %s", err, out)
		}
		wantSilence(t, "no source")
	})
	t.Run("direct", func(t *testing.T) {
		n := startNode(t, t.TempDir(), node.Config{GoUpstream: public.URL, SumDB: public.Key, CargoUpstream: "sparse+" + public.URL + "/index/",
			Private: []string{"corp.example"}, GoPrivate: []string{"direct"}})
		out, err := newPrivateUser(t, n.URL()+"/go,direct", "off").try("get", "corp.example/team/x@v1.0.0")
		if err == nil || !strings.Contains(out, "corp.example/team/x?go-get=1") { // it has left the node and looks for the repository
			t.Errorf("go get: %v, %s", err, out)
		}
		wantSilence(t, "direct")
	})
}

// packCrate returns a .crate with those files.
func packCrate(t testing.TB, name, version string, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for file, text := range files {
		h := &tar.Header{Name: name + "-" + version + "/" + file, Mode: 0o644, Size: int64(len(text)), Typeflag: tar.TypeReg}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		w.Write([]byte(text))
	}
	w.Close()
	z.Close()
	return b.Bytes()
}

// library returns the .crate of a library with one function, x.
func library(t testing.TB, name, deps, x string) []byte {
	return packCrate(t, name, "1.0.0", map[string]string{
		"Cargo.toml": "[package]\nname = \"" + name + "\"\nversion = \"1.0.0\"\nedition = \"2021\"\n[dependencies]\n" + deps,
		"src/lib.rs": "pub fn x() -> &'static str { " + x + " }\n",
	})
}

// TestPrivateCrates builds with the crates of a company's registry through a node:
// their names go to that registry alone, with the token that the node's own cargo
// is set up with, and Cargo.lock does not tell of the node. SEC-33, SEC-60, SEC-62
func TestPrivateCrates(t *testing.T) {
	testenv.Need(t, "cargo")
	const cratesIO = "https://github.com/rust-lang/crates.io-index"
	public, corp, e := cargoupstream.New(t), cargoupstream.New(t), newEar(t)
	public.Add(t, "pub-lib", "1.0.0", library(t, "pub-lib", "", `"public"`))
	public.Add(t, "corp-lib", "1.0.0", library(t, "corp-lib", "", `"evil"`))
	public.Add(t, "corp-lib", "1.9.9", library(t, "corp-lib", "", `"evil"`))
	corp.Add(t, "corp-lib", "1.0.0", library(t, "corp-lib", "pub-lib = \"1\"\n", `pub_lib::x()`),
		`"deps":[{"name":"pub-lib","req":"^1","features":[],"optional":false,"default_features":true,"target":null,"kind":"normal","registry":"`+cratesIO+`"}]`)
	token := "Bearer s3cret"
	corp.Tamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		switch {
		case r.Header.Get("Authorization") != token:
			w.WriteHeader(http.StatusUnauthorized)
		case r.URL.Path == "/index/config.json":
			fmt.Fprintf(w, `{"dl":"%s/dl/{crate}/{crate}-{version}.crate","auth-required":true}`, corp.URL)
		default:
			next.ServeHTTP(w, r)
		}
	})
	// The machine of the node knows the registry, and has the token.
	home := t.TempDir()
	t.Setenv("CARGO_HOME", home)
	for name, text := range map[string]string{
		"config.toml":      "[registries.corp]\nindex = \"" + corp.Index() + "\"\n",
		"credentials.toml": "[registries.corp]\ntoken = \"" + token + "\"\n",
	} {
		if err := os.WriteFile(filepath.Join(home, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	n := startNode(t, t.TempDir(), node.Config{
		CargoUpstream: public.Index(), CargoPrivate: []string{"corp"}, Private: []string{"corp-*"}, GoUpstream: "off", SumDB: "off",
		Peers: []string{e.Addrs()[0].String()}, PeerBudget: 200 * time.Millisecond,
	})
	n.waitPeers(1)

	user := func(dependency string) *cargoClient {
		c := newCargoClient(t, "sparse+"+n.URL()+"/cargo/", false)
		c.write("Cargo.toml", "[package]\nname = \"app\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[dependencies]\n"+dependency+"\n")
		c.write("src/main.rs", "fn main() { println!(\"{}\", corp_lib::x()) }\n")
		c.args = append(c.args, "--config", fmt.Sprintf("registries.corp.index=%q", corp.Index()),
			"--config", fmt.Sprintf("source.corp.registry=%q", corp.Index()), "--config", `source.corp.replace-with="node"`,
			"--config", fmt.Sprintf("source.node.registry=%q", "sparse+"+n.URL()+"/registries/corp/"))
		return c
	}
	wantSilence := func(what string) {
		t.Helper()
		for path := range public.Lookups() {
			if strings.Contains(path, "corp") {
				t.Errorf("%s: the public registry was asked for %s", what, path)
			}
		}
		public.Reset()
	}

	c := user(`corp-lib = { version = "1", registry = "corp" }`)
	if out := c.run("run", "-q"); out != "public\n" {
		t.Errorf("the program prints %q", out)
	}
	if lock := c.lock(); !strings.Contains(lock, `source = "`+corp.Index()+`"`) || strings.Contains(lock, n.URL()) {
		t.Errorf("Cargo.lock:\n%s", lock)
	}
	if got := public.Downloads(); len(got) != 1 {
		t.Errorf("downloads from the public registry: %v", got)
	}
	wantSilence("build")
	if heard := slices.Compact(e.all()); len(heard) != 1 {
		t.Errorf("peers heard %q, want one digest", heard)
	}

	out, err := user(`corp-lib = "1"`).try("fetch") // of crates.io, says this
	if err == nil || !strings.Contains(out, "another one") {
		t.Errorf("a private name without its registry: %v\n%s", err, out)
	}
	wantSilence("a private name without its registry")

	c = user(`corp-lib = { version = "1", registry = "corp" }`)
	corp.Stop()
	if out, err := c.try("fetch"); err != nil { // from what is held
		t.Errorf("source down: %v\n%s", err, out)
	}
	c.write("Cargo.toml", strings.ReplaceAll(read(t, filepath.Join(c.dir, "Cargo.toml")), "corp-lib", "corp-new"))
	if out, err := c.try("fetch"); err == nil || strings.Contains(out, "no matching package") {
		t.Errorf("a crate that is not held, source down: %v\n%s", err, out)
	}
	wantSilence("source down")
}
