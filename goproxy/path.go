package goproxy

import (
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/mod/module"

	"github.com/pkgswarm/pkgswarm/registry/modules"
)

// A path is a request for a file of a module, unescaped and valid.
type path struct {
	module  string
	version string // empty for list and latest
	file    string // "list", "latest", "info", "mod" or "zip"
}

func (p path) String() string {
	if p.version == "" {
		return p.module + ": " + p.file
	}
	return p.module + "@" + p.version
}

// cleanPath returns a URL's path without its first slash, decoded once, if there is
// only one way to read it (SEC-40).
func cleanPath(u *url.URL) (string, error) {
	p, raw := u.Path, u.RawPath
	if len(p) > maxPath || len(raw) > maxPath {
		return "", badRequest("path is too long")
	}
	if raw != "" { // else p is decoded, and decoding it again would be wrong
		lower := strings.ToLower(raw)
		if strings.Contains(lower, "%2f") || strings.Contains(lower, "%5c") {
			return "", badRequest("encoded slash in the path")
		}
		var err error
		if p, err = url.PathUnescape(raw); err != nil {
			return "", badRequest("malformed path")
		}
	}
	p = strings.TrimPrefix(p, "/")
	if !utf8.ValidString(p) || strings.ContainsFunc(p, func(r rune) bool { return r == '\\' || unicode.IsControl(r) }) {
		return "", badRequest("unexpected character in the path")
	}
	for seg := range strings.SplitSeq(p, "/") {
		if seg == "" || seg == "." || seg == ".." {
			return "", badRequest("path is not clean")
		}
	}
	return p, nil
}

// parsePath parses the clean path of a module's file.
func parsePath(p string) (path, error) {
	esc, name, ok := strings.Cut(p, "/@v/")
	if !ok {
		if esc, ok = strings.CutSuffix(p, "/@latest"); !ok {
			return path{}, notFound("no such file of a Go module proxy")
		}
		name = "latest"
	}
	mod, err := unescapePath(esc)
	if err != nil {
		return path{}, notFound("%s", printable(err.Error()))
	}
	if name == "list" || name == "latest" && !strings.Contains(p, "/@v/") {
		return path{module: mod, file: name}, nil
	}
	return parseVersion(mod, name)
}

// unescapePath is [module.UnescapePath]. Most paths have nothing to unescape: they
// are checked only.
func unescapePath(esc string) (string, error) {
	for _, c := range []byte(esc) {
		if c == '!' || 'A' <= c && c <= 'Z' || c >= utf8.RuneSelf {
			return module.UnescapePath(esc)
		}
	}
	return esc, module.CheckPath(esc)
}

// parseVersion parses the name of a file of one version.
func parseVersion(mod, name string) (path, error) {
	i := strings.LastIndexByte(name, '.')
	if i < 0 || strings.Contains(name, "/") {
		return path{}, notFound("no such file of a module: %s", printable(name))
	}
	version, err := module.UnescapeVersion(name[:i])
	if err != nil {
		return path{}, notFound("%s", printable(err.Error()))
	}
	p := path{mod, version, name[i+1:]}
	switch p.file {
	case "info":
		return p, nil
	case "mod", "zip":
		if !modules.Canonical(version) {
			return path{}, notFound("%s: version is not canonical", printable(p.String()))
		}
		return p, nil
	}
	return path{}, notFound("no such file of a module: %s", printable(name))
}

// parseSumPath splits a clean path below sumdb/: NAME/FILE. A name may have slashes;
// a file begins with a known word.
func parseSumPath(p string) (name, file string, err error) {
	for _, word := range []string{"/lookup/", "/tile/"} {
		if i := strings.Index(p, word); i > 0 {
			return p[:i], p[i+1:], nil
		}
	}
	for _, word := range []string{"/supported", "/latest"} {
		if name, ok := strings.CutSuffix(p, word); ok {
			return name, word[1:], nil
		}
	}
	return "", "", notFound("no such file of a checksum database")
}

// parseLookup parses the M@V of a look-up.
func parseLookup(s string) (module.Version, error) {
	esc, escVersion, ok := strings.Cut(s, "@")
	if !ok {
		return module.Version{}, notFound("look-up without a version")
	}
	path, err := unescapePath(esc)
	if err != nil {
		return module.Version{}, notFound("%s", printable(err.Error()))
	}
	version, err := module.UnescapeVersion(escVersion)
	if err != nil || !modules.Canonical(version) {
		return module.Version{}, notFound("%s@%s: not a canonical version", printable(path), printable(escVersion))
	}
	return module.Version{Path: path, Version: version}, nil
}
