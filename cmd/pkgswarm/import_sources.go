package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/mod/semver"

	"github.com/pkgswarm/pkgswarm/importer"
	"github.com/pkgswarm/pkgswarm/internal/filecache"
	"github.com/pkgswarm/pkgswarm/registry"
	"github.com/pkgswarm/pkgswarm/registry/lockfile"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
	"github.com/pkgswarm/pkgswarm/registry/sumdb"
	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

// sources are what one import works through.
type sources struct {
	list      []importer.Source
	problems  []importer.Problem  // with what the command line names
	artifacts *importer.Artifacts // nil: metadata only
	fed       importer.Source     // that which the feed tells about; nil if there is none
	feed      func(ctx context.Context) ([]importer.Source, error)
	closers   []io.Closer
}

func (s *sources) close() {
	for _, c := range s.closers {
		c.Close()
	}
}

// closeFunc makes a function an io.Closer.
type closeFunc func()

func (f closeFunc) Close() error { f(); return nil }

// httpClient returns a client for the given upstreams; built-in ones must be at
// public addresses.
func (s *sources) httpClient(urls ...string) (*upstream.Client, error) {
	var c upstream.Config
	for _, u := range urls {
		switch u {
		case "":
		case registry.CargoIndex, registry.CargoUpdates, registry.CargoDownload, registry.GoProxy, registry.GoIndex:
			c.PublicOrigins = append(c.PublicOrigins, u)
		default:
			c.Origins = append(c.Origins, u)
		}
	}
	client, err := upstream.New(c)
	if err == nil {
		s.closers = append(s.closers, closeFunc(client.Close))
	}
	return client, err
}

// cargoFlags are those of import cargo.
type cargoFlags struct {
	importFlags
	index   string
	updates string
	allOf   string
}

func newImportCargoCommand(s *streams) *cobra.Command {
	var f cargoFlags
	cmd := &cobra.Command{
		Use:   "cargo SOURCE...",
		Short: "Import crates",
		Long: `Imports the index entries of crates. A SOURCE is

  a directory      an index in the layout of crates.io (a plain one, a git
                   checkout, or DIR/index with DIR/crates beside it): the whole
                   registry. Or a CARGO_HOME: adds what its caches hold
  a lock file      Cargo.lock, or an SBOM: the crates it names, from --index
  crate:NAME       one crate, from --index`,
		Example: `  pkgswarm import cargo ~/src/crates-index
  pkgswarm import cargo Cargo.lock crate:ripgrep --artifacts
  pkgswarm import cargo /srv/mirror --watch --swarm-listen :7071`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 && f.allOf == "" {
				return &exitError{exitUsage, errors.New("no source"), "see pkgswarm import cargo --help"}
			}
			return f.run(cmd.Context(), s, func(op *operator) (*sources, error) { return f.sources(cmd.Context(), op, args) })
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&f.index, "index", registry.CargoIndex, "sparse index `URL` for crates that are only named")
	cmd.Flags().DurationVar(&f.revalidate, "revalidate", 6*time.Hour, "how often to look at all crates, with --watch and a feed: yanks are in no feed")
	cmd.Flags().StringVar(&f.updates, "updates", "", "feed `URL` that names crates with new versions; looked at with --watch (default: that of crates.io with its index)")
	cmd.Flags().StringVar(&f.allOf, "all-of", "", "all crates that the index in `DIR` or the catalog names, from --index; with --watch also those of the feed")
	leaveOut(cmd, "all-of", "allow-removal", "cosigner", "download-rate", "every", "lan", "quorum", "revalidate", "updates", "upload-rate", "workers")
	return cmd
}

func (f *cargoFlags) sources(ctx context.Context, op *operator, args []string) (_ *sources, err error) {
	srcs := new(sources)
	defer func() {
		if err != nil {
			srcs.close()
		}
	}()
	var names []string
	var dirs []crateDir
	for _, arg := range args {
		if name, ok := strings.CutPrefix(arg, "crate:"); ok {
			names = append(names, name)
			continue
		}
		info, err := os.Stat(arg)
		switch {
		case err != nil:
			return nil, &exitError{exitUsage, err, "a source is a directory, a lock file or crate:NAME"}
		case !info.IsDir():
			more, err := lockedNames(arg, lockfile.Cargo)
			if err != nil {
				return nil, err
			}
			for _, p := range more {
				names = append(names, p.Name)
			}
		default:
			if dirs, err = srcs.addCargoDir(dirs, arg); err != nil {
				return nil, err
			}
		}
	}
	if f.allOf != "" {
		d, err := importer.OpenCargoDir(f.allOf)
		if err != nil {
			return nil, err
		}
		all, err := d.Names()
		if err != nil {
			return nil, err
		}
		names = append(names, all...)
		for h, err := range op.catalog.Packages(ctx, pkglog.Cargo) {
			if err != nil {
				return nil, err
			}
			names = append(names, h.Package)
		}
	}
	dl := ""
	var client *upstream.Client
	if len(names) > 0 {
		if client, dl, err = f.addIndex(ctx, srcs, names); err != nil {
			return nil, err
		}
	}
	return srcs, f.addArtifacts(srcs, func(ctx context.Context, v importer.Version) (io.ReadCloser, error) {
		return openCrate(ctx, dirs, client, dl, v)
	})
}

