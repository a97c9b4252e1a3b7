package goproxy_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/pkgswarm/pkgswarm/internal/goupstream"
	"github.com/pkgswarm/pkgswarm/internal/testenv"
)

// A client is a Go user with caches of its own.
type client struct {
	t   testing.TB
	dir string // of the main module
	env []string
}

// newClient returns a user of the given proxy list and database, whose module
// imports those of someModules.
func newClient(t testing.TB, goproxy, gosumdb string) *client {
	t.Helper()
	testenv.Need(t, "go")
	root := t.TempDir()
	c := &client{t: t, dir: filepath.Join(root, "main")}
	cache, err := exec.Command("go", "env", "GOCACHE").Output() // compiling the standard library anew would take long
	if err != nil {
		t.Fatal(err)
	}
	c.env = append(os.Environ(),
		"HOME="+root, "GOPATH="+filepath.Join(root, "gopath"), "GOMODCACHE="+filepath.Join(root, "modcache"), "GOCACHE="+strings.TrimSpace(string(cache)),
		"GOENV=off", "GOWORK=off", "GOFLAGS=-mod=mod -modcacherw", "GOTOOLCHAIN=local", "CGO_ENABLED=0",
		"GOPROXY="+goproxy, "GOSUMDB="+gosumdb, "GOPRIVATE=", "GONOPROXY=", "GONOSUMDB=", "GOINSECURE=", "NO_PROXY=127.0.0.1",
	)
	c.write("go.mod", "module main.test\n\ngo 1.21\n")
	c.write("main.go", "package main\n\nimport (\n\t\"example.com/a\"\n\t_ \"example.com/a/v2\"\n\t_ \"example.com/old\"\n\t_ \"example.com/untagged\"\n)\n\nfunc main() { print(a.Version) }\n")
	return c
}

func (c *client) write(name, text string) {
	c.t.Helper()
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.dir, name), []byte(text), 0o644); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) read(name string) string {
	b, err := os.ReadFile(filepath.Join(c.dir, name))
	if err != nil {
		c.t.Fatal(err)
	}
	return string(b)
}

