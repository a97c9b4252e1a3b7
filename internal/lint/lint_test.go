// Package lint holds the project's own checks of its source: which package may
// import which, that upstream hosts stand in one file, and which requirements
// no test cites. It has tests only.
package lint

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/pkgswarm/pkgswarm/"

// allowed names, for each area, the areas of this module that its packages may
// import beside their own. internal/ has small helpers that import no area.
var allowed = map[string][]string{
	"core":        {},
	"bee":         {"core"},
	"swarm":       {"core", "bee"}, // bee: the codec of its replication extension
	"registry":    {"core", "bee", "swarm"},
	"sparseindex": {"registry"},
	"goproxy":     {"registry"},
	"importer":    {"core", "bee", "swarm", "registry"},
}

// TestLayers holds the direction of imports: they point down.
func TestLayers(t *testing.T) {
	for _, p := range listPackages(t) {
		area, _, _ := strings.Cut(strings.TrimPrefix(p.ImportPath, module), "/")
		below, checked := allowed[area]
		for _, imp := range p.Imports {
			rest, ours := strings.CutPrefix(imp, module)
			if !ours {
				continue
			}
			to, _, _ := strings.Cut(rest, "/")
			switch {
			case to == "integration" && area != "integration", to == "cmd" && area != "cmd":
				t.Errorf("%s imports %s, which nothing may import", p.ImportPath, imp)
			case strings.HasPrefix(rest, "internal/node"):
				if area != "cmd" && area != "integration" && !strings.HasPrefix(p.ImportPath, module+"internal/node") {
					t.Errorf("%s imports %s: only the command wires nodes", p.ImportPath, imp)
				}
			case checked && to != area && to != "internal" && !slices.Contains(below, to):
				t.Errorf("%s imports %s: %s may import %v", p.ImportPath, imp, area, below)
			}
		}
		if area == "sparseindex" || area == "goproxy" {
			for _, imp := range p.Imports {
				if strings.Contains(imp, "cockroachdb/pebble") || strings.HasPrefix(imp, module+"swarm") {
					t.Errorf("%s imports %s: a front end sees neither peers nor the database", p.ImportPath, imp)
				}
			}
		}
	}
}

type goPackage struct {
	ImportPath string
	Imports    []string
}

func listPackages(t *testing.T) []goPackage {
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", "./...")
	cmd.Dir = "../.."
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []goPackage
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	if len(pkgs) < 5 {
		t.Fatalf("go list found %d packages only", len(pkgs))
	}
	return pkgs
}

// hosts are parts of upstream registries' host names; dots are written so that
// this file does not match itself.
var hosts = regexp.MustCompile(`(index|static)\.crates\.io|(proxy|sum|index)\.golang\.org|registry\.npmjs\.org`)

// TestHostsStandOnce: public addresses of registries are product data and stand
// in the file of built-in defaults alone.
func TestHostsStandOnce(t *testing.T) {
	eachFile(t, func(path string, b []byte) {
		if path == "registry/defaults.go" || path == "internal/lint/lint_test.go" {
			return
		}
		if m := hosts.Find(b); m != nil {
			t.Errorf("%s names the registry host %s", path, m)
		}
	})
}

// TestNoMachinePaths: what is committed speaks of the project alone.
func TestNoMachinePaths(t *testing.T) {
	paths := regexp.MustCompile(`/work/[a-z]|/root/[a-z.]|/home/[a-z]+/`)
	eachFile(t, func(path string, b []byte) {
		if path == "internal/lint/lint_test.go" {
			return
		}
		if m := paths.Find(b); m != nil {
			t.Errorf("%s has the machine path %s", path, m)
		}
	})
}

// eachFile calls f with every text file of the source tree, by its path from
// the root with forward slashes.
func eachFile(t *testing.T, f func(path string, b []byte)) {
	n := 0
	root := os.DirFS("../..")
	err := fs.WalkDir(root, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if name == "node_modules" || name == ".git" || name == "dist" {
				return fs.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() || !slices.Contains([]string{".go", ".md", ".json", ".js", ".mjs", ".yml", ".yaml", ".toml", ".txtar", ".txt", ".sh", ".mod", ".sum", "", ".service"}, filepath.Ext(name)) {
			return nil
		}
		b, err := fs.ReadFile(root, path)
		if err != nil {
			return err
		}
		n++
		f(path, b)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if n < 10 {
		t.Fatalf("found %d files only", n)
	}
}

// TestFoundBugsHaveTests: each test that the table of found bugs names exists in the
// package that it names. REL-18
func TestFoundBugsHaveTests(t *testing.T) {
	b, err := os.ReadFile("../../docs/found.md")
	if err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile("`([a-z/]+)`|\\b((?:Test|Fuzz)[A-Z]\\w*)")
	n := 0
	for line := range strings.Lines(string(b)) {
		cells := strings.Split(line, "|")
		if len(cells) != 5 || strings.Contains(line, "---") || strings.Contains(line, "| Found by |") {
			continue
		}
		dir := ""
		for _, m := range name.FindAllStringSubmatch(cells[3], -1) {
			if m[1] != "" {
				dir = m[1]
				continue
			}
			if n++; !hasTest(t, dir, m[2]) {
				t.Errorf("no test %s in %s", m[2], dir)
			}
		}
	}
	if n < 15 {
		t.Errorf("%d tests found only", n)
	}
}

// hasTest reports whether a package has a test function.
func hasTest(t *testing.T, dir, name string) bool {
	files, err := filepath.Glob(filepath.Join("../..", dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(files, func(f string) bool {
		b, err := os.ReadFile(f)
		return err == nil && strings.Contains(string(b), "\nfunc "+name+"(")
	})
}
