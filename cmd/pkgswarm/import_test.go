package main

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pkgswarm/pkgswarm/importer"
)

// TestFeedDown: a feed saves work. Where it cannot be read, all packages are looked
// at, no more often than without it.
func TestFeedDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := &importJob{s: &streams{err: io.Discard}, f: &importFlags{revalidate: 6 * time.Hour}}
		srcs := &sources{
			list: []importer.Source{&importer.SparseIndex{Names: []string{"foo"}}},
			feed: func(context.Context) ([]importer.Source, error) { return nil, errors.New("421") },
		}
		if list, whole, err := j.due(t.Context(), srcs); len(list) != 1 || !whole || err != nil {
			t.Errorf("at first: %d sources, whole %v, %v", len(list), whole, err)
		}
		j.wholeAt = time.Now()
		time.Sleep(time.Minute)
		if _, _, err := j.due(t.Context(), srcs); !errors.Is(err, importer.ErrSource) {
			t.Errorf("a minute later: %v, want %v", err, importer.ErrSource)
		}
		time.Sleep(6 * time.Hour)
		if list, whole, err := j.due(t.Context(), srcs); len(list) != 1 || !whole || err != nil {
			t.Errorf("hours later: %d sources, whole %v, %v", len(list), whole, err)
		}
	})
}
