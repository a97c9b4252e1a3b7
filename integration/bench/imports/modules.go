//go:build unix

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/pkgswarm/pkgswarm/importer"
	"github.com/pkgswarm/pkgswarm/integration/synthetic"
	"github.com/pkgswarm/pkgswarm/internal/filecache"
	gomodules "github.com/pkgswarm/pkgswarm/registry/modules"
	sumclient "github.com/pkgswarm/pkgswarm/registry/sumdb"
	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

// A moduleServer is a module proxy with its checksum database.
type moduleServer struct {
	syn    synthetic.Modules
	first  []int64 // record number of each module's first version; then that of all
	hashes tlog.HashReader
	head   []byte // signed

	mu   sync.Mutex // guards what follows
	last map[int]synthetic.Module
}

// serveModules serves modules on a loopback port until standard input ends. It
// prints the URL and the database's key when it is ready. It runs in a process
// of its own, so that what the import takes can be told from what this does.
func serveModules(modules int) error {
	s := &moduleServer{syn: synthetic.Modules{Modules: modules, Seed: 1}, last: map[int]synthetic.Module{}}
	key, err := s.build()
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer ln.Close()
	db := sumdb.NewServer(s)
	mux := http.NewServeMux()
	mux.HandleFunc("/sumdb/"+dbName+"/supported", func(http.ResponseWriter, *http.Request) {})
	mux.Handle("/sumdb/"+dbName+"/", http.StripPrefix("/sumdb/"+dbName, db))
	mux.HandleFunc("/", s.file)
	go http.Serve(ln, mux)
	fmt.Printf("http://%s %d %s\n", ln.Addr(), s.first[modules], key)
	bufio.NewReader(os.Stdin).ReadByte()
	return nil
}

const dbName = "sums.example"

// build makes the records of all versions into a tree and signs it.
func (s *moduleServer) build() (key string, err error) {
	var hashes memoryHashes
	for i := range s.syn.Modules {
		s.first = append(s.first, hashes.records)
		m := s.syn.Module(i)
		for _, v := range m.Versions {
			if err := hashes.add(v.Record(m.Path)); err != nil {
				return "", err
			}
		}
	}
	s.first = append(s.first, hashes.records)
	s.hashes = &hashes
	root, err := tlog.TreeHash(hashes.records, &hashes)
	if err != nil {
		return "", err
	}
	secret, key, err := note.GenerateKey(nil, dbName)
	if err != nil {
		return "", err
	}
	signer, err := note.NewSigner(secret)
	if err != nil {
		return "", err
	}
	s.head, err = note.Sign(&note.Note{Text: string(tlog.FormatTree(tlog.Tree{N: hashes.records, Hash: root}))}, signer)
	return key, err
}

// memoryHashes are the stored hashes of a tree.
type memoryHashes struct {
	records int64
	hashes  []tlog.Hash
}

func (m *memoryHashes) add(record []byte) error {
	stored, err := tlog.StoredHashes(m.records, record, m)
	m.hashes = append(m.hashes, stored...)
	m.records++
	return err
}

func (m *memoryHashes) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, at := range indexes {
		out[i] = m.hashes[at]
	}
	return out, nil
}

// module returns module number i, one of the last that were asked for or anew.
func (s *moduleServer) module(i int) synthetic.Module {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, ok := s.last[i]
	if !ok {
		if len(s.last) >= 64 {
			clear(s.last)
		}
		m = s.syn.Module(i)
		s.last[i] = m
	}
	return m
}

func (s *moduleServer) find(path, version string) (module, at int, err error) {
	i, ok := s.syn.Number(path)
	if !ok {
		return 0, 0, fs.ErrNotExist
	}
	at = slices.IndexFunc(s.module(i).Versions, func(v synthetic.ModuleVersion) bool { return v.Version == version })
	if at < 0 {
		return 0, 0, fs.ErrNotExist
	}
	return i, at, nil
}

// Signed is of sumdb.ServerOps, as are the next three.
func (s *moduleServer) Signed(context.Context) ([]byte, error) { return s.head, nil }

