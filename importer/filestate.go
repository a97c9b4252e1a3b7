package importer

import (
	"io/fs"
	"strconv"
	"time"
)

// A fileState tells whether a file may have changed.
type fileState struct {
	regular, dir bool
	size         int64
	modified     int64 // nanoseconds since 1970
	changed      int64 // when its inode did; 0 where there is no telling
}

func newFileState(info fs.FileInfo) fileState {
	return fileState{
		regular: info.Mode().IsRegular(), dir: info.IsDir(),
		size: info.Size(), modified: info.ModTime().UnixNano(), changed: changeTime(info),
	}
}

// stamp is what git and make rely on, and the change time catches those who set
// the other one back.
func (s fileState) stamp() Stamp {
	var array [48]byte
	b := strconv.AppendInt(array[:0], s.size, 36)
	b = append(b, ' ')
	b = strconv.AppendInt(b, s.modified, 36)
	b = append(b, ' ')
	b = strconv.AppendInt(b, s.changed, 36)
	return Stamp(b)
}

// tick is how far apart two changes of a file may be that get the same time: two
// seconds in the coarsest file systems.
const tick = 2 * time.Second

// fresh reports whether the file had changed so shortly before now that another
// change may not show.
func (s fileState) fresh(now time.Time) bool {
	return max(s.modified, s.changed) > now.Add(-tick).UnixNano()
}
