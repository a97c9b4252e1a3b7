package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/pkgswarm/pkgswarm/internal/node"
	"github.com/pkgswarm/pkgswarm/registry/lockfile"
	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/mod/module"
	"golang.org/x/sync/errgroup"
)

const prefetchWorkers = 8 // packages in work at a time

func newPrefetchCommand(s *streams) *cobra.Command {
	f := &serveFlags{}
	var url string
	asJSON := false
	cmd := &cobra.Command{
		Use:   "prefetch LOCKFILE...|PACKAGE@VERSION...",
		Short: "Fetch the packages that lock files or SBOMs name into the store",
		Long: `Reads Cargo.lock, go.sum, go.mod, CycloneDX and SPDX files and fetches what they
name, and packages named as serde@1.0.0, from peers or the upstream, verified as
always, so that later builds find it here. It runs a node for that, or asks a
running one with --url.

Exit code 3 means that some packages could not be had; each is named.`,
		Example: "  pkgswarm prefetch Cargo.lock go.sum",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			pkgs, err := readPackages(args)
			if err != nil {
				return &exitError{exitUsage, err, ""}
			}
			p := &prefetcher{s: s, json: asJSON, pkgs: pkgs}
			if url != "" {
				return p.run(cmd.Context(), url)
			}
			c, err := f.config(s)
			if err != nil {
				return err
			}
			c.Listen = "127.0.0.1:0"
			return withNode(cmd.Context(), c, func(ctx context.Context, n *node.Node) error {
				if !asJSON {
					defer summarize(s, n)
				}
				return p.run(ctx, n.URL())
			})
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&url, "url", "", "`URL` of a running node to do it")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object a package")
	return cmd
}

// A prefetcher fetches packages through a node.
type prefetcher struct {
	s    *streams
	json bool
	pkgs []lockfile.Package

	mu     sync.Mutex // guards output
	failed atomic.Int64
}

func (p *prefetcher) run(ctx context.Context, url string) error {
	var bar *progressbar.ProgressBar
	if !p.json && isTerminal(p.s.err) {
		bar = progressbar.NewOptions(len(p.pkgs), progressbar.OptionSetWriter(p.s.err), progressbar.OptionSetDescription("prefetch"),
			progressbar.OptionShowCount(), progressbar.OptionClearOnFinish(), progressbar.OptionSetPredictTime(true))
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: prefetchWorkers}}
	defer client.CloseIdleConnections()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(prefetchWorkers)
	for _, pkg := range p.pkgs {
		g.Go(func() error {
			err := p.fetch(ctx, client, url, pkg)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			p.report(pkg, err)
			if bar != nil {
				bar.Add(1)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if n := p.failed.Load(); n > 0 {
		return &exitError{exitPartly, fmt.Errorf("%d of %d packages could not be had", n, len(p.pkgs)), ""}
	}
	if !p.json {
		fmt.Fprintf(p.s.out, "%s here\n", count(len(p.pkgs), "package is", "packages are"))
	}
	return nil
}

func (p *prefetcher) report(pkg lockfile.Package, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	line := struct {
		Ecosystem string `json:"ecosystem"`
		Name      string `json:"name"`
		Version   string `json:"version"`
		Err       string `json:"error,omitempty"`
	}{pkg.Ecosystem, pkg.Name, pkg.Version, ""}
	if err != nil {
		p.failed.Add(1)
		line.Err = err.Error()
		if !p.json {
			fmt.Fprintf(p.s.err, "%s %s@%s: %s\n", pkg.Ecosystem, printable(pkg.Name), printable(pkg.Version), printable(line.Err))
		}
	}
	if p.json {
		json.NewEncoder(p.s.out).Encode(line)
	}
}

// fetch gets what a build would ask for.
func (p *prefetcher) fetch(ctx context.Context, client *http.Client, url string, pkg lockfile.Package) error {
	paths, err := buildPaths(pkg)
	if err != nil {
		return err
	}
	for _, path := range paths {
		if err := get(ctx, client, url+path); err != nil {
			return err
		}
	}
	return nil
}

// buildPaths returns the paths of a package's files at a node.
func buildPaths(pkg lockfile.Package) ([]string, error) {
	if pkg.Ecosystem == lockfile.Cargo {
		return []string{"/cargo/dl/" + pkg.Name + "/" + pkg.Version + "/download"}, nil
	}
	path, err := module.EscapePath(pkg.Name)
	if err != nil {
		return nil, err
	}
	version, err := module.EscapeVersion(pkg.Version)
	if err != nil {
		return nil, err
	}
	base := "/go/" + path + "/@v/" + version
	paths := []string{base + ".info", base + ".mod"}
	if !pkg.ModOnly {
		paths = append(paths, base+".zip")
	}
	return paths, nil
}

// get reads an answer to its end.
func get(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 1024))
		return errors.New(string(b))
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}
