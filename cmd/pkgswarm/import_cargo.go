package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pkgswarm/pkgswarm/importer"
	"github.com/pkgswarm/pkgswarm/internal/clientenv"
	"github.com/pkgswarm/pkgswarm/registry"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

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
                   checkout, or DIR/index with DIR/crates/NAME-VERSION.crate
                   beside it): the whole registry. Or a CARGO_HOME: adds what
                   its caches hold of the registry that is crates.io for it
  a lock file      Cargo.lock, or an SBOM: the crates it names, from --index
  crate:NAME       one crate, from --index`,
		Example: `  pkgswarm import cargo ~/src/crates-index
  pkgswarm import cargo Cargo.lock --artifacts
  pkgswarm import cargo /srv/mirror --watch --swarm-listen :7071`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 && f.allOf == "" {
				return &exitError{exitUsage, errors.New("no source"), "see pkgswarm import cargo --help"}
			}
			return f.run(cmd.Context(), s, func(op *operator) (*sources, error) { return f.sources(cmd.Context(), s, op, args) })
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&f.index, "index", "", "sparse index `URL` for crates that are only named (default: what cargo is configured to use)")
	cmd.Flags().DurationVar(&f.revalidate, "revalidate", 6*time.Hour, "how often to look at all crates, with --watch and a feed: yanks are in no feed")
	cmd.Flags().StringVar(&f.updates, "updates", "", "feed `URL` that names crates with new versions; looked at with --watch (default: that of crates.io with its index)")
	cmd.Flags().StringVar(&f.allOf, "all-of", "", "all crates that the index in `DIR` or the catalog names, from --index; with --watch also those of the feed")
	leaveOut(cmd, "all-of", "allow-removal", "cosigner", "download-rate", "every", "lan", "private", "quorum", "revalidate", "state", "updates", "upload-rate", "workers")
	return cmd
}

func (f *cargoFlags) sources(ctx context.Context, s *streams, op *operator, args []string) (_ *sources, err error) {
	srcs := new(sources)
	defer func() {
		if err != nil {
			srcs.close()
		}
	}()
	var names []string
	var files crateFiles
	for _, arg := range args {
		more, err := f.addSource(srcs, &files, arg)
		if err != nil {
			srcs.cannotUse(pkglog.Cargo, arg, err)
		}
		names = append(names, more...)
	}
	if f.allOf != "" {
		all, err := allCrates(ctx, op, f.allOf)
		if err != nil {
			return nil, err
		}
		names = append(names, all...)
		srcs.named.everything = true
	}
	if len(names) > 0 {
		if err := f.addIndex(ctx, s, srcs, &files, names); err != nil {
			return nil, err
		}
	}
	if err := srcs.usable("a source is a directory, a lock file or crate:NAME"); err != nil {
		return nil, err
	}
	if err := files.addDownload(srcs, f.artifacts); err != nil {
		return nil, err
	}
	var local, remote fileOpener
	if len(files.dirs) > 0 {
		local = files.local
	}
	if files.client != nil && files.dl != "" {
		remote = files.download
	}
	return srcs, f.addArtifacts(srcs, pkglog.Cargo, local, remote)
}

// addSource adds what an argument names: a directory, or crates to ask the index for.
func (f *cargoFlags) addSource(srcs *sources, files *crateFiles, arg string) (names []string, err error) {
	if name, ok := strings.CutPrefix(arg, "crate:"); ok {
		srcs.named.add(pkglog.Cargo, name, "")
		return []string{name}, nil
	}
	info, err := os.Stat(arg)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return nil, srcs.addCargoDir(files, arg)
	}
	locked, err := lockedNames(arg, pkglog.Cargo)
	if err == nil && len(locked) == 0 {
		err = errors.New("names no crate of crates.io")
	}
	srcs.named.addLocked(pkglog.Cargo, locked)
	for _, p := range locked {
		names = append(names, p.Name)
	}
	return names, err
}

// allCrates returns the crates that the index in dir or the catalog names.
func allCrates(ctx context.Context, op *operator, dir string) ([]string, error) {
	d, err := importer.OpenCargoDir(dir)
	if err != nil {
		return nil, &exitError{exitUsage, fmt.Errorf("--all-of: %w", err), ""}
	}
	names, err := d.Names()
	if err != nil {
		return nil, err
	}
	for h, err := range op.catalog.Packages(ctx, pkglog.Cargo) {
		if err != nil {
			return nil, err
		}
		names = append(names, h.Package)
	}
	return names, nil
}

func (s *sources) addCargoDir(files *crateFiles, dir string) error {
	if importer.IsCargoHome(dir) {
		homes, err := importer.OpenCargoHome(dir)
		for _, h := range publicHomes(dir, homes) {
			s.list = append(s.list, h)
			files.dirs = append(files.dirs, h)
		}
		if err == nil && len(s.list) == 0 {
			err = errors.New("holds private registries only")
		}
		return err
	}
	d, err := importer.OpenCargoDir(dir)
	if err != nil {
		return err
	}
	s.list = append(s.list, d)
	files.dirs = append(files.dirs, d)
	return nil
}

// publicHomes returns those of the registries in a CARGO_HOME that are crates.io, or
// stand for it, by the machine's configuration or as a node: others are private, and
// a catalog has one crate of a name. SEC-60
func publicHomes(dir string, homes []*importer.CargoHome) (public []*importer.CargoHome) {
	hosts := map[string]bool{"github.com": true, "127.0.0.1": true, "localhost": true}
	_, replacement := clientenv.ReadCargoHome(dir).Replacement()
	for _, index := range []string{registry.CargoIndex, replacement} {
		if u, err := url.Parse(strings.TrimPrefix(index, "sparse+")); err == nil {
			hosts[u.Hostname()] = true
		}
	}
	for _, h := range homes {
		if !h.Private() && (len(homes) == 1 || hosts[h.Host()]) {
			public = append(public, h)
		}
	}
	return public
}

// indexSource returns the sparse index to ask, and whether it is the default one.
func (f *cargoFlags) indexSource() (s clientenv.CargoSource, public bool, err error) {
	cargo, name, index := clientenv.ReadCargo(), "", f.index
	if index == "" {
		name, index = cargo.Replacement()
	}
	if index == "" {
		return clientenv.CargoSource{Index: registry.CargoIndex}, true, nil
	}
	s, err = cargo.Source("sparse+"+strings.TrimPrefix(index, "sparse+"), name)
	if err != nil {
		return s, false, &exitError{exitUsage, fmt.Errorf("--index: %w", err), ""}
	}
	if !strings.HasSuffix(s.Index, "/") {
		s.Index += "/"
	}
	return s, s.Index == registry.CargoIndex, nil
}

// addIndex adds the named crates from the sparse index.
func (f *cargoFlags) addIndex(ctx context.Context, s *streams, srcs *sources, files *crateFiles, names []string) error {
	source, public, err := f.indexSource()
	if err != nil {
		return err
	}
	index, updates := source.Index, f.updates
	c := upstream.Config{Origins: []string{index}, Scopes: append(source.Scopes, netrc(s)...)}
	if public {
		c.Origins, c.PublicOrigins = nil, c.Origins
		if updates == "" {
			updates = registry.CargoUpdates
			c.PublicOrigins = append(c.PublicOrigins, updates)
		}
	}
	if f.updates != "" {
		c.Origins = append(c.Origins, f.updates)
	}
	client, err := srcs.httpClient(c)
	if err != nil {
		return &exitError{exitUsage, err, ""}
	}
	if f.artifacts != "" {
		dl, err := importer.Download(ctx, client, index)
		if err != nil {
			return err
		}
		if err := files.downloadFrom(client, dl, index); err != nil {
			return err
		}
	}
	sorted, problems := importer.SortCrates(names)
	srcs.problems = append(srcs.problems, problems...)
	x := &importer.SparseIndex{Client: client, URL: index, Names: sorted}
	srcs.list = append(srcs.list, x)
	if updates != "" {
		f.addFeed(srcs, x, &importer.UpdateFeed{Client: client, URL: updates})
	}
	return nil
}

// addFeed has a feed tell which crates of x to look at.
func (f *cargoFlags) addFeed(srcs *sources, x *importer.SparseIndex, feed *importer.UpdateFeed) {
	srcs.fed = x
	srcs.feed = func(ctx context.Context) ([]importer.Source, error) {
		named, err := feed.Names(ctx)
		if f.allOf == "" {
			named = intersect(x.Names, named)
		}
		if err != nil || len(named) == 0 {
			return nil, err
		}
		return []importer.Source{&importer.SparseIndex{Client: x.Client, URL: x.URL, Names: named}}, nil
	}
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

// crateFiles is where .crate files come from.
type crateFiles struct {
	dirs   []crateDir
	client *upstream.Client // nil: only from the directories
	dl     string           // as in config.json
}

// A crateDir may have .crate files.
type crateDir interface {
	Crate(name, version string) (*os.File, error)
}

// local opens a .crate in one of the directories.
func (c *crateFiles) local(_ context.Context, v importer.Version) (io.ReadCloser, error) {
	var absent error
	for _, dir := range c.dirs {
		f, err := dir.Crate(v.Name, v.Version)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if absent == nil || !errors.Is(err, importer.ErrNotCached) {
			absent = err
		}
	}
	return nil, absent
}

func (c *crateFiles) download(ctx context.Context, v importer.Version) (io.ReadCloser, error) {
	return c.client.Open(ctx, upstream.Request{URL: registry.ExpandDL(c.dl, v.Name, v.Version, fmt.Sprintf("%x", v.Digest.Sum)), Kind: upstream.Crate})
}

// downloadFrom has files fetched from where dl, which index has named, says.
func (c *crateFiles) downloadFrom(client *upstream.Client, dl, index string) error {
	if err := client.AddNamed(strings.SplitN(dl, "{", 2)[0], index); err != nil {
		return fmt.Errorf("dl of config.json: %w", err)
	}
	c.client, c.dl = client, dl
	return nil
}

// addDownload has the files of an index that is alone fetched from where its
// config.json says, if all of them or those of a lock file are asked for: there may
// be millions.
func (c *crateFiles) addDownload(srcs *sources, artifacts string) error {
	if artifacts == "" || c.client != nil {
		return nil
	}
	for _, dir := range c.dirs {
		d, ok := dir.(*importer.CargoDir)
		if !ok || d.HasCrates() {
			continue
		}
		if artifacts == "named" {
			return &exitError{exitUsage, fmt.Errorf("--artifacts: no crates beside the index %s", d.ID()),
				"--artifacts=lock:FILE fetches those that a lock file names from where config.json says, --artifacts=all all"}
		}
		dl, err := d.Download()
		if err != nil {
			return &exitError{exitUsage, fmt.Errorf("--artifacts: %w", err), ""}
		}
		client, err := srcs.httpClient(upstream.Config{})
		if err != nil {
			return err
		}
		return c.downloadFrom(client, dl, "file:///")
	}
	return nil
}
