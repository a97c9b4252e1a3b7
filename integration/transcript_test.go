//go:build linux

package integration

import (
	"fmt"
	"hash/crc32"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/internal/machines"
	"github.com/pkgswarm/pkgswarm/internal/testenv"
)

// A transcript is a console block of README: what is typed in one terminal.
type transcript struct {
	section string
	steps   []step
}

// A step is a command and the lines that it prints; "..." stands for any.
type step struct {
	command string
	want    []string
}

// readTranscripts returns the console blocks of README by section.
func readTranscripts(t *testing.T) map[string][]transcript {
	t.Helper()
	b, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]transcript{}
	section, inside := "", false
	var cur transcript
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case !inside && strings.HasPrefix(line, "## "):
			section = line[len("## "):]
		case line == "```console":
			inside, cur = true, transcript{section: section}
		case inside && line == "```":
			inside = false
			all[section] = append(all[section], cur)
		case inside && strings.HasPrefix(line, "$ "):
			cur.steps = append(cur.steps, step{command: line[2:]})
		case inside:
			last := &cur.steps[len(cur.steps)-1]
			last.want = append(last.want, line)
		}
	}
	return all
}

var (
	plurals    = regexp.MustCompile(`(\d) (artifact|peer|package|block|version)s?\b`)
	keyPattern = regexp.MustCompile(`\b[ybndrfg8ejkmcpqxot1uwisza345h769]{52}\b`)
	variable   = regexp.MustCompile(`127\.0\.0\.1:70\d\d|:70\d\d\b|\b\d+(\.\d+)?(ns|µs|ms|s|m\d+s)\b|\b\d+(\.\d+)? ?[kMG]?i?B\b|\d+`)
)

// normal replaces what differs from one run to the next: keys, sizes, times and
// numbers, but for the ports that the defaults and the examples name.
func normal(line string) string {
	line = strings.ReplaceAll(line, home, "~")
	line = keyPattern.ReplaceAllString(line, "<key>")
	line = plurals.ReplaceAllString(line, "$1 ${2}s")
	return variable.ReplaceAllStringFunc(line, func(s string) string {
		switch last := s[len(s)-1]; {
		case strings.Contains(s, ":70"):
			return s
		case last == 's':
			return "<time>"
		case last == 'B':
			return "<size>"
		}
		return "<n>"
	})
}

// matchLine reports whether a line is as README shows it.
func matchLine(want, got string) bool {
	parts := strings.Split(normal(want), "...")
	for i := range parts {
		parts[i] = regexp.QuoteMeta(parts[i])
	}
	ok, err := regexp.MatchString("^"+strings.Join(parts, ".*")+"$", normal(got))
	return ok && err == nil
}

// matchOutput compares what a command prints with what README shows. missing is
// the first line that is not there.
func matchOutput(want []string, out string) (missing string, ok bool) {
	got := outputLines(out)
	skip := false
	for _, w := range want {
		if w == "..." {
			skip = true
			continue
		}
		i := 0
		for i < len(got) && !matchLine(w, got[i]) {
			if !skip {
				return w, false
			}
			i++
		}
		if i == len(got) {
			return w, false
		}
		got, skip = got[i+1:], false
	}
	if len(got) > 0 && !skip && len(want) > 0 {
		return "(nothing more)", false
	}
	return "", true
}

// outputLines returns the lines of an output. Of summaries that say the same, but
// for numbers, the last one counts: how many there are depends on how busy the
// machine is.
func outputLines(out string) []string {
	var lines []string
	for line := range strings.Lines(out) {
		line = strings.TrimSuffix(line, "\n")
		if strings.Contains(line, summaryEnd) {
			lines = slices.DeleteFunc(lines, func(l string) bool { return matchLine(l, line) })
		}
		lines = append(lines, line)
	}
	return lines
}

// summaryEnd is in the lines by which a node says what it has served.
const summaryEnd = "; all verified"

// begun reports whether a service has printed the lines that README shows, but for
// the summaries of what it serves later.
func begun(want []string) func(out string) bool {
	first := want
	for i, w := range want {
		if strings.Contains(w, summaryEnd) {
			first = want[:i]
			break
		}
	}
	first = append(first[:len(first):len(first)], "...")
	return func(out string) bool {
		_, ok := matchOutput(first, out)
		return ok
	}
}

