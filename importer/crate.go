package importer

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/pkgswarm/pkgswarm/registry/pkglog"
)

// Limits on index files. SEC-44
const (
	maxIndexFile = 32 << 20 // bytes
	maxIndexLine = 1 << 20  // bytes
)

// indexPath returns where the index file of a crate is, with slashes. It is ""
// for what is no crate's name in lower case.
func indexPath(name string) string {
	if !validCrate(name) {
		return ""
	}
	switch len(name) {
	case 1, 2:
		return string('0'+byte(len(name))) + "/" + name
	case 3:
		return "3/" + name[:1] + "/" + name
	}
	return name[:2] + "/" + name[2:4] + "/" + name
}

func validCrate(name string) bool {
	if name == "" || len(name) > 64 {
		return false
	}
	for i := range len(name) {
		c := name[i]
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
			return false
		}
	}
	return true
}

// An indexLine is what an importer reads of a line. The rest is kept as it is.
type indexLine struct {
	Name  string `json:"name"`
	Vers  string `json:"vers"`
	Cksum string `json:"cksum"`
}

func parseIndexLine(b []byte) (l indexLine, err error) {
	if len(b) > maxIndexLine {
		return l, fmt.Errorf("line of %d bytes", len(b))
	}
	if !utf8.Valid(b) {
		return l, fmt.Errorf("line is not UTF-8")
	}
	if err := json.Unmarshal(b, &l); err != nil {
		return l, fmt.Errorf("line is not JSON: %w", err)
	}
	return l, nil
}

// check says what is wrong with a line of the crate name. SEC-7
func (l *indexLine) check(name string) error {
	switch {
	case strings.ToLower(l.Name) != name:
		return fmt.Errorf("line is of crate %q", l.Name)
	case l.Vers == "":
		return fmt.Errorf("line names no version")
	case len(l.Cksum) != 64 || strings.ToLower(l.Cksum) != l.Cksum:
		return fmt.Errorf("cksum %q is no SHA-256", l.Cksum)
	}
	if _, err := hex.DecodeString(l.Cksum); err != nil {
		return fmt.Errorf("cksum %q is no SHA-256", l.Cksum)
	}
	return nil
}

// versionOf names the version that a line is about: what lines are matched by.
func versionOf(line []byte) string {
	var l indexLine
	if json.Unmarshal(line, &l) != nil {
		return string(line)
	}
	return l.Vers
}

// DiffCrate returns what leads from the log s to an index file. Lines that are
// no lines of the crate, and those that name a version again with another
// digest, are problems and count as if they were not in the file.
func DiffCrate(name string, s *pkglog.State, file []byte) *Update {
	up := &Update{Bytes: int64(len(file))}
	file = up.clean(name, file)
	up.Events = pkglog.DiffIndex(s, file, versionOf)
	return up
}

// clean returns file without its bad lines.
func (u *Update) clean(name string, file []byte) []byte {
	lines, noNewline := pkglog.SplitIndex(file)
	digests := make(map[string]string, len(lines))
	bad := 0
	for i, b := range lines {
		if len(b) == 0 {
			lines[i-bad] = b // blank lines mean nothing and are kept
			continue
		}
		u.Versions++
		l, err := parseIndexLine(b)
		if err == nil {
			err = l.check(name)
		}
		if d, ok := digests[l.Vers]; err == nil && ok && d != l.Cksum {
			err = fmt.Errorf("listed again with cksum %s instead of %s", l.Cksum, d)
		}
		if err != nil {
			u.Problems = append(u.Problems, Problem{pkglog.Cargo, name, l.Vers, err.Error()})
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
