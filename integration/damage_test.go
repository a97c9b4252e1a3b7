package integration

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/internal/goupstream"
	"github.com/pkgswarm/pkgswarm/internal/node"
)

var (
	damageRounds = flag.Int("damage.rounds", 30, "rounds of TestDamagedAnywhere")
	damageSeed   = flag.Uint64("damage.seed", 0, "seed of TestDamagedAnywhere; 0: a new one")
)

// damages are ways in which a file, of which old is an earlier content and other
// another file, can be damaged.
var damages = map[string]func(r *rand.Rand, name string, b, old []byte, other string) error{
	"bit":         alter(func(r *rand.Rand, b []byte) []byte { b[r.IntN(len(b))] ^= 1 << r.IntN(8); return b }),
	"zeros":       alter(func(r *rand.Rand, b []byte) []byte { clear(part(r, b)); return b }),
	"garbage":     alter(func(r *rand.Rand, b []byte) []byte { fill(r, part(r, b)); return b }),
	"misdirected": alter(func(r *rand.Rand, b []byte) []byte { copy(part(r, b), part(r, b)); return b }),
	"cut":         alter(func(r *rand.Rand, b []byte) []byte { return b[:r.IntN(len(b))] }),
	"torn":        alter(func(_ *rand.Rand, b []byte) []byte { clear(b[len(b)-min(len(b), 512):]); return b }),
	"grown":       alter(func(r *rand.Rand, b []byte) []byte { return append(b, make([]byte, 1+r.IntN(5000))...) }),
	"emptied":     alter(func(*rand.Rand, []byte) []byte { return nil }),
	"overwritten": alter(func(r *rand.Rand, b []byte) []byte { fill(r, b); return b }),
	"missing":     func(_ *rand.Rand, name string, _, _ []byte, _ string) error { return os.Remove(name) },
	"stale":       func(_ *rand.Rand, name string, _, old []byte, _ string) error { return overwrite(name, old) },
	"swapped": func(_ *rand.Rand, name string, b, _ []byte, other string) error {
		o, err := os.ReadFile(other)
		if err != nil {
			return err
		}
		if err := overwrite(name, o); err != nil {
			return err
		}
		return overwrite(other, b)
	},
	"symlink": func(_ *rand.Rand, name string, _, _ []byte, other string) error {
		if err := os.Remove(name); err != nil {
			return err
		}
		return os.Symlink(other, name)
	},
	"directory": func(_ *rand.Rand, name string, _, _ []byte, _ string) error {
		if err := os.Remove(name); err != nil {
			return err
		}
		return os.MkdirAll(filepath.Join(name, "full"), 0o700)
	},
}

// alter changes a file in place, whoever has it open.
func alter(f func(r *rand.Rand, b []byte) []byte) func(*rand.Rand, string, []byte, []byte, string) error {
	return func(r *rand.Rand, name string, b, _ []byte, _ string) error {
		if len(b) == 0 {
			b = []byte{0}
		}
		return overwrite(name, f(r, bytes.Clone(b)))
	}
}

func overwrite(name string, b []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write(b)
	return err
}

// part returns some of b, at most a page.
func part(r *rand.Rand, b []byte) []byte {
	at := r.IntN(len(b))
	return b[at:min(len(b), at+1+r.IntN(4096))]
}

func fill(r *rand.Rand, b []byte) {
	for i := range b {
		b[i] = byte(r.Uint32())
	}
}

// A patient is a node whose data directory is being damaged.
type patient struct {
	t    *testing.T
	dir  string
	conf node.Config
	want map[string][]byte // what a client asks for, by path
	old  map[string][]byte // contents of the files of some time ago
	p    *nodeProcess
}

func (p *patient) data() string { return filepath.Join(p.dir, "data") }

func (p *patient) files() (names []string) {
	filepath.WalkDir(p.data(), func(name string, d fs.DirEntry, err error) error {
		if err == nil && strings.Contains(d.Name(), "damaged-") {
			return filepath.SkipDir // set aside
		}
		if err == nil && d.Type().IsRegular() {
			names = append(names, name)
		}
		return nil
	})
	return names
}

