package importer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"
	"golang.org/x/mod/sumdb/dirhash"
	"golang.org/x/sync/errgroup"

	"github.com/pkgswarm/pkgswarm/registry/pkglog"
)

// A ModuleProxy is where module versions come from. Paths and versions are not
// escaped. Errors match fs.ErrNotExist for what the proxy knows not to exist.
// Its methods may be called concurrently.
type ModuleProxy interface {
	List(ctx context.Context, path string) ([]byte, error)
	Info(ctx context.Context, path, version string) ([]byte, error)
	Mod(ctx context.Context, path, version string) ([]byte, error)
}

// Sums gives the h1 hashes of a module version, proven by the checksum
// database. It may be called concurrently.
type Sums func(ctx context.Context, path, version string) (mod, zip [32]byte, err error)

// A GoModule is a module to import.
type GoModule struct {
	Path     string
	Versions []string // canonical; besides those of the list
	List     bool     // all versions that the proxy lists
}

// GoModules imports modules from a GOPROXY or anything of that shape. Each
// version is proven by the checksum database before it is signed; .info, which
// no database covers, is taken from the proxy on its word.
//
// What a proxy does not list any more is not removed. Modules are withdrawn by
// retractions in a go.mod, which lists know nothing of, and builds go on to need
// what was withdrawn; a list leaves versions out when its proxy has lost them or
// never had them. Nodes refuse single versions by their policy.
type GoModules struct {
	URL     string // names the source
	Proxy   ModuleProxy
	Sums    Sums
	Modules []GoModule // sorted by path, each once: see SortModules
}

// SortModules sorts modules, merges those of equal path, and checks paths and
// versions; those that are no module are returned as problems.
func SortModules(modules []GoModule) ([]GoModule, []Problem) {
	var problems []Problem
	byPath := make(map[string]*GoModule)
	for _, m := range modules {
		if err := module.CheckPath(m.Path); err != nil {
			problems = append(problems, Problem{pkglog.Go, m.Path, "", err.Error()})
			continue
		}
		t := byPath[m.Path]
		if t == nil {
			t = &GoModule{Path: m.Path}
			byPath[m.Path] = t
		}
		t.List = t.List || m.List
		for _, v := range m.Versions {
			if err := checkVersion(m.Path, v); err != nil {
				problems = append(problems, Problem{pkglog.Go, m.Path, v, err.Error()})
				continue
			}
			t.Versions = append(t.Versions, v)
		}
	}
	var sorted []GoModule
	for _, m := range byPath {
		slices.Sort(m.Versions)
		m.Versions = slices.Compact(m.Versions)
		sorted = append(sorted, *m)
	}
	slices.SortFunc(sorted, func(a, b GoModule) int { return strings.Compare(a.Path, b.Path) })
	return sorted, problems
}

// checkVersion accepts canonical versions that go with the path.
func checkVersion(path, version string) error {
	if c := module.CanonicalVersion(version); c != version {
		return fmt.Errorf("version is not canonical")
	}
	return module.Check(path, version)
}

// ID returns the URL.
func (g *GoModules) ID() string { return g.URL }

// Ecosystem returns [pkglog.Go].
func (g *GoModules) Ecosystem() pkglog.Ecosystem { return pkglog.Go }

// Complete returns false: no list of modules is complete.
func (g *GoModules) Complete() bool { return false }

// Count returns how many packages will be listed.
func (g *GoModules) Count() int { return len(g.Modules) }

// Packages yields the modules.
func (g *GoModules) Packages(context.Context) iter.Seq2[Package, error] {
	return func(yield func(Package, error) bool) {
		for i := range g.Modules {
			if !yield(&goPackage{g, &g.Modules[i]}, nil) {
				return
			}
		}
	}
}

type goPackage struct {
	src *GoModules
	m   *GoModule
}

func (p *goPackage) Name() string { return p.m.Path }

// Stamp names the versions wanted, which never change once they are signed. What
// a list says now is not known before it was asked for.
func (p *goPackage) Stamp() Stamp {
	if p.m.List {
		return ""
	}
	sum := sha256.Sum256([]byte(strings.Join(p.m.Versions, "\n")))
	return Stamp("versions " + hex.EncodeToString(sum[:8]))
}

// versionsAtOnce is how many versions of one module are fetched at a time.
const versionsAtOnce = 8

