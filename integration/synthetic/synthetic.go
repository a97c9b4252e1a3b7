// Package synthetic makes package registries of any size that look like the
// real ones in what matters to an importer: how many versions packages have,
// how long their entries are, and how much consecutive ones have in common. The
// same numbers give the same registry.
package synthetic

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// Cargo describes an index: crates crates with some 8 versions each in the
// mean, lines of some 900 bytes.
type Cargo struct {
	Crates int
	Seed   uint64
	// MeanVersions is the mean number of versions of a crate; 0 means 8.
	MeanVersions float64
}

// A Crate is one crate of an index.
type Crate struct {
	Name  string
	Lines [][]byte
}

// Path returns where the index file of a crate is in an index, with slashes.
func Path(name string) string {
	switch len(name) {
	case 1:
		return "1/" + name
	case 2:
		return "2/" + name
	case 3:
		return "3/" + name[:1] + "/" + name
	}
	return name[:2] + "/" + name[2:4] + "/" + name
}

var words = []string{
	"async", "auth", "base", "bit", "block", "buf", "cache", "cargo", "cell", "chain", "cli", "client", "code", "color", "core", "crypt",
	"data", "db", "derive", "dns", "error", "event", "fast", "file", "fmt", "fs", "graph", "grid", "hash", "heap", "http", "image", "io",
	"json", "key", "lang", "lib", "lite", "lock", "log", "macro", "map", "math", "mem", "mesh", "net", "node", "num", "parse", "path",
	"pool", "proc", "proto", "query", "queue", "rand", "rate", "regex", "ring", "rpc", "rust", "sdk", "serde", "server", "shell", "sim",
	"socket", "sql", "state", "store", "stream", "sys", "task", "tcp", "term", "test", "text", "thread", "time", "token", "tool", "tree",
	"type", "ui", "unit", "util", "uuid", "vec", "vm", "wasm", "web", "wire", "xml", "yaml", "zip", "zk",
}

// Name returns the name of crate number i.
func (c Cargo) Name(i int) string {
	r := rand.New(rand.NewPCG(c.Seed, uint64(i)<<1|1))
	name := words[r.IntN(len(words))]
	for range r.IntN(3) {
		name += "-" + words[r.IntN(len(words))]
	}
	return name + "-" + strconv.FormatInt(int64(i), 36)
}

// Crate returns crate number i.
func (c Cargo) Crate(i int) Crate {
	r := rand.New(rand.NewPCG(c.Seed, uint64(i)<<1))
	g := &crate{r: r, name: c.Name(i), at: time.Date(2016, 1, 1, 0, 0, r.IntN(8*365*86400), 0, time.UTC)}
	for range skewed(r, 4.2, 400) {
		g.deps = append(g.deps, g.dep())
	}
	for range skewed(r, 1.2, 60) {
		g.features = append(g.features, words[r.IntN(len(words))])
	}
	mean := c.MeanVersions
	if mean == 0 {
		mean = 8
	}
	out := Crate{Name: g.name}
	for range 1 + skewed(r, mean-1, 1500) {
		out.Lines = append(out.Lines, g.line())
		g.next()
	}
	return out
}

// skewed returns a number of that mean with a long tail, at most limit.
func skewed(r *rand.Rand, mean float64, limit int) int {
	const sigma = 1.3
	x := math.Exp(r.NormFloat64()*sigma+math.Log(mean+0.001)-sigma*sigma/2) - 0.3
	return min(max(int(x+0.5), 0), limit)
}

type dep struct {
	name, req, kind, target string
	features                []string
	optional, defaults      bool
}

type crate struct {
	r                   *rand.Rand
	name                string
	major, minor, patch int
	at                  time.Time
	deps                []dep
	features            []string
	yanked              bool
}

