// Package goupstream is a Go module proxy and checksum database on loopback, for
// tests. It serves modules that a test makes up, and those of a download cache
// (GOMODCACHE/cache/download), counts what it is asked, and can be tampered with.
package goupstream

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"
	"golang.org/x/mod/sumdb"
	"golang.org/x/mod/sumdb/dirhash"
	"golang.org/x/mod/sumdb/note"
	modzip "golang.org/x/mod/zip"
)

// DBName is the name of the checksum database.
const DBName = "sum.test"

// A Server is a running upstream. Its methods may be called concurrently.
type Server struct {
	// URL is the proxy's root; the database is at URL + "/sumdb/" + DBName, and
	// says that it is supported.
	URL string
	// Key is the database's verifier key, for GOSUMDB.
	Key string

	// Signer is the database's private key, so that a test can run a fork of it.
	Signer string

	server *httptest.Server
	sums   *sumdb.TestServer

	mu     sync.Mutex
	files  map[string][]byte // by URL path
	dirs   []fs.FS           // in the layout of a download cache
	asked  []string
	tamper Tamper
}

// A Tamper handles a request in place of the upstream, which is next.
type Tamper func(w http.ResponseWriter, r *http.Request, next http.Handler)

// Drip is a Tamper that answers rightly, a byte a second.
func Drip(w http.ResponseWriter, r *http.Request, next http.Handler) {
	rec := httptest.NewRecorder()
	next.ServeHTTP(rec, r)
	w.Header().Set("Content-Length", strconv.Itoa(rec.Body.Len()))
	for _, b := range rec.Body.Bytes() {
		if _, err := w.Write([]byte{b}); err != nil {
			return
		}
		http.NewResponseController(w).Flush()
		select {
		case <-time.After(time.Second):
		case <-r.Context().Done():
			return
		}
	}
}

// New starts an upstream without modules. It stops with the test.
func New(t testing.TB) *Server {
	skey, vkey, err := note.GenerateKey(rand.Reader, DBName)
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Key: vkey, Signer: skey, files: map[string][]byte{}}
	s.sums = sumdb.NewTestServer(skey, s.gosum)
	s.server = httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(s.server.Close)
	s.URL = s.server.URL
	return s
}

// Stop makes the upstream unreachable.
func (s *Server) Stop() {
	s.server.CloseClientConnections()
	s.server.Close()
}

// Add adds a module version with the given files, for example
// {"go.mod": "module example.com/a\n", "a.go": "package a\n"}.
func (s *Server) Add(t testing.TB, modPath, version string, files map[string]string) {
	t.Helper()
	m := module.Version{Path: modPath, Version: version}
	var zipped []modzip.File
	for name, text := range files {
		zipped = append(zipped, memFile{name, text})
	}
	var b bytes.Buffer
	if err := modzip.Create(&b, m, zipped); err != nil {
		t.Fatalf("zip of %s: %v", m, err)
	}
	mod := files["go.mod"]
	if mod == "" {
		mod = "module " + modPath + "\n"
	}
	info, _ := json.Marshal(map[string]any{"Version": version, "Time": time.Unix(1_700_000_000, 0).UTC()})
	s.Put(modPath, version+".info", info)
	s.Put(modPath, version+".mod", []byte(mod))
	s.Put(modPath, version+".zip", b.Bytes())
	s.list(modPath, version)
}

func (s *Server) list(modPath, version string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	esc, _ := module.EscapePath(modPath)
	key := "/" + esc + "/@v/list"
	versions := strings.Fields(string(s.files[key]))
	if !module.IsPseudoVersion(version) && !slices.Contains(versions, version) {
		versions = append(versions, version)
	}
	semver.Sort(versions)
	s.files[key] = []byte(strings.Join(append(versions, ""), "\n"))
}

// Put sets the file of a module, such as "list", "v1.0.0.info" or "master.info".
func (s *Server) Put(modPath, name string, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	esc, err := module.EscapePath(modPath)
	if err != nil {
		panic(err)
	}
	escName, err := module.EscapeVersion(name)
	if err != nil {
		panic(err)
	}
	s.files["/"+esc+"/@v/"+escName] = data
}

// PutLatest sets the @latest answer of a module.
func (s *Server) PutLatest(modPath string, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	esc, _ := module.EscapePath(modPath)
	s.files["/"+esc+"/@latest"] = data
}

// AddToolchain adds the toolchain of a Go version such as "go1.99.0" for this
// machine: scripts for a shell, of which the go command prints what it says.
func (s *Server) AddToolchain(t testing.TB, goVersion, says string) (version string) {
	t.Helper()
	platform := runtime.GOOS + "-" + runtime.GOARCH
	version = "v0.0.1-" + goVersion + "." + platform
	s.Add(t, "golang.org/toolchain", version, map[string]string{
		"bin/go":    "#!/bin/sh\necho " + says + "\n",
		"bin/gofmt": "", "lib/text": "",
		"pkg/tool/" + platform + "/tool": "#!/bin/sh\n",
	})
	return version
}

// AddCache serves the modules of a download cache, such as
// $(go env GOMODCACHE)/cache/download, as well.
func (s *Server) AddCache(dir string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dirs = append(s.dirs, os.DirFS(filepath.Clean(dir)))
}