// try runs go and returns what it printed.
func (c *client) try(args ...string) (string, error) {
	cmd := exec.Command("go", args...)
	cmd.Dir, cmd.Env = c.dir, c.env
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (c *client) run(args ...string) string {
	c.t.Helper()
	out, err := c.try(args...)
	if err != nil {
		c.t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// session is what a user does.
func (c *client) session() (goSum, goMod, printed string) {
	c.t.Helper()
	c.run("get", "example.com/a@latest", "example.com/a/v2@latest", "example.com/old@latest", "example.com/untagged@master")
	c.run("mod", "download")
	c.run("build", "-o", filepath.Join(c.dir, "bin"), ".")
	printed = c.run("list", "-m", "-versions", "example.com/a") + c.run("list", "-m", "all")
	return c.read("go.sum"), c.read("go.mod"), printed
}

// TestRealGo: go.sum is the same as without the mirror, and what was built once
// builds with the upstream stopped, checksum database included.
func TestRealGo(t *testing.T) {
	if testing.Short() {
		t.Skip("runs the go command many times")
	}
	up := someModules(t)
	sum, mod, printed := newClient(t, up.URL, up.Key).session()
	up.Asked()
	dir := t.TempDir()
	m := newMirror(t, up, mirrorConfig{dir: dir})
	for _, proxy := range []string{m.URL, m.URL + "/,off"} {
		s, md, p := newClient(t, proxy, up.Key).session()
		if s != sum || md != mod || p != printed {
			t.Errorf("through %s: go.sum\n%s\nwant\n%s\ngo.mod\n%s\nwant\n%s\nprinted %s\nwant %s", proxy, s, sum, md, mod, p, printed)
		}
	}
	up.Grow(t, "more", 700)
	late := newClient(t, m.URL, up.Key) // knows a later tree than what follows
	late.run("get", "example.com/a@v1.0.0")

	up.Stop()
	m.stop()
	m = newMirror(t, up, mirrorConfig{dir: dir})
	offline := newClient(t, m.URL, up.Key)
	offline.write("go.mod", mod)
	offline.write("go.sum", sum)
	offline.run("mod", "download")
	offline.run("build", "-o", filepath.Join(offline.dir, "bin"), ".")
	if s, _, p := newClient(t, m.URL, up.Key).session(); s != sum || p != printed {
		t.Errorf("with the upstream stopped: go.sum\n%s\nwant\n%s\nprinted %s\nwant %s", s, sum, p, printed)
	}
	setProxy(late, m.URL)
	if s, _, _ := late.session(); s == "" {
		t.Error("no go.sum")
	}
	if out, err := newClient(t, m.URL, up.Key).try("get", "example.com/none@latest"); err == nil || !strings.Contains(out, "upstream unreachable") {
		t.Errorf("unknown module, offline: %v\n%s", err, out)
	}
}

func setProxy(c *client, url string) { c.env = append(c.env, "GOPROXY="+url) }

// What go makes of our errors: it shows them, and takes a 404 only for an absence.
func TestRealGoErrors(t *testing.T) {
	if testing.Short() {
		t.Skip("runs the go command many times")
	}
	up, other := someModules(t), goupstream.New(t)
	other.Add(t, "example.com/elsewhere", "v1.0.0", map[string]string{"go.mod": "module example.com/elsewhere\n", "e.go": "package e\n"})
	m := newMirror(t, up, mirrorConfig{noProxy: "corp.example"})
	get := func(proxy, mod string) string {
		t.Helper()
		c := newClient(t, proxy, "off")
		out, _ := c.try("get", mod)
		return out
	}
	if out := get(m.URL+","+other.URL, "example.com/elsewhere@v1.0.0"); !strings.Contains(out, "added example.com/elsewhere") {
		t.Errorf("404 does not lead to the next proxy: %s", out)
	}
	if out := get(m.URL+","+other.URL, "corp.example/x@v1.0.0"); !strings.Contains(out, "private") {
		t.Errorf("refusal: %s", out)
	}
	up.Tamper(status(503))
	m = newMirror(t, up, mirrorConfig{}) // that has not just seen a 404
	if out := get(m.URL+","+other.URL, "example.com/elsewhere@v1.0.0"); strings.Contains(out, "added") {
		t.Errorf("a failure led to the next proxy after a comma: %s", out)
	}
	if out := get(m.URL+"|"+other.URL, "example.com/elsewhere@v1.0.0"); !strings.Contains(out, "added") {
		t.Errorf("a failure did not lead to the next proxy after a bar: %s", out)
	}
}

// SEC-5: toolchains are proven like every module. The toolchain here is a script.
func TestRealGoToolchain(t *testing.T) {
	if testing.Short() || runtime.GOOS == "windows" {
		t.Skip("runs the go command; its toolchain is a shell script")
	}
	up := someModules(t)
	version := up.AddToolchain(t, "go1.99.0", "the right toolchain")
	m := newMirror(t, up, mirrorConfig{})
	use := func(m *mirror) (string, error) {
		c := newClient(t, m.URL, up.Key)
		c.env = append(c.env, "GOTOOLCHAIN=go1.99.0")
		return c.try("version")
	}
	for range 2 {
		if out, err := use(m); err != nil || !strings.Contains(out, "the right toolchain") {
			t.Errorf("toolchain switch: %v\n%s", err, out)
		}
	}
	if out := newClient(t, m.URL, up.Key).run("list", "-m", "-versions", "go"); !strings.Contains(out, "1.99.0") {
		t.Errorf("go list -m -versions go: %s", out)
	}

	evil := goupstream.New(t)
	evil.AddToolchain(t, "go1.99.0", "evil")
	up.Tamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.HasSuffix(r.URL.Path, ".zip") {
			http.Redirect(w, r, evil.URL+r.URL.Path, http.StatusFound)
			return
		}
		next.ServeHTTP(w, r)
	})
	poisoned := newMirror(t, up, mirrorConfig{proxies: up.URL + "," + evil.URL})
	if out, err := use(poisoned); err == nil || strings.Contains(out, "evil\n") {
		t.Errorf("poisoned toolchain: %v\n%s", err, out)
	}
	if a := poisoned.get(t, "/golang.org/toolchain/@v/"+version+".zip", "Disable-Module-Fetch: true"); a.status == 200 {
		t.Error("the poisoned toolchain was kept")
	}
}

// TestRealGoFaults: whatever the upstream or its database do, go ends with the
// right module or an error that is no absence, and builds when they are honest
// again. The mirror is asked for what it does not hold.
func TestRealGoFaults(t *testing.T) {
	if testing.Short() {
		t.Skip("runs the go command many times")
	}
	zips := func(f goupstream.Tamper) goupstream.Tamper { return onPath(".zip", f) }
	lookups := func(change func(id int64, text, signed []byte) []byte) goupstream.Tamper {
		return onPath("/lookup/", func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			rec := httptest.NewRecorder()
			next.ServeHTTP(rec, r)
			id, text, signed, err := tlog.ParseRecord(rec.Body.Bytes())
			if err != nil {
				t.Errorf("upstream's record: %v", err)
			}
			w.Write(change(id, text, signed))
		})
	}
	record := func(id int64, text, signed []byte) []byte { return fmt.Appendf(nil, "%d\n%s\n%s", id, text, signed) }
	for name, tamper := range map[string]goupstream.Tamper{
		"500":      status(500),
		"503":      status(503),
		"429":      status(429),
		"closed":   func(http.ResponseWriter, *http.Request, http.Handler) { panic(http.ErrAbortHandler) },
		"hang":     func(_ http.ResponseWriter, r *http.Request, _ http.Handler) { <-r.Context().Done() },
		"zip hang": zips(func(_ http.ResponseWriter, r *http.Request, _ http.Handler) { <-r.Context().Done() }),
		"zip drip": zips(goupstream.Drip),
		"zip web page": zips(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.Header().Set("Content-Type", "text/html")
			w.Write([]byte("<html>log in</html>"))
		}),
		"cut zip": zips(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			rec := httptest.NewRecorder()
			next.ServeHTTP(rec, r)
			w.Header().Set("Content-Length", fmt.Sprint(rec.Body.Len()))
			w.Write(rec.Body.Bytes()[:rec.Body.Len()/2])
		}),
		"zip of another module": zips(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			r.URL.Path = "/example.com/a/v2/@v/v2.0.0.zip"
			next.ServeHTTP(w, r)
		}),
		"gzip bomb": func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			z.Write(make([]byte, 64<<20))
			z.Close()
		},
		"redirect": func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			http.Redirect(w, r, "http://127.0.0.2:1"+r.URL.Path, http.StatusFound)
		},
		"changed record": lookups(func(id int64, text, signed []byte) []byte { return record(id, bytes.ToUpper(text), signed) }),
		"another record": lookups(func(id int64, text, signed []byte) []byte { return record(id-1, text, signed) }),
		"record 2^63-1":  lookups(func(_ int64, text, signed []byte) []byte { return record(1<<63-1, text, signed) }),
		"broken signature": lookups(func(id int64, text, signed []byte) []byte {
			return record(id, text, bytes.ReplaceAll(signed, []byte("— "), []byte("— x")))
		}),
		"empty record": onPath("/lookup/", func(http.ResponseWriter, *http.Request, http.Handler) {}),
		"forged tiles": onPath("/tile/", func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			rec := httptest.NewRecorder()
			next.ServeHTTP(rec, r)
			b := rec.Body.Bytes()
			b[len(b)-1] ^= 1
			w.Write(b)
		}),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up, dir := someModules(t), t.TempDir()
			up.Tamper(tamper)
			m := newMirror(t, up, mirrorConfig{dir: dir})
			out, err := newClient(t, m.URL+",off", up.Key).try("get", "example.com/a@v1.0.0")
			if err == nil {
				t.Errorf("go succeeded: %s", out)
			}
			if strings.Contains(out, ": 404 ") || strings.Contains(out, "disabled by") {
				t.Errorf("the fault became an absence: %s", out)
			}
			up.Tamper(nil)
			m.stop()
			m = newMirror(t, up, mirrorConfig{dir: dir})
			newClient(t, m.URL, up.Key).run("get", "example.com/a@v1.0.0")
		})
	}
}

