package artifact

import (
	"os"
	"syscall"
)

// changeTime returns the time of the last change of the file's inode, which,
// unlike its modification time, nobody can set.
func changeTime(fi os.FileInfo) int64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return syscall.TimespecToNsec(st.Ctim)
	}
	return 0
}
