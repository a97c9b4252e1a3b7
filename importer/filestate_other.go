//go:build !linux

package importer

import (
	"io/fs"
	"os"
	"path/filepath"
)

// changeTime returns 0: there is no portable way to ask for it.
func changeTime(fs.FileInfo) int64 { return 0 }

// stateIn returns the state of a file in an open directory.
func stateIn(dir *os.File, name string) (fileState, error) {
	info, err := os.Lstat(filepath.Join(dir.Name(), name))
	if err != nil {
		return fileState{}, err
	}
	return newFileState(info), nil
}
