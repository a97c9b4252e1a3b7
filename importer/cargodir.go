package importer

import (
	"context"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

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
//
// Each is looked at while it is listed, several directories at a time: that is
// all that is done about files which have not changed.
func (d *CargoDir) Packages(ctx context.Context) iter.Seq2[Package, error] {
	return d.packages(ctx, func(f *cargoFile) Package { return f })
}

func (d *CargoDir) packages(ctx context.Context, pkg func(*cargoFile) Package) iter.Seq2[Package, error] {
	return func(yield func(Package, error) bool) {
		none := true
		for files, err := range d.files(ctx, true) {
			for _, f := range files {
				none = false
				if !yield(pkg(f), nil) {
					return
				}
			}
			if err != nil {
				yield(nil, err)
				return
			}
		}
		if none { // another directory was meant, or it is being made
			yield(nil, fmt.Errorf("%s: no index file there", d.dir))
		}
	}
}

// Count returns how many packages will be listed, 0 if that cannot be told.
func (d *CargoDir) Count() int {
	names, _ := d.Names()
	return len(names)
}

// Names returns the names of all crates of the index.
func (d *CargoDir) Names() ([]string, error) {
	var names []string
	for files, err := range d.files(context.Background(), false) {
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			names = append(names, f.name)
		}
	}
	return names, nil
}

// dirsAhead is how many directories are listed ahead of the one that is needed.
const dirsAhead = 8

// files yields the files of the index, those of one directory at its root at a
// time, in the order of their paths.
func (d *CargoDir) files(ctx context.Context, stamps bool) iter.Seq2[[]*cargoFile, error] {
	type listing struct {
		files []*cargoFile
		err   error
	}
	return func(yield func([]*cargoFile, error) bool) {
		root, err := os.ReadDir(d.dir) // sorted by name
		if err != nil {
			yield(nil, err)
			return
		}
		var wg sync.WaitGroup
		defer wg.Wait()
		ctx, cancel := context.WithCancel(ctx)
		defer cancel() // runs before wg.Wait
		listings := make(chan chan listing, dirsAhead)
		wg.Go(func() {
			defer close(listings)
			for _, e := range root {
				l := make(chan listing, 1)
				select {
				case listings <- l:
				case <-ctx.Done():
					return
				}
				wg.Go(func() {
					var found listing
					found.err = d.walk(e, "", 0, stamps, &found.files)
					l <- found
				})
			}
		})
		for l := range listings {
			found := <-l
			if !yield(found.files, found.err) || found.err != nil {
				return
			}
		}
		if err := ctx.Err(); err != nil {
			yield(nil, err)
		}
	}
}

// maxDepth is that of index files: ab/cd/abcdef.
const maxDepth = 2

// walk appends the index files at e, which is in the directory dir of the index.
func (d *CargoDir) walk(e fs.DirEntry, dir string, depth int, stamps bool, files *[]*cargoFile) error {
	path := filepath.Join(dir, e.Name())
	switch {
	case strings.HasPrefix(e.Name(), "."):
	case e.IsDir() && depth < maxDepth:
		entries, err := os.ReadDir(filepath.Join(d.dir, path))
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := d.walk(e, path, depth+1, stamps, files); err != nil {
				return err
			}
		}
	case e.Type().IsRegular():
		name, err := registry.ParseIndexPath(filepath.ToSlash(path))
		if err != nil {
			return nil
		}
		f := &cargoFile{d, string(name), path, ""}
		if stamps {
			if info, err := e.Info(); err == nil { // else it is gone, as will be found
				f.stamp = fileStamp(info)
			}
		}
		*files = append(*files, f)
	}
	return nil
}

// A cargoFile is one index file.
type cargoFile struct {
	src   *CargoDir
	name  string
	path  string // below the index
	stamp Stamp  // when it was listed
}

func (f *cargoFile) Name() string { return f.name }

// Stamp tells by size and times. It is what git and make rely on, and the
// change time catches those who set the other one back.
func (f *cargoFile) Stamp() Stamp { return f.stamp }

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
	b, stamp, err := f.read()
	if err != nil {
		return nil, err
	}
	up := DiffCrate(registry.CrateName(f.name), s, b)
	up.Stamp = stamp
	return up, nil
}

// read returns what is in the file, and its stamp unless it has changed since it
// was listed: then it is looked at again next time.
func (f *cargoFile) read() ([]byte, Stamp, error) {
	file, err := os.Open(filepath.Join(f.src.dir, f.path))
	if err != nil {
		return nil, "", err
	}
	defer file.Close()
	b, err := readLimited(file, maxIndexFile)
	if err != nil {
		return nil, "", err
	}
	if after, err := file.Stat(); err != nil || fileStamp(after) != f.stamp {
		return b, "", nil
	}
	return b, f.stamp, nil
}
