package importer

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pkgswarm/pkgswarm/registry"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
)

// A CargoHome imports the index files that cargo keeps below a CARGO_HOME. They
// are as old as the cache: versions that a log lacks are added, and nothing
// that it has is changed or removed.
//
// A cached file is
//
//	byte 3, uint32le index format, "etag: …" or the like, NUL, then
//	(version, NUL, index line, NUL)*
type CargoHome struct {
	dir    string // of one registry, with config.json and .cache
	crates string // its .crate files
}

// OpenCargoHome finds the registries below dir, which is a CARGO_HOME.
func OpenCargoHome(dir string) ([]*CargoHome, error) {
	index := filepath.Join(dir, "registry", "index")
	entries, err := os.ReadDir(index)
	if err != nil {
		return nil, err
	}
	var homes []*CargoHome
	for _, e := range entries {
		if isDir(filepath.Join(index, e.Name(), ".cache")) {
			homes = append(homes, &CargoHome{
				dir:    filepath.Join(index, e.Name()),
				crates: filepath.Join(dir, "registry", "cache", e.Name()),
			})
		}
	}
	if len(homes) == 0 {
		return nil, fmt.Errorf("%s: no registry there: %w", index, fs.ErrNotExist)
	}
	return homes, nil
}

// Host returns the host of the registry, as cargo has it in a directory's name.
func (c *CargoHome) Host() string {
	name := filepath.Base(c.dir)
	if i := strings.LastIndexByte(name, '-'); i > 0 {
		name = name[:i] // behind it is a hash of the URL
	}
	return name
}

// Private reports whether the registry gives nothing without a token, or is one that
// a node mirrors as private.
func (c *CargoHome) Private() bool {
	b, err := os.ReadFile(filepath.Join(c.dir, "config.json"))
	if err != nil {
		return false // of a git index
	}
	var config struct {
		DL   string `json:"dl"`
		Auth bool   `json:"auth-required"`
	}
	return json.Unmarshal(b, &config) != nil || config.Auth || strings.Contains(config.DL, "/registries/")
}

// IsCargoHome reports whether dir looks like a CARGO_HOME.
func IsCargoHome(dir string) bool { return isDir(filepath.Join(dir, "registry", "index")) }

// ID returns the directory of the registry's index.
func (c *CargoHome) ID() string { return c.dir }

// Ecosystem returns [pkglog.Cargo].
func (c *CargoHome) Ecosystem() pkglog.Ecosystem { return pkglog.Cargo }

// Complete returns false.
func (c *CargoHome) Complete() bool { return false }

// Count returns how many packages will be listed, 0 if that cannot be told.
func (c *CargoHome) Count() int { return c.index().Count() }

func (c *CargoHome) index() *CargoDir {
	return &CargoDir{dir: filepath.Join(c.dir, ".cache"), now: time.Now}
}

// Packages yields the cached index files in the order of their paths.
func (c *CargoHome) Packages(ctx context.Context) iter.Seq2[Package, error] {
	return c.index().packages(ctx, func(f *cargoFile) Package { return &cachedIndex{f} })
}

type cachedIndex struct{ *cargoFile }

// Update adds the versions that s does not have.
func (f *cachedIndex) Update(_ context.Context, s *pkglog.State, _ Stamp) (*Update, error) {
	b, stamp, err := f.read()
	if err != nil {
		return nil, err
	}
	lines, err := parseCached(*b)
	if err != nil {
		return nil, err
	}
	up := new(Update)
	name := registry.CrateName(f.name)
	version := versionOf(name)
	clean := up.clean(name, append(bytes.Join(lines, []byte{'\n'}), '\n'))
	up.Bytes, up.Stamp, up.buffer = int64(len(*b)), stamp, b
	known := make(map[string]bool)
	for _, l := range s.Lines() {
		known[version(l)] = true
	}
	fresh, _ := pkglog.SplitIndex(clean)
	fresh = slices.DeleteFunc(fresh, func(l []byte) bool { return len(l) == 0 || known[version(l)] })
	for i, l := range fresh {
		up.Events = append(up.Events, pkglog.Event{Kind: pkglog.Published, Position: len(s.Lines()) + i, Line: l})
	}
	return up, nil
}

// cacheVersion and indexFormat are what cargo writes since 1.68.
const (
	cacheVersion = 3
	indexFormat  = 2
)

// parseCached returns the index lines of a cached index file.
func parseCached(b []byte) ([][]byte, error) {
	if len(b) < 5 || b[0] != cacheVersion || binary.LittleEndian.Uint32(b[1:]) != indexFormat {
		return nil, fmt.Errorf("cached index file of an unknown format")
	}
	parts := bytes.Split(b[5:], []byte{0})
	// validator, then pairs, and nothing behind the last NUL
	if len(parts)%2 != 0 || len(parts[len(parts)-1]) != 0 {
		return nil, fmt.Errorf("cached index file is cut short")
	}
	var lines [][]byte
	for i := 2; i < len(parts)-1; i += 2 {
		if bytes.IndexByte(parts[i], '\n') >= 0 {
			return nil, fmt.Errorf("cached index line holds a newline")
		}
		lines = append(lines, parts[i])
	}
	return lines, nil
}

// ErrNotCached says that a cache does not hold a file. It matches fs.ErrNotExist.
var ErrNotCached = fmt.Errorf("not cached: %w", fs.ErrNotExist)

// Crate opens the .crate file of a version, whose name is that of its line. The error
// matches [ErrNotCached] if cargo has not fetched it.
func (c *CargoHome) Crate(name, version string) (*os.File, error) {
	f, err := openCrate(c.crates, name, version)
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrNotCached
	}
	return f, err
}

// Crate opens the .crate file of a version, whose name is that of its line.
func (d *CargoDir) Crate(name, version string) (*os.File, error) {
	if d.crates == "" {
		return nil, fmt.Errorf("no crates beside the index: %w", fs.ErrNotExist)
	}
	return openCrate(d.crates, name, version)
}

func openCrate(dir, name, version string) (*os.File, error) {
	file := name + "-" + version + ".crate"
	if strings.ContainsAny(file, `/\`) {
		return nil, fs.ErrNotExist
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return root.Open(file)
}
