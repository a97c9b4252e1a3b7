//go:build linux

package integration

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"

	"github.com/pkgswarm/pkgswarm/internal/machines"
)

var update = flag.Bool("update", false, "write what terminals show to the golden files")

// TestTerminals keeps what a person sees of the commands, on a terminal of 80
// columns, as testdata/terminal/*.golden: with -update they are written anew, to be
// read before they are committed. REL-17
func TestTerminals(t *testing.T) {
	if testing.Short() {
		t.Skip("builds with the program")
	}
	n := machines.New(t)
	reg := registries{realCrates(t), realModules(t)}
	p := newProject(t, reg)
	reg.mods.Record(t, "github.com/google/uuid", "v1.6.0")
	c := newComputer(t, n, "laptop", reg, p).reach(reg)
	c.installProgram()
	g := golden{t, reg}

	c.see(g, "doctor-no-node", "pkgswarm doctor", 1)
	c.see(g, "setup-print", "pkgswarm setup --print", 0)
	c.see(g, "run", "pkgswarm run -- cargo build --locked", 0)
	c.see(g, "prefetch", "pkgswarm prefetch Cargo.lock go.sum", 0)
	c.run("sh", "-c", "rm -rf target ~/.cache/pkgswarm ~/.cargo")
	serve := c.open("pkgswarm serve")
	serve.await("  peers ")
	c.see(g, "setup", "pkgswarm setup", 0)
	c.run("cargo", "build", "--locked")
	serve.await(summaryEnd)
	c.see(g, "status", "pkgswarm status", 0)
	c.run("go", "build", "./...")
	c.see(g, "why", "pkgswarm why github.com/google/uuid@v1.6.0", 0)
	c.see(g, "doctor", "pkgswarm doctor", 0)
	c.see(g, "in-use", "pkgswarm serve --listen 127.0.0.1:7079", 11)
	c.see(g, "port-taken", "pkgswarm serve --data d --state s", 11)
	serve.cmd.Process.Signal(syscall.SIGINT)
	serve.close(0)
	g.check("serve", serve.text())

	c.see(g, "bundle-export", "pkgswarm bundle export --out b Cargo.lock go.sum", 0)
	c.see(g, "verify", "pkgswarm verify", 0)
	c.see(g, "key-new", "pkgswarm key new", 0)
	c.see(g, "import", "pkgswarm import cargo Cargo.lock --artifacts", 0)
	c.see(g, "import-again", "pkgswarm import cargo Cargo.lock --artifacts", 0)
}

// see types a command and compares what its terminal shows in the end.
func (c *computer) see(g golden, name, command string, code int) {
	c.t.Helper()
	term := c.open(command)
	term.close(code)
	text := term.text()
	if bar := term.erased; bar != "" && !strings.Contains(command, "cargo build") {
		text += "\nThe bar as it was last seen:\n" + bar + "\n"
	}
	g.check(name, text)
}

// golden compares what terminals show with files.
type golden struct {
	t   *testing.T
	reg registries
}

var (
	bar      = regexp.MustCompile(`\|[█ ░▒]+\|`)
	clock    = regexp.MustCompile(`\d{4}-\d\d-\d\d[T ][0-9:.]+(Z| UTC)`)
	hash     = regexp.MustCompile(`\b[0-9a-f]{32,}|[A-Za-z0-9+/]{43}=`)
	cargoLog = regexp.MustCompile(`(?m)^ *(Downloaded|Compiling|Downloading|Updating|Finished|Locking|Blocking) .*\n`)
	rates    = regexp.MustCompile(`(<n>/<n>)(, [^)]*)?\)( \[[^]]*\])?`) // that a bar has when it is slow enough
)

// check compares text with the golden file of that name.
func (g golden) check(name, text string) {
	g.t.Helper()
	for line := range strings.Lines(text) {
		if w := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); w >= columns && !strings.HasPrefix(line, "$ ") {
			g.t.Errorf("%s: a line fills or overflows %d columns: %s", name, columns, line)
		}
	}
	text = g.normal(text)
	file := filepath.Join("testdata", "terminal", name+".golden")
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			g.t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			g.t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		g.t.Fatal(err)
	}
	if string(want) != text {
		g.t.Errorf("%s: the terminal shows\n%s\nwant\n%s", name, text, want)
	}
}

// normal replaces what differs from run to run, and what is cargo's.
func (g golden) normal(text string) string {
	text = strings.ReplaceAll(text, g.reg.cargo.Index(), "<cargo registry>")
	text = strings.ReplaceAll(text, strings.TrimPrefix(g.reg.cargo.Index(), "sparse+"), "<cargo registry>")
	text = strings.ReplaceAll(text, g.reg.mods.URL, "<go proxy>")
	text = hash.ReplaceAllString(text, "<hash>")
	text = clock.ReplaceAllString(text, "<time>")
	text = cargoLog.ReplaceAllString(text, "")
	text = bar.ReplaceAllString(text, "|<bar>|")
	var b strings.Builder
	for _, line := range outputLines(keyPattern.ReplaceAllString(text, "<key>")) {
		fmt.Fprintln(&b, normal(line))
	}
	return rates.ReplaceAllString(b.String(), "$1)")
}
