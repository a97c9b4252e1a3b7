package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/mod/semver"

	"github.com/pkgswarm/pkgswarm/importer"
	"github.com/pkgswarm/pkgswarm/internal/clientenv"
	"github.com/pkgswarm/pkgswarm/internal/filecache"
	"github.com/pkgswarm/pkgswarm/registry"
	"github.com/pkgswarm/pkgswarm/registry/lockfile"
	"github.com/pkgswarm/pkgswarm/registry/modules"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
	"github.com/pkgswarm/pkgswarm/registry/sumdb"
	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

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
  feed             what the module index (--feed) names since --since

Nobody is asked of private modules (GOPRIVATE, GONOPROXY, GONOSUMDB, --private).`,
		Example: `  pkgswarm import go go.sum
  pkgswarm import go module:golang.org/x/mod $(go env GOMODCACHE)
  pkgswarm import go feed --since 2026-01-01T00:00:00Z --watch`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return &exitError{exitUsage, errors.New("no source"), "see pkgswarm import go --help"}
			}
			return f.run(cmd.Context(), s, func(op *operator) (*sources, error) { return f.sources(s, op, args) })
		},
	}
	f.add(cmd)
	fl := cmd.Flags()
	fl.StringVar(&f.proxy, "goproxy", "", "GOPROXY `LIST` (default: what go is configured to use)")
	fl.StringVar(&f.sumdb, "sumdb", "", "checksum database, as `\"VKEY [URL]\"` (default: what go is configured to use)")
	fl.StringVar(&f.sumdbURL, "sumdb-url", "", "`URL` of the checksum database (default: through the module proxy)")
	fl.StringVar(&f.feed, "feed", registry.GoIndex, "`URL` of the module index")
	fl.StringVar(&f.since, "since", "", "`TIME` in RFC 3339 at which a feed is begun; later runs go on from where it ended")
	leaveOut(cmd, "allow-removal", "cosigner", "download-rate", "every", "feed", "lan", "peer", "quorum", "state", "sumdb", "sumdb-url", "upload-rate", "workers")
	return cmd
}

// settings returns what the flags or go's own settings say.
func (f *goFlags) settings(s *streams) (*clientenv.GoSettings, error) {
	env := clientenv.ReadGo()
	g := &clientenv.GoSettings{
		OwnProxy: f.proxy != "", OwnSums: f.sumdb != "", Netrc: netrc(s),
		NoProxy: clientenv.Join(f.private, env.GONOPROXY), NoSums: clientenv.Join(f.private, env.GONOSUMDB),
	}
	list, db := f.proxy, f.sumdb
	if list == "" {
		list = clientenv.WithoutNodes(env.GOPROXY)
	}
	if list == "" {
		list = registry.GoProxy
	}
	if db == "" {
		db = env.GOSUMDB
	}
	var err error
	if g.Proxies, g.Scopes, err = modules.ParseList(list); err != nil {
		return nil, &exitError{exitUsage, fmt.Errorf("--goproxy: %w", err), ""}
	}
	g.Proxies = slices.DeleteFunc(g.Proxies, func(e modules.Entry) bool { return e.URL == "direct" || e.URL == "off" })
	if len(g.Proxies) == 0 {
		return nil, &exitError{exitUsage, fmt.Errorf("--goproxy: no proxy in %q", list), "modules come from a proxy, not from version control"}
	}
	if g.SumKey, g.SumURL, err = clientenv.ParseSumDB(db); err != nil {
		return nil, &exitError{exitUsage, fmt.Errorf("--sumdb: %w", err), ""}
	}
	if g.SumKey == "" {
		return nil, &exitError{exitUsage, errors.New("--sumdb: modules are signed only if a checksum database proves them"), "GOSUMDB=off holds for builds; name one here"}
	}
	if f.sumdbURL != "" {
		g.SumURL = f.sumdbURL
	}
	if err := clientenv.CheckPatterns(g.NoProxy + "," + g.NoSums); err != nil {
		return nil, &exitError{exitUsage, fmt.Errorf("--private: %w", err), ""}
	}
	return g, nil
}

func (f *goFlags) sources(s *streams, op *operator, args []string) (_ *sources, err error) {
	srcs := new(sources)
	defer func() {
		if err != nil {
			srcs.close()
		}
	}()
	set, err := f.settings(s)
	if err != nil {
		return nil, err
	}
	f.private = append(f.private, set.NoProxy, set.NoSums)
	c := set.Upstream()
	if f.feed == registry.GoIndex {
		c.PublicOrigins = append(c.PublicOrigins, f.feed)
	} else {
		c.Origins = append(c.Origins, f.feed)
	}
	client, err := srcs.httpClient(c)
	if err != nil {
		return nil, &exitError{exitUsage, err, ""}
	}
	sums, err := f.openSums(set, client)
	if err != nil {
		return nil, err
	}
	err = f.addSources(srcs, op, args, &importer.HTTPProxy{Client: client, Proxies: set.Proxies}, sums)
	return srcs, err
}

