package crates

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/pkgswarm/pkgswarm/registry"
)

// A need is a crate that something depends on, with the features that it asks
// for, "default" among them.
type need struct {
	name     registry.CrateName
	features []string
}

// dependencies returns what cargo is likely to ask for next when something uses
// the crate with those features: the dependencies, but for development, of the
// newest versions, each of another compatibility range.
func (f *File) dependencies(features []string) []need {
	const ranges = 2
	best := make(map[string]registry.CargoLine) // of each compatibility range
	for _, l := range f.Lines {
		r := compatible(l.Vers)
		if b, ok := best[r]; !l.Yanked && (!ok || preferred(b, l) < 0) {
			best[r] = l
		}
	}
	lines := slices.SortedFunc(maps.Values(best), func(a, b registry.CargoLine) int { return preferred(b, a) })
	var needs []need
	for _, l := range lines[:min(ranges, len(lines))] {
		needs = append(needs, lineNeeds(l.Raw, features)...)
	}
	return needs
}

// A manifest is what an index line says about features.
type manifest struct {
	Deps []struct {
		Name            string   `json:"name"`
		Package         string   `json:"package"`
		Features        []string `json:"features"`
		DefaultFeatures *bool    `json:"default_features"` // nil is true
		Optional        bool     `json:"optional"`
		Kind            string   `json:"kind"`
		Registry        string   `json:"registry"`
	} `json:"deps"`
	Features  map[string][]string `json:"features"`
	Features2 map[string][]string `json:"features2"`
}

// lineNeeds returns what one version needs with those features. A line that does
// not decode needs nothing: this is a guess at what comes, and cargo will ask.
func lineNeeds(line []byte, features []string) []need {
	var m manifest
	if json.Unmarshal(line, &m) != nil {
		return nil
	}
	used, asked := m.activate(features)
	var needs []need
	for _, d := range m.Deps {
		if d.Kind == "dev" || d.Registry != "" || d.Optional && !used[d.Name] {
			continue
		}
		spelling := d.Name
		if d.Package != "" {
			spelling = d.Package
		}
		name, err := registry.ParseCrate(spelling)
		if err != nil {
			continue
		}
		want := slices.Concat(d.Features, asked[d.Name])
		if d.DefaultFeatures == nil || *d.DefaultFeatures {
			want = append(want, "default")
		}
		needs = append(needs, need{name, want})
	}
	return needs
}

// activate follows features to the optional dependencies that they turn on, and
// to the features that they ask of dependencies: "x" is a feature, or an optional
// dependency, "dep:x" the latter only, "x/f" asks feature f of x and turns x on,
// "x?/f" asks it of x if x is on.
func (m *manifest) activate(features []string) (used map[string]bool, asked map[string][]string) {
	used, asked = make(map[string]bool), make(map[string][]string)
	seen := make(map[string]bool)
	for todo := slices.Clone(features); len(todo) > 0; {
		f := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if seen[f] {
			continue
		}
		seen[f] = true
		if dep, ok := strings.CutPrefix(f, "dep:"); ok {
			used[dep] = true
		} else if dep, feature, ok := strings.Cut(f, "/"); ok {
			weak := strings.HasSuffix(dep, "?")
			dep = strings.TrimSuffix(dep, "?")
			asked[dep] = append(asked[dep], feature)
			used[dep] = used[dep] || !weak
		} else {
			used[f] = true // if it is the name of an optional dependency
			todo = append(append(todo, m.Features[f]...), m.Features2[f]...)
		}
	}
	return used, asked
}

// compatible returns the part of a version that a caret requirement fixes.
func compatible(version string) string {
	major, rest, _ := strings.Cut(version, ".")
	if major != "0" {
		return major
	}
	minor, _, _ := strings.Cut(rest, ".")
	return "0." + minor
}
