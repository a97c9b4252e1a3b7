package artifact

import (
	"errors"

	"golang.org/x/sys/windows"
)

// freeSpace returns the bytes that this user may still write at dir.
func freeSpace(dir string) (int64, error) {
	p, err := windows.UTF16PtrFromString(dir)
	if err != nil {
		return 0, err
	}
	var avail uint64
	if err := windows.GetDiskFreeSpaceEx(p, &avail, nil, nil); err != nil {
		return 0, err
	}
	return int64(avail), nil
}

// isLocked reports whether err says that another process has the database open.
func isLocked(err error) bool { return errors.Is(err, windows.ERROR_SHARING_VIOLATION) }
