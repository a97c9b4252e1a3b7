package registry

import (
	"fmt"
	"strings"
)

// MaxCrateName is the longest name of a crate, in bytes.
const MaxCrateName = 64

// A CrateName is the name of a crate in lower case, which is how crates are told
// apart: Foo and foo are one crate. It is not empty and has only letters, digits,
// "-" and "_".
type CrateName string

// ParseCrate returns the crate that s names, in whatever case.
func ParseCrate(s string) (CrateName, error) {
	if s == "" || len(s) > MaxCrateName {
		return "", fmt.Errorf("a crate's name has 1 to %d characters, not %d", MaxCrateName, len(s))
	}
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_':
		default:
			return "", fmt.Errorf("%.80q is no name of a crate", s)
		}
	}
	return CrateName(strings.ToLower(s)), nil
}

// IndexPath returns the path of the crate's file in a cargo index: 1/a, 2/ab,
// 3/a/abc, ab/cd/abcdef.
func (n CrateName) IndexPath() string { return indexPrefix(string(n)) + "/" + string(n) }

// indexPrefix returns the directory of a name of 1 or more bytes.
func indexPrefix(n string) string {
	switch len(n) {
	case 1:
		return "1"
	case 2:
		return "2"
	case 3:
		return "3/" + n[:1]
	}
	return n[:2] + "/" + n[2:4]
}

// ParseIndexPath returns the crate whose file in a cargo index is at path. Any
// other spelling of the path is an error (SEC-41).
func ParseIndexPath(path string) (CrateName, error) {
	n, err := ParseCrate(path[strings.LastIndexByte(path, '/')+1:])
	if err != nil {
		return "", err
	}
	if n.IndexPath() != path {
		return "", fmt.Errorf("%.80q is not where a crate's index file is", path)
	}
	return n, nil
}

// MaxCrateVersion is the longest version of a crate that is handled, in bytes.
const MaxCrateVersion = 128

// CheckCrateVersion returns an error if s cannot be a crate's version. It does
// not check all of semver's rules, but what s may do to paths.
func CheckCrateVersion(s string) error {
	if s == "" || len(s) > MaxCrateVersion || s[0] < '0' || s[0] > '9' {
		return fmt.Errorf("%.80q is no version of a crate", s)
	}
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '+', c == '.':
		default:
			return fmt.Errorf("%.80q is no version of a crate", s)
		}
	}
	return nil
}

// ExpandDL returns the address of a .crate by the dl template of a registry's
// config.json. name is spelt as in the index line; sum is its cksum.
func ExpandDL(dl, name, version, sum string) string {
	if !strings.Contains(dl, "{") {
		dl += "/{crate}/{version}/download"
	}
	return strings.NewReplacer(
		"{crate}", name,
		"{version}", version,
		"{prefix}", indexPrefix(name),
		"{lowerprefix}", indexPrefix(strings.ToLower(name)),
		"{sha256-checksum}", sum,
	).Replace(dl)
}
