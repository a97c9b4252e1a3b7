package signed

import (
	"context"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/pkgswarm/pkgswarm/registry/catalog"
	"github.com/pkgswarm/pkgswarm/registry/feed"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
)

// Feeds renders a registry's logs as feeds. It is a [feed.Registry].
type Feeds struct{ Registry *Registry }

// Log returns the log of a package, at the length that the catalog's head names.
func (f Feeds) Log(ctx context.Context, h pkglog.Header) (*feed.Log, error) {
	a, err := f.Registry.Package(ctx, h) // checks the log; its blocks are here then
	if err != nil {
		return nil, err
	}
	return f.Registry.log(ctx, h, a.Entry)
}

// log reads the events of a log whose blocks have been checked.
func (r *Registry) log(ctx context.Context, h pkglog.Header, e catalog.Entry) (*feed.Log, error) {
	log, err := r.open(e)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	blocks := make([][]byte, 0, min(e.Length, 1<<16))
	for i := range e.Length {
		b, err := log.Get(ctx, i)
		if err != nil {
			return nil, err
		}
		blocks = append(blocks, b)
	}
	return feed.Fold(h, e.Log, e.Time, blocks)
}

// Recent returns the logs of the n packages that changed last in the first catalog
// that is here, the newest first.
func (f Feeds) Recent(ctx context.Context, n int) ([]*feed.Log, error) {
	snapshots := f.Registry.Snapshots()
	if len(snapshots) == 0 {
		return nil, ErrNotReady
	}
	changes, err := recent(ctx, snapshots[0], n)
	if err != nil {
		return nil, err
	}
	logs := make([]*feed.Log, len(changes))
	var g errgroup.Group
	g.SetLimit(logsAtOnce)
	for i, c := range changes {
		h, ok := catalog.ParsePackageKey(c.Key)
		if !ok {
			continue
		}
		g.Go(func() error {
			logs[i], _ = f.Log(ctx, h) // left out if it cannot be had now
			return nil
		})
	}
	g.Wait()
	logs = slices.DeleteFunc(logs, func(l *feed.Log) bool { return l == nil })
	return logs, ctx.Err()
}

// logsAtOnce is how many logs a feed of a registry waits for at a time: most of
// them may have to come from peers.
const logsAtOnce = 16

// recent returns the last n packages that changed, the newest first. It looks at
// more and more of the catalog's end until it has them.
func recent(ctx context.Context, s *catalog.Snapshot, n int) ([]catalog.Change, error) {
	length := s.Length
	for span := uint64(4 * n); ; span *= 4 {
		since := uint64(1)
		if span < length {
			since = length - span
		}
		var all []catalog.Change
		for c, err := range s.Changes(ctx, since) {
			if err != nil {
				return nil, err
			}
			all = append(all, c)
		}
		slices.Reverse(all)
		seen := map[string]bool{}
		all = slices.DeleteFunc(all, func(c catalog.Change) bool {
			twice := seen[c.Key]
			seen[c.Key] = true
			return twice
		})
		if len(all) >= n || since == 1 {
			return all[:min(n, len(all))], nil
		}
	}
}
