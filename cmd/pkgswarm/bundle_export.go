package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/pkgswarm/pkgswarm/internal/filecache"
	"github.com/pkgswarm/pkgswarm/internal/node"
	"github.com/pkgswarm/pkgswarm/registry/bundle"
	"github.com/pkgswarm/pkgswarm/registry/lockfile"
	"github.com/pkgswarm/pkgswarm/registry/sumdb"
	"github.com/spf13/cobra"
	"golang.org/x/mod/module"
)

func newBundleExportCommand(s *streams) *cobra.Command {
	f := &serveFlags{}
	x := &exporter{s: s, kept: make(map[string][]byte), files: make(map[string]bundle.File)}
	var url, out string
	cmd := &cobra.Command{
		Use:   "export --out FILE LOCKFILE...|PACKAGE@VERSION...",
		Short: "Write packages, and what proves them, to one file",
		Long: `Fetches what Cargo.lock, go.sum, go.mod, CycloneDX or SPDX files name and writes
it to one file, with the index files and checksum-database records that a node
without a network needs to build with it. Prints the ID of the bundle: give it
to whoever imports the file, by another way than the file.

A node that has imported a bundle before knows a tree of the checksum database:
--tree N adds the proof that the bundle's tree is its continuation.

Exit codes: 0 all is in it, 1 failed, 2 wrong usage, 3 some packages could not
be had and are not in it, 11 the store is in use (--url asks a running node).`,
		Example: `  pkgswarm bundle export --out build.bundle Cargo.lock go.sum
  pkgswarm bundle export --out one.bundle serde@1.0.228`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			pkgs, err := readPackages(args)
			if err == nil && out == "" {
				err = errors.New("--out is missing")
			}
			if err != nil {
				return &exitError{exitUsage, err, "see pkgswarm bundle export --help"}
			}
			x.each = &prefetcher{s: s, json: x.json, name: "export", pkgs: pkgs, do: x.add}
			if url != "" {
				return x.export(cmd.Context(), url, out)
			}
			c, err := f.config(s)
			if err != nil {
				return err
			}
			if c.Policy, err = readPolicy(cmd); err != nil {
				return err
			}
			c.Listen = "127.0.0.1:0"
			return withNode(cmd.Context(), c, func(ctx context.Context, n *node.Node) error { return x.export(ctx, n.URL(), out) })
		},
	}
	f.add(cmd)
	showOnly(cmd, "data", "state", "offline", "peer", "registry", "no-lan", "fleet-token-file")
	cmd.Flags().StringVar(&out, "out", "", "`FILE` to write")
	cmd.Flags().StringVar(&url, "url", "", "`URL` of a running node to take it from")
	cmd.Flags().Int64SliceVar(&x.trees, "tree", nil, "`N`, the size of a tree that the importing node knows; may be repeated")
	cmd.Flags().BoolVar(&x.json, "json", false, "print one JSON object a line")
	return cmd
}

// An exporter makes a bundle out of a node's answers.
type exporter struct {
	s     *streams
	json  bool
	trees []int64
	each  *prefetcher
	node  *fetcher
	sums  string // verifier key of the node's checksum database

	mu    sync.Mutex // guards what follows
	pkgs  []lockfile.Package
	files map[string]bundle.File // by path
	kept  map[string][]byte      // small files, by path
}

func (x *exporter) export(ctx context.Context, url, out string) error {
	st, err := askStatus(ctx, url)
	if err != nil {
		return err
	}
	x.sums = st.SumDB
	x.node = newFetcher(url)
	defer x.node.close()
	created := time.Now().UTC().Truncate(time.Second)
	incomplete := x.each.run(ctx)
	if incomplete != nil && x.each.failed.Load() == 0 {
		return incomplete
	}
	m := &bundle.Manifest{Created: created}
	if err := x.addSums(ctx, m); err != nil {
		return err
	}
	for _, pkg := range x.pkgs {
		m.Packages = append(m.Packages, bundle.Package{Ecosystem: pkg.Ecosystem, Name: pkg.Name, Version: pkg.Version, ModOnly: pkg.ModOnly})
	}
	slices.SortFunc(m.Packages, func(a, b bundle.Package) int {
		return slices.Compare([]string{a.Ecosystem, a.Name, a.Version}, []string{b.Ecosystem, b.Name, b.Version})
	})
	for _, path := range slices.Sorted(maps.Keys(x.files)) {
		m.Files = append(m.Files, x.files[path])
	}
	id, size, err := x.write(ctx, m, out)
	if err != nil {
		return err
	}
	if err := x.report(m, id, size, out); err != nil {
		return err
	}
	return incomplete
}

func (x *exporter) report(m *bundle.Manifest, id bundle.Sum, size int64, out string) error {
	if x.json {
		return json.NewEncoder(x.s.out).Encode(map[string]any{"bundle": id, "file": out, "packages": len(m.Packages), "files": len(m.Files), "bytes": size})
	}
	_, err := fmt.Fprintf(x.s.out, "%s: %s, %s\nbundle %s\n", out, count(len(m.Packages), "package", "packages"), humanize.Bytes(uint64(size)), id)
	return err
}

