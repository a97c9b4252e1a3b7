package node

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"
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

// cargoIndex returns the index that the machine's cargo uses in place of
// crates.io's, as sparse+URL, or "".
func cargoIndex() string {
	home := os.Getenv("CARGO_HOME")
	if home == "" {
		dir, err := os.UserHomeDir()
		if err != nil {
			return ""
		}
		home = filepath.Join(dir, ".cargo")
	}
	b, err := os.ReadFile(filepath.Join(home, "config.toml"))
	if err != nil || len(b) > maxClientConfig {
		return ""
	}
	var c struct {
		Source map[string]struct {
			Replace  string `toml:"replace-with"`
			Registry string `toml:"registry"`
		} `toml:"source"`
		Registries map[string]struct {
			Index string `toml:"index"`
		} `toml:"registries"`
	}
	if toml.Unmarshal(b, &c) != nil {
		return "" // cargo will say so itself
	}
	name := c.Source["crates-io"].Replace
	for range 10 { // replacements of replacements
		next := c.Source[name].Replace
		if next == "" {
			break
		}
		name = next
	}
	url := c.Source[name].Registry
	if url == "" {
		url = c.Registries[name].Index
	}
	if !strings.HasPrefix(url, "sparse+") || isLocalURL(url) {
		return ""
	}
	return url
}
