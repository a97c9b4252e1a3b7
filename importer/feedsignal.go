package importer

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/mmcdole/gofeed"

	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

var rssFeed = upstream.Kind{Name: "feed", MaxExpanded: 8 << 20}

// An UpdateFeed is an RSS or Atom feed that names crates when they get new
// versions. It says nothing of yanks.
type UpdateFeed struct {
	Client *upstream.Client
	URL    string

	last upstream.Validators
}

// Names returns the crates that the feed names, nil if it has not changed since
// the last call.
func (f *UpdateFeed) Names(ctx context.Context) ([]string, error) {
	a, err := f.Client.Get(ctx, upstream.Request{URL: f.URL, Kind: rssFeed, Validators: f.last})
	if err != nil {
		return nil, err
	}
	if a.NotModified {
		return nil, nil
	}
	names, err := parseUpdates(a.Body)
	if err == nil {
		f.last = a.Validators
	}
	return names, err
}

// parseUpdates returns the crates that a feed names: in the elements of the
// registry's own name space, or else as the first word of titles, which read
// "New crate version published: NAME v1.2.3" or "NAME 1.2.3".
func parseUpdates(b []byte) ([]string, error) {
	feed, err := gofeed.NewParser().Parse(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("update feed: %w", err)
	}
	var names []string
	for _, item := range feed.Items {
		if ext := item.Extensions["crates"]["name"]; len(ext) > 0 {
			names = append(names, ext[0].Value)
			continue
		}
		title := item.Title
		if _, after, ok := strings.Cut(title, ": "); ok {
			title = after
		}
		if words := strings.Fields(title); len(words) > 0 {
			names = append(names, words[0])
		}
	}
	slices.Sort(names)
	names, _ = SortCrates(slices.Compact(names))
	return names, nil
}
