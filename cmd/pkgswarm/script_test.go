package main

import (
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"pkgswarm": main,
	})
}

// TestScripts runs the real main on the scripts in testdata, each in a directory
// and a home of its own.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			home := env.WorkDir + "/home"
			env.Setenv("HOME", home)
			env.Setenv("XDG_CONFIG_HOME", home+"/.config")
			env.Setenv("XDG_CACHE_HOME", home+"/.cache")
			env.Setenv("XDG_STATE_HOME", home+"/.local/state")
			env.Setenv("CARGO_HOME", home+"/.cargo")
			env.Setenv("GOCACHE", home+"/.gocache")
			env.Setenv("GOFLAGS", "-modcacherw")
			return os.MkdirAll(home, 0o755)
		},
	})
}
