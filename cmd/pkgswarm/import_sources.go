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

	"github.com/pkgswarm/pkgswarm/importer"
	"github.com/pkgswarm/pkgswarm/internal/clientenv"
	"github.com/pkgswarm/pkgswarm/registry/lockfile"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

// sources are what one import works through.
type sources struct {
	list      []importer.Source
	problems  []importer.Problem  // with what the command line names
	artifacts *importer.Artifacts // nil: metadata only
	named     namedVersions       // whose files the upstream is asked for
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

// httpClient returns a client for the upstreams of c.
func (s *sources) httpClient(c upstream.Config) (*upstream.Client, error) {
	c.UserAgent = upstream.UserAgent(programVersion())
	client, err := upstream.New(c)
	if err == nil {
		s.closers = append(s.closers, closeFunc(client.Close))
	}
	return client, err
}

// netrc returns the credentials of this machine's user for hosts.
func netrc(s *streams) []upstream.Scope {
	scopes, err := clientenv.Netrc()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintf(s.err, "pkgswarm: no credentials from netrc: %v\n", err)
	}
	return scopes
}

// cannotUse reports a source that cannot be opened: the others go on without it.
func (s *sources) cannotUse(eco pkglog.Ecosystem, arg string, err error) {
	if e, ok := errors.AsType[*fs.PathError](err); ok && e.Path == arg {
		err = e.Err // the name comes first anyway
	}
	s.problems = append(s.problems, importer.Problem{Ecosystem: eco, Package: arg, Reason: err.Error()})
}

// usable returns an error if none of the sources could be opened.
func (s *sources) usable(hint string) error {
	if len(s.list) > 0 || len(s.problems) == 0 {
		return nil
	}
	var errs []error
	for _, p := range s.problems {
		errs = append(errs, fmt.Errorf("%s: %s", p.Package, p.Reason))
	}
	return &exitError{exitUsage, errors.Join(errs...), hint}
}

// namedVersions are versions that the command line or its files name, by
// ecosystem/package.
type namedVersions struct {
	everything bool
	packages   map[string]bool // with all versions
	versions   map[string]bool // package@version
}

func (n *namedVersions) add(eco pkglog.Ecosystem, name, version string) {
	if n.packages == nil {
		n.packages, n.versions = make(map[string]bool), make(map[string]bool)
	}
	if eco == pkglog.Cargo {
		name = strings.ToLower(name)
	}
	name = string(eco) + "/" + name
	if version == "" {
		n.packages[name] = true
	} else {
		n.versions[name+"@"+version] = true
	}
}

func (n *namedVersions) has(h pkglog.Header, version string) bool {
	return n.everything || n.packages[h.Name()] || n.versions[h.Name()+"@"+version]
}

// A fileOpener opens the file of a version at its source.
type fileOpener = func(ctx context.Context, v importer.Version) (io.ReadCloser, error)

// addArtifacts has the files of versions fetched as well, if the flags say so: by
// local from the directories among the sources, nil if there are none, and those of
// the named versions by remote as well. What only a cache could have, and has not, is
// no problem.
func (f *importFlags) addArtifacts(srcs *sources, eco pkglog.Ecosystem, local, remote fileOpener) error {
	if f.artifacts == "" {
		return nil
	}
	a := &importer.Artifacts{}
	srcs.artifacts = a
	lock, locked := strings.CutPrefix(f.artifacts, "lock:")
	switch {
	case locked:
		want, err := lockedVersions(lock)
		if err != nil {
			return &exitError{exitUsage, fmt.Errorf("--artifacts: %w", err), ""}
		}
		srcs.named, a.Want = want, want.has
	case f.artifacts == "all":
		srcs.named.everything = true
	case f.artifacts != "named":
		return &exitError{exitUsage, fmt.Errorf("--artifacts=%s", f.artifacts), "use --artifacts, --artifacts=all or --artifacts=lock:FILE"}
	case local == nil:
		a.Want = srcs.named.has
	}
	a.Open = func(ctx context.Context, v importer.Version) (io.ReadCloser, error) {
		absent := error(fs.ErrNotExist)
		if local != nil {
			r, err := local(ctx, v)
			if !errors.Is(err, fs.ErrNotExist) {
				return r, err
			}
			absent = err
		}
		if remote != nil && srcs.named.has(pkglog.Header{Ecosystem: eco, Package: packageOf(eco, v.Name)}, v.Version) {
			return remote(ctx, v)
		}
		if locked && errors.Is(absent, importer.ErrNotCached) {
			absent = fs.ErrNotExist // it was asked for by name
		}
		return nil, absent
	}
	return nil
}

// packageOf returns the package that a version's name, as its registry spells it, is
// of.
func packageOf(eco pkglog.Ecosystem, name string) string {
	if eco == pkglog.Cargo {
		return strings.ToLower(name)
	}
	return name
}

// lockedVersions returns the versions that a lock file names.
func lockedVersions(path string) (n namedVersions, err error) {
	for _, eco := range []pkglog.Ecosystem{pkglog.Cargo, pkglog.Go} {
		locked, err := lockedNames(path, eco)
		if err != nil {
			return n, err
		}
		n.addLocked(eco, locked)
	}
	return n, nil
}

// addLocked adds those of the packages whose files are needed: a go.sum names many
// versions of which no zip is.
func (n *namedVersions) addLocked(eco pkglog.Ecosystem, locked []lockfile.Package) {
	for _, p := range locked {
		if !p.ModOnly {
			n.add(eco, p.Name, p.Version)
		}
	}
}

// lockedNames returns the packages of one ecosystem that a lock file names.
func lockedNames(path string, eco pkglog.Ecosystem) ([]lockfile.Package, error) {
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
		if p.Ecosystem == string(eco) {
			those = append(those, p)
		}
	}
	return those, nil
}
