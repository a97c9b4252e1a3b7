package clientenv

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/pkgswarm/pkgswarm/registry"
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