// ask asks for everything, and returns what was not answered with the right bytes:
// which must be a clear refusal in time.
func (p *patient) ask(what string) (failed []string) {
	p.t.Helper()
	for path, want := range p.want {
		begun := time.Now()
		status, body, err := p.p.get(path)
		switch d := time.Since(begun); {
		case d > 12*time.Second:
			p.t.Errorf("%s: %s took %v", what, path, d)
		case err == nil && status == 200 && !bytes.Equal(body, want):
			p.t.Errorf("%s: %d wrong bytes for %s, want %d", what, len(body), path, len(want))
		case err == nil && (status == 404 || status == 410):
			p.t.Errorf("%s: %s is said not to exist", what, path)
		case err != nil || status != 200:
			failed = append(failed, fmt.Sprintf("%s: %d %.100s %v", path, status, body, err))
		}
	}
	return failed
}

// TestDamagedAnywhere damages one file of the data directory after the other,
// whatever it belongs to, in a running node or before a start. Clients get the right
// bytes or a refusal, nothing hangs, and nearly always all is well again by itself,
// at most after one start more. REL-4, REL-5
func TestDamagedAnywhere(t *testing.T) {
	if testing.Short() {
		t.Skip("starts many nodes")
	}
	up, crates := madeUp(t, 5, 200_000)
	g := goupstream.New(t)
	g.Add(t, "example.com/m", "v1.0.0", map[string]string{"go.mod": "module example.com/m\n", "m.go": "package m\n" + strings.Repeat("// text\n", 9000)})
	p := &patient{t: t, dir: t.TempDir(), want: map[string][]byte{}, old: map[string][]byte{},
		conf: node.Config{CargoUpstream: up.Index(), GoUpstream: g.URL, SumDB: g.Key}}
	p.p = startProcess(t, p.dir, p.conf)
	for name, b := range crates {
		p.want["/cargo/dl/"+name+"/1.0.0/download"] = b
	}
	for _, path := range []string{"/cargo/cr/at/crate000", "/go/example.com/m/@v/v1.0.0.zip", "/go/example.com/m/@v/v1.0.0.mod", "/go/example.com/m/@v/v1.0.0.info", "/go/example.com/m/@v/list"} {
		status, b, err := p.p.get(path)
		if err != nil || status != 200 {
			t.Fatalf("%s: %d %v", path, status, err)
		}
		p.want[path] = b
	}
	seed := *damageSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	kinds := slices.Sorted(maps.Keys(damages))
	r.Shuffle(len(kinds), func(i, j int) { kinds[i], kinds[j] = kinds[j], kinds[i] })
	healed := 0
	for round := range *damageRounds {
		if round%10 == 0 {
			for _, f := range p.files() {
				p.old[f], _ = os.ReadFile(f)
			}
		}
		if p.damage(r, kinds[round%len(kinds)], fmt.Sprintf("round %d", round)) {
			healed++
		}
		if t.Failed() {
			return
		}
	}
	t.Logf("%d of %d healed by themselves", healed, *damageRounds)
	if healed*10 < *damageRounds*9 {
		t.Errorf("only %d of %d healed by themselves", healed, *damageRounds)
	}
}

// damage does one round. It reports whether everything was right again by itself.
func (p *patient) damage(r *rand.Rand, kind, what string) bool {
	files := p.files()
	name, other := files[r.IntN(len(files))], files[r.IntN(len(files))]
	running := r.IntN(2) == 0
	rel, _ := filepath.Rel(p.data(), name)
	what = fmt.Sprintf("%s, %s of %s, running %v", what, kind, rel, running)
	if !running {
		p.p.stop()
	}
	b, err := os.ReadFile(name)
	if err == nil {
		err = damages[kind](r, name, b, p.old[name], other)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // the node has removed it
		p.t.Fatalf("%s: %v", what, err)
	}
	if running {
		p.ask(what)
		p.p.stop()
	}
	var failed []string
	for range 3 { // as a supervisor would
		if p.p, err = tryProcess(p.t, p.dir, p.conf, ""); err != nil {
			failed = []string{err.Error()}
			continue
		}
		if failed = p.ask(what); len(failed) == 0 {
			return true
		}
		if len(p.ask(what)) == 0 {
			return true
		}
		p.p.stop()
	}
	p.t.Logf("%s: not healed: %q", what, failed)
	if err := os.RemoveAll(p.data()); err != nil {
		p.t.Fatal(err)
	}
	p.p = startProcess(p.t, p.dir, p.conf)
	return false
}