// A crateDir has .crate files.
type crateDir interface {
	Crate(name, version string) (*os.File, error)
}

func (s *sources) addCargoDir(dirs []crateDir, dir string) ([]crateDir, error) {
	if importer.IsCargoHome(dir) {
		homes, err := importer.OpenCargoHome(dir)
		for _, h := range homes {
			s.list = append(s.list, h)
			dirs = append(dirs, h)
		}
		return dirs, err
	}
	d, err := importer.OpenCargoDir(dir)
	if err != nil {
		return nil, err
	}
	s.list = append(s.list, d)
	return append(dirs, d), nil
}

// addIndex adds the named crates from the sparse index.
func (f *cargoFlags) addIndex(ctx context.Context, srcs *sources, names []string) (*upstream.Client, string, error) {
	url := strings.TrimPrefix(f.index, "sparse+")
	if !strings.HasSuffix(url, "/") {
		url += "/"
	}
	updates := f.updates
	if updates == "" && url == registry.CargoIndex {
		updates = registry.CargoUpdates
	}
	client, err := srcs.httpClient(url, updates)
	if err != nil {
		return nil, "", err
	}
	dl := ""
	if f.artifacts != "" {
		if dl, err = importer.Download(ctx, client, url); err != nil {
			return nil, "", err
		}
		if err := client.AddOrigin(strings.SplitN(dl, "{", 2)[0]); err != nil {
			return nil, "", err
		}
	}
	sorted, problems := importer.SortCrates(names)
	srcs.problems = append(srcs.problems, problems...)
	x := &importer.SparseIndex{Client: client, URL: url, Names: sorted}
	srcs.list = append(srcs.list, x)
	if updates != "" {
		feed := &importer.UpdateFeed{Client: client, URL: updates}
		srcs.fed = x
		srcs.feed = func(ctx context.Context) ([]importer.Source, error) {
			named, err := feed.Names(ctx)
			if f.allOf == "" {
				named = intersect(sorted, named)
			}
			if err != nil || len(named) == 0 {
				return nil, err
			}
			return []importer.Source{&importer.SparseIndex{Client: client, URL: url, Names: named}}, nil
		}
	}
	return client, dl, nil
}

// intersect returns what two sorted lists have in common.
func intersect(a, b []string) []string {
	in := make(map[string]bool, len(b))
	for _, s := range b {
		in[s] = true
	}
	var both []string
	for _, s := range a {
		if in[s] {
			both = append(both, s)
		}
	}
	return both
}

// openCrate opens a .crate in one of the directories, else where dl says.
func openCrate(ctx context.Context, dirs []crateDir, client *upstream.Client, dl string, v importer.Version) (io.ReadCloser, error) {
	for _, dir := range dirs {
		f, err := dir.Crate(v.Name, v.Version)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	if client == nil || dl == "" {
		return nil, fmt.Errorf("no .crate beside the index: %w", fs.ErrNotExist)
	}
	return client.Open(ctx, upstream.Request{URL: registry.ExpandDL(dl, v.Name, v.Version, fmt.Sprintf("%x", v.Digest.Sum)), Kind: upstream.Crate})
}

func lockedNames(path, ecosystem string) ([]lockfile.Package, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	all, err := lockfile.Read(filepath.Base(path), f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	var those []lockfile.Package
	for _, p := range all {
		if p.Ecosystem == ecosystem {
			those = append(those, p)
		}
	}
	return those, nil
}

// goFlags are those of import go.
type goFlags struct {
	importFlags
	proxy    string
	sumdb    string
	sumdbURL string
	feed     string
	since    string
}

func newImportGoCommand(s *streams) *cobra.Command {
	var f goFlags
	cmd := &cobra.Command{
		Use:   "go SOURCE...",
		Short: "Import modules",
		Long: `Imports module versions, each proven by the checksum database first. A SOURCE is

  a directory      a GOMODCACHE, or anything with the layout of a GOPROXY
  a file           go.mod, go.sum or an SBOM: the versions it names. Another
                   file: a list of modules, one a line, PATH or PATH@VERSION
  module:PATH      all versions that --goproxy lists; module:PATH@VERSION one
  feed             what the module index (--feed) names since --since`,
		Example: `  pkgswarm import go go.sum
  pkgswarm import go module:golang.org/x/mod $(go env GOMODCACHE)
  pkgswarm import go feed --since 2026-01-01T00:00:00Z --watch`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return &exitError{exitUsage, errors.New("no source"), "see pkgswarm import go --help"}
			}
			return f.run(cmd.Context(), s, func(op *operator) (*sources, error) { return f.sources(cmd.Context(), op, args) })
		},
	}
	f.add(cmd)
	fl := cmd.Flags()
	fl.StringVar(&f.proxy, "goproxy", registry.GoProxy, "module proxy `URL`")
	fl.StringVar(&f.sumdb, "sumdb", registry.GoSumDB, "verifier `KEY` of the checksum database")
	fl.StringVar(&f.sumdbURL, "sumdb-url", "", "`URL` of the checksum database (default: through the module proxy)")
	fl.StringVar(&f.feed, "feed", registry.GoIndex, "`URL` of the module index")
	fl.StringVar(&f.since, "since", "", "`TIME` in RFC 3339 at which a feed is begun; later runs go on from where it ended")
	leaveOut(cmd, "allow-removal", "cosigner", "download-rate", "every", "feed", "lan", "quorum", "sumdb", "sumdb-url", "upload-rate", "workers")
	return cmd
}

