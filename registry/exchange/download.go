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

	mu     sync.Mutex
	active map[artifact.Key]bool // being downloaded
}

// A fileWriter is a fetch.Writer whose file can be filled in any order.
type fileWriter interface {
	Path() string
	Adopt() error
}

// Download implements Downloader. Blocks arrive in any order, from any number of
// peers, and are written to their place in w's file.
func (r *Replicator) Download(ctx context.Context, key artifact.Key, size int64, _ []PeerKey, w fetch.Writer, progress func(int64)) (err error) {
	f, ok := w.(fileWriter)
	if !ok {
		return errors.New("no file to download into")
	}
	if size == 0 {
		return core.ErrEmpty // has no core
	}
	if !r.begin(key) {
		return errors.New("the same core is being downloaded for another digest")
	}
	defer r.end(key)
	switch held, err := r.Held(key); {
	case err == nil: // under another digest
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

func (r *Replicator) begin(key artifact.Key) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.active[key] {
		return false
	}
	if r.active == nil {
		r.active = make(map[artifact.Key]bool)
	}
	r.active[key] = true
	return true
}

func (r *Replicator) end(key artifact.Key) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.active, key)
}
