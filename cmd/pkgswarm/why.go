package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/pkgswarm/pkgswarm/internal/node"
	"github.com/pkgswarm/pkgswarm/registry/artifact"
	"github.com/pkgswarm/pkgswarm/registry/lockfile"
	"github.com/spf13/cobra"
)

func newWhyCommand(s *streams) *cobra.Command {
	f := &serveFlags{}
	var url string
	asJSON := false
	cmd := &cobra.Command{
		Use:   "why PACKAGE@VERSION",
		Short: "Say who served a package, and what proves it",
		Long: `Prints where the file of a version came from and the chain that proves it: its
hash, the index line or checksum-database record that names it, and what an
operator has signed. Nothing is fetched. The node that runs on the store is
asked; if there is none, the store is read. cargo: or go: before the name says
which ecosystem is meant; a name with a dot or a slash is a Go module's.

Exit codes: 0 here and proven, 1 not here or not proven, 2 wrong usage, 10 no
store, 11 the store is in use, 12 no node answers at --url.`,
		Example: `  pkgswarm why serde@1.0.0
  pkgswarm why --json golang.org/x/mod@v0.37.0`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			pkg, ok, err := parsePackage(args[0])
			if err == nil && !ok {
				err = fmt.Errorf("%q is not PACKAGE@VERSION", args[0])
			}
			if err != nil {
				return &exitError{exitUsage, err, "write it as serde@1.0.0 or golang.org/x/mod@v0.37.0"}
			}
			var y node.Why
			err = f.withHeld(cmd, s, url, func(ctx context.Context, url string) error { return askWhy(ctx, url, pkg, &y) })
			if err != nil {
				return err
			}
			if asJSON {
				err = json.NewEncoder(s.out).Encode(y)
			} else {
				err = printWhy(s.out, &y)
			}
			if err == nil && !y.Proven {
				err = &exitError{exitFailed, errors.New("there is no proof of " + args[0] + " here"), "pkgswarm prefetch " + args[0] + " fetches and proves it"}
			}
			return err
		},
	}
	f.add(cmd)
	showOnly(cmd, "data", "state", "registry")
	cmd.Flags().StringVar(&url, "url", "", "`URL` of a running node to ask")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// withHeld calls do with the address of a node that answers from what is held: the
// one at url, or the one that runs here, or else one of our own that asks nobody,
// on a store that is there already.
func (f *serveFlags) withHeld(cmd *cobra.Command, s *streams, url string, do func(ctx context.Context, url string) error) error {
	ctx := cmd.Context()
	if url != "" {
		return do(ctx, url)
	}
	if at := "http://" + f.node.Listen; f.runsAt(ctx, at) {
		return do(ctx, at)
	}
	if _, err := os.Stat(filepath.Join(f.data, "artifacts")); err != nil {
		return &exitError{exitNoStore, fmt.Errorf("no node answers at %s, and there is no store in %s", f.node.Listen, f.data), "start one with pkgswarm serve, or name its directory with --data"}
	}
	c, err := f.config(s)
	if err != nil {
		return err
	}
	c.Listen, c.Offline, c.LAN, c.Peers, c.SwarmListen = "127.0.0.1:0", true, false, nil, ""
	return withNode(ctx, c, func(ctx context.Context, n *node.Node) error { return do(ctx, n.URL()) })
}

// runsAt reports whether the node at url is the one that has our data directory.
func (f *serveFlags) runsAt(ctx context.Context, url string) bool {
	st, err := askStatus(ctx, url)
	if err != nil {
		return false
	}
	ours, err := os.Stat(f.data)
	if err != nil {
		return false
	}
	theirs, err := os.Stat(st.Store.Dir)
	return err == nil && os.SameFile(ours, theirs)
}

