package importer

import (
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// changeTime returns when the inode of a file changed last, in nanoseconds.
func changeTime(info fs.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Ctim.Nano()
	}
	return 0
}

// stateIn returns the state of a file in an open directory. It goes by the
// directory's descriptor: a whole path takes the kernel three times as long.
func stateIn(dir *os.File, name string) (fileState, error) {
	var st unix.Stat_t
	for {
		err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if err == nil {
			break
		}
		if err != unix.EINTR {
			return fileState{}, &fs.PathError{Op: "lstat", Path: dir.Name() + "/" + name, Err: err}
		}
	}
	kind := st.Mode & unix.S_IFMT
	return fileState{kind == unix.S_IFREG, kind == unix.S_IFDIR, st.Size, st.Mtim.Nano(), st.Ctim.Nano()}, nil
}
