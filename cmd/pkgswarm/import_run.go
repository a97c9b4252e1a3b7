package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pkgswarm/pkgswarm/importer"
)

// heartbeatEvery is how often a watching importer says that it is alive.
const heartbeatEvery = 10 * time.Minute

// feedSpan is how long ago the feed may have been read so that it names all new
// versions since: feeds of registries go back an hour.
const feedSpan = 50 * time.Minute

// watch imports what changes until ctx ends: rounds every so often, and heartbeats
// after those in which all sources could be read.
func (j *importJob) watch(ctx context.Context, srcs *sources) error {
	fmt.Fprintf(j.s.err, "watching; looking for changes every %v\n", j.f.every)
	tick := time.NewTicker(j.f.every)
	defer tick.Stop()
	for first := true; ; first = false {
		err := j.round(ctx, srcs, first)
		switch {
		case ctx.Err() != nil:
			return nil // how a watch ends
		case errors.Is(err, importer.ErrSource):
			fmt.Fprintf(j.s.err, "pkgswarm: %s; trying again\n", printable(err.Error()))
		case err != nil:
			return err
		default:
			if err := j.heartbeat(ctx); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// round imports once what is due. It prints a summary if it is the first or has
// signed something. An error that matches [importer.ErrSource] may not come again.
func (j *importJob) round(ctx context.Context, srcs *sources, first bool) error {
	j.sum, j.problems = importer.Summary{}, 0
	start := time.Now()
	list, whole, err := j.due(ctx, srcs)
	if err != nil {
		return err
	}
	err = j.importAll(ctx, srcs, list)
	j.sum.Elapsed = time.Since(start)
	if err == nil && whole {
		j.wholeAt = start
	}
	if first || j.sum.Events > 0 {
		j.summary()
	}
	return err
}

// due returns the sources to import from now: all, or in place of the one that
// has a feed the packages that the feed names.
func (j *importJob) due(ctx context.Context, srcs *sources) (list []importer.Source, whole bool, err error) {
	if srcs.feed == nil {
		return srcs.list, true, nil
	}
	now := time.Now()
	named, err := srcs.feed(ctx)
	if err != nil {
		if now.Sub(j.wholeAt) >= j.f.revalidate { // the feed only saves work
			fmt.Fprintf(j.s.err, "pkgswarm: %s; looking at all packages\n", printable(err.Error()))
			return srcs.list, true, nil
		}
		return nil, false, fmt.Errorf("%w: %w", importer.ErrSource, err)
	}
	missed := now.Sub(j.feedAt) > feedSpan
	j.feedAt = now
	if missed || now.Sub(j.wholeAt) >= j.f.revalidate {
		j.wholeAt = time.Time{} // until this has succeeded
		return srcs.list, true, nil
	}
	for _, src := range srcs.list {
		if src == srcs.fed {
			list = append(list, named...)
		} else {
			list = append(list, src)
		}
	}
	return list, false, nil
}

// heartbeat writes one when the last is old, or was of a run that took long.
func (j *importJob) heartbeat(ctx context.Context) error {
	now := time.Now()
	if j.op.catalog.Length() > 0 && now.Sub(j.op.catalog.Head().Time) < heartbeatEvery-j.f.every {
		return nil
	}
	return j.op.catalog.Heartbeat(ctx, now)
}
