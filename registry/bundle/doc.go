// Package bundle is a set of packages in one file, for places without a network:
// the files that a mirror would serve, in the order and under the names of a POSIX
// tar archive (ustar):
//
//	pkgswarm-bundle.json       the manifest, first; see [Manifest]
//	files/SHA256               a file as it is, named by the hash of its bytes in hex
//	files/SHA256.zst           a file compressed with zstd, named by the hash of its
//	                           bytes before that
//
// Each entry is a plain file with no owner and no time, so that equal packages make
// equal bundles, and stands in the archive once. The manifest names every file by
// its path at a mirror, its hash and its size:
//
//	cargo/se/rd/serde                            an index file
//	cargo/dl/serde/1.0.0                         a .crate
//	go/golang.org/x/mod/@v/v0.37.0.info .mod .zip
//	sumdb/lookup/golang.org/x/mod@v0.37.0        a record of the checksum database
//	sumdb/tile/8/0/x001/234                      a tile of it
//
// The bundle's ID is the SHA-256 of the manifest: it commits to every byte of every
// file. Whoever reads a bundle believes nothing of it but this: modules and their
// go.mod files are proven by the checksum database, .crate files by index lines; the
// index files themselves and .info files are as good as the word of who made the
// bundle, which its ID, told by another way, can be held against.
//
// A bundle that was cut short has the files that came before the cut. Hostile ones
// are refused within the limits below: what is announced is checked before it is
// allocated or expanded, and what is read never exceeds the size in the manifest.
package bundle

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

const (
	// Format is the version of the format.
	Format = 1

	manifestName = "pkgswarm-bundle.json"
	filesDir     = "files/"
	packed       = ".zst"
)

// Limits on what a bundle may hold.
const (
	MaxManifest = 32 << 20 // bytes
	MaxFiles    = 200_000
	MaxPackages = 100_000
	maxPath     = 1 << 10
	minPack     = 1 << 10 // bytes from which compression pays
)

var (
	// ErrFormat says that a file is no bundle, or not of this format.
	ErrFormat = errors.New("not a bundle")
	// ErrMissing says that a bundle does not have a file.
	ErrMissing = errors.New("not in the bundle")
	// ErrDamaged says that a file of a bundle is not what its manifest names.
	ErrDamaged = errors.New("the bundle is damaged")
)

// A Sum is the SHA-256 of a file.
type Sum [32]byte

func (s Sum) String() string { return hex.EncodeToString(s[:]) }

// MarshalText implements [encoding.TextMarshaler].
func (s Sum) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (s *Sum) UnmarshalText(text []byte) error {
	if len(text) != 2*len(s) || strings.ToLower(string(text)) != string(text) {
		return fmt.Errorf("%.80q is not a SHA-256 of 64 hex digits", text)
	}
	_, err := hex.Decode(s[:], text)
	return err
}

// A Package is one that a bundle was made for.
type Package struct {
	Ecosystem string `json:"ecosystem"` // cargo or go
	Name      string `json:"name"`
	Version   string `json:"version"`
	ModOnly   bool   `json:"mod_only,omitempty"` // of a module only go.mod is there
}

// A File is one file of a bundle.
type File struct {
	Path string `json:"path"`
	Sum  Sum    `json:"sha256"`
	Size int64  `json:"size"` // in bytes, before compression
}

// A Manifest says what is in a bundle.
type Manifest struct {
	Format   int       `json:"format"`
	Created  time.Time `json:"created"`            // when the index files were asked for
	Database string    `json:"database,omitempty"` // name of the checksum database
	Tree     int64     `json:"tree,omitempty"`     // records of it that the tiles are of
	Packages []Package `json:"packages"`
	Files    []File    `json:"files"`
}

// Encode returns the manifest as it stands in a bundle, and the bundle's ID.
func (m *Manifest) Encode() ([]byte, Sum, error) {
	b, err := json.MarshalIndent(m, "", " ")
	if err != nil {
		return nil, Sum{}, err
	}
	b = append(b, '\n')
	if len(b) > MaxManifest {
		return nil, Sum{}, fmt.Errorf("manifest of %d bytes, more than %d", len(b), MaxManifest)
	}
	return b, sha256.Sum256(b), nil
}

// Decode parses a manifest and checks it.
func Decode(b []byte) (*Manifest, error) {
	if len(b) > MaxManifest {
		return nil, fmt.Errorf("%w: manifest of %d bytes", ErrFormat, len(b))
	}
	m := &Manifest{}
	if err := json.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("%w: manifest: %w", ErrFormat, err)
	}
	return m, m.check()
}

func (m *Manifest) check() error {
	switch {
	case m.Format != Format:
		return fmt.Errorf("%w: format %d, and this program knows %d", ErrFormat, m.Format, Format)
	case len(m.Packages) > MaxPackages:
		return fmt.Errorf("%w: %d packages", ErrFormat, len(m.Packages))
	case len(m.Files) > MaxFiles:
		return fmt.Errorf("%w: %d files", ErrFormat, len(m.Files))
	}
	seen := make(map[string]bool, len(m.Files))
	for _, f := range m.Files {
		limit, _, err := kind(f.Path)
		switch {
		case err != nil:
			return fmt.Errorf("%w: %w", ErrFormat, err)
		case f.Size < 0 || f.Size > limit:
			return fmt.Errorf("%w: %.200q has %d bytes, more than %d", ErrFormat, f.Path, f.Size, limit)
		case seen[f.Path]:
			return fmt.Errorf("%w: %.200q twice", ErrFormat, f.Path)
		}
		seen[f.Path] = true
	}
	return nil
}

// Small reports whether the file at path is one of those that are compressed, and
// of at most a few tens of megabytes.
func Small(path string) bool {
	_, text, _ := kind(path)
	return text
}

// kind returns the limit on a file's size, in bytes, and whether it is worth
// compressing.
func kind(path string) (limit int64, text bool, err error) {
	dir, rest, _ := strings.Cut(path, "/")
	switch {
	case len(path) > maxPath || rest == "":
	case dir == "cargo" && strings.HasPrefix(rest, "dl/"):
		return upstream.Crate.MaxExpanded, false, nil
	case dir == "cargo":
		return upstream.IndexFile.MaxExpanded, true, nil
	case dir == "go" && strings.HasSuffix(rest, ".zip"):
		return upstream.ModuleZip.MaxExpanded, false, nil
	case dir == "go" && strings.HasSuffix(rest, ".mod"):
		return upstream.ModuleFile.MaxExpanded, true, nil
	case dir == "go" && strings.HasSuffix(rest, ".info"):
		return upstream.ModuleInfo.MaxExpanded, true, nil
	case dir == "sumdb" && strings.HasPrefix(rest, "lookup/"):
		return upstream.SumLookup.MaxExpanded, true, nil
	case dir == "sumdb" && strings.HasPrefix(rest, "tile/"):
		return upstream.SumTile.MaxExpanded, false, nil
	}
	return 0, false, fmt.Errorf("%.200q is no file of a bundle", path)
}