// Update proves and fetches the versions that s does not have.
func (p *goPackage) Update(ctx context.Context, s *pkglog.State, _ Stamp) (*Update, error) {
	wanted, up, err := p.wanted(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		// A proxy that does not know a module says nothing about the versions
		// that the checksum database has proven: not %w, which would remove it.
		return nil, fmt.Errorf("list: %v", err)
	}
	if err != nil {
		return nil, fmt.Errorf("list: %w", err)
	}
	wanted = slices.DeleteFunc(wanted, func(v string) bool { return s.Module(v) != nil })
	got := make([]*pkglog.ModuleVersion, len(wanted))
	errs := make([]error, len(wanted))
	var g errgroup.Group
	g.SetLimit(versionsAtOnce)
	for i, v := range wanted {
		g.Go(func() error {
			got[i], errs[i] = p.fetch(ctx, v)
			return nil
		})
	}
	g.Wait()
	for i, v := range wanted {
		if errs[i] != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			up.Problems = append(up.Problems, Problem{pkglog.Go, p.m.Path, v, errs[i].Error()})
			continue
		}
		up.Bytes += int64(len(got[i].Info) + len(got[i].Mod))
		up.Events = append(up.Events, pkglog.Event{Kind: pkglog.Published, Module: got[i]})
	}
	up.Stamp = p.Stamp()
	return up, nil
}

// wanted returns the versions to have in semantic order.
func (p *goPackage) wanted(ctx context.Context) ([]string, *Update, error) {
	up := new(Update)
	versions := slices.Clone(p.m.Versions)
	if p.m.List {
		list, err := p.src.Proxy.List(ctx, p.m.Path)
		if err != nil && (len(versions) == 0 || !errors.Is(err, fs.ErrNotExist)) {
			return nil, nil, err
		}
		for line := range strings.Lines(string(list)) {
			v, _, _ := strings.Cut(strings.TrimSpace(line), " ")
			switch {
			case v == "" || module.IsPseudoVersion(v):
			case checkVersion(p.m.Path, v) != nil:
				up.Problems = append(up.Problems, Problem{pkglog.Go, p.m.Path, v, "listed, but no canonical version"})
			default:
				versions = append(versions, v)
			}
		}
	}
	slices.SortFunc(versions, func(a, b string) int {
		if c := semver.Compare(a, b); c != 0 {
			return c
		}
		return strings.Compare(a, b)
	})
	versions = slices.Compact(versions)
	up.Versions = len(versions)
	return versions, up, nil
}

// fetch proves one version. The database is asked first: without its record,
// nothing else matters.
func (p *goPackage) fetch(ctx context.Context, version string) (*pkglog.ModuleVersion, error) {
	path := p.m.Path
	modHash, zipHash, err := p.src.Sums(ctx, path, version)
	if err != nil {
		return nil, fmt.Errorf("checksum database: %w", err)
	}
	info, err := p.src.Proxy.Info(ctx, path, version)
	if err != nil {
		return nil, fmt.Errorf(".info: %w", err)
	}
	at, err := checkInfo(info, version)
	if err != nil {
		return nil, fmt.Errorf(".info: %w", err)
	}
	mod, err := p.src.Proxy.Mod(ctx, path, version)
	if err != nil {
		return nil, fmt.Errorf(".mod: %w", err)
	}
	if got := HashMod(mod); got != modHash {
		return nil, fmt.Errorf(".mod: hash is %s, checksum database has %s", FormatH1(got), FormatH1(modHash))
	}
	return &pkglog.ModuleVersion{Version: version, Time: at, ModHash: modHash, ZipHash: zipHash, Info: info, Mod: mod}, nil
}

// checkInfo checks that an .info file is about the version and returns its time
// in seconds since 1970, 0 if it has none.
func checkInfo(b []byte, version string) (int64, error) {
	var info struct {
		Version string
		Time    time.Time
	}
	if err := json.Unmarshal(b, &info); err != nil {
		return 0, err
	}
	if info.Version != version {
		return 0, fmt.Errorf("it is about version %q", info.Version)
	}
	if info.Time.IsZero() {
		return 0, nil
	}
	return info.Time.Unix(), nil
}

// HashMod returns the h1 hash of a go.mod file.
func HashMod(mod []byte) [32]byte {
	h, err := dirhash.Hash1([]string{"go.mod"}, func(string) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(mod)), nil
	})
	if err != nil {
		panic("importer: hash of bytes in memory: " + err.Error())
	}
	sum, err := ParseH1(h)
	if err != nil {
		panic("importer: " + err.Error())
	}
	return sum
}

// ParseH1 reads a hash as go.sum writes it.
func ParseH1(s string) (sum [32]byte, err error) {
	text, ok := strings.CutPrefix(s, "h1:")
	b, err := base64.StdEncoding.DecodeString(text)
	if !ok || err != nil || len(b) != len(sum) {
		return sum, fmt.Errorf("%q is no h1 hash", s)
	}
	return [32]byte(b), nil
}

// FormatH1 writes a hash as go.sum does.
func FormatH1(sum [32]byte) string { return "h1:" + base64.StdEncoding.EncodeToString(sum[:]) }
