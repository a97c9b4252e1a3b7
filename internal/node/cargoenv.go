package node

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

// maxClientConfig bounds what is read of the clients' configuration, in bytes.
const maxClientConfig = 1 << 20

// isLocalURL reports whether s leads to this machine: setup puts the node into the
// clients' configuration, and a node must not ask itself.
func isLocalURL(s string) bool {
	s = strings.TrimPrefix(s, "sparse+")
	for _, p := range []string{"http://127.0.0.1:", "http://localhost:", "http://[::1]:"} {
		if strings.HasPrefix(strings.TrimSpace(s), p) {
			return true
		}
	}
	return false
}

// A cargoConfig is what the machine's cargo is set up to use, of which a node
// follows the sources and the tokens. cargo's credential helpers are not run.
type cargoConfig struct {
	Source map[string]struct {
		Replace  string `toml:"replace-with"`
		Registry string `toml:"registry"`
	} `toml:"source"`
	Registries map[string]struct {
		Index string `toml:"index"`
		Token string `toml:"token"`
	} `toml:"registries"`
}

// readCargoConfig reads config.toml and credentials.toml of cargo's home. A file
// that cannot be read or parsed counts as empty: cargo will say so itself.
func readCargoConfig() (c cargoConfig) {
	home := os.Getenv("CARGO_HOME")
	if home == "" {
		dir, err := os.UserHomeDir()
		if err != nil {
			return c
		}
		home = filepath.Join(dir, ".cargo")
	}
	for _, name := range []string{"config.toml", "credentials", "credentials.toml"} {
		b, err := os.ReadFile(filepath.Join(home, name))
		if err != nil || len(b) > maxClientConfig {
			continue
		}
		var file cargoConfig
		if toml.Unmarshal(b, &file) == nil {
			c.merge(file)
		}
	}
	return c
}

// merge adds what other says to c.
func (c *cargoConfig) merge(other cargoConfig) {
	if c.Source == nil {
		c.Source = other.Source
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
		c.Registries[name] = r
	}
}

// fromEnv returns a setting of a registry in the environment, as cargo names it.
func fromEnv(registry, setting string) string {
	name := strings.ToUpper(strings.ReplaceAll(registry, "-", "_"))
	return os.Getenv("CARGO_REGISTRIES_" + name + "_" + setting)
}

// index returns the index of the registry of that name, or "".
func (c cargoConfig) index(registry string) string {
	if v := fromEnv(registry, "INDEX"); v != "" {
		return v
	}
	if v := c.Registries[registry].Index; v != "" {
		return v
	}
	return c.Source[registry].Registry
}

// token returns the token of that registry, or "".
func (c cargoConfig) token(registry string) string {
	if v := fromEnv(registry, "TOKEN"); v != "" {
		return v
	}
	return c.Registries[registry].Token
}

// replacement returns the name and the index of the registry that the machine's
// cargo uses in place of crates.io, the index as sparse+URL; "" if there is none.
func (c cargoConfig) replacement() (name, index string) {
	name = c.Source["crates-io"].Replace
	for range 10 { // replacements of replacements
		next := c.Source[name].Replace
		if next == "" {
			break
		}
		name = next
	}
	index = c.Source[name].Registry
	if index == "" {
		index = c.index(name)
	}
	if !strings.HasPrefix(index, "sparse+") || isLocalURL(index) {
		return "", ""
	}
	return name, index
}

// named returns the name that cargo knows an index by, or "".
func (c cargoConfig) named(index string) string {
	same := func(s string) bool { return s != "" && strings.TrimSuffix(s, "/") == strings.TrimSuffix(index, "/") }
	for name := range c.Registries {
		if same(c.index(name)) {
			return name
		}
	}
	for name, s := range c.Source {
		if same(s.Registry) {
			return name
		}
	}
	return ""
}

// A cargoSource is a registry to mirror, with what opens it.
type cargoSource struct {
	index  string // URL, without sparse+
	scopes []upstream.Scope
	token  string
}

// source returns the registry at configured, sparse+URL. A user name and password
// come from the URL, a token from cargo's settings for registry or for that index.
func (c cargoConfig) source(configured, registry string) (cargoSource, error) {
	index, ok := strings.CutPrefix(configured, "sparse+")
	u, err := url.Parse(index)
	if !ok || err != nil || u.Host == "" {
		return cargoSource{}, fmt.Errorf("%q is not sparse+ and a URL", redactURL(configured))
	}
	index, scope, err := upstream.SplitUserinfo(index)
	if err != nil {
		return cargoSource{}, err
	}
	s := cargoSource{index: index}
	if registry == "" {
		registry = c.named("sparse+" + index)
	}
	switch token := c.token(registry); {
	case scope != (upstream.Scope{}):
		s.scopes = append(s.scopes, scope)
	case token != "":
		s.token = token
		s.scopes = append(s.scopes, upstream.Scope{URL: index, Authorization: token})
	}
	return s, nil
}
