// Package clients points cargo and go at a node: as edits of their configuration
// that can be taken back, and as environment and arguments for one command.
//
// cargo replaces crates.io by a named registry:
//
//	[source.crates-io]
//	replace-with = "pkgswarm"
//	[registries.pkgswarm]
//	index = "sparse+http://127.0.0.1:7070/cargo/"
//
// The named registry rather than a second [source] is what lets cargo info and
// cargo search work. cargo has no second choice when a source does not answer,
// and no environment variable that replaces a source, so that one command needs
// the replacement as a --config argument and the address as a variable.
//
// go takes a list of proxies. After '|' the next one is asked on any error, so
// builds go on without the node; after ',' only on 404 and 410, which is right
// where the node's refusals are to bind.
package clients

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// registry is the name that cargo knows the node by.
const registry = "pkgswarm"

const (
	blockStart = "# >>> pkgswarm setup (pkgswarm setup --undo removes these lines)"
	blockEnd   = "# <<< pkgswarm setup"
	lineMark   = " # pkgswarm setup"
)

// A ReplacedError says that crates.io is replaced by something else already.
type ReplacedError struct{ With string }

func (e *ReplacedError) Error() string {
	return fmt.Sprintf("cargo replaces crates.io with %q already", e.With)
}

// IndexURL returns the address of a node's sparse index as cargo writes it. base
// is the node's address, such as "http://127.0.0.1:7070".
func IndexURL(base string) string { return "sparse+" + strings.TrimRight(base, "/") + "/cargo/" }

// ProxyURL returns the address of a node's GOPROXY.
func ProxyURL(base string) string { return strings.TrimRight(base, "/") + "/go" }

type cargoConfig struct {
	Source     map[string]map[string]any `toml:"source"`
	Registries map[string]map[string]any `toml:"registries"`
}

// AddCargo returns the configuration file b with crates.io replaced by the node
// at base. Everything else of the file stays as it is, comments included; a file
// that says so already comes back unchanged. The error is a *ReplacedError where
// crates.io has another replacement.
func AddCargo(b []byte, base string) ([]byte, error) {
	plain := RemoveCargo(b)
	var c cargoConfig
	if err := toml.Unmarshal(plain, &c); err != nil {
		return nil, fmt.Errorf("parse cargo configuration: %w", err)
	}
	if with, ok := c.Source["crates-io"]["replace-with"].(string); ok {
		return nil, &ReplacedError{with}
	}
	if _, ok := c.Registries[registry]; ok {
		return nil, fmt.Errorf("cargo configuration has a registry %q already", registry)
	}
	out := bytes.Clone(plain)
	replace := fmt.Sprintf("replace-with = %q", registry)
	block := []string{blockStart}
	if _, ok := c.Source["crates-io"]; ok {
		var err error
		if out, err = insertAfterHeader(out, "source.crates-io", replace+lineMark); err != nil {
			return nil, err
		}
	} else {
		block = append(block, "[source.crates-io]", replace)
	}
	block = append(block, "[registries."+registry+"]", fmt.Sprintf("index = %q", IndexURL(base)), blockEnd, "")
	if len(out) > 0 && !bytes.HasSuffix(out, []byte("\n")) {
		out = append(out, '\n')
	}
	out = append(out, strings.Join(block, "\n")...)

	// What cargo will read must be what was meant, whatever the file looked like.
	var after cargoConfig
	if err := toml.Unmarshal(out, &after); err != nil || after.Source["crates-io"]["replace-with"] != registry || after.Registries[registry]["index"] != IndexURL(base) {
		return nil, errors.New("cargo configuration is written in a way that cannot be edited safely")
	}
	return out, nil
}

// RemoveCargo returns b without what AddCargo added.
func RemoveCargo(b []byte) []byte {
	var out []byte
	inside := false
	for line := range bytes.Lines(b) {
		text := string(bytes.TrimRight(line, "\r\n"))
		switch {
		case text == blockStart:
			inside = true
		case text == blockEnd && inside:
			inside = false
		case !inside && !strings.HasSuffix(text, lineMark):
			out = append(out, line...)
		}
	}
	if inside { // the end was edited away: do not guess what may go
		return b
	}
	return out
}

// insertAfterHeader inserts line below the header [table].
func insertAfterHeader(b []byte, table, line string) ([]byte, error) {
	var out []byte
	done := false
	for l := range bytes.Lines(b) {
		out = append(out, l...)
		head, _, _ := strings.Cut(string(l), "#")
		name := strings.NewReplacer(" ", "", "\t", "", `"`, "", "'", "").Replace(strings.TrimSpace(head))
		if !done && name == "["+table+"]" {
			if !bytes.HasSuffix(out, []byte("\n")) {
				out = append(out, '\n')
			}
			out = append(out, line+"\n"...)
			done = true
		}
	}
	if !done {
		return nil, fmt.Errorf("cargo configuration sets %s without a [%s] line: add %s there by hand", table, table, line)
	}
	return out, nil
}

// AddGo returns the GOPROXY list with the node at base in front, whatever was
// there of that node before. strict makes the node's refusals bind.
func AddGo(list, base string, strict bool) string {
	rest := RemoveGo(list, base)
	sep := "|"
	if strict {
		sep = ","
	}
	if rest == "" {
		return ProxyURL(base)
	}
	return ProxyURL(base) + sep + rest
}

// RemoveGo returns the GOPROXY list without the node at base.
func RemoveGo(list, base string) string {
	rest, ok := strings.CutPrefix(list, ProxyURL(base))
	if !ok {
		return list
	}
	if rest == "" || rest[0] == ',' || rest[0] == '|' {
		return strings.TrimLeft(rest, ",|")
	}
	return list
}

// CargoArgs returns the arguments of one call of cargo with crates.io replaced.
// The address must be in the variable that Env sets.
func CargoArgs(args []string) []string {
	config := []string{"--config", fmt.Sprintf("source.crates-io.replace-with=%q", registry)}
	if len(args) > 0 && strings.HasPrefix(args[0], "+") { // rustup's toolchain comes first
		return append(append([]string{args[0]}, config...), args[1:]...)
	}
	return append(config, args...)
}

// Env returns the variables that point one command at the node at base: GOPROXY,
// in front of the list the command had, and the address of cargo's registry.
func Env(base, goproxy string, strict bool) []string {
	return []string{
		"GOPROXY=" + AddGo(goproxy, base, strict),
		"CARGO_REGISTRIES_" + strings.ToUpper(registry) + "_INDEX=" + IndexURL(base),
	}
}
