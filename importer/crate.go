package importer

import (
	"bytes"
	"fmt"

	"github.com/pkgswarm/pkgswarm/registry"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
)

// maxIndexFile bounds an index file, in bytes. SEC-44
const maxIndexFile = 32 << 20

// versionOf names the version that a signed line is about: what lines are matched
// by. What is no line, such as a blank one, is matched as it is.
func versionOf(name registry.CrateName) func(line []byte) string {
	return func(line []byte) string {
		l, err := registry.ParseCargoLine(name, line)
		if err != nil {
			return string(line)
		}
		return l.Vers
	}
}

// DiffCrate returns what leads from the log s to an index file. Lines that are
// no lines of the crate, and those that name a version again with another
// digest, are problems and count as if they were not in the file.
func DiffCrate(name registry.CrateName, s *pkglog.State, file []byte) *Update {
	up := &Update{Bytes: int64(len(file))}
	file = up.clean(name, file)
	up.Events = pkglog.DiffIndex(s, file, versionOf(name))
	return up
}

// clean returns file without its bad lines.
func (u *Update) clean(name registry.CrateName, file []byte) []byte {
	lines, noNewline := pkglog.SplitIndex(file)
	digests := make(map[string][32]byte, len(lines))
	bad := 0
	for i, b := range lines {
		if len(b) == 0 {
			lines[i-bad] = b // blank lines mean nothing and are kept
			continue
		}
		u.Versions++
		l, err := registry.ParseCargoLine(name, b)
		if d, ok := digests[l.Vers]; err == nil && ok && d != l.Cksum {
			err = fmt.Errorf("listed again with cksum %x instead of %x", l.Cksum, d)
		}
		if err != nil {
			u.Problems = append(u.Problems, Problem{pkglog.Cargo, string(name), l.Vers, err.Error()})
			bad++
			continue
		}
		digests[l.Vers] = l.Cksum
		lines[i-bad] = b
	}
	if bad == 0 {
		return file
	}
	lines = lines[:len(lines)-bad]
	file = bytes.Join(lines, []byte{'\n'})
	if len(lines) > 0 && !noNewline {
		file = append(file, '\n')
	}
	return file
}
