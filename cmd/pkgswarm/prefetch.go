package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pkgswarm/pkgswarm/internal/node"
	"github.com/pkgswarm/pkgswarm/registry"
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
			p := &prefetcher{s: s, json: asJSON, name: "prefetch", pkgs: pkgs}
			if url != "" {
				if _, err := askStatus(cmd.Context(), url); err != nil {
					return err
				}
				return p.prefetch(cmd.Context(), url)
			}
			c, err := f.config(s)
			if err != nil {
				return err
			}
			if c.Policy, err = readPolicy(cmd); err != nil {
				return err
			}
			c.Listen = "127.0.0.1:0"
			return withNode(cmd.Context(), c, func(ctx context.Context, n *node.Node) error {
				if !asJSON {
					defer summarize(s, n)
				}
				return p.prefetch(ctx, n.URL())
			})
		},
	}
	f.add(cmd)
	showOnly(cmd, "data", "state", "offline", "peer", "registry", "no-lan", "fleet-token-file")
	cmd.Flags().StringVar(&url, "url", "", "`URL` of a running node to do it")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object a package")
	return cmd
}

// A prefetcher does something for each of many packages, tells of each that fails,
// and goes on.
type prefetcher struct {
	s    *streams
	json bool
	name string // of the command, on its progress bar
	pkgs []lockfile.Package
	do   func(ctx context.Context, pkg lockfile.Package) error

	mu     sync.Mutex // guards output
	failed atomic.Int64
}

// run returns an error that says how many have failed, if any.
func (p *prefetcher) run(ctx context.Context) error {
	var bar *progressbar.ProgressBar
	if !p.json && isTerminal(p.s.err) {
		bar = progressbar.NewOptions(len(p.pkgs), progressbar.OptionSetWriter(p.s.err), progressbar.OptionSetDescription(p.name),
			progressbar.OptionShowCount(), progressbar.OptionClearOnFinish(), progressbar.OptionSetPredictTime(true))
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(prefetchWorkers)
	for _, pkg := range p.pkgs {
		g.Go(func() error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			err := p.do(ctx, pkg)
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
		line.Err = strings.TrimSpace(err.Error())
		if !p.json {
			fmt.Fprintf(p.s.err, "%s %s@%s: %s\n", pkg.Ecosystem, printable(pkg.Name), printable(pkg.Version), printable(line.Err))
		}
	}
	if p.json {
		json.NewEncoder(p.s.out).Encode(line)
	}
}

// prefetch has the node at url fetch all packages.
func (p *prefetcher) prefetch(ctx context.Context, url string) error {
	f := newFetcher(url)
	defer f.close()
	p.do = func(ctx context.Context, pkg lockfile.Package) error {
		paths, err := buildPaths(pkg)
		if err != nil {
			return err
		}
		for _, path := range paths { // what can be had is had, whatever else fails
			if getErr := f.get(ctx, path, io.Discard); err == nil {
				err = getErr
			}
		}
		return err
	}
	err := p.run(ctx)
	settle(ctx, url)
	if err == nil && !p.json {
		_, err = fmt.Fprintf(p.s.out, "%s here\n", count(len(p.pkgs), "package is", "packages are"))
	}
	return err
}

// settle waits until what the node has answered is stored for good (REL-1), or for
// settleTimeout: others may keep the node busy.
func settle(ctx context.Context, url string) {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	tick := time.NewTicker(settleEvery)
	defer tick.Stop()
	for {
		if st, err := askStatus(ctx, url); err != nil || st.Fetching == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

const (
	settleEvery   = 20 * time.Millisecond
	settleTimeout = 10 * time.Second
)

// buildPaths returns the paths at a node of the files that a build asks for.
func buildPaths(pkg lockfile.Package) ([]string, error) {
	if pkg.Ecosystem == lockfile.Cargo {
		name, err := registry.ParseCrate(pkg.Name)
		if err == nil {
			err = registry.CheckCrateVersion(pkg.Version)
		}
		return []string{"/cargo/" + name.IndexPath(), "/cargo/dl/" + string(name) + "/" + pkg.Version + "/download"}, err
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

// A fetcher reads files from a node.
type fetcher struct {
	url    string
	client *http.Client
}

func newFetcher(url string) *fetcher {
	// The node is ours: no proxy stands between.
	return &fetcher{strings.TrimRight(url, "/"), &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: prefetchWorkers}}}
}

func (f *fetcher) close() { f.client.CloseIdleConnections() }

// get copies the file at path to w.
func (f *fetcher) get(ctx context.Context, path string, w io.Writer) error {
	body, err := f.open(ctx, path)
	if err != nil {
		return err
	}
	defer body.Close()
	_, err = io.Copy(w, body)
	return err
}

// open opens the file at path. The error is a *statusError if the node has none.
func (f *fetcher) open(ctx context.Context, path string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.url+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := f.client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 1024))
		return nil, &statusError{resp.StatusCode, strings.TrimSpace(string(b))}
	}
	return resp.Body, nil
}
