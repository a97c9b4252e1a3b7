package importer

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/pkgswarm/pkgswarm/registry"
	"github.com/pkgswarm/pkgswarm/registry/artifact"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
)

// Artifacts fetches the files of versions into a store, and names in package
// logs the static cores that they are.
type Artifacts struct {
	Store *artifact.Store
	// Open opens a file at its source. What the source does not have is a problem,
	// unless the error matches [ErrNotCached]: caches hold some files only.
	Open func(ctx context.Context, v Version) (io.ReadCloser, error)
	// Want chooses versions; nil means all. It may be called concurrently.
	Want func(h pkglog.Header, version string) bool
}

// Fetch fetches what the store does not have, and returns events for what the log
// does not name. A file that cannot be had or is not what it should be is a problem;
// a store that fails is an error.
func (a *Artifacts) Fetch(ctx context.Context, s *pkglog.State) (got Fetched, err error) {
	h := s.Header()
	named := make(map[pkglog.Artifact]bool)
	for _, v := range versionsOf(s) {
		if a.Want != nil && !a.Want(h, v.Version) {
			continue
		}
		known := hasDigest(s.Artifacts(v.Version), v.Digest)
		if known {
			if _, err := a.Store.Stat(v.Digest); err == nil {
				continue
			}
		}
		info, fresh, err := a.fetch(ctx, h, v)
		switch {
		case isWithdrawn(err):
			continue // denied here: SEC-19
		case errors.Is(err, ErrNotCached):
			got.NotCached++
			continue
		case ctx.Err() != nil:
			return Fetched{}, ctx.Err()
		case errors.Is(err, artifact.ErrNoSpace):
			return Fetched{}, err
		case err != nil:
			got.Problems = append(got.Problems, Problem{h.Ecosystem, h.Package, v.Version, "artifact: " + err.Error()})
			continue
		}
		if fresh {
			got.Files++
		}
		e := pkglog.Event{Kind: pkglog.HasArtifact, Version: v.Version, Artifact: pkglog.Artifact{
			Key: info.Key, ByteLength: uint64(info.Size), Digest: v.Digest.Sum,
		}}
		if !named[e.Artifact] && !known {
			named[e.Artifact] = true
			got.Events = append(got.Events, e)
		}
	}
	return got, nil
}

// A Version is a version and what its file must hash to.
type Version struct {
	Name    string // of the package, a crate's as its index line spells it
	Version string
	Digest  artifact.Digest // of the whole file
}

// versionsOf returns the versions of a log in a fixed order.
func versionsOf(s *pkglog.State) []Version {
	var all []Version
	for _, b := range s.Lines() {
		if l, err := registry.ParseCargoLine(registry.CrateName(s.Header().Package), b); err == nil { // else it is blank
			all = append(all, Version{l.Name, l.Vers, sha256Digest(l.Cksum)})
		}
	}
	for _, v := range s.Versions() {
		all = append(all, Version{s.Header().Package, v, artifact.Digest{Alg: artifact.H1, Sum: s.Module(v).ZipHash}})
	}
	return all
}

func sha256Digest(sum [32]byte) artifact.Digest {
	return artifact.Digest{Alg: artifact.SHA256, Sum: sum}
}

func hasDigest(as []pkglog.Artifact, d artifact.Digest) bool {
	for _, a := range as {
		if a.Digest == d.Sum {
			return true
		}
	}
	return false
}

// fetch returns what the store has of a version, fetching it first if need be; fresh
// says that it did.
func (a *Artifacts) fetch(ctx context.Context, h pkglog.Header, v Version) (info artifact.Info, fresh bool, err error) {
	info, err = a.Store.Stat(v.Digest)
	if isWithdrawn(err) {
		return info, false, err
	}
	if err == nil && !info.Private && info.Key != (artifact.Key{}) {
		return info, false, nil
	}
	r, err := a.Open(ctx, v)
	if err != nil {
		return artifact.Info{}, false, err
	}
	defer r.Close()
	w, err := a.Store.Create(-1)
	if err != nil {
		return artifact.Info{}, false, err
	}
	defer w.Close()
	if _, err := io.Copy(w, r); err != nil {
		return artifact.Info{}, false, err
	}
	if err := w.Verify(v.Digest); err != nil {
		return artifact.Info{}, false, err
	}
	if h.Ecosystem == pkglog.Cargo {
		if err := inspectCrate(io.NewSectionReader(w, 0, w.Size())); err != nil {
			return artifact.Info{}, false, err
		}
	}
	w.SetOrigin(artifact.FromImport)
	info, err = w.Commit(v.Digest, false)
	return info, err == nil, err
}

