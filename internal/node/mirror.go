package node

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/pkgswarm/pkgswarm/registry/artifact"
	"github.com/pkgswarm/pkgswarm/registry/fetch"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
	"github.com/pkgswarm/pkgswarm/registry/signed"
	"golang.org/x/mod/module"
)

// A Mirror says what a node holds of the operators' registries though nobody has asked
// it for it. The zero value is nothing.
type Mirror struct {
	Logs  bool   // the logs of all packages
	Files string // with Logs: a name for the files that Want chooses; empty: none

	// Want chooses versions; nil: all.
	Want func(h pkglog.Header, version string) bool `json:"-"`
}

// openMirror returns what the node's catalogs are to mirror.
func (n *Node) openMirror() signed.Mirror {
	m := signed.Mirror{Logs: n.c.Mirror.Logs, Skip: n.isPrivate, FilesOf: n.c.Mirror.Files}
	if n.c.Mirror.Files != "" {
		m.Files = n.mirrorFiles
	}
	return m
}

// isPrivate reports whether a catalog names what is meant by none of its packages here
// (SEC-60).
func (n *Node) isPrivate(h pkglog.Header) bool {
	patterns := strings.Join(n.c.Private, ",")
	if h.Ecosystem == pkglog.Go {
		patterns = n.goPrivate
	}
	return module.MatchPrefixPatterns(patterns, h.Package)
}

// kept carries out what the log of a package that is held says now (SEC-19).
func (n *Node) kept(h pkglog.Header, s *pkglog.State) { n.withdrawRemoved(h, s) }

// mirrorFiles gets the files of a package from peers. Upstreams are not asked: they
// would have to give everything that anybody ever published.
func (n *Node) mirrorFiles(ctx context.Context, h pkglog.Header, s *pkglog.State) error {
	var errs []error
	for _, f := range signed.Files(s) {
		if n.c.Mirror.Want != nil && !n.c.Mirror.Want(h, f.Version) || n.withheld(h, f.Version) {
			continue
		}
		err := n.mirrorFile(ctx, h, f)
		if errors.Is(err, signed.ErrFull) || ctx.Err() != nil {
			return err
		}
		errs = append(errs, err)
	}
	return joinFirst(errs)
}

// joinFirst returns an error that is to be tried again, else one of another kind.
func joinFirst(errs []error) (first error) {
	for _, err := range errs {
		if err != nil && (first == nil || errors.Is(first, signed.ErrLeftOut)) {
			first = err
		}
	}
	return first
}

// withheld reports whether a version is not handed out by this node.
func (n *Node) withheld(h pkglog.Header, version string) bool {
	rules := n.c.Policy.Cargo
	if h.Ecosystem == pkglog.Go {
		rules = n.c.Policy.Go
	}
	return !n.c.Policy.DryRun && rules.Refuse(h.Package, version, time.Time{}, time.Now()) != nil
}

// mirrorFile gets one file, if it is not here and there is room for it.
func (n *Node) mirrorFile(ctx context.Context, h pkglog.Header, f signed.File) error {
	d := artifact.Digest{Alg: digestAlgorithm(h), Sum: f.Artifact.Digest}
	if _, err := n.artifacts.Stat(d); !errors.Is(err, artifact.ErrNotFound) {
		return nil // here, or withdrawn
	}
	name := h.Package + "@" + f.Version
	size := f.Artifact.ByteLength
	if size > artifact.MaxZip {
		return nil // nobody would take it from us
	}
	switch fits, full := n.artifacts.Fits(int64(size)); {
	case full:
		return fmt.Errorf("%s: %w", name, signed.ErrFull)
	case !fits:
		return fmt.Errorf("%s: %w", name, signed.ErrLeftOut)
	}
	err := n.fetcher.Store(ctx, &fetch.Artifact{Name: name, Known: []artifact.Digest{d}, MaxBytes: int64(size)})
	if errors.Is(err, artifact.ErrNoSpace) {
		err = signed.ErrFull
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
