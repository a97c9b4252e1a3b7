package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/pkgswarm/pkgswarm/internal/node"
	"github.com/pkgswarm/pkgswarm/registry/bundle"
	"github.com/pkgswarm/pkgswarm/registry/upstream"
	"github.com/spf13/cobra"
)

func newBundleCommand(s *streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bundle",
		Short: "Carry packages to places without a network, as one file",
		Example: `  pkgswarm bundle export --out build.bundle Cargo.lock go.sum
  pkgswarm bundle import build.bundle`,
		Args: cobra.NoArgs,
	}
	cmd.AddCommand(newBundleExportCommand(s), newBundleImportCommand(s))
	return cmd
}

// bundlePath returns the path in a bundle of a file at a node, whose path buildPaths
// has made.
func bundlePath(atNode string) string {
	return strings.TrimSuffix(strings.TrimPrefix(atNode, "/"), "/download")
}

// A bundleSource is a bundle in place of a node's upstreams.
type bundleSource struct{ r *bundle.Reader }

var _ node.Source = bundleSource{}

func (bundleSource) AddNamed(string, string) error   { return nil }
func (bundleSource) AddScope(s upstream.Scope) error { return nil }

func (b bundleSource) via() upstream.Via {
	return upstream.Via{Name: "bundle " + b.r.ID.String()[:16], Time: b.r.Manifest.Created}
}

// fail gives err the form of an upstream's. What a bundle does not have may well
// exist: that is never an absence, but of a tile, which may be there in full.
func (b bundleSource) fail(r upstream.Request, err error) error {
	class := upstream.ErrUnreachable
	switch {
	case errors.Is(err, bundle.ErrDamaged):
		class = upstream.ErrBadAnswer
	case r.Kind.Name == upstream.SumTile.Name:
		class = upstream.ErrNotFound
	}
	return &upstream.Error{URL: strings.TrimPrefix(r.URL, node.SourceURL), Class: class, Err: err}
}

func (b bundleSource) Get(_ context.Context, r upstream.Request) (*upstream.Answer, error) {
	body, err := b.r.Read(pathOf(r))
	if err == nil && int64(len(body)) > r.Kind.MaxExpanded {
		err = fmt.Errorf("%w: %s of %d bytes", bundle.ErrDamaged, r.Kind.Name, len(body))
	}
	if err != nil {
		return nil, b.fail(r, err)
	}
	return &upstream.Answer{Body: body, Via: b.via()}, nil
}

func (b bundleSource) Open(_ context.Context, r upstream.Request) (*upstream.Stream, error) {
	f, size, err := b.r.Open(pathOf(r))
	if err != nil {
		return nil, b.fail(r, err)
	}
	return &upstream.Stream{ReadCloser: f, Size: size, Via: b.via()}, nil
}

// pathOf returns where the file that r asks for is in a bundle. Crates are there
// under their names in lower case.
func pathOf(r upstream.Request) string {
	path := strings.TrimPrefix(r.URL, node.SourceURL)
	if dl, ok := strings.CutPrefix(path, "cargo/dl/"); ok {
		name, version, _ := strings.Cut(dl, "/")
		return "cargo/dl/" + strings.ToLower(name) + "/" + version
	}
	return path
}

// A sumRecorder answers a client of a checksum database from a node, and keeps what
// it was asked for.
type sumRecorder struct {
	node  *fetcher
	root  string // of the database at the node
	mu    sync.Mutex
	files map[string][]byte // guarded by mu
}

func (s *sumRecorder) Get(ctx context.Context, r upstream.Request) (*upstream.Answer, error) {
	path := strings.TrimPrefix(r.URL, node.SourceURL)
	var b bytes.Buffer
	if err := s.node.get(ctx, s.root+strings.TrimPrefix(path, "sumdb"), &b); err != nil {
		class := upstream.ErrUnreachable
		if e, ok := errors.AsType[*statusError](err); ok && (e.code == 404 || e.code == 410) {
			class = upstream.ErrNotFound
		}
		return nil, &upstream.Error{URL: path, Class: class, Err: err}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files[path] = b.Bytes()
	return &upstream.Answer{Body: bytes.Clone(b.Bytes())}, nil
}

// closer makes an io.ReadCloser of bytes.
func closer(b []byte) io.ReadCloser { return io.NopCloser(bytes.NewReader(b)) }