// onPath tampers with some requests only.
func onPath(part string, f goupstream.Tamper) goupstream.Tamper {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.Contains(r.URL.Path, part) {
			f(w, r, next)
			return
		}
		next.ServeHTTP(w, r)
	}
}

// A GOMODCACHE, and what was downloaded into it, is an upstream as well.
func TestRealGoFileUpstream(t *testing.T) {
	if testing.Short() {
		t.Skip("runs the go command many times")
	}
	up := someModules(t)
	first := newClient(t, up.URL, "off")
	sum, _, _ := first.session()
	cache := strings.TrimSpace(first.run("env", "GOMODCACHE"))
	m := newMirror(t, up, mirrorConfig{proxies: "file://" + cache + "/cache/download", noDB: true})
	up.Stop()
	second := newClient(t, m.URL, "off")
	second.write("go.mod", first.read("go.mod"))
	second.run("mod", "download")
	second.run("build", "-o", filepath.Join(second.dir, "bin"), ".")
	if got := second.read("go.sum"); got != sum {
		t.Errorf("go.sum\n%s\nwant\n%s", got, sum)
	}
	if out, err := second.try("get", "example.com/none@v1.0.0"); err == nil || !strings.Contains(out, "404") {
		t.Errorf("module that is not there: %v\n%s", err, out)
	}
}
