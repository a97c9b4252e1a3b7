package main

import (
	"os"
	"path/filepath"
	"runtime"

	"github.com/spf13/cobra"
)

// dirs are the two directories of a node.
type dirs struct {
	data  string // may be dropped or restored by a CI cache
	state string // secrets and remembered heads: no cache restore touches it
}

// addFlags adds --data and --state to cmd.
func (d *dirs) addFlags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&d.data, "data", defaultDataDir(), "`DIR` of what may be fetched again")
	d.addState(cmd)
}

// addState adds --state alone, for a command that needs the node's token.
func (d *dirs) addState(cmd *cobra.Command) {
	cmd.Flags().StringVar(&d.state, "state", defaultStateDir(), "`DIR` of identity, tokens and heads seen")
}

// storeDir returns where the cores of a data directory are.
func storeDir(data string) string { return filepath.Join(data, "store", "cores") }

// defaultDataDir returns pkgswarm in the user's cache directory.
func defaultDataDir() string {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "pkgswarm-data"
	}
	return filepath.Join(dir, "pkgswarm")
}

// defaultStateDir returns pkgswarm in the user's directory for state: that of
// the XDG base directory specification, or the configuration directory where
// there is no such thing.
func defaultStateDir() string {
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "pkgswarm")
	}
	if home, err := os.UserHomeDir(); err == nil && runtime.GOOS != "windows" && runtime.GOOS != "darwin" {
		return filepath.Join(home, ".local", "state", "pkgswarm")
	}
	if dir, err := os.UserConfigDir(); err == nil {
		return filepath.Join(dir, "pkgswarm", "state")
	}
	return "pkgswarm-state"
}