func (f *goFlags) addSources(srcs *sources, op *operator, args []string, proxy *importer.HTTPProxy, sums importer.Sums) error {
	url := proxy.Proxies[0].URL
	var dirs []*importer.ModuleDir
	var modules []importer.GoModule
	for _, arg := range args {
		if arg == "feed" {
			srcs.named.everything = true
			srcs.list = append(srcs.list, &importer.FeedSource{
				Feed: &importer.ModuleFeed{Client: proxy.Client, URL: f.feed}, Dir: op.dir, Since: f.since,
				URL: url, Proxy: proxy, Sums: sums,
			})
			continue
		}
		more, dir, err := goSource(srcs, arg)
		switch {
		case err != nil:
			srcs.cannotUse(pkglog.Go, arg, err)
		case dir == nil:
			modules = append(modules, more...)
		default:
			dir.Missing = proxy
			dirs = append(dirs, dir)
			srcs.addModules(arg, dir, sums, more)
		}
	}
	if len(modules) > 0 {
		srcs.addModules(url, proxy, sums, modules)
	}
	if err := srcs.usable("a source is a directory, a file, module:PATH or feed"); err != nil {
		return err
	}
	var local fileOpener
	if len(dirs) > 0 {
		local = func(ctx context.Context, v importer.Version) (io.ReadCloser, error) { return cachedZip(ctx, dirs, v) }
	}
	return f.addArtifacts(srcs, pkglog.Go, local, func(ctx context.Context, v importer.Version) (io.ReadCloser, error) {
		return proxy.Zip(ctx, v.Name, v.Version)
	})
}

func (f *goFlags) openSums(set *clientenv.GoSettings, client *upstream.Client) (importer.Sums, error) {
	cache, err := filecache.Open(filepath.Join(f.data, "sumdb"), sumCacheBytes)
	if err != nil {
		return nil, err
	}
	db, err := sumdb.Open(sumdb.Config{Key: set.SumKey, URL: set.SumURL, Proxies: set.Proxies.Proxies(), Upstream: client, StateDir: f.state, Cache: cache, NoRecords: true})
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
func goSource(srcs *sources, arg string) ([]importer.GoModule, *importer.ModuleDir, error) {
	if name, ok := strings.CutPrefix(arg, "module:"); ok {
		return srcs.nameModules(parseModule(name)), nil, nil
	}
	info, err := os.Stat(arg)
	if err != nil {
		return nil, nil, err
	}
	if info.IsDir() {
		return moduleDir(srcs, arg)
	}
	locked, err := lockedNames(arg, pkglog.Go)
	if errors.Is(err, lockfile.ErrFormat) {
		modules, err := readModuleList(arg)
		return srcs.nameModules(modules...), nil, err
	}
	srcs.named.addLocked(pkglog.Go, locked)
	var modules []importer.GoModule
	for _, p := range locked {
		if semver.IsValid(p.Version) {
			modules = append(modules, importer.GoModule{Path: p.Name, Versions: []string{p.Version}})
		}
	}
	if err == nil && len(modules) == 0 {
		err = errors.New("names no module version")
	}
	return modules, nil, err
}

// moduleDir opens a directory and lists its modules.
func moduleDir(srcs *sources, arg string) ([]importer.GoModule, *importer.ModuleDir, error) {
	dir, err := importer.OpenModuleDir(arg)
	if err != nil {
		return nil, nil, err
	}
	srcs.closers = append(srcs.closers, dir)
	modules, err := dir.Modules()
	if err == nil && len(modules) == 0 {
		err = errors.New("neither a GOMODCACHE nor in the layout of a GOPROXY: no module version there")
	}
	return modules, dir, err
}

// nameModules notes modules that were named, whose files are wanted.
func (s *sources) nameModules(modules ...importer.GoModule) []importer.GoModule {
	for _, m := range modules {
		if m.List {
			s.named.add(pkglog.Go, m.Path, "")
		}
		for _, v := range m.Versions {
			s.named.add(pkglog.Go, m.Path, v)
		}
	}
	return modules
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

// cachedZip opens a zip in one of the directories.
func cachedZip(ctx context.Context, dirs []*importer.ModuleDir, v importer.Version) (io.ReadCloser, error) {
	for _, dir := range dirs {
		r, err := dir.Zip(ctx, v.Name, v.Version)
		if !errors.Is(err, fs.ErrNotExist) {
			return r, err
		}
	}
	return nil, importer.ErrNotCached
}
