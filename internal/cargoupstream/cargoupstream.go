// Package cargoupstream is a sparse cargo registry on loopback, for tests. It
// serves crates that a test makes up, and those in a CARGO_HOME, counts what it is
// asked, and can be tampered with.
package cargoupstream

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/registry"
)

// A Server is a running registry. Its methods may be called concurrently.
type Server struct {
	// URL is the server's root; the index is at URL + "/index/".
	URL string

	server *httptest.Server

	mu     sync.Mutex
	index  map[registry.CrateName][]byte
	crates map[string][]byte // by "name-version"
	asked  map[string]int    // by path
	tamper Tamper
	delay  time.Duration
}

// A Tamper handles a request in place of the registry, which is next.
type Tamper func(w http.ResponseWriter, r *http.Request, next http.Handler)

// New starts a registry without crates. It stops with the test.
func New(t testing.TB) *Server { return start(t, (*httptest.Server).Start) }

// NewTLS is New with HTTPS, and with it HTTP/2.
func NewTLS(t testing.TB) *Server { return start(t, (*httptest.Server).StartTLS) }

func start(t testing.TB, listen func(*httptest.Server)) *Server {
	s := &Server{index: map[registry.CrateName][]byte{}, crates: map[string][]byte{}, asked: map[string]int{}}
	s.server = httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
	s.server.EnableHTTP2 = true
	listen(s.server)
	t.Cleanup(s.server.Close)
	s.URL = s.server.URL
	return s
}

// Certificate returns the server's certificate, which is its own authority.
func (s *Server) Certificate() *x509.Certificate { return s.server.Certificate() }

// Index returns the registry's index, as cargo and a node are told of it.
func (s *Server) Index() string { return "sparse+" + s.URL + "/index/" }

// Stop makes the registry unreachable.
func (s *Server) Stop() {
	s.server.CloseClientConnections()
	s.server.Close()
}

// Delay makes every answer take that long.
func (s *Server) Delay(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.delay = d
}

// Tamper makes f handle requests from now on; nil ends that.
func (s *Server) Tamper(f Tamper) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tamper = f
}

// Add adds a version of a crate with that .crate file and further members of its
// index line, such as `"deps":[…]`.
func (s *Server) Add(t testing.TB, name, version string, crate []byte, members ...string) {
	t.Helper()
	n, err := registry.ParseCrate(name)
	if err != nil {
		t.Fatal(err)
	}
	line := fmt.Sprintf(`{"name":%q,"vers":%q,"cksum":"%x"`, name, version, sha256.Sum256(crate))
	for _, m := range append([]string{`"features":{}`, `"yanked":false`}, members...) {
		line += "," + m
	}
	if !strings.Contains(line, `"deps"`) {
		line += `,"deps":[]`
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.index[n] = append(s.index[n], line+"}\n"...)
	s.crates[name+"-"+version] = crate
}

// AddHome adds what cargo keeps in a CARGO_HOME: the .crate files, and index files as
// it has cached them, but that versions without a .crate are yanked: whoever has no
// lock file chooses among those that can be had, however old the cache is.
func (s *Server) AddHome(t testing.TB, home string) {
	t.Helper()
	caches, err := filepath.Glob(filepath.Join(home, "registry", "index", "*", ".cache"))
	if err != nil || len(caches) == 0 {
		t.Fatalf("no cached index in %s: %v", home, err)
	}
	files, _ := filepath.Glob(filepath.Join(home, "registry", "cache", "*", "*.crate"))
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		s.mu.Lock()
		s.crates[strings.TrimSuffix(filepath.Base(f), ".crate")] = b
		s.mu.Unlock()
	}
	for _, dir := range caches {
		err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			b, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			return s.addCached(d.Name(), b)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// addCached adds an index file in the form of cargo's cache: the byte 3, u32le 2,
// the validator, NUL, then (version, NUL, line, NUL)*.
func (s *Server) addCached(name string, b []byte) error {
	n, err := registry.ParseCrate(name)
	if err != nil {
		return err
	}
	if len(b) < 5 || b[0] != 3 || b[1] != 2 {
		return errors.New("not a cached index file")
	}
	parts := bytes.Split(b[5:], []byte{0})
	var file []byte
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := 2; i < len(parts); i += 2 {
		line := parts[i]
		var v struct{ Name, Vers string }
		if err := json.Unmarshal(line, &v); err != nil {
			return err
		}
		if _, ok := s.crates[v.Name+"-"+v.Vers]; !ok {
			line = bytes.Replace(line, []byte(`"yanked":false`), []byte(`"yanked":true`), 1)
		}
		file = append(append(file, line...), '\n')
	}
	s.index[n] = file
	return nil
}

// Crates returns how many .crate files the registry has, and their size.
func (s *Server) Crates() (n int, size int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.crates {
		size += int64(len(b))
	}
	return len(s.crates), size
}

// Downloads returns how often each .crate was asked for since the last Reset.
func (s *Server) Downloads() map[string]int { return s.count("/dl/") }

// Lookups returns how often each index file was.
func (s *Server) Lookups() map[string]int { return s.count("/index/") }

func (s *Server) count(prefix string) map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := make(map[string]int)
	for path, n := range s.asked {
		if strings.HasPrefix(path, prefix) {
			m[path] = n
		}
	}
	return m
}

// Reset begins to count anew.
func (s *Server) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.asked)
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.asked[r.URL.Path]++
	tamper, delay := s.tamper, s.delay
	s.mu.Unlock()
	time.Sleep(delay)
	if tamper != nil {
		tamper(w, r, http.HandlerFunc(s.honest))
		return
	}
	s.honest(w, r)
}

func (s *Server) honest(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/index/config.json" {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"dl":"%s/dl/{crate}/{crate}-{version}.crate"}`, s.URL)
		return
	}
	if path, ok := strings.CutPrefix(r.URL.Path, "/index/"); ok {
		s.serveIndex(w, r, path)
		return
	}
	s.mu.Lock()
	b, ok := s.crates[strings.TrimSuffix(filepath.Base(r.URL.Path), ".crate")]
	s.mu.Unlock()
	if !ok || !strings.HasPrefix(r.URL.Path, "/dl/") {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/gzip")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
}

func (s *Server) serveIndex(w http.ResponseWriter, r *http.Request, path string) {
	n, err := registry.ParseIndexPath(path)
	s.mu.Lock()
	b, ok := s.index[n]
	s.mu.Unlock()
	if err != nil || !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "text/plain")
	w.Header().Set("ETag", fmt.Sprintf(`"%x"`, sha256.Sum256(b)))
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
}
