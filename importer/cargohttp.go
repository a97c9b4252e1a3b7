package importer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/pkgswarm/pkgswarm/registry"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

// A SparseIndex imports crates of given names from a sparse index over HTTP.
// Every file is asked for with the validators of the answer before.
type SparseIndex struct {
	Client *upstream.Client
	URL    string   // of the index, ending in a slash; not with "sparse+"
	Names  []string // sorted, each once: see SortCrates
}

// Count returns how many crates there are.
func (x *SparseIndex) Count() int { return len(x.Names) }

// SortCrates brings crate names into lower case, sorts them, and drops repeats;
// those that are no names are returned as problems.
func SortCrates(names []string) ([]string, []Problem) {
	var good []string
	var problems []Problem
	for _, n := range names {
		name, err := registry.ParseCrate(n)
		if err != nil {
			problems = append(problems, Problem{pkglog.Cargo, n, "", err.Error()})
			continue
		}
		good = append(good, string(name))
	}
	slices.Sort(good)
	return slices.Compact(good), problems
}

// ID returns the URL.
func (x *SparseIndex) ID() string { return x.URL }

// Ecosystem returns [pkglog.Cargo].
func (x *SparseIndex) Ecosystem() pkglog.Ecosystem { return pkglog.Cargo }

// Complete returns false: an index cannot be listed over HTTP.
func (x *SparseIndex) Complete() bool { return false }

// Packages yields the named crates.
func (x *SparseIndex) Packages(context.Context) iter.Seq2[Package, error] {
	return func(yield func(Package, error) bool) {
		for _, n := range x.Names {
			if !yield(&sparseCrate{x, n}, nil) {
				return
			}
		}
	}
}

type sparseCrate struct {
	x    *SparseIndex
	name string
}

func (c *sparseCrate) Name() string { return c.name }
func (c *sparseCrate) Stamp() Stamp { return "" } // only the upstream knows

// Update asks for the file, conditionally if s holds what last came with.
func (c *sparseCrate) Update(ctx context.Context, s *pkglog.State, last Stamp) (*Update, error) {
	r := upstream.Request{URL: c.x.URL + registry.CrateName(c.name).IndexPath(), Kind: upstream.IndexFile}
	if s.Length() > 1 {
		r.Validators = parseValidators(last)
	}
	a, err := c.x.Client.Get(ctx, r)
	if err != nil {
		return nil, err // matches fs.ErrNotExist for 404 and 410
	}
	if a.NotModified {
		return &Update{Stamp: last}, nil
	}
	up := DiffCrate(registry.CrateName(c.name), s, a.Body)
	up.Stamp = formatValidators(a.Validators)
	return up, nil
}

func parseValidators(s Stamp) (v upstream.Validators) {
	v.ETag, v.LastModified, _ = strings.Cut(string(s), "\n")
	return v
}

func formatValidators(v upstream.Validators) Stamp {
	if v == (upstream.Validators{}) {
		return ""
	}
	return Stamp(v.ETag + "\n" + v.LastModified)
}

// Download returns the URL template for .crate files from the config.json of an
// index.
func Download(ctx context.Context, c *upstream.Client, indexURL string) (string, error) {
	a, err := c.Get(ctx, upstream.Request{URL: indexURL + "config.json", Kind: upstream.IndexConfig})
	if err != nil {
		return "", err
	}
	return parseDL(a.Body)
}

func parseDL(config []byte) (string, error) {
	var c struct {
		DL string `json:"dl"`
	}
	if err := json.Unmarshal(config, &c); err != nil {
		return "", fmt.Errorf("config.json: %w", err)
	}
	if c.DL == "" {
		return "", errors.New("config.json: no dl")
	}
	return c.DL, nil
}
