// Package clientenv reads how this machine's cargo and go are set up: which
// registries they ask, with which credentials, and which names are private. It reads
// the files and variables that they read instead of running them, which would take
// longer than the rest of a node's start.
package clientenv

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

// maxFile bounds what is read of the clients' configuration, in bytes.
const maxFile = 1 << 20

// isLocal reports whether s leads to this machine: setup puts the node into the
// clients' configuration, and a node must not ask itself.
func isLocal(s string) bool {
	s = strings.TrimPrefix(s, "sparse+")
	for _, p := range []string{"http://127.0.0.1:", "http://localhost:", "http://[::1]:"} {
		if strings.HasPrefix(strings.TrimSpace(s), p) {
			return true
		}
	}
	return false
}

// A Cargo is what the machine's cargo is set up to use, of which a node
// follows the sources and the tokens. Of cargo's credential providers it knows
// cargo:token, which is files and the environment; no other is run.
type Cargo struct {
	Registry struct {
		Providers []string `toml:"global-credential-providers"`
	} `toml:"registry"`
	Sources map[string]struct {
		Replace  string `toml:"replace-with"`
		Registry string `toml:"registry"`
	} `toml:"source"`
	Registries map[string]struct {
		Index string `toml:"index"`
		Token string `toml:"token"`
		// Provider is a string or a list of strings.
		Provider any `toml:"credential-provider"`
	} `toml:"registries"`
}

// ReadCargo reads config.toml and credentials.toml of cargo's home. A file
// that cannot be read or parsed counts as empty: cargo will say so itself.
func ReadCargo() (c Cargo) {
	home := os.Getenv("CARGO_HOME")
	if home == "" {
		dir, err := os.UserHomeDir()
		if err != nil {
			return c
		}
		home = filepath.Join(dir, ".cargo")
	}
	return ReadCargoHome(home)
}

// ReadCargoHome is ReadCargo for another CARGO_HOME.
func ReadCargoHome(home string) (c Cargo) {
	for _, name := range []string{"config.toml", "credentials", "credentials.toml"} {
		b, err := os.ReadFile(filepath.Join(home, name))
		if err != nil || len(b) > maxFile {
			continue
		}
		var file Cargo
		if toml.Unmarshal(b, &file) == nil {
			c.merge(file)
		}
	}
	return c
}

// merge adds what other says to c.
func (c *Cargo) merge(other Cargo) {
	if c.Sources == nil {
		c.Sources = other.Sources
	}
	if c.Registry.Providers == nil {
		c.Registry = other.Registry
	}
	if c.Registries == nil {
		c.Registries = other.Registries
		return
	}
	for name, o := range other.Registries {
		r := c.Registries[name]
		if o.Index != "" {
			r.Index = o.Index
		}
		if o.Token != "" {
			r.Token = o.Token
		}
		if o.Provider != nil {
			r.Provider = o.Provider
		}
		c.Registries[name] = r
	}
}

// fromEnv returns a setting of a registry in the environment, as cargo names it.
func fromEnv(registry, setting string) string {
	name := strings.ToUpper(strings.ReplaceAll(registry, "-", "_"))
	return os.Getenv("CARGO_REGISTRIES_" + name + "_" + setting)
}

// Index returns the index of the registry of that name, or "".
func (c Cargo) Index(registry string) string {
	if v := fromEnv(registry, "INDEX"); v != "" {
		return v
	}
	if v := c.Registries[registry].Index; v != "" {
		return v
	}
	return c.Sources[registry].Registry
}

// token returns the token of that registry, or "".
func (c Cargo) token(registry string) string {
	if v := fromEnv(registry, "TOKEN"); v != "" {
		return v
	}
	return c.Registries[registry].Token
}

// provider returns the first of cargo's credential providers for that registry that
// is not cargo:token, without its arguments.
func (c Cargo) provider(registry string) string {
	list := c.Registry.Providers
	switch p := c.Registries[registry].Provider.(type) {
	case string:
		list = []string{p}
	case []any:
		list = nil
		if len(p) > 0 { // what follows is its arguments
			list = []string{fmt.Sprint(p[0])}
		}
	}
	for i := len(list) - 1; i >= 0; i-- { // later ones come first
		if name, _, _ := strings.Cut(list[i], " "); name != "" && name != "cargo:token" {
			return name
		}
	}
	return ""
}

// Replacement returns the name and the index of the registry that the machine's
// cargo uses in place of crates.io, the index as sparse+URL; "" if there is none.
func (c Cargo) Replacement() (name, index string) {
	name = c.Sources["crates-io"].Replace
	for range 10 { // replacements of replacements
		next := c.Sources[name].Replace
		if next == "" {
			break
		}
		name = next
	}
	index = c.Sources[name].Registry
	if index == "" {
		index = c.Index(name)
	}
	if !strings.HasPrefix(index, "sparse+") || isLocal(index) {
		return "", ""
	}
	return name, index
}

// named returns the name that cargo knows an index by, or "".
func (c Cargo) named(index string) string {
	same := func(s string) bool { return s != "" && strings.TrimSuffix(s, "/") == strings.TrimSuffix(index, "/") }
	for name := range c.Registries {
		if same(c.Index(name)) {
			return name
		}
	}
	for name, s := range c.Sources {
		if same(s.Registry) {
			return name
		}
	}
	return ""
}

// A CargoSource is a registry to mirror, with what opens it.
type CargoSource struct {
	Index  string // URL, without sparse+
	Scopes []upstream.Scope
	Token  string // that opens it, for what asks with one; also among Scopes
	// Provider is, if there is no token, the credential provider that cargo would
	// run for one and a node does not; "" if there is none. It is a name, and no more.
	Provider string
}

// Source returns the registry at configured, sparse+URL. A user name and password
// come from the URL, a token from cargo's settings for registry or for that index.
func (c Cargo) Source(configured, registry string) (CargoSource, error) {
	index, ok := strings.CutPrefix(configured, "sparse+")
	u, err := url.Parse(index)
	if !ok || err != nil || u.Host == "" {
		return CargoSource{}, fmt.Errorf("%q is not sparse+ and a URL", upstream.Redact(configured))
	}
	index, scope, err := upstream.SplitUserinfo(index)
	if err != nil {
		return CargoSource{}, err
	}
	s := CargoSource{Index: index}
	if registry == "" {
		registry = c.named("sparse+" + index)
	}
	switch token := c.token(registry); {
	case scope != (upstream.Scope{}):
		s.Scopes = append(s.Scopes, scope)
	case token != "":
		s.Token = token
		s.Scopes = append(s.Scopes, upstream.Scope{URL: index, Authorization: token})
	default:
		s.Provider = c.provider(registry)
	}
	return s, nil
}
