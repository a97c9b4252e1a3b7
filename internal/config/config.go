// Package config gives the flags of a command their values from three more
// places than the command line. The order is: flags, then the environment, then
// a TOML file, then the flag's default.
//
// A flag is the one declaration of a setting. The flag --swarm-listen is the
// variable PKGSWARM_SWARM_LISTEN and the top-level key swarm-listen of the file:
//
//	listen = "127.0.0.1:7070"
//	peer = ["10.0.0.7:7071", "seed.example.org:443"]
//	lan = false
//
// A flag that may be repeated takes a comma-separated list in the environment
// and an array in the file. Keys that no command knows are errors, so that a
// misspelt one is not silently without effect; tables of the file belong to
// others (the policy) and are left to them.
package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/pflag"
)

// MaxFileSize bounds a configuration file, in bytes.
const MaxFileSize = 1 << 20

// A File is a parsed configuration file. The zero File is an empty one.
type File struct {
	Path   string // empty if there is no file
	values map[string]any
	raw    []byte
}

// DefaultPath returns the place of the configuration file: PKGSWARM_CONFIG if
// set, else pkgswarm/config.toml in the user's configuration directory.
func DefaultPath(getenv func(string) string) (string, error) {
	if p := getenv("PKGSWARM_CONFIG"); p != "" {
		return p, nil
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", fmt.Errorf("find the configuration directory: %w", err)
	}
	return filepath.Join(dir, "pkgswarm", "config.toml"), nil
}

// Read reads the file at path. A file that does not exist is an empty one
// unless it must exist.
func Read(path string, must bool) (File, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) && !must {
		return File{}, nil
	}
	if err != nil {
		return File{}, fmt.Errorf("read configuration: %w", err)
	}
	if info.Size() > MaxFileSize {
		return File{}, fmt.Errorf("read configuration: %s has %d bytes, more than %d", path, info.Size(), MaxFileSize)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return File{}, fmt.Errorf("read configuration: %w", err)
	}
	return Parse(path, b)
}

// Parse parses b, the content of the file at path.
func Parse(path string, b []byte) (File, error) {
	f := File{Path: path, raw: b}
	if err := toml.Unmarshal(b, &f.values); err != nil {
		if d, ok := errors.AsType[*toml.DecodeError](err); ok {
			row, col := d.Position()
			return File{}, fmt.Errorf("%s:%d:%d: %s", path, row, col, strings.TrimPrefix(d.Error(), "toml: "))
		}
		return File{}, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}

// Decode stores the file's values in v, a pointer to a struct with toml tags.
// Keys that v does not have are ignored.
func (f File) Decode(v any) error {
	if err := toml.Unmarshal(f.raw, v); err != nil {
		return fmt.Errorf("%s: %w", f.Path, err)
	}
	return nil
}

// Unknown returns an error that names the top-level keys of f which are not
// tables and for which known is false.
func (f File) Unknown(known func(name string) bool) error {
	var bad []string
	for k, v := range f.values {
		if _, table := v.(map[string]any); !table && !known(k) {
			bad = append(bad, k)
		}
	}
	if len(bad) == 0 {
		return nil
	}
	slices.Sort(bad)
	return fmt.Errorf("%s: no setting has the name %s", f.Path, strings.Join(bad, ", "))
}

// A Value is the value of one setting and where it came from.
type Value struct {
	Name   string `json:"name"`
	Value  string `json:"value"`
	Source string `json:"source"` // "flag", "environment PKGSWARM_X", "file PATH" or "default"
}

// EnvName returns the environment variable of the flag of that name.
func EnvName(flag string) string {
	return "PKGSWARM_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// Apply sets each flag of flags that was not given on the command line from the
// environment or from f, and returns the value of each, in the order of names.
// The flags "help" and "config" are left alone.
func Apply(flags *pflag.FlagSet, getenv func(string) string, f File) ([]Value, error) {
	var values []Value
	var errs []error
	flags.VisitAll(func(fl *pflag.Flag) {
		if fl.Name == "help" || fl.Name == "config" {
			return
		}
		source, err := apply(fl, flags, getenv, f)
		if err != nil {
			errs = append(errs, err)
		}
		values = append(values, Value{fl.Name, fl.Value.String(), source})
	})
	return values, errors.Join(errs...)
}

func apply(fl *pflag.Flag, flags *pflag.FlagSet, getenv func(string) string, f File) (source string, err error) {
	if fl.Changed {
		return "flag", nil
	}
	env := EnvName(fl.Name)
	if v := getenv(env); v != "" {
		if err := flags.Set(fl.Name, v); err != nil {
			return "", fmt.Errorf("%s: %w", env, err)
		}
		return "environment " + env, nil
	}
	v, ok := f.values[fl.Name]
	if !ok {
		return "default", nil
	}
	text, err := text(v)
	if err == nil {
		err = set(flags, fl, text)
	}
	if err != nil {
		return "", fmt.Errorf("%s: %s: %w", f.Path, fl.Name, err)
	}
	return "file " + f.Path, nil
}

// set sets fl to the texts, of which there may be several only where the flag
// may be repeated.
func set(flags *pflag.FlagSet, fl *pflag.Flag, texts []string) error {
	if s, ok := fl.Value.(pflag.SliceValue); ok {
		fl.Changed = true
		return s.Replace(texts)
	}
	if len(texts) != 1 {
		return fmt.Errorf("want one value, not a list of %d", len(texts))
	}
	return flags.Set(fl.Name, texts[0])
}

// text returns a TOML value as the texts a command line would have.
func text(v any) ([]string, error) {
	switch v := v.(type) {
	case string:
		return []string{v}, nil
	case bool, int64, float64:
		return []string{fmt.Sprint(v)}, nil
	case []any:
		texts := []string{}
		for _, e := range v {
			t, err := text(e)
			if err != nil || len(t) != 1 {
				return nil, errors.New("want a list of plain values")
			}
			texts = append(texts, t[0])
		}
		return texts, nil
	}
	return nil, fmt.Errorf("a %T is no value for a setting", v)
}