func (g *crate) dep() dep {
	d := dep{name: words[g.r.IntN(len(words))], req: g.req(), kind: "normal", target: "null", defaults: g.r.IntN(5) > 0, optional: g.r.IntN(6) == 0}
	if g.r.IntN(2) == 0 {
		d.name += "-" + words[g.r.IntN(len(words))]
	}
	switch g.r.IntN(8) {
	case 0, 1:
		d.kind = "dev"
	case 2:
		d.kind = "build"
	}
	if g.r.IntN(10) == 0 {
		d.target = `"cfg(target_os = \"` + words[g.r.IntN(len(words))] + `\")"`
	}
	for range skewed(g.r, 0.4, 10) {
		d.features = append(d.features, words[g.r.IntN(len(words))])
	}
	return d
}

func (g *crate) req() string {
	switch g.r.IntN(4) {
	case 0:
		return fmt.Sprintf("^%d", 1+g.r.IntN(4))
	case 1:
		return fmt.Sprintf("^0.%d.%d", g.r.IntN(20), g.r.IntN(30))
	}
	return fmt.Sprintf("^%d.%d", g.r.IntN(3), g.r.IntN(40))
}

// next goes on to the crate's next version.
func (g *crate) next() {
	switch n := g.r.IntN(10); {
	case n == 0:
		g.major, g.minor, g.patch = g.major+1, 0, 0
	case n < 4:
		g.minor, g.patch = g.minor+1, 0
	default:
		g.patch++
	}
	g.at = g.at.Add(time.Duration(1+g.r.IntN(40*86400)) * time.Second)
	g.yanked = g.r.IntN(25) == 0
	for i := range g.deps {
		if g.r.IntN(12) == 0 {
			g.deps[i].req = g.req()
		}
	}
	if g.r.IntN(10) == 0 {
		g.deps = append(g.deps, g.dep())
	}
}

// line writes the line as the registry does, in its order of members.
func (g *crate) line() []byte {
	b := fmt.Appendf(nil, `{"name":%q,"vers":"%d.%d.%d","deps":[`, g.name, g.major, g.minor, g.patch)
	for i, d := range g.deps {
		if i > 0 {
			b = append(b, ',')
		}
		b = fmt.Appendf(b, `{"name":%q,"req":%q,"features":[`, d.name, d.req)
		b = appendList(b, d.features)
		b = fmt.Appendf(b, `],"optional":%v,"default_features":%v,"target":%s,"kind":%q}`, d.optional, d.defaults, d.target, d.kind)
	}
	sum := sha256.Sum256(b)
	b = append(b, `],"cksum":"`...)
	b = hex.AppendEncode(b, sum[:])
	b = append(b, `","features":{"default":[`...)
	b = appendList(b, g.features[:min(2, len(g.features))])
	b = append(b, ']')
	for _, f := range g.features {
		b = fmt.Appendf(b, `,%q:[%q]`, f, "dep:"+f)
	}
	b = fmt.Appendf(b, `},"yanked":%v,"links":null,"rust_version":null,"pubtime":%q}`, g.yanked, g.at.Format(time.RFC3339))
	return b
}

func appendList(b []byte, list []string) []byte {
	for i, s := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = fmt.Appendf(b, "%q", s)
	}
	return b
}

// Write writes the index as a directory in the layout of crates.io and returns
// how many lines and bytes it has.
func (c Cargo) Write(dir string) (lines, bytes int64, err error) {
	for i := range c.Crates {
		k := c.Crate(i)
		file := k.File()
		lines += int64(len(k.Lines))
		bytes += int64(len(file))
		if err := writeFile(filepath.Join(dir, filepath.FromSlash(Path(k.Name))), file); err != nil {
			return lines, bytes, err
		}
	}
	return lines, bytes, os.WriteFile(filepath.Join(dir, "config.json"), []byte(`{"dl":"http://127.0.0.1:1/crates"}`), 0o644)
}

// File returns the index file of k.
func (k Crate) File() []byte {
	var b []byte
	for _, l := range k.Lines {
		b = append(append(b, l...), '\n')
	}
	return b
}

func writeFile(path string, b []byte) error {
	err := os.WriteFile(path, b, 0o644)
	if os.IsNotExist(err) {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		err = os.WriteFile(path, b, 0o644)
	}
	return err
}
