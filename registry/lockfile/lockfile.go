// Package lockfile reads the files in which projects name the packages they
// use: Cargo.lock, go.sum, go.mod, and software bills of materials in CycloneDX
// (JSON, XML) and SPDX (JSON, tag-value).
//
// Packages of other ecosystems, and those that come from no registry (path and
// git dependencies, replaced modules), are left out: there is nothing to fetch
// for them. Names and versions are checked only as far as the formats need it;
// whoever uses them parses them as names of their ecosystem.
package lockfile

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	cyclonedx "github.com/CycloneDX/cyclonedx-go"
	"github.com/pelletier/go-toml/v2"
	"github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdx"
	"github.com/spdx/tools-golang/tagvalue"
	"golang.org/x/mod/modfile"
)

// MaxSize bounds a file, in bytes.
const MaxSize = 64 << 20

// ErrFormat means that a file is of no known format.
var ErrFormat = errors.New("not a Cargo.lock, go.sum, go.mod, CycloneDX or SPDX file")

// Ecosystems.
const (
	Cargo = "cargo"
	Go    = "go"
)

// A Package is one package that a file names.
type Package struct {
	Ecosystem string // Cargo or Go
	Name      string // crate name or module path, unescaped
	Version   string // with the leading v for Go
	// Checksum is what the file says of the package's bytes: 64 hex digits of
	// SHA-256 for a crate, "h1:..." of the zip for a module; may be empty.
	Checksum string
	// ModOnly says that only the module's go.mod is needed (go.sum names no zip).
	ModOnly bool
}