func askWhy(ctx context.Context, at string, pkg lockfile.Package, y *node.Why) error {
	path := (&url.URL{Path: "/api/v1/why/" + pkg.Ecosystem + "/" + pkg.Name + "@" + pkg.Version}).EscapedPath()
	err := ask(ctx, at, path, y)
	if e, ok := errors.AsType[*statusError](err); ok && e.code == http.StatusNotFound {
		return &exitError{exitFailed, err, "pkgswarm prefetch " + pkg.Name + "@" + pkg.Version + " fetches and proves it; cargo: or go: in front says which ecosystem"}
	}
	return err
}

// A report prints lines of a label and a text.
type report struct {
	w   io.Writer
	err error
}

func (r *report) line(label, format string, args ...any) {
	if r.err == nil {
		_, r.err = fmt.Fprintf(r.w, "%-10s %s\n", label, printable(fmt.Sprintf(format, args...)))
	}
}

func printWhy(w io.Writer, y *node.Why) error {
	r := &report{w: w}
	state := "here, and proven"
	switch {
	case y.File == nil:
		state = "not in the store"
	case !y.Proven:
		state = "here, and NOT proven"
	}
	r.line(y.Ecosystem, "%s@%s is %s", y.Name, y.Version, state)
	r.file(y.File)
	r.index(y.Index)
	r.sums(y.Sums)
	r.signed(y.Signed)
	if y.FirstSeen != "" {
		r.line("first seen", "%s", y.FirstSeen)
		r.line("", "no checksum database covers it: it is what it was at first")
	}
	for _, p := range y.Problems {
		r.line("problem", "%s", p)
	}
	return r.err
}

func (r *report) file(f *node.WhyFile) {
	if f == nil {
		return
	}
	r.line("file", "%s, %s", humanize.Bytes(uint64(f.Bytes)), source(f))
	for _, from := range f.From {
		r.line("", "%s", from)
	}
	r.line("sha256", "%s", f.SHA256)
	if f.H1 != "" {
		r.line("h1", "%s", f.H1)
	}
	if f.Key != "" {
		r.line("core", "%s", f.Key)
	}
	r.line("verified", "%s: the bytes on disk are those proven", stamp(f.Checked))
}

// source says where a file came from.
func source(f *node.WhyFile) string {
	at := ""
	if !f.Stored.IsZero() {
		at = " at " + stamp(f.Stored)
	}
	switch f.Source {
	case artifact.FromPeers:
		return "from " + count(len(f.From), "peer", "peers") + at
	case artifact.FromUpstream:
		return "from the upstream" + at
	case artifact.FromImport:
		return "from an import" + at
	case artifact.FromBundle:
		return "from a bundle" + at
	}
	return "from where is not recorded"
}

func (r *report) index(i *node.WhyIndex) {
	if i == nil {
		return
	}
	how := "asked over TLS"
	switch {
	case i.Via != "":
		how = "as " + i.Via + " has it, asked"
	case !i.TLS:
		how = "asked without TLS"
	}
	r.line("index", "the line of this version has the cksum")
	r.line("", "%s", i.Cksum)
	r.line("", "%s", i.URL)
	r.line("", "%s, %s: no more is claimed", how, stamp(i.Asked))
}

func (r *report) sums(s *node.WhySums) {
	if s == nil {
		return
	}
	r.line("sumdb", "record %d of %s has this h1", s.Record, s.Database)
	r.line("", "it is in the tree of %d records, by %s (checked now)", s.TreeSize, count(s.Hashes, "hash", "hashes"))
	r.line("", "root %s", s.TreeHash)
}

func (r *report) signed(s *node.WhySign) {
	if s == nil {
		return
	}
	r.line("signed", "%s event, block %d of the package log", s.Event, s.Block)
	r.line("", "%s", s.Log)
	r.line("", "at length %d, with tree hash", s.Length)
	r.line("", "%s", s.TreeHash)
	stale := ""
	if s.Stale {
		stale = " (stale)"
	}
	r.line("catalog", "length %d, vouched for at %s%s, names that log so", s.CatalogLength, stamp(s.Time), stale)
	r.line("operator", "%s", s.Catalog)
	if s.Agree > 1 {
		r.line("", "and %d operators must agree", s.Agree)
	}
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.UTC().Format("2006-01-02 15:04:05 UTC")
}
