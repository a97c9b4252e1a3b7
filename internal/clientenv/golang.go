package clientenv

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/pkgswarm/pkgswarm/internal/clients"
	"github.com/pkgswarm/pkgswarm/registry"
	"github.com/pkgswarm/pkgswarm/registry/modules"
	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

// A Go is what the machine's go command is set up to use, as go env prints it; empty
// where it is not set.
type Go struct {
	GOPROXY, GOSUMDB     string
	GONOPROXY, GONOSUMDB string // GOPRIVATE where they are not set themselves
}

// ReadGo reads the environment and the file that "go env -w" writes.
func ReadGo() Go {
	file := goEnvFile()
	get := func(names ...string) string {
		for _, name := range names {
			if v := os.Getenv(name); v != "" {
				return v
			}
			if v := file[name]; v != "" {
				return v
			}
		}
		return ""
	}
	return Go{
		GOPROXY:   get("GOPROXY"),
		GOSUMDB:   get("GOSUMDB"),
		GONOPROXY: get("GONOPROXY", "GOPRIVATE"),
		GONOSUMDB: get("GONOSUMDB", "GOPRIVATE"),
	}
}

// goEnvFile returns the settings in go's configuration file.
func goEnvFile() map[string]string {
	name := os.Getenv("GOENV")
	if name == "" {
		dir, err := os.UserConfigDir()
		if err != nil {
			return nil
		}
		name = filepath.Join(dir, "go", "env")
	}
	f, err := os.Open(name)
	if err != nil {
		return nil // there is none, or GOENV=off
	}
	defer f.Close()
	m := make(map[string]string)
	for sc := bufio.NewScanner(io.LimitReader(f, maxFile)); sc.Scan(); {
		if k, v, ok := strings.Cut(strings.TrimSpace(sc.Text()), "="); ok && !strings.HasPrefix(k, "#") {
			m[k] = v
		}
	}
	return m
}

// GoSettings say where modules and checksums come from.
type GoSettings struct {
	Proxies  modules.List
	OwnProxy bool             // Proxies were given, not taken from go's settings
	Scopes   []upstream.Scope // from the URLs of the list
	Netrc    []upstream.Scope
	SumKey   string // of the checksum database; empty: none
	SumURL   string // empty: through the proxies, or at its name
	OwnSums  bool   // likewise
	NoProxy  string // patterns
	NoSums   string
}

// Upstream returns whom to ask. The built-in defaults must be at public addresses,
// but where they were given: a network may have its own copy of one, under its name.
func (s *GoSettings) Upstream() upstream.Config {
	c := upstream.Config{Scopes: slices.Concat(s.Scopes, s.Netrc)}
	add := func(url string, public bool) {
		if public {
			c.PublicOrigins = append(c.PublicOrigins, url)
			return
		}
		c.Origins = append(c.Origins, url)
	}
	for _, p := range s.Proxies.Proxies() {
		add(p, p == registry.GoProxy && !s.OwnProxy)
	}
	switch name, _, _ := strings.Cut(s.SumKey, "+"); {
	case s.SumURL != "":
		c.Origins = append(c.Origins, s.SumURL)
	case name != "":
		add("https://"+name, s.SumKey == registry.GoSumDB && !s.OwnSums)
	}
	return c
}

// WithoutNodes takes nodes of this machine, which setup puts there, out of a GOPROXY
// list: their own upstreams are meant.
func WithoutNodes(list string) string {
	for {
		node, _, _ := strings.Cut(strings.ReplaceAll(list, "|", ","), ",")
		base, ok := strings.CutSuffix(node, "/go")
		if !ok || !isLocal(base) {
			return list
		}
		list = clients.RemoveGo(list, base)
	}
}

// Join joins lists of patterns.
func Join(patterns []string, more string) string {
	if more != "" {
		patterns = append(patterns[:len(patterns):len(patterns)], more)
	}
	return strings.Join(patterns, ",")
}

// ParseSumDB parses a value of GOSUMDB. The key is empty for "off".
func ParseSumDB(s string) (key, url string, err error) {
	f := strings.Fields(s)
	name, _, _ := strings.Cut(registry.GoSumDB, "+")
	switch {
	case len(f) == 0:
		return registry.GoSumDB, "", nil
	case f[0] == "off":
		return "", "", nil
	case f[0] == name:
		f[0] = registry.GoSumDB
	case !strings.Contains(f[0], "+"):
		return "", "", fmt.Errorf("the key of %q is not known, write it as name+hash+key", f[0])
	}
	if _, err := note.NewVerifier(f[0]); err != nil {
		return "", "", fmt.Errorf("%q is not name+hash+key: %w", f[0], err)
	}
	if len(f) > 2 {
		return "", "", fmt.Errorf("%q is more than a key and a URL", s)
	}
	if len(f) == 2 {
		url = strings.TrimSuffix(f[1], "/")
	}
	return f[0], url, nil
}

// CheckPatterns returns an error for a pattern that would match nothing, because
// the names that it was meant for would not be private then.
func CheckPatterns(patterns string) error {
	for p := range strings.SplitSeq(patterns, ",") {
		if _, err := path.Match(p, ""); err != nil {
			return fmt.Errorf("malformed pattern %q", p)
		}
	}
	return nil
}

// Netrc returns the credentials that the user of this machine has for hosts. The
// error matches fs.ErrNotExist where there are none.
func Netrc() ([]upstream.Scope, error) { return upstream.Netrc(netrcPath()) }

func netrcPath() string {
	if p := os.Getenv("NETRC"); p != "" {
		return p
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	return filepath.Join(home, ".netrc")
}
