package importer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/module"
)

// maxModFile bounds .mod, .info and list files, in bytes. SEC-44
const maxModFile = 16 << 20

// A ModuleDir is a directory of the layout of a GOPROXY, such as the
// cache/download below a GOMODCACHE. It is a [ModuleProxy].
type ModuleDir struct {
	// Missing is asked for .info files that are not there: go keeps those only of
	// versions that it looked up, and of none that a go.mod named. Nil: nobody.
	Missing ModuleProxy

	root *os.Root
}

// OpenModuleDir opens dir, which may be a GOMODCACHE itself.
func OpenModuleDir(dir string) (*ModuleDir, error) {
	if sub := filepath.Join(dir, "cache", "download"); isDir(sub) {
		dir = sub
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &ModuleDir{root: root}, nil
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// Close releases the directory.
func (d *ModuleDir) Close() error { return d.root.Close() }

// Modules returns the modules of which it holds versions with .mod; with .info alone
// go looked at a version, no more. A list file of a GOMODCACHE names only what is there, so it is not looked at.
func (d *ModuleDir) Modules() ([]GoModule, error) {
	byPath := make(map[string]*GoModule)
	err := fs.WalkDir(d.root.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() {
			if name == "cache" || name == "sumdb" || strings.HasPrefix(e.Name(), ".") && name != "." {
				return fs.SkipDir
			}
			return nil
		}
		path, version, ok := parseModPath(name)
		if !ok {
			return nil
		}
		m := byPath[path]
		if m == nil {
			m = &GoModule{Path: path}
			byPath[path] = m
		}
		m.Versions = append(m.Versions, version)
		return nil
	})
	var modules []GoModule
	for _, m := range byPath {
		modules = append(modules, *m)
	}
	return modules, err
}

// parseModPath reads "ESCAPED/@v/VERSION.mod" of a canonical version.
func parseModPath(name string) (path, version string, ok bool) {
	escPath, file, ok := strings.Cut(name, "/@v/")
	escVersion, isMod := strings.CutSuffix(file, ".mod")
	if !ok || !isMod {
		return "", "", false
	}
	path, err := module.UnescapePath(escPath)
	if err != nil {
		return "", "", false
	}
	version, err = module.UnescapeVersion(escVersion)
	return path, version, err == nil && checkVersion(path, version) == nil
}

// List returns the list file.
func (d *ModuleDir) List(_ context.Context, path string) ([]byte, error) {
	return d.read(path, "list")
}

// Info returns the .info file of a version, from Missing if it is not there.
func (d *ModuleDir) Info(ctx context.Context, path, version string) ([]byte, error) {
	b, err := d.readVersion(path, version, ".info")
	if errors.Is(err, fs.ErrNotExist) && d.Missing != nil {
		if b, err = d.Missing.Info(ctx, path, version); err != nil {
			err = fmt.Errorf("not in the directory: %w", err)
		}
	}
	return b, err
}

// Mod returns the .mod file of a version.
func (d *ModuleDir) Mod(_ context.Context, path, version string) ([]byte, error) {
	return d.readVersion(path, version, ".mod")
}

// Zip opens the zip of a version.
func (d *ModuleDir) Zip(_ context.Context, path, version string) (io.ReadCloser, error) {
	escPath, escVersion, err := escape(path, version)
	if err != nil {
		return nil, err
	}
	return d.root.Open(filepath.FromSlash(escPath + "/@v/" + escVersion + ".zip"))
}

func (d *ModuleDir) readVersion(path, version, ext string) ([]byte, error) {
	_, escVersion, err := escape(path, version)
	if err != nil {
		return nil, err
	}
	return d.read(path, escVersion+ext)
}

func (d *ModuleDir) read(path, file string) ([]byte, error) {
	escPath, err := module.EscapePath(path)
	if err != nil {
		return nil, err
	}
	f, err := d.root.Open(filepath.FromSlash(escPath + "/@v/" + file))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return readLimited(f, nil, info.Size(), maxModFile)
}

func escape(path, version string) (escPath, escVersion string, err error) {
	escPath, err1 := module.EscapePath(path)
	escVersion, err2 := module.EscapeVersion(version)
	return escPath, escVersion, errors.Join(err1, err2)
}