// A reader follows README: it types what stands in a transcript on a computer.
type reader struct {
	t    *testing.T
	keys string // the key printed last
	runs []running
}

// A running service is what the last command of a transcript has started.
type running struct {
	*service
	want []string
}

var lasting = regexp.MustCompile(`^pkgswarm (core )?serve\b|--watch\b`)

func (r *reader) follow(c *computer, tr transcript) {
	r.t.Helper()
	for _, s := range tr.steps {
		command := strings.ReplaceAll(s.command, "KEY", r.keys)
		r.t.Logf("%s$ %s", c.Name, command)
		if lasting.MatchString(command) {
			r.runs = append(r.runs, running{c.start(begun(s.want), "sh", "-c", "exec "+command), s.want})
			continue
		}
		out, err := c.try("sh", "-c", command)
		if err != nil {
			r.t.Fatalf("%s$ %s: %v\n%s", c.Name, command, err, out)
		}
		r.t.Log(out)
		if missing, ok := matchOutput(s.want, out); !ok {
			r.t.Errorf("%s: %q: README shows the line %q, which does not come; it prints\n%s", tr.section, s.command, missing, out)
		}
		if k := keyPattern.FindString(out); k != "" {
			r.keys = k
		}
	}
}

// end interrupts what still runs, once it has said all that README shows.
func (r *reader) end() {
	r.t.Helper()
	for _, s := range r.runs {
		deadline := time.Now().Add(20 * time.Second) // a summary comes a moment after a build
		s.wait(func(out string) bool {
			_, ok := matchOutput(append(s.want[:len(s.want):len(s.want)], "..."), out)
			return ok || time.Now().After(deadline)
		})
		s.stop()
		if missing, ok := matchOutput(s.want, s.output()); !ok {
			r.t.Errorf("%q: README shows the line %q, which does not come; it prints\n%s", s.cmd.Args, missing, s.output())
		}
		r.t.Log(s.output())
	}
	r.runs = nil
}