func (f *goFlags) sources(ctx context.Context, op *operator, args []string) (_ *sources, err error) {
	srcs := new(sources)
	defer func() {
		if err != nil {
			srcs.close()
		}
	}()
	f.proxy = strings.TrimSuffix(f.proxy, "/")
	client, err := srcs.httpClient(f.proxy, f.sumdbURL, f.feed)
	if err != nil {
		return nil, err
	}
	sums, err := f.openSums(srcs, client)
	if err != nil {
		return nil, err
	}
	proxy := &importer.HTTPProxy{Client: client, URL: f.proxy}
	zips := []zipOpener{}
	var modules []importer.GoModule
	for _, arg := range args {
		if arg == "feed" {
			srcs.list = append(srcs.list, &importer.FeedSource{
				Feed: &importer.ModuleFeed{Client: client, URL: f.feed}, Dir: op.dir, Since: f.since,
				URL: f.proxy, Proxy: proxy, Sums: sums,
			})
			continue
		}
		more, dir, err := goSource(arg)
		if err != nil {
			return nil, err
		}
		if dir == nil {
			modules = append(modules, more...)
			continue
		}
		srcs.closers = append(srcs.closers, dir)
		zips = append(zips, dir)
		srcs.addModules(arg, dir, sums, more)
	}
	if len(modules) > 0 {
		srcs.addModules(f.proxy, proxy, sums, modules)
	}
	zips = append(zips, proxy)
	return srcs, f.addArtifacts(srcs, func(ctx context.Context, v importer.Version) (io.ReadCloser, error) {
		return openZip(ctx, zips, v.Name, v.Version)
	})
}

func (f *goFlags) openSums(srcs *sources, client *upstream.Client) (importer.Sums, error) {
	cache, err := filecache.Open(filepath.Join(f.data, "sumdb"), sumCacheBytes)
	if err != nil {
		return nil, err
	}
	db, err := sumdb.Open(sumdb.Config{Key: f.sumdb, URL: f.sumdbURL, Proxies: []string{f.proxy}, Upstream: client, StateDir: f.state, Cache: cache, NoRecords: true})
	if err != nil {
		return nil, err
	}
	return importer.SumsOf(db), nil
}

// sumCacheBytes bounds the cached tiles and records of the checksum database.
const sumCacheBytes = 1 << 30

func (s *sources) addModules(url string, p importer.ModuleProxy, sums importer.Sums, modules []importer.GoModule) {
	sorted, problems := importer.SortModules(modules)
	s.problems = append(s.problems, problems...)
	s.list = append(s.list, &importer.GoModules{URL: url, Proxy: p, Sums: sums, Modules: sorted})
}

// goSource reads an argument: modules by name, or a directory and its modules.
func goSource(arg string) ([]importer.GoModule, *importer.ModuleDir, error) {
	if name, ok := strings.CutPrefix(arg, "module:"); ok {
		return []importer.GoModule{parseModule(name)}, nil, nil
	}
	info, err := os.Stat(arg)
	if err != nil {
		return nil, nil, &exitError{exitUsage, err, "a source is a directory, a file, module:PATH or feed"}
	}
	if info.IsDir() {
		dir, err := importer.OpenModuleDir(arg)
		if err != nil {
			return nil, nil, err
		}
		modules, err := dir.Modules()
		if err != nil {
			dir.Close()
		}
		return modules, dir, err
	}
	locked, err := lockedNames(arg, lockfile.Go)
	if errors.Is(err, lockfile.ErrFormat) {
		modules, err := readModuleList(arg)
		return modules, nil, err
	}
	var modules []importer.GoModule
	for _, p := range locked {
		if semver.IsValid(p.Version) {
			modules = append(modules, importer.GoModule{Path: p.Name, Versions: []string{p.Version}})
		}
	}
	return modules, nil, err
}

func parseModule(s string) importer.GoModule {
	path, version, ok := strings.Cut(s, "@")
	if !ok {
		return importer.GoModule{Path: path, List: true}
	}
	return importer.GoModule{Path: path, Versions: []string{version}}
}

func readModuleList(path string) ([]importer.GoModule, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var modules []importer.GoModule
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			modules = append(modules, parseModule(line))
		}
	}
	return modules, nil
}

// A zipOpener has module zips.
type zipOpener interface {
	Zip(ctx context.Context, path, version string) (io.ReadCloser, error)
}

func openZip(ctx context.Context, from []zipOpener, path, version string) (io.ReadCloser, error) {
	var errs []error
	for _, z := range from {
		r, err := z.Zip(ctx, path, version)
		if err == nil {
			return r, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}
