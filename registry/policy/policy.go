// Package policy decides which versions of which packages a node hands out.
//
// A policy has rules for each ecosystem. In the configuration file:
//
//	[policy]
//	dry-run = false                    # true: only log what would be refused
//	[policy.cargo]
//	allow = ["serde*", "tokio"]        # if there are any, nothing else is allowed
//	block = ["openssl-sys@0.9.1", "evil-*"]
//	cooldown = "72h"                   # minimum age of a version
//	except = ["our-*"]                 # these no rule touches
//	[policy.go]
//	block = ["example.com/evil"]
//
// A pattern is a name with the wildcards of [path.Match], optionally followed by
// @ and a version with wildcards. A pattern for Go also covers all module paths
// below it, as GOPRIVATE's do: example.com/evil is also example.com/evil/v2.
//
// The age of a version counts from when it was published: in a signed event of
// the catalog where one is used, else the index line's pubtime or the time in
// the .info file. A version whose time nobody tells is taken as old: registries
// give every new version a time, only old ones lack it.
//
// The same decision is made for an index and for an artifact, so that what the
// index hides cannot be had by knowing its address.
package policy

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"
	"time"
)

// Rules are the rules of one ecosystem. The zero Rules allow everything.
type Rules struct {
	Allow    []string `toml:"allow"`
	Block    []string `toml:"block"`
	Except   []string `toml:"except"`
	Cooldown Duration `toml:"cooldown"`

	// Denied are versions that no other rule, exception or dry run lets out; nil:
	// none.
	Denied *Denials `toml:"-"`
}

// Deny is the Rule of a refusal that is due to Denials.
const Deny = "deny"

// Denials are versions that are refused from the moment that somebody says so.
// They are safe for concurrent use.
type Denials struct {
	Fold bool // names that differ in case only are one, as cargo's are

	mu      sync.RWMutex
	reasons map[string]string // by NAME@VERSION
}

// Set refuses a version from now on.
func (d *Denials) Set(name, version, reason string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.reasons == nil {
		d.reasons = make(map[string]string)
	}
	d.reasons[d.key(name, version)] = reason
}

func (d *Denials) key(name, version string) string {
	if d.Fold {
		name = strings.ToLower(name)
	}
	return name + "@" + version
}

// Remove undoes Set. It reports whether there was something to undo.
func (d *Denials) Remove(name, version string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, was := d.reasons[d.key(name, version)]
	delete(d.reasons, d.key(name, version))
	return was
}

func (d *Denials) reason(name, version string) (string, bool) {
	if d == nil {
		return "", false
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	reason, ok := d.reasons[d.key(name, version)]
	return reason, ok
}

func (d *Denials) empty() bool {
	if d == nil {
		return true
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	return len(d.reasons) == 0
}

// Duration is a [time.Duration] that is written as text, such as "72h" or "3d".
type Duration time.Duration

// UnmarshalText implements [encoding.TextUnmarshaler].
func (d *Duration) UnmarshalText(b []byte) error {
	s := string(b)
	if n, ok := strings.CutSuffix(s, "d"); ok {
		s = n + "h"
		v, err := time.ParseDuration(s)
		if err != nil || v > 36500*time.Hour {
			return fmt.Errorf("duration %q: want a number of days such as 3d", b)
		}
		*d = Duration(v * 24)
	} else {
		v, err := time.ParseDuration(s)
		if err != nil {
			return fmt.Errorf("duration %q: want text such as 72h or 3d", b)
		}
		*d = Duration(v)
	}
	if *d < 0 {
		return fmt.Errorf("duration %q is negative", b)
	}
	return nil
}

// MarshalText implements [encoding.TextMarshaler].
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// Config is the table [policy] of the configuration file.
type Config struct {
	DryRun bool  `toml:"dry-run"`
	Cargo  Rules `toml:"cargo"`
	Go     Rules `toml:"go"`
}

// Check returns an error that names the first pattern of c that is malformed.
func (c Config) Check() error {
	for eco, r := range map[string]Rules{"cargo": c.Cargo, "go": c.Go} {
		for _, p := range slices.Concat(r.Allow, r.Block, r.Except) {
			name, version, _ := strings.Cut(p, "@")
			if _, err := path.Match(name, ""); err != nil || name == "" {
				return fmt.Errorf("policy.%s: malformed pattern %q", eco, p)
			}
			if _, err := path.Match(version, ""); err != nil {
				return fmt.Errorf("policy.%s: malformed pattern %q", eco, p)
			}
		}
	}
	return nil
}

// Binds reports whether c refuses anything, and not only says that it would.
func (c Config) Binds() bool { return !c.DryRun && !(c.Cargo.Empty() && c.Go.Empty()) }

// Empty reports whether r allows everything.
func (r Rules) Empty() bool {
	return len(r.Allow) == 0 && len(r.Block) == 0 && r.Cooldown == 0 && r.Denied.empty()
}

// A Refusal says which rule refuses a version. It is an error whose text is
// meant for the person whose build stops.
type Refusal struct {
	Name, Version string
	Rule          string // "allow", "block", "cooldown" or Deny
	Reason        string
}

func (r *Refusal) Error() string {
	return fmt.Sprintf("%s@%s is refused by this mirror's policy: %s", r.Name, r.Version, r.Reason)
}

// Refuse decides about one version at the time now: nil means that it may be
// handed out. published may be zero.
func (r Rules) Refuse(name, version string, published, now time.Time) *Refusal {
	if r.Empty() {
		return nil
	}
	if reason, ok := r.Denied.reason(name, version); ok {
		return &Refusal{name, version, Deny, "it was withdrawn here: " + reason}
	}
	if _, ok := find(r.Except, name, version); ok {
		return nil
	}
	refusal := func(rule, format string, args ...any) *Refusal {
		return &Refusal{name, version, rule, fmt.Sprintf(format, args...)}
	}
	if p, ok := find(r.Block, name, version); ok {
		return refusal("block", "it matches the blocked pattern %q", p)
	}
	if _, ok := find(r.Allow, name, version); !ok && len(r.Allow) > 0 {
		return refusal("allow", "it matches none of the allowed patterns")
	}
	cooldown := time.Duration(r.Cooldown)
	if age := now.Sub(published); cooldown > 0 && !published.IsZero() && age < cooldown {
		return refusal("cooldown", "it was published %s, and versions are held back for %s: available from %s",
			published.UTC().Format(time.RFC3339), cooldown, published.Add(cooldown).UTC().Format(time.RFC3339))
	}
	return nil
}

// find returns the first pattern that matches.
func find(patterns []string, name, version string) (string, bool) {
	i := slices.IndexFunc(patterns, func(p string) bool { return match(p, name, version) })
	if i < 0 {
		return "", false
	}
	return patterns[i], true
}

func match(pattern, name, version string) bool {
	pname, pversion, hasVersion := strings.Cut(pattern, "@")
	if hasVersion {
		if ok, err := path.Match(pversion, version); !ok || err != nil {
			return false
		}
	}
	// A pattern with n elements is held against the first n of the name.
	n := strings.Count(pname, "/") + 1
	elems := strings.Split(name, "/")
	if len(elems) < n {
		return false
	}
	ok, err := path.Match(pname, strings.Join(elems[:n], "/"))
	return ok && err == nil
}
