package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/pkgswarm/pkgswarm/registry"
	"github.com/pkgswarm/pkgswarm/registry/lockfile"
	"golang.org/x/mod/module"
)

// readPackages returns the packages that args name: files, which are read, and
// PACKAGE@VERSION.
func readPackages(args []string) ([]lockfile.Package, error) {
	var all []lockfile.Package
	for _, arg := range args {
		if pkg, ok, err := parsePackage(arg); ok {
			if err != nil {
				return nil, err
			}
			all = append(all, pkg)
			continue
		}
		f, err := os.Open(arg)
		if err != nil {
			return nil, err
		}
		pkgs, err := lockfile.Read(arg, f)
		f.Close()
		if err != nil {
			return nil, err
		}
		all = append(all, pkgs...)
	}
	return distinct(all), nil
}

// distinct leaves out what is named several times, in any of the files.
func distinct(pkgs []lockfile.Package) []lockfile.Package {
	at := make(map[[3]string]int, len(pkgs))
	var out []lockfile.Package
	for _, p := range pkgs {
		key := [3]string{p.Ecosystem, p.Name, p.Version}
		i, ok := at[key]
		if !ok {
			at[key] = len(out)
			out = append(out, p)
			continue
		}
		out[i].ModOnly = out[i].ModOnly && p.ModOnly
	}
	return out
}

// parsePackage parses [cargo:|go:]PACKAGE@VERSION. Without the prefix a name with a
// dot or a slash is a Go module's, any other a crate's: neither can be the other.
// ok is false if arg is not of that form, or names a file.
func parsePackage(arg string) (pkg lockfile.Package, ok bool, err error) {
	i := strings.LastIndexByte(arg, '@')
	if i <= 0 || strings.HasPrefix(arg, "./") || strings.HasPrefix(arg, "/") {
		return pkg, false, nil
	}
	name, version := arg[:i], arg[i+1:]
	eco, rest, prefixed := strings.Cut(name, ":")
	switch {
	case prefixed && (eco == lockfile.Cargo || eco == lockfile.Go):
		name = rest
	case prefixed:
		return pkg, true, fmt.Errorf("%q: an ecosystem is cargo or go", arg)
	case strings.ContainsAny(name, "./"):
		eco = lockfile.Go
	default:
		eco = lockfile.Cargo
	}
	if _, err := os.Stat(arg); err == nil && !prefixed {
		return pkg, false, nil
	}
	return lockfile.Package{Ecosystem: eco, Name: name, Version: version}, true, checkPackage(eco, name, version)
}

func checkPackage(eco, name, version string) error {
	if eco == lockfile.Go {
		if module.CanonicalVersion(version) != version || version == "" {
			return fmt.Errorf("%s: %q is no version of a module: write it as v1.2.3", name, version)
		}
		return module.Check(name, version)
	}
	if _, err := registry.ParseCrate(name); err != nil {
		return err
	}
	return registry.CheckCrateVersion(version)
}