// add reads the files of one package from the node, which fetches and proves them.
// Small ones are kept; others are read again when they are written.
func (x *exporter) add(ctx context.Context, pkg lockfile.Package) error {
	paths, err := buildPaths(pkg)
	if err != nil {
		return err
	}
	if pkg.Ecosystem == lockfile.Go && x.sums != "" {
		if _, err := x.lookup(ctx, pkg); err != nil {
			return err // private, or not to be proven: not to be carried
		}
	}
	files, kept := make(map[string]bundle.File), make(map[string][]byte)
	for _, path := range paths {
		f, body, err := x.read(ctx, path)
		if err != nil {
			return err
		}
		files[f.Path] = f
		if body != nil {
			kept[f.Path] = body
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.pkgs = append(x.pkgs, pkg)
	maps.Copy(x.files, files)
	maps.Copy(x.kept, kept)
	return nil
}

func (x *exporter) read(ctx context.Context, path string) (bundle.File, []byte, error) {
	f := bundle.File{Path: bundlePath(path)}
	h := sha256.New()
	var b bytes.Buffer
	w := io.Writer(h)
	small := bundle.Small(f.Path)
	if small {
		w = io.MultiWriter(h, &b)
	}
	n := &counter{w: w}
	if err := x.node.get(ctx, path, n); err != nil {
		return f, nil, err
	}
	f.Sum, f.Size = bundle.Sum(h.Sum(nil)), n.n
	if !small {
		return f, nil, nil
	}
	return f, b.Bytes(), nil
}

// A counter counts what is written.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

func (x *exporter) sumRoot() (root string, err error) {
	name, err := sumdb.NameOf(x.sums)
	return "/go/sumdb/" + name, err
}

// lookup has the node look a module up in the checksum database.
func (x *exporter) lookup(ctx context.Context, pkg lockfile.Package) ([]byte, error) {
	root, err := x.sumRoot()
	if err != nil {
		return nil, err
	}
	path, err := module.EscapePath(pkg.Name)
	if err != nil {
		return nil, err
	}
	version, err := module.EscapeVersion(pkg.Version)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = x.node.get(ctx, root+"/lookup/"+path+"@"+version, &b)
	return b.Bytes(), err
}

// sumAttempts is how often the proofs are gathered while the node goes over to newer
// trees meanwhile.
const sumAttempts = 3

// addSums adds the records of all modules, and the tiles that prove them to somebody
// who knows nothing or one of the trees asked for: those that a client of our own,
// which knows as little, asks for.
func (x *exporter) addSums(ctx context.Context, m *bundle.Manifest) error {
	modules := slices.DeleteFunc(slices.Clone(x.pkgs), func(p lockfile.Package) bool { return p.Ecosystem != lockfile.Go })
	if x.sums == "" || len(modules) == 0 {
		return nil
	}
	for range sumAttempts {
		files, before, after, err := x.gatherSums(ctx, modules)
		if err != nil {
			return err
		}
		if before != after {
			continue
		}
		for path, b := range files {
			x.files[path] = bundle.File{Path: path, Sum: sha256.Sum256(b), Size: int64(len(b))}
			x.kept[path] = b
		}
		m.Tree = after
		m.Database, err = sumdb.NameOf(x.sums)
		return err
	}
	return errors.New("the checksum database grows faster than its proofs can be gathered: try again")
}

// gatherSums returns the files of the checksum database, and the sizes of its tree
// after the first and the last of the modules.
func (x *exporter) gatherSums(ctx context.Context, modules []lockfile.Package) (files map[string][]byte, before, after int64, err error) {
	root, err := x.sumRoot()
	if err != nil {
		return nil, 0, 0, err
	}
	tmp, err := os.MkdirTemp("", "pkgswarm-export-*")
	if err != nil {
		return nil, 0, 0, err
	}
	defer os.RemoveAll(tmp)
	cache, err := filecache.Open(filepath.Join(tmp, "cache"), 0)
	if err != nil {
		return nil, 0, 0, err
	}
	defer cache.Close()
	rec := &sumRecorder{node: x.node, root: root, files: make(map[string][]byte)}
	db, err := sumdb.Open(sumdb.Config{Key: x.sums, URL: node.SourceURL + "sumdb", Upstream: rec, StateDir: tmp, Cache: cache})
	if err != nil {
		return nil, 0, 0, err
	}
	for i, pkg := range modules {
		if _, err := db.Lookup(ctx, module.Version{Path: pkg.Name, Version: pkg.Version}); err != nil {
			return nil, 0, 0, err
		}
		if i == 0 {
			if before, err = db.Show(ctx, 0); err != nil {
				return nil, 0, 0, err
			}
		}
	}
	for _, n := range append([]int64{0}, x.trees...) {
		if after, err = db.Show(ctx, n); err != nil {
			return nil, 0, 0, &exitError{exitUsage, fmt.Errorf("--tree %d: %w", n, err), "name the size that the import has shown"}
		}
	}
	return rec.files, before, after, nil
}

// write writes the bundle as a whole or not at all.
func (x *exporter) write(ctx context.Context, m *bundle.Manifest, out string) (id bundle.Sum, size int64, err error) {
	tmp, err := os.CreateTemp(filepath.Dir(out), "."+filepath.Base(out)+"-*")
	if err != nil {
		return id, 0, err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	id, err = bundle.Write(tmp, m, func(f bundle.File) (io.ReadCloser, error) {
		if b, ok := x.kept[f.Path]; ok {
			return closer(b), nil
		}
		return x.node.open(ctx, nodePath(f.Path))
	})
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		return id, 0, err
	}
	info, err := tmp.Stat()
	if err == nil {
		err = errors.Join(tmp.Chmod(0o644), tmp.Sync(), tmp.Close())
	}
	if err != nil {
		return id, 0, err
	}
	return id, info.Size(), os.Rename(tmp.Name(), out)
}

// nodePath is the inverse of bundlePath.
func nodePath(inBundle string) string {
	if len(inBundle) > 9 && inBundle[:9] == "cargo/dl/" {
		return "/" + inBundle + "/download"
	}
	return "/" + inBundle
}