// Read reads r, whose file is called name. The result is sorted and has no
// repeats. The format follows from the name and, for bills of materials, from
// the content.
func Read(name string, r io.Reader) ([]Package, error) {
	b, err := io.ReadAll(io.LimitReader(r, MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if len(b) > MaxSize {
		return nil, fmt.Errorf("read %s: more than %d bytes", name, MaxSize)
	}
	parse := parserOf(name, b)
	if parse == nil {
		return nil, fmt.Errorf("read %s: %w", name, ErrFormat)
	}
	pkgs, err := parse(b)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	slices.SortFunc(pkgs, compare)
	return slices.CompactFunc(pkgs, func(a, b Package) bool { return compare(a, b) == 0 }), nil
}

func compare(a, b Package) int {
	return cmp.Or(strings.Compare(a.Ecosystem, b.Ecosystem), strings.Compare(a.Name, b.Name),
		strings.Compare(a.Version, b.Version), strings.Compare(a.Checksum, b.Checksum))
}

func parserOf(name string, b []byte) func([]byte) ([]Package, error) {
	base := filepath.Base(name)
	switch {
	case base == "go.mod" || strings.HasSuffix(base, ".mod"):
		return parseGoMod
	case strings.HasSuffix(base, ".sum"):
		return parseGoSum
	case strings.HasSuffix(base, ".lock"):
		return parseCargoLock
	}
	head := b[:min(len(b), 4096)]
	has := func(s string) bool { return bytes.Contains(head, []byte(s)) }
	switch trimmed := bytes.TrimLeft(head, "\ufeff \t\r\n"); {
	case bytes.HasPrefix(trimmed, []byte("{")) && (has(`"bomFormat"`) || bytes.Contains(b, []byte(`"CycloneDX"`))):
		return func(b []byte) ([]Package, error) { return parseCycloneDX(b, cyclonedx.BOMFileFormatJSON) }
	case bytes.HasPrefix(trimmed, []byte("<")) && has("cyclonedx.org/schema/bom"):
		return func(b []byte) ([]Package, error) { return parseCycloneDX(b, cyclonedx.BOMFileFormatXML) }
	case bytes.HasPrefix(trimmed, []byte("{")) && bytes.Contains(b, []byte(`"spdxVersion"`)):
		return func(b []byte) ([]Package, error) { return parseSPDX(json.Read(bytes.NewReader(b))) }
	case has("SPDXVersion:"):
		return func(b []byte) ([]Package, error) { return parseSPDX(tagvalue.Read(bytes.NewReader(b))) }
	}
	return nil
}

func parseCargoLock(b []byte) ([]Package, error) {
	var lock struct {
		Package []struct {
			Name, Version, Source, Checksum string
		}
		Metadata map[string]string // checksums in the format of 2015 to 2019
	}
	if err := toml.Unmarshal(b, &lock); err != nil {
		return nil, err
	}
	var pkgs []Package
	for _, p := range lock.Package {
		if !strings.HasPrefix(p.Source, "registry+") && !strings.HasPrefix(p.Source, "sparse+") {
			continue
		}
		sum := cmp.Or(p.Checksum, lock.Metadata[fmt.Sprintf("checksum %s %s (%s)", p.Name, p.Version, p.Source)])
		pkgs = append(pkgs, Package{Ecosystem: Cargo, Name: p.Name, Version: p.Version, Checksum: sum})
	}
	return pkgs, nil
}

func parseGoSum(b []byte) ([]Package, error) {
	byVersion := map[[2]string]Package{}
	lines := bufio.NewScanner(bytes.NewReader(b))
	lines.Buffer(nil, 1<<16)
	for n := 1; lines.Scan(); n++ {
		f := strings.Fields(lines.Text())
		if len(f) == 0 {
			continue
		}
		if len(f) != 3 {
			return nil, fmt.Errorf("line %d: want three fields", n)
		}
		version, isMod := strings.CutSuffix(f[1], "/go.mod")
		key := [2]string{f[0], version}
		p, seen := byVersion[key]
		if !seen {
			p = Package{Ecosystem: Go, Name: f[0], Version: version, ModOnly: true}
		}
		if !isMod {
			p.ModOnly, p.Checksum = false, f[2]
		}
		byVersion[key] = p
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	var pkgs []Package
	for _, p := range byVersion {
		pkgs = append(pkgs, p)
	}
	return pkgs, nil
}

func parseGoMod(b []byte) ([]Package, error) {
	f, err := modfile.Parse("go.mod", b, nil)
	if err != nil {
		return nil, err
	}
	replaced := map[string]*modfile.Replace{}
	for _, r := range f.Replace {
		replaced[r.Old.Path+"@"+r.Old.Version] = r
	}
	var pkgs []Package
	for _, r := range f.Require {
		m := r.Mod
		if rep := cmp.Or(replaced[m.Path+"@"+m.Version], replaced[m.Path+"@"]); rep != nil {
			if rep.New.Version == "" {
				continue // a directory
			}
			m = rep.New
		}
		pkgs = append(pkgs, Package{Ecosystem: Go, Name: m.Path, Version: m.Version})
	}
	return pkgs, nil
}

func parseCycloneDX(b []byte, format cyclonedx.BOMFileFormat) ([]Package, error) {
	var bom cyclonedx.BOM
	if err := cyclonedx.NewBOMDecoder(bytes.NewReader(b), format).Decode(&bom); err != nil {
		return nil, err
	}
	var pkgs []Package
	var walk func(cs *[]cyclonedx.Component)
	walk = func(cs *[]cyclonedx.Component) {
		if cs == nil {
			return
		}
		for _, c := range *cs {
			if p, ok := fromPURL(c.PackageURL); ok {
				p.Checksum = sha256Of(c, p.Ecosystem)
				pkgs = append(pkgs, p)
			}
			walk(c.Components)
		}
	}
	walk(bom.Components)
	return pkgs, nil
}

// sha256Of returns the component's SHA-256 where it means the registry's file.
func sha256Of(c cyclonedx.Component, ecosystem string) string {
	if c.Hashes == nil || ecosystem != Cargo {
		return ""
	}
	for _, h := range *c.Hashes {
		if h.Algorithm == cyclonedx.HashAlgoSHA256 {
			return strings.ToLower(h.Value)
		}
	}
	return ""
}

func parseSPDX(doc *spdx.Document, err error) ([]Package, error) {
	if err != nil {
		return nil, err
	}
	var pkgs []Package
	for _, sp := range doc.Packages {
		if sp == nil {
			continue
		}
		for _, ref := range sp.PackageExternalReferences {
			if ref == nil || ref.RefType != "purl" {
				continue
			}
			if p, ok := fromPURL(ref.Locator); ok {
				pkgs = append(pkgs, p)
			}
		}
	}
	return pkgs, nil
}

// fromPURL returns the package that a package URL (ECMA-427) names, false for
// those of other ecosystems and for URLs without a version. The names of Go
// modules keep their case, which the specification would fold: case is part of
// a module's name, and the tools that write bills of materials keep it.
func fromPURL(s string) (Package, bool) {
	s, _, _ = strings.Cut(s, "#")
	s, _, _ = strings.Cut(s, "?")
	rest, ok := strings.CutPrefix(s, "pkg:")
	kind, rest, slash := strings.Cut(strings.TrimLeft(rest, "/"), "/")
	at := strings.LastIndexByte(rest, '@')
	if !ok || !slash || at <= 0 {
		return Package{}, false
	}
	name, err := url.PathUnescape(strings.Trim(rest[:at], "/"))
	version, err2 := url.PathUnescape(rest[at+1:])
	if err != nil || err2 != nil || name == "" || version == "" {
		return Package{}, false
	}
	switch strings.ToLower(kind) {
	case "cargo":
		return Package{Ecosystem: Cargo, Name: name, Version: version}, true
	case "golang":
		return Package{Ecosystem: Go, Name: name, Version: version}, true
	}
	return Package{}, false
}
