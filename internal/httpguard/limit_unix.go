//go:build unix

package httpguard

import "golang.org/x/sys/unix"

// Descriptors returns how many descriptors the process may have open, at most
// most. Those who share them take a part each, so that none starves the others
// (REL-8).
func Descriptors(most int) int {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return most
	}
	return int(min(uint64(most), uint64(r.Cur)))
}
