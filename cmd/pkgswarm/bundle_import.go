package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/dustin/go-humanize"
	"github.com/pkgswarm/pkgswarm/internal/node"
	"github.com/pkgswarm/pkgswarm/registry/bundle"
	"github.com/pkgswarm/pkgswarm/registry/lockfile"
	"github.com/spf13/cobra"
)

func newBundleImportCommand(s *streams) *cobra.Command {
	f := &serveFlags{}
	i := &bundleImport{s: s}
	cmd := &cobra.Command{
		Use:   "import FILE...",
		Short: "Take the packages of bundles into the store",
		Long: `Checks every file of a bundle as an upstream's are, and stores what is proven:
modules by the checksum database, .crate files by their index lines. Nothing
proves an index file or an .info file but the word of who made the bundle. With
--id and what 'bundle export' has printed, which is of every byte, no other
bundle is taken in its place.
The node must not be running. Interrupted, it goes on where it was.

Exit codes: 0 all is stored, 1 failed, 2 wrong usage, 3 some packages were
refused, each is named, 11 the store is in use, 130 interrupted.`,
		Example: `  pkgswarm bundle import build.bundle
  pkgswarm bundle import --id 3f9a01c2... build.bundle`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.config(s)
			if err != nil {
				return err
			}
			c.Listen, c.Offline, c.LAN, c.Peers, c.SwarmListen = "127.0.0.1:0", true, false, nil, ""
			c.IndexTTL = 1 // nothing here is newer than what the bundle may have
			var refused error
			for _, name := range args {
				if err := i.do(cmd.Context(), c, name); err != nil {
					if e, ok := errors.AsType[*exitError](err); !ok || e.code != exitPartly {
						return err
					}
					refused = err
				}
			}
			return refused
		},
	}
	f.add(cmd)
	showOnly(cmd, "data", "state", "sumdb")
	cmd.Flags().StringSliceVar(&i.ids, "id", nil, "take no bundle but the one with this `ID`; may be repeated")
	cmd.Flags().BoolVar(&i.json, "json", false, "print one JSON object a package")
	return cmd
}

type bundleImport struct {
	s    *streams
	json bool
	ids  []string
}

// do imports one bundle.
func (i *bundleImport) do(ctx context.Context, c node.Config, name string) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no plain file", name)
	}
	if err != nil {
		return err
	}
	r, err := bundle.Open(file, info.Size())
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := i.check(r.ID); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if !i.json {
		fmt.Fprintf(i.s.err, "%s: bundle %s of %s, %s, made %s\n", name, r.ID, count(len(r.Manifest.Packages), "package", "packages"), humanize.Bytes(uint64(info.Size())), stamp(r.Manifest.Created))
		if r.Cut != nil {
			fmt.Fprintf(i.s.err, "%s was cut short: what came before the cut is imported\n", name)
		}
	}
	c.Source = bundleSource{r}
	return withNode(ctx, c, func(ctx context.Context, n *node.Node) error { return i.run(ctx, n, r) })
}

// check returns an error if the user wants other bundles than the one with that ID.
func (i *bundleImport) check(id bundle.Sum) error {
	for _, text := range i.ids {
		var want bundle.Sum
		if err := want.UnmarshalText([]byte(text)); err != nil {
			return &exitError{exitUsage, fmt.Errorf("--id: %w", err), "pkgswarm bundle export prints it"}
		}
		if want == id {
			return nil
		}
	}
	if len(i.ids) > 0 {
		return fmt.Errorf("this is bundle %s, and not one that --id names", id)
	}
	return nil
}

func (i *bundleImport) run(ctx context.Context, n *node.Node, r *bundle.Reader) error {
	var pkgs []lockfile.Package
	for _, p := range r.Manifest.Packages {
		pkgs = append(pkgs, lockfile.Package{Ecosystem: p.Ecosystem, Name: p.Name, Version: p.Version, ModOnly: p.ModOnly})
	}
	p := &prefetcher{s: i.s, json: i.json, name: "import", pkgs: pkgs}
	err := p.prefetch(ctx, n.URL())
	if e, ok := errors.AsType[*exitError](err); ok && e.code == exitPartly {
		switch tree := n.Status().SumTree; {
		case r.Cut != nil:
			e.hint = "copy the bundle anew, compare its size, and import it again"
		case tree > 0 && tree != r.Manifest.Tree:
			e.hint = fmt.Sprintf("this node knows the tree of %d records of the checksum database: bundle export --tree %d", tree, tree)
		}
	}
	return err
}
