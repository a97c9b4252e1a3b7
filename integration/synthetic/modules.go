package synthetic

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"
)

// Modules describes a module proxy: modules of some 10 versions each in the
// mean, go.mod files of some 900 bytes.
type Modules struct {
	Modules int
	Seed    uint64
	// MeanVersions is the mean number of versions of a module; 0 means 10.
	MeanVersions float64
}

// A Module is one module of a proxy.
type Module struct {
	Path     string
	Versions []ModuleVersion // in semantic order
}

// A ModuleVersion is one version with its files, but for the zip.
type ModuleVersion struct {
	Version          string
	Info, Mod        []byte
	ModHash, ZipHash string // "h1:" hashes; no zip has that one
}

var hosts = []string{"github.com", "github.com", "github.com", "github.com", "github.com", "gitlab.com", "gopkg.example", "go.example.org"}

// Path returns the path of module number i.
func (m Modules) Path(i int) string {
	r := rand.New(rand.NewPCG(m.Seed, uint64(i)<<1|1))
	owner := words[r.IntN(len(words))] + words[r.IntN(len(words))]
	if r.IntN(8) == 0 {
		owner = strings.ToUpper(owner[:1]) + owner[1:]
	}
	path := hosts[r.IntN(len(hosts))] + "/" + owner + "/" + words[r.IntN(len(words))] + "-" + strconv.FormatInt(int64(i), 36)
	if r.IntN(10) == 0 {
		path += "/" + words[r.IntN(len(words))]
	}
	return path
}

// Number returns the number of the module of that path.
func (m Modules) Number(path string) (i int, ok bool) {
	parts := strings.SplitN(path, "/", 4)
	if len(parts) < 3 {
		return 0, false
	}
	_, digits, _ := strings.Cut(parts[2], "-")
	n, err := strconv.ParseInt(digits, 36, 32)
	return int(n), err == nil && n >= 0 && int(n) < m.Modules && m.Path(int(n)) == path
}

// generator returns what module number i is made by, and its number of versions.
func (m Modules) generator(i int) (g *moduleGen, versions int) {
	r := rand.New(rand.NewPCG(m.Seed, uint64(i)<<1))
	mean := m.MeanVersions
	if mean == 0 {
		mean = 10
	}
	versions = 1 + skewed(r, mean-1, 2000)
	return &moduleGen{r: r, path: m.Path(i), minor: 1, at: time.Date(2018, 9, 1, 0, 0, r.IntN(6*365*86400), 0, time.UTC)}, versions
}

// Versions returns how many versions module number i has.
func (m Modules) Versions(i int) int {
	_, n := m.generator(i)
	return n
}

// Module returns module number i.
func (m Modules) Module(i int) Module {
	g, n := m.generator(i)
	for range skewed(g.r, 12, 400) {
		g.requires = append(g.requires, g.require())
	}
	out := Module{Path: g.path}
	for range n {
		out.Versions = append(out.Versions, g.version())
		g.next()
	}
	return out
}

type moduleGen struct {
	r                   *rand.Rand
	path                string
	major, minor, patch int // major is 0 or 1
	at                  time.Time
	requires            []string // path and version
}

func (g *moduleGen) require() string {
	path := hosts[g.r.IntN(len(hosts))] + "/" + words[g.r.IntN(len(words))] + words[g.r.IntN(len(words))] + "/" + words[g.r.IntN(len(words))]
	v := fmt.Sprintf(" v%d.%d.%d", g.r.IntN(2), g.r.IntN(30), g.r.IntN(10))
	if g.r.IntN(4) == 0 {
		v = fmt.Sprintf(" v0.0.0-%s-%012x", g.at.Format("20060102150405"), g.r.Uint64()>>16)
	}
	if g.r.IntN(3) == 0 {
		v += " // indirect"
	}
	return path + v
}

// next goes on to the module's next version.
func (g *moduleGen) next() {
	switch n := g.r.IntN(20); {
	case n == 0 && g.major == 0:
		g.major, g.minor, g.patch = 1, 0, 0
	case n < 7:
		g.minor, g.patch = g.minor+1, 0
	default:
		g.patch++
	}
	g.at = g.at.Add(time.Duration(1+g.r.IntN(30*86400)) * time.Second)
	for i := range g.requires {
		if g.r.IntN(15) == 0 {
			path, _, _ := strings.Cut(g.requires[i], " ")
			_, version, _ := strings.Cut(g.require(), " ")
			g.requires[i] = path + " " + version
		}
	}
	if g.r.IntN(6) == 0 {
		g.requires = append(g.requires, g.require())
	}
}

func (g *moduleGen) version() ModuleVersion {
	v := ModuleVersion{Version: fmt.Sprintf("v%d.%d.%d", g.major, g.minor, g.patch)}
	v.Info = fmt.Appendf(nil, `{"Version":%q,"Time":%q,"Origin":{"VCS":"git","URL":"https://%s","Hash":"%016x%016x%08x","Ref":"refs/tags/%s"}}`,
		v.Version, g.at.Format(time.RFC3339), g.path, g.r.Uint64(), g.r.Uint64(), g.r.Uint32(), v.Version)
	v.Mod = fmt.Appendf(nil, "module %s\n\ngo 1.%d\n", g.path, 12+g.at.Year()-2018)
	if len(g.requires) > 0 {
		v.Mod = append(v.Mod, "\nrequire (\n"...)
		for _, r := range g.requires {
			v.Mod = append(append(append(v.Mod, '\t'), r...), '\n')
		}
		v.Mod = append(v.Mod, ")\n"...)
	}
	v.ModHash = h1(fmt.Appendf(nil, "%x  go.mod\n", sha256.Sum256(v.Mod)))
	v.ZipHash = h1(fmt.Appendf(nil, "zip of %s@%s", g.path, v.Version))
	return v
}

func h1(b []byte) string {
	sum := sha256.Sum256(b)
	return "h1:" + base64.StdEncoding.EncodeToString(sum[:])
}

// Record returns what a checksum database says of v.
func (v ModuleVersion) Record(path string) []byte {
	return fmt.Appendf(nil, "%s %s %s\n%[1]s %[2]s/go.mod %[4]s\n", path, v.Version, v.ZipHash, v.ModHash)
}