func (s *moduleServer) ReadRecords(_ context.Context, id, n int64) ([][]byte, error) {
	var records [][]byte
	for ; n > 0; id, n = id+1, n-1 {
		i, found := slices.BinarySearch(s.first, id)
		if !found {
			i--
		}
		m := s.module(i)
		records = append(records, m.Versions[id-s.first[i]].Record(m.Path))
	}
	return records, nil
}

func (s *moduleServer) Lookup(_ context.Context, m module.Version) (int64, error) {
	i, at, err := s.find(m.Path, m.Version)
	if err != nil {
		return 0, err
	}
	return s.first[i] + int64(at), nil
}

func (s *moduleServer) ReadTileData(_ context.Context, t tlog.Tile) ([]byte, error) {
	return tlog.ReadTileData(t, s.hashes)
}

// file answers for the proxy.
func (s *moduleServer) file(w http.ResponseWriter, r *http.Request) {
	escPath, file, ok := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/@v/")
	path, err := module.UnescapePath(escPath)
	if !ok || err != nil {
		http.NotFound(w, r)
		return
	}
	if i, ok := s.syn.Number(path); ok && file == "list" {
		for _, v := range s.module(i).Versions {
			fmt.Fprintln(w, v.Version)
		}
		return
	}
	ext := filepath.Ext(file)
	i, at, err := s.find(path, strings.TrimSuffix(file, ext))
	if err != nil || ext != ".info" && ext != ".mod" {
		http.NotFound(w, r)
		return
	}
	if v := s.module(i).Versions[at]; ext == ".info" {
		w.Write(v.Info)
	} else {
		w.Write(v.Mod)
	}
}

// measureModules imports modules from a server of its own: once, and again
// unchanged. An import that was stopped goes on where it was.
func measureModules(dir string, modules int) (err error) {
	url, versions, key, stop, err := startModules(modules)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	fmt.Printf("proxy: %d modules, %d versions\n", modules, versions)
	work := filepath.Join(dir, fmt.Sprintf("modules-%d", modules))
	client, err := upstream.New(upstream.Config{Origins: []string{url}})
	if err != nil {
		return err
	}
	defer client.Close()
	cache, err := filecache.Open(filepath.Join(work, "sumdb"), 1<<30)
	if err != nil {
		return err
	}
	db, err := sumclient.Open(sumclient.Config{Key: key, Proxies: []string{url}, Upstream: client, StateDir: filepath.Join(work, "state"), Cache: cache, NoRecords: true})
	if err != nil {
		return err
	}
	src := &importer.GoModules{URL: "synthetic modules", Proxy: &importer.HTTPProxy{Client: client, Proxies: gomodules.List{{URL: url}}}, Sums: importer.SumsOf(db)}
	syn := synthetic.Modules{Modules: modules, Seed: 1}
	for i := range modules {
		src.Modules = append(src.Modules, importer.GoModule{Path: syn.Path(i), List: true})
	}
	src.Modules, _ = importer.SortModules(src.Modules)
	open := func() (importer.Source, error) { return src, nil }
	for _, what := range []string{"first run", "second run, unchanged"} {
		c, err := measure(what, work, open)
		if err != nil {
			return err
		}
		c.print(what)
	}
	return nil
}

// startModules starts this program as a server of modules.
func startModules(modules int) (url string, versions int64, key string, stop func() error, err error) {
	cmd := exec.Command(os.Args[0], "-serve", fmt.Sprint(modules))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return "", 0, "", nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", 0, "", nil, err
	}
	if err := cmd.Start(); err != nil {
		return "", 0, "", nil, err
	}
	stop = func() error {
		in.Close()
		err := cmd.Wait()
		u := cmd.ProcessState
		fmt.Printf("the server took %.1f s of CPU\n", (u.UserTime() + u.SystemTime()).Seconds())
		return err
	}
	if _, err := fmt.Fscan(out, &url, &versions, &key); err != nil {
		return "", 0, "", nil, errors.Join(fmt.Errorf("server of modules: %w", err), stop())
	}
	return url, versions, key, stop, nil
}
