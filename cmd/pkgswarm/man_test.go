package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
	"github.com/spf13/pflag"
)

//go:generate go test -run ^TestManPages$ . -update

var update = flag.Bool("update", false, "write the generated files anew")

const manDir = "../../docs/man"

// TestManPages holds that the man pages in docs/man are those of the commands as
// they are.
func TestManPages(t *testing.T) {
	for _, name := range []string{"HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME"} {
		t.Setenv(name, "")
	}
	dir := t.TempDir()
	root := newRoot(&streams{strings.NewReader(""), &bytes.Buffer{}, &bytes.Buffer{}})
	prepareMan(root)
	date := time.Date(2026, time.November, 1, 0, 0, 0, 0, time.UTC)
	h := &doc.GenManHeader{Section: "1", Source: "pkgswarm", Manual: "pkgswarm", Date: &date}
	if err := doc.GenManTree(root, h, dir); err != nil {
		t.Fatal(err)
	}
	made, err := filepath.Glob(filepath.Join(dir, "*.1"))
	if err != nil || len(made) < 30 {
		t.Fatalf("%d man pages, %v", len(made), err)
	}
	if *update {
		if err := os.RemoveAll(manDir); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(manDir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range made {
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		kept := filepath.Join(manDir, filepath.Base(path))
		if *update {
			if err := os.WriteFile(kept, want, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(kept); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is out of date (%v): go generate ./cmd/pkgswarm", kept, err)
		}
	}
	if kept, _ := filepath.Glob(filepath.Join(manDir, "*.1")); len(kept) != len(made) {
		t.Errorf("%d man pages in %s, %d commands", len(kept), manDir, len(made))
	}
}

// prepareMan shows all flags, those of a node in the page of serve alone, and writes
// defaults as they are everywhere. The commands that cobra adds are left out.
func prepareMan(cmd *cobra.Command) {
	cmd.DisableAutoGenTag = true
	if cmd.Annotations[moreFlags] == nodeSettings && cmd.Name() != "serve" {
		cmd.Long += "\n\nIt takes all settings of a node: see **pkgswarm-serve**(1)."
	} else {
		cmd.Flags().VisitAll(func(f *pflag.Flag) { f.Hidden = false })
	}
	for _, fs := range []*pflag.FlagSet{cmd.Flags(), cmd.PersistentFlags()} {
		fs.VisitAll(func(f *pflag.Flag) {
			switch f.Name {
			case "data":
				f.DefValue = "~/.cache/pkgswarm"
			case "state":
				f.DefValue = "~/.local/state/pkgswarm"
			case "index", "goproxy", "feed", "sumdb":
				f.DefValue = "" // that of the public registry, which is named in one place
			}
		})
	}
	for _, sub := range cmd.Commands() {
		if sub.Name() == "completion" || sub.Name() == "help" {
			cmd.RemoveCommand(sub)
			continue
		}
		prepareMan(sub)
	}
}