// TestTranscripts types what README shows, on machines with the names that README
// gives them and empty homes, and compares what is printed.
func TestTranscripts(t *testing.T) {
	if testing.Short() {
		t.Skip("installs the program and builds with it")
	}
	testenv.Need(t, "git")
	testenv.Need(t, "openssl")
	all := readTranscripts(t)
	// Sections whose transcripts are of several computers have the handlers below; the
	// others are typed on one, as they stand.
	count := map[string]int{"Install": 1, "A developer's machine": 3, "A CI fleet": 2, "Other machines": 1, "A place without a network": 2, "A registry operator": 3, "Policy": 1}
	for section, want := range count {
		if got := len(all[section]); got != want {
			t.Errorf("README has %d transcripts in %q, this test follows %d", got, section, want)
		}
	}
	n := machines.New(t)
	reg := registries{realCrates(t), realModules(t)}
	p := newProject(t, reg)
	ourselves(t, reg)
	reg.mods.Record(t, "github.com/google/uuid", "v1.6.0")
	laptop := newComputer(t, n, "laptop", reg, p).reach(reg)

	installed := filepath.Join(t.TempDir(), "pkgswarm")
	t.Run("Install", func(t *testing.T) {
		r := &reader{t: t}
		r.follow(laptop, all["Install"][0])
		laptop.copyOut(home+"/go/bin/pkgswarm", installed)
	})
	if t.Failed() {
		return
	}
	other := func(name string) *computer {
		c := newComputer(t, n, name, reg, p)
		c.run("mkdir", "-p", home+"/go/bin")
		c.copyIn(installed, home+"/go/bin/pkgswarm")
		return c
	}
	t.Run("Developer", func(t *testing.T) {
		trs, r := all["A developer's machine"], &reader{t: t}
		r.follow(laptop, trs[0])
		r.follow(laptop, trs[1])
		r.end()
		r.follow(other("desktop").reach(reg), trs[2])
	})
	t.Run("Fleet", func(t *testing.T) {
		trs, r := all["A CI fleet"], &reader{t: t}
		cache, job := other("cache.example.org").reach(reg), other("job").reach(reg)
		r.follow(cache, trs[0])
		token := filepath.Join(t.TempDir(), "token")
		cache.copyOut("token", token)
		job.copyIn(token, "token") // as a CI's secrets come
		job.run("chmod", "600", "token")
		reg.cargo.Reset()
		reg.cargo.Tamper(farAway)
		defer reg.cargo.Tamper(nil)
		r.follow(job, trs[1])
		wantNone(t, "crates of a job", reg.cargo.Downloads())
		r.end()
	})
	t.Run("Others", func(t *testing.T) {
		r, mirror := &reader{t: t}, other("mirror")
		mirror.run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
			"-subj", "/CN=mirror", "-addext", "subjectAltName=DNS:mirror,DNS:localhost", "-keyout", "key.pem", "-out", "cert.pem")
		mirror.run("sh", "-c", "umask 077; echo 0123456789abcdef > token")
		r.follow(mirror, all["Other machines"][0])
		r.end()
	})
	t.Run("Bundle", func(t *testing.T) {
		trs, r := all["A place without a network"], &reader{t: t}
		r.follow(laptop, trs[0])
		bundle := filepath.Join(t.TempDir(), "bundle")
		laptop.copyOut("build.bundle", bundle)
		island := other("island")
		island.copyIn(bundle, "build.bundle")
		r.follow(island, trs[1])
		island.run("pkgswarm", "run", "--offline", "--", "go", "build", "./...")
	})
	t.Run("Operator", func(t *testing.T) {
		trs, r := all["A registry operator"], &reader{t: t}
		operator, client := other("operator.example.org").reach(reg), other("client")
		operator.run("cargo", "--config", `source.crates-io.replace-with="m"`, "--config", fmt.Sprintf("registries.m.index=%q", reg.cargo.Index()), "fetch")
		r.follow(operator, trs[0])
		r.follow(client, trs[1])
		awaitStatus(t, ": 6 crates,", func() (string, error) { return client.try("pkgswarm", "status") })
		client.run("pkgswarm", "setup")
		client.run("cargo", "build", "--locked")
		client.run("go", "build", "./...")
		seeder := other("seeder")
		r.follow(seeder, trs[2])
		awaitStatus(t, ": up to date, 7 of 7 logs, ", func() (string, error) { return seeder.try("pkgswarm", "status") })
		r.end()
	})
	t.Run("Policy", func(t *testing.T) {
		r, c := &reader{t: t}, other("policy").reach(reg)
		node := c.start(begun([]string{"pkgswarm v0.1.0 is ready at http://127.0.0.1:7070"}), "pkgswarm", "serve")
		r.follow(c, all["Policy"][0])
		node.stop()
	})
	for section, trs := range all {
		if count[section] > 0 {
			continue
		}
		t.Run(section, func(t *testing.T) {
			r, c := &reader{t: t}, other(strings.ToLower(strings.Fields(section)[0])).reach(reg)
			for _, tr := range trs {
				r.follow(c, tr)
			}
			r.end()
		})
	}
}

// awaitStatus waits until a node's status has that text, such as how many crates its
// catalog has: a node that has no upstream to ask can answer nothing before.
func awaitStatus(t *testing.T, text string, status func() (string, error)) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		out, err := status()
		if err == nil && strings.Contains(out, text) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("no %q in the status: %v\n%s", text, err, out)
		}
	}
}

// farAway makes crates come late, as from a registry at the other end of the world:
// a peer is always before it.
func farAway(w http.ResponseWriter, r *http.Request, next http.Handler) {
	if strings.HasPrefix(r.URL.Path, "/dl/") {
		time.Sleep(5 * time.Second)
	}
	next.ServeHTTP(w, r)
}

// ourselves publishes this module, as its files are, under a version of its own: what
// a version is never changes, says go, and caches it.
func ourselves(t *testing.T, r registries) {
	t.Helper()
	root, err := testenv.Root()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("git", "ls-files", "-z")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	files, sum := map[string]string{}, crc32.NewIEEE()
	for name := range strings.SplitSeq(strings.TrimRight(string(out), "\x00"), "\x00") {
		b, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			continue // deleted, not committed
		}
		files[name] = string(b)
		fmt.Fprintf(sum, "%s %d\n%s", name, len(b), b)
	}
	version := fmt.Sprintf("v0.1.%d", sum.Sum32())
	r.mods.Add(t, "github.com/pkgswarm/pkgswarm", version, files)
	r.mods.PutLatest("github.com/pkgswarm/pkgswarm", fmt.Appendf(nil, `{"Version":%q}`, version))
}
