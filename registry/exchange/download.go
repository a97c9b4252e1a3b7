package exchange

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/registry/artifact"
	"github.com/pkgswarm/pkgswarm/registry/fetch"
	"github.com/pkgswarm/pkgswarm/swarm/replicate"
)

// A Replicator downloads cores by replication.
type Replicator struct {
	Store *core.Store // keeps the trees of what is downloaded
	// Held opens the file of a core that we have, whole and verified. The error
	// matches fs.ErrNotExist if we do not.
	Held func(artifact.Key) (io.ReadCloser, error)
	// Open begins to download a core; see [replicate.Replicator.Open].
	Open func(replicate.Core, replicate.SessionOptions) (*replicate.Session, error)

	mu    sync.Mutex
	taken map[artifact.Key]chan struct{} // being downloaded; closed at the end
}

// A fileWriter is a fetch.Writer whose file can be filled in any order.
type fileWriter interface {
	Path() string
	Adopt() error
}

// Download implements Downloader. Blocks arrive in any order, from any number of
// peers, and are written to their place in w's file.
func (r *Replicator) Download(ctx context.Context, key artifact.Key, size int64, _ []PeerKey, w fetch.Writer, progress func(int64)) (release func(), err error) {
	if size == 0 {
		return nil, core.ErrEmpty // has no core
	}
	if release, err = r.take(ctx, key); err != nil {
		return nil, err
	}
	done := false
	defer func() {
		if !done {
			release()
		}
	}()
	if err := r.download(ctx, key, size, w, progress); err != nil {
		return nil, err
	}
	done = true
	return release, nil
}

func (r *Replicator) download(ctx context.Context, key artifact.Key, size int64, w fetch.Writer, progress func(int64)) (err error) {
	f, ok := w.(fileWriter)
	if !ok {
		return errors.New("no file to download into")
	}
	switch held, err := r.Held(key); {
	case err == nil: // under another digest, or since we were asked
		defer held.Close()
		_, err := io.Copy(w, held)
		return err
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	// What an earlier download left behind points to a file that is gone.
	if err := r.Store.Delete(core.Key(key)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	c, err := r.Store.OpenStatic(core.Key(key), f.Path())
	if err != nil {
		return err
	}
	defer func() {
		c.Close()
		if err != nil {
			// What came of the file goes with it. If a peer is still reading, the
			// next download of this core does that.
			_ = r.Store.Delete(core.Key(key))
		}
	}()
	stop := c.Watch(func(e core.Event) {
		if e.Kind == core.Arrived {
			progress(int64(e.End-e.Start) * core.StaticBlock)
		}
	})
	defer stop()
	s, err := r.Open(c, replicate.SessionOptions{NoReorg: true})
	if err != nil {
		return err
	}
	defer s.Close()
	if _, err := s.Get(ctx, 0); err != nil { // the first block brings the length
		return err
	}
	if got := c.ByteLength(); got != uint64(size) {
		return fmt.Errorf("core has %d bytes, %d were announced", got, size)
	}
	if err := s.Download(ctx, 0, c.Length()); err != nil {
		return err
	}
	return f.Adopt()
}

// take waits until nobody else downloads the core, and returns what lets others do so.
func (r *Replicator) take(ctx context.Context, key artifact.Key) (release func(), err error) {
	for {
		r.mu.Lock()
		taken := r.taken[key]
		if taken == nil {
			break
		}
		r.mu.Unlock()
		select {
		case <-taken:
		case <-ctx.Done():
			return nil, fmt.Errorf("the same core is being downloaded for another: %w", ctx.Err())
		}
	}
	defer r.mu.Unlock()
	if r.taken == nil {
		r.taken = make(map[artifact.Key]chan struct{})
	}
	done := make(chan struct{})
	r.taken[key] = done
	return func() {
		r.mu.Lock()
		delete(r.taken, key)
		r.mu.Unlock()
		close(done)
	}, nil
}
