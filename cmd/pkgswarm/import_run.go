package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/pkgswarm/pkgswarm/importer"
	"github.com/pkgswarm/pkgswarm/registry/lockfile"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
)

// A fileOpener opens the file of a version at its source.
type fileOpener = func(ctx context.Context, v importer.Version) (io.ReadCloser, error)

// addArtifacts has the files of versions fetched as well, if the flags say so.
func (f *importFlags) addArtifacts(srcs *sources, open fileOpener) error {
	if f.artifacts == "" {
		return nil
	}
	a := &importer.Artifacts{Open: open}
	switch lock, ok := strings.CutPrefix(f.artifacts, "lock:"); {
	case ok:
		want, err := lockedVersions(lock)
		if err != nil {
			return err
		}
		a.Want = func(h pkglog.Header, version string) bool { return want[h.Name()+"@"+version] }
	case f.artifacts != "all":
		return &exitError{exitUsage, fmt.Errorf("--artifacts=%s", f.artifacts), "use --artifacts or --artifacts=lock:FILE"}
	}
	srcs.artifacts = a
	return nil
}

// lockedVersions returns the versions that a lock file names.
func lockedVersions(path string) (map[string]bool, error) {
	want := make(map[string]bool)
	for _, eco := range []string{lockfile.Cargo, lockfile.Go} {
		locked, err := lockedNames(path, eco)
		if err != nil {
			return nil, err
		}
		for _, p := range locked {
			if p.ModOnly {
				continue // a go.sum names many versions of which no zip is needed
			}
			name := p.Name
			if eco == lockfile.Cargo {
				name = strings.ToLower(name)
			}
			want[eco+"/"+name+"@"+p.Version] = true
		}
	}
	return want, nil
}

// heartbeatEvery is how often a watching importer says that it is alive.
const heartbeatEvery = 10 * time.Minute

// watch imports what changes until ctx ends: whole rounds every so often, what a
// feed names between them, and heartbeats.
func (j *importJob) watch(ctx context.Context, srcs *sources) error {
	fmt.Fprintf(j.s.err, "watching; looking for changes every %v\n", j.f.every)
	tick := time.NewTicker(j.f.every)
	defer tick.Stop()
	for {
		if err := j.heartbeat(ctx); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		list := srcs.list
		if srcs.signal != nil {
			named, err := srcs.signal(ctx)
			if err != nil {
				j.warn(ctx, err)
				continue
			}
			list = named
		}
		if err := j.round(ctx, srcs, list); err != nil {
			return err
		}
	}
}

// round imports list once. A source that cannot be read is tried again in the
// next round; a store that fails ends the watch.
func (j *importJob) round(ctx context.Context, srcs *sources, list []importer.Source) error {
	j.sum, j.problems = importer.Summary{}, 0
	start := time.Now()
	err := j.importAll(ctx, srcs, list)
	j.sum.Elapsed = time.Since(start)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, importer.ErrSource):
		j.warn(ctx, err)
	case err != nil:
		return err
	case j.sum.Events > 0:
		j.summary()
	}
	return nil
}

func (j *importJob) warn(ctx context.Context, err error) {
	if ctx.Err() == nil {
		fmt.Fprintf(j.s.err, "pkgswarm: %s; trying again\n", printable(err.Error()))
	}
}

// heartbeat writes one when the last is old, or was of a run that took long.
func (j *importJob) heartbeat(ctx context.Context) error {
	now := time.Now()
	if j.op.catalog.Length() > 0 && now.Sub(j.op.catalog.Head().Time) < heartbeatEvery-j.f.every {
		return nil
	}
	return j.op.catalog.Heartbeat(ctx, now)
}