func isWithdrawn(err error) bool {
	_, yes := errors.AsType[*artifact.WithdrawnError](err)
	return yes
}

// Withdraw stops the seeding of files of removed versions. SEC-19
func (a *Artifacts) Withdraw(s *pkglog.State) error {
	live := make(map[[32]byte]bool)
	for _, v := range versionsOf(s) {
		live[v.Digest.Sum] = true
	}
	for _, w := range s.Withdrawn() {
		for _, d := range withdrawnDigests(s.Header(), w) {
			if live[d.Sum] {
				continue
			}
			info, err := a.Store.Stat(d)
			if errors.Is(err, fs.ErrNotExist) || isWithdrawn(err) {
				continue
			}
			if err != nil {
				return err
			}
			if err := a.Store.Withdraw(info.SHA256, "removed by the registry"); err != nil {
				return err
			}
		}
	}
	return nil
}

func withdrawnDigests(h pkglog.Header, w pkglog.Withdrawal) []artifact.Digest {
	if w.Line != nil {
		l, err := registry.ParseCargoLine(registry.CrateName(h.Package), w.Line)
		if err != nil {
			return nil // blank
		}
		return []artifact.Digest{sha256Digest(l.Cksum)}
	}
	var all []artifact.Digest
	for _, a := range w.Artifacts {
		all = append(all, artifact.Digest{Alg: artifact.H1, Sum: a.Digest})
	}
	return all
}

// Limits on a .crate: cargo's, so that nothing it would unpack is refused here.
const (
	maxUnpacked     = 512 << 20 // bytes
	maxRatio        = 20        // expanded to packed, above maxUnpacked
	maxCrateEntries = 1 << 18
)

// inspectCrate reads a .crate without unpacking it and says what in it is there
// to do harm: links, devices, paths that leave the directory, names that meet
// when case does not count. SEC-43
func inspectCrate(r *io.SectionReader) error {
	z, err := gzip.NewReader(r)
	if err != nil {
		return fmt.Errorf("not a crate: %w", err)
	}
	limit := max(maxUnpacked, maxRatio*r.Size())
	bounded := &io.LimitedReader{R: z, N: limit}
	t := tar.NewReader(bounded)
	seen := make(map[string]byte) // types by name
	for {
		h, err := t.Next()
		switch {
		case err == io.EOF:
			return nil
		case bounded.N <= 0:
			return fmt.Errorf("crate expands to more than %d bytes", limit)
		case err != nil:
			return fmt.Errorf("not a crate: %w", err)
		case len(seen) >= maxCrateEntries:
			return fmt.Errorf("crate of more than %d entries", maxCrateEntries)
		}
		if err := checkEntry(h); err != nil {
			return err
		}
		name := strings.ToLower(strings.TrimSuffix(h.Name, "/"))
		if typ, ok := seen[name]; ok && (typ != tar.TypeDir || h.Typeflag != tar.TypeDir) {
			return fmt.Errorf("crate has two entries called %.200q", h.Name)
		}
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if typ, ok := seen[dir]; ok && typ != tar.TypeDir {
				return fmt.Errorf("crate has %.200q below a file", h.Name)
			}
		}
		seen[name] = h.Typeflag
	}
}

func checkEntry(h *tar.Header) error {
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeDir, tar.TypeXGlobalHeader:
	default:
		return fmt.Errorf("crate has %.200q, which is neither file nor directory", h.Name)
	}
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name := strings.TrimSuffix(h.Name, "/")
	if name == "" || path.IsAbs(name) || path.Clean(name) != name || strings.HasPrefix(name, "../") || name == ".." || strings.ContainsAny(name, "\\\x00") {
		return fmt.Errorf("crate has an entry called %.200q", h.Name)
	}
	return nil
}
