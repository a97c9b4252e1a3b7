// Package testenv gives tests what lies outside the Go tree: the tools that a
// test drives, and the reference implementation that integration/js pins.
// Only tests and benchmarks import it.
//
// A missing tool skips a test on a developer's machine and fails it where the
// environment says CI=true, so that nothing is left out there unnoticed.
package testenv

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Need returns the path of an executable that the test runs. Without it, the
// test is skipped, or fails under CI=true.
func Need(t testing.TB, tool string) string {
	t.Helper()
	path, err := exec.LookPath(tool)
	if err != nil {
		Missing(t, "%s is not installed", tool)
	}
	return path
}

// Missing ends a test that cannot run here: skipped, or failed under CI=true.
func Missing(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("CI needs it: "+format, args...)
	}
	t.Skipf("SKIPPED, NOT TESTED: "+format, args...)
}

// Root returns the directory of the module that the working directory, which
// under go test is that of the package, lies in.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		_, err := os.Stat(filepath.Join(dir, "go.mod"))
		if err == nil {
			return dir, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("testenv: no go.mod above the working directory")
		}
		dir = up
	}
}
