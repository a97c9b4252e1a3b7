package importer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"

	"github.com/pkgswarm/pkgswarm/internal/durable"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
)

// A FeedSource imports what a module index names, some pages a run, and
// remembers where it ended. A run that fails or is killed begins again at the
// same place.
type FeedSource struct {
	Feed  *ModuleFeed
	Dir   string // for the cursor
	Since string // where to begin when there is no cursor yet
	URL   string // of the proxy
	Proxy ModuleProxy
	Sums  Sums

	next cursor // to go on from once the run has ended
}

// feedPages is how many pages of the index a run takes up.
const feedPages = 10

// A cursor is where in a module index the next run begins: the last time stamp,
// in full precision, and what was seen of it.
type cursor struct {
	Since string          `json:"since"`
	Seen  map[string]bool `json:"seen"`
}

// ID returns the URL of the index.
func (f *FeedSource) ID() string { return f.Feed.URL }

// Ecosystem returns [pkglog.Go].
func (f *FeedSource) Ecosystem() pkglog.Ecosystem { return pkglog.Go }

// Complete returns false.
func (f *FeedSource) Complete() bool { return false }

// Packages reads the index from the cursor on and yields the modules it names.
func (f *FeedSource) Packages(ctx context.Context) iter.Seq2[Package, error] {
	return func(yield func(Package, error) bool) {
		modules, err := f.read(ctx)
		if err != nil {
			yield(nil, err)
			return
		}
		sorted, _ := SortModules(modules) // the index is not ours to complain about
		src := &GoModules{URL: f.URL, Proxy: f.Proxy, Sums: f.Sums, Modules: sorted}
		for p, err := range src.Packages(ctx) {
			if !yield(p, err) {
				return
			}
		}
	}
}

func (f *FeedSource) read(ctx context.Context) ([]GoModule, error) {
	at := cursor{Since: f.Since}
	b, err := os.ReadFile(f.path())
	if err == nil {
		err = json.Unmarshal(b, &at)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cursor of %s: %w", f.Feed.URL, err)
	}
	modules, since, seen, err := f.Feed.Next(ctx, at.Since, at.Seen, feedPages)
	f.next = cursor{since, seen}
	return modules, err
}

func (f *FeedSource) path() string { return filepath.Join(f.Dir, sourceFile(f)+".cursor") }

// Done remembers where the next run begins. It is called when all that was
// listed is signed.
func (f *FeedSource) Done() error {
	b, err := json.Marshal(f.next)
	if err != nil {
		return err
	}
	return durable.WriteFile(f.path(), b, 0o600)
}
