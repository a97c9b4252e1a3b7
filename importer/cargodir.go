package importer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/pkgswarm/pkgswarm/registry"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
)

// A CargoDir imports an index in the layout of crates.io: a plain directory, a
// checkout of the git index, or one of these under the name "index" beside a
// directory "crates". It is the whole registry: a crate without a file there
// does not exist.
type CargoDir struct {
	dir    string // of the index
	crates string // directory of .crate files; empty if there is none
}

// OpenCargoDir opens dir.
func OpenCargoDir(dir string) (*CargoDir, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	d := &CargoDir{dir: abs}
	if sub := filepath.Join(abs, "index"); isDir(sub) {
		d.dir = sub
		if c := filepath.Join(abs, "crates"); isDir(c) {
			d.crates = c
		}
	}
	if !isDir(d.dir) {
		return nil, fmt.Errorf("%s: %w", dir, fs.ErrNotExist)
	}
	return d, nil
}

// ID returns the directory of the index.
func (d *CargoDir) ID() string { return d.dir }

// Ecosystem returns [pkglog.Cargo].
func (d *CargoDir) Ecosystem() pkglog.Ecosystem { return pkglog.Cargo }

// Complete returns true.
func (d *CargoDir) Complete() bool { return true }

// Packages yields the index files in the order of their paths. Files that are
// where no index file belongs are left alone.
func (d *CargoDir) Packages(context.Context) iter.Seq2[Package, error] {
	return func(yield func(Package, error) bool) {
		err := d.walk("", 0, func(name, path string) bool {
			return yield(&cargoFile{d, name, path}, nil)
		})
		if err != nil && !errors.Is(err, errStop) {
			yield(nil, err)
		}
	}
}

// Names returns the names of all crates of the index.
func (d *CargoDir) Names() ([]string, error) {
	var names []string
	err := d.walk("", 0, func(name, _ string) bool {
		names = append(names, name)
		return true
	})
	return names, err
}

var errStop = errors.New("stop")

// maxDepth is that of index files: ab/cd/abcdef.
const maxDepth = 2

func (d *CargoDir) walk(rel string, depth int, found func(name, path string) bool) error {
	entries, err := os.ReadDir(filepath.Join(d.dir, rel)) // sorted by name
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(rel, e.Name())
		switch {
		case strings.HasPrefix(e.Name(), "."):
		case e.IsDir() && depth < maxDepth:
			if err := d.walk(path, depth+1, found); err != nil {
				return err
			}
		case e.Type().IsRegular():
			name, err := registry.ParseIndexPath(filepath.ToSlash(path))
			if err == nil && !found(string(name), path) {
				return errStop
			}
		}
	}
	return nil
}

// A cargoFile is one index file.
type cargoFile struct {
	src  *CargoDir
	name string
	path string // below the index
}

func (f *cargoFile) Name() string { return f.name }

// Stamp tells by size and times. It is what git and make rely on, and the
// change time catches those who set the other one back.
func (f *cargoFile) Stamp() Stamp {
	info, err := os.Lstat(filepath.Join(f.src.dir, f.path))
	if err != nil {
		return ""
	}
	return fileStamp(info)
}

func fileStamp(info fs.FileInfo) Stamp {
	b := strconv.AppendInt(nil, info.Size(), 36)
	b = append(b, ' ')
	b = strconv.AppendInt(b, info.ModTime().UnixNano(), 36)
	b = append(b, ' ')
	b = strconv.AppendInt(b, changeTime(info), 36)
	return Stamp(b)
}

// Update reads the file.
func (f *cargoFile) Update(_ context.Context, s *pkglog.State, _ Stamp) (*Update, error) {
	file, err := os.Open(filepath.Join(f.src.dir, f.path))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	before, err := file.Stat()
	if err != nil {
		return nil, err
	}
	b, err := readLimited(file, maxIndexFile)
	if err != nil {
		return nil, err
	}
	up := DiffCrate(registry.CrateName(f.name), s, b)
	// A file that changes while it is read is looked at again next time.
	if after, err := file.Stat(); err == nil && fileStamp(after) == fileStamp(before) {
		up.Stamp = fileStamp(before)
	}
	return up, nil
}