// Tamper has f handle all requests from now on; nil ends that.
func (s *Server) Tamper(f Tamper) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tamper = f
}

// Asked returns the paths asked for since the last call, in order.
func (s *Server) Asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	asked := s.asked
	s.asked = nil
	return asked
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.asked = append(s.asked, r.URL.Path)
	tamper := s.tamper
	s.mu.Unlock()
	if tamper != nil {
		tamper(w, r, http.HandlerFunc(s.honest))
		return
	}
	s.honest(w, r)
}

func (s *Server) honest(w http.ResponseWriter, r *http.Request) {
	if rest, ok := strings.CutPrefix(r.URL.Path, "/sumdb/"+DBName); ok {
		if rest == "/supported" {
			return
		}
		defer func() {
			if recover() != nil { // sumdb.TestServer's way to say that a tile is beyond its tree
				http.NotFound(w, r)
			}
		}()
		http.StripPrefix("/sumdb/"+DBName, sumdb.NewServer(s.sums)).ServeHTTP(w, r)
		return
	}
	b, err := s.read(r.URL.Path)
	if err != nil {
		http.Error(w, "not found: "+strings.TrimPrefix(r.URL.Path, "/"), http.StatusNotFound)
		return
	}
	http.ServeContent(w, r, path.Base(r.URL.Path)+".bin", time.Time{}, bytes.NewReader(b))
}

func (s *Server) read(urlPath string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b, ok := s.files[urlPath]; ok {
		return b, nil
	}
	for _, d := range s.dirs {
		name := strings.TrimPrefix(urlPath, "/")
		if b, err := fs.ReadFile(d, name); err == nil && !strings.HasSuffix(name, "/list") {
			return b, nil
		}
		if mod, ok := strings.CutSuffix(name, "/list"); ok {
			if b, err := listDir(d, mod); err == nil {
				return b, nil
			}
		}
	}
	return nil, fs.ErrNotExist
}

// listDir lists the versions of which a download cache has everything: its own
// list names others as well.
func listDir(d fs.FS, dir string) ([]byte, error) {
	zips, err := fs.Glob(d, dir+"/*.zip")
	if err != nil || len(zips) == 0 {
		return nil, fs.ErrNotExist
	}
	var b bytes.Buffer
	for _, z := range zips {
		v, err := module.UnescapeVersion(strings.TrimSuffix(path.Base(z), ".zip"))
		if err == nil && !module.IsPseudoVersion(v) {
			fmt.Fprintln(&b, v)
		}
	}
	return b.Bytes(), nil
}

// gosum returns the checksum database's record of a module version.
func (s *Server) gosum(modPath, version string) ([]byte, error) {
	esc, err := module.EscapePath(modPath)
	if err != nil {
		return nil, err
	}
	escVersion, err := module.EscapeVersion(version)
	if err != nil {
		return nil, err
	}
	mod, err := s.read("/" + esc + "/@v/" + escVersion + ".mod")
	if err != nil {
		return nil, err
	}
	modHash, err := dirhash.Hash1([]string{"go.mod"}, func(string) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(mod)), nil
	})
	if err != nil {
		return nil, err
	}
	zip, err := s.read("/" + esc + "/@v/" + escVersion + ".zip")
	zipHash := modHash // a download cache may hold a version's go.mod alone
	if err == nil {
		zipHash, err = hashZip(zip)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return fmt.Appendf(nil, "%s %s %s\n%s %s/go.mod %s\n", modPath, version, zipHash, modPath, version, modHash), nil
}

func hashZip(b []byte) (string, error) {
	f, err := os.CreateTemp("", "goupstream-*.zip")
	if err != nil {
		return "", err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		return "", err
	}
	return dirhash.HashZip(f.Name(), dirhash.Hash1)
}

// Record adds a module version to the checksum database, which otherwise happens
// when it is first looked up, and takes time for a large zip.
func (s *Server) Record(t testing.TB, modPath, version string) {
	t.Helper()
	if _, err := s.sums.Lookup(context.Background(), module.Version{Path: modPath, Version: version}); err != nil {
		t.Fatal(err)
	}
}

// Grow adds n records of other modules to the checksum database.
func (s *Server) Grow(t testing.TB, name string, n int) {
	for i := range n {
		version := fmt.Sprintf("v1.0.%d", i)
		s.Put("grow.test/"+name, version+".mod", []byte("module grow.test/"+name+"\n"))
		s.Record(t, "grow.test/"+name, version)
	}
}

type memFile struct{ name, text string }

func (f memFile) Path() string                 { return f.name }
func (f memFile) Lstat() (fs.FileInfo, error)  { return memInfo{f}, nil }
func (f memFile) Open() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(f.text)), nil }

type memInfo struct{ f memFile }

func (i memInfo) Name() string       { return path.Base(i.f.name) }
func (i memInfo) Size() int64        { return int64(len(i.f.text)) }
func (i memInfo) Mode() fs.FileMode  { return 0o644 }
func (i memInfo) ModTime() time.Time { return time.Time{} }
func (i memInfo) IsDir() bool        { return false }
func (i memInfo) Sys() any           { return nil }
