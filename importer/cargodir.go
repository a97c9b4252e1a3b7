package importer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

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
	now    func() time.Time
}

// OpenCargoDir opens dir.
func OpenCargoDir(dir string) (*CargoDir, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	d := &CargoDir{dir: abs, now: time.Now}
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

// HasCrates reports whether there is a directory of .crate files beside the index.
func (d *CargoDir) HasCrates() bool { return d.crates != "" }

// Download returns the URL template for .crate files from the config.json of the
// index.
func (d *CargoDir) Download() (string, error) {
	b, err := os.ReadFile(filepath.Join(d.dir, "config.json"))
	if err != nil {
		return "", err
	}
	return parseDL(b)
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
		for files, err := range d.files(ctx) {
			for i := range files {
				none = false
				if !yield(pkg(&files[i]), nil) {
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
	for files, err := range d.files(context.Background()) {
		if err != nil {
			return nil, err
		}
		for i := range files {
			names = append(names, files[i].name)
		}
	}
	return names, nil
}

// dirsAhead is how many directories are listed ahead of the one that is needed.
const dirsAhead = 8

// files yields the files of the index, those of one directory at its root at a
// time, in the order of their paths.
func (d *CargoDir) files(ctx context.Context) iter.Seq2[[]cargoFile, error] {
	type listing struct {
		files []cargoFile
		err   error
	}
	return func(yield func([]cargoFile, error) bool) {
		entries, err := os.ReadDir(d.dir) // sorted by name
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
			for _, e := range entries {
				if !e.IsDir() || hidden(e.Name()) {
					continue // no index file is here
				}
				l := make(chan listing, 1)
				select {
				case listings <- l:
				case <-ctx.Done():
					return
				}
				wg.Go(func() {
					var found listing
					found.err = d.walk(e.Name(), 1, &found.files)
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

// maxDepth is how many directories an index file is in: ab/cd/abcdef.
const maxDepth = 2

// hidden reports whether a file or directory is none of the index: .git is not.
func hidden(name string) bool { return strings.HasPrefix(name, ".") }

// walk appends the index files below the directory path of the index, which is
// that deep.
func (d *CargoDir) walk(path string, depth int, files *[]cargoFile) error {
	dir, err := os.Open(filepath.Join(d.dir, filepath.FromSlash(path)))
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	slices.Sort(names)
	*files = slices.Grow(*files, len(names))
	for _, name := range names {
		if hidden(name) {
			continue
		}
		state, err := stateIn(dir, name)
		switch {
		case errors.Is(err, fs.ErrNotExist): // since it was listed
		case err != nil:
			return err // not known to be gone: that would withdraw it
		case state.dir && depth < maxDepth:
			if err := d.walk(path+"/"+name, depth+1, files); err != nil {
				return err
			}
		case state.regular:
			path := path + "/" + name
			if crate, err := registry.ParseIndexPath(path); err == nil {
				*files = append(*files, cargoFile{d, string(crate), path, state})
			}
		}
	}
	return nil
}

// A cargoFile is one index file.
type cargoFile struct {
	src   *CargoDir
	name  string
	path  string    // below the index, with slashes
	state fileState // when it was listed
}

func (f *cargoFile) Name() string { return f.name }

// Stamp tells by size and times.
func (f *cargoFile) Stamp() Stamp { return f.state.stamp() }

// Update reads the file.
func (f *cargoFile) Update(_ context.Context, s *pkglog.State, _ Stamp) (*Update, error) {
	b, stamp, err := f.read()
	if err != nil {
		return nil, err
	}
	up := DiffCrate(registry.CrateName(f.name), s, *b)
	up.Stamp, up.buffer = stamp, b
	return up, nil
}

// read returns what is in the file, and its stamp, unless it has changed since it
// was listed, or a change that comes now might not show: then it is looked at
// again next time.
func (f *cargoFile) read() (*[]byte, Stamp, error) {
	file, err := os.Open(filepath.Join(f.src.dir, filepath.FromSlash(f.path)))
	if err != nil {
		return nil, "", err
	}
	defer file.Close()
	now := f.src.now()
	b := buffers.Get().(*[]byte)
	if *b, err = readLimited(file, *b, f.state.size, maxIndexFile); err != nil {
		return nil, "", err
	}
	if info, err := file.Stat(); err != nil || newFileState(info) != f.state || f.state.fresh(now) {
		return b, "", nil
	}
	return b, f.state.stamp(), nil
}

// buffers are for files that are read, which takes less time in memory that was
// used before.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

// readLimited reads all of a file, which must not be more than limit bytes, into
// the room of b if there is enough. It likely has size bytes.
func readLimited(f *os.File, b []byte, size, limit int64) ([]byte, error) {
	// One byte more shows that the file ends where it says.
	b = slices.Grow(b[:0], int(min(size, limit))+1)
	for {
		n, err := f.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if int64(len(b)) > limit {
			return nil, fmt.Errorf("more than %d bytes", limit)
		}
		if err == io.EOF {
			return b, nil
		}
		if err != nil {
			return nil, err
		}
		b = slices.Grow(b, 1)
	}
}
