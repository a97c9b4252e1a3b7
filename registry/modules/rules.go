package modules

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/semver"

	"github.com/pkgswarm/pkgswarm/registry/policy"
)

// refuse returns why a version is not let out, or nil: it was withdrawn, or the
// policy is against it. For the policy, a version's
// age is that of its .info, which is asked for only where age matters; without
// an answer the version counts as old, as the policy has it.
func (m *Modules) refuse(ctx context.Context, path, version string) error {
	if err := m.withdrawn(ctx, path, version); err != nil {
		return err
	}
	if m.conf.Rules.Empty() {
		return nil
	}
	var published time.Time
	if m.conf.Rules.Cooldown > 0 {
		if f, err := m.info(ctx, path, version); err == nil {
			published = infoTime(f.Body)
		}
	}
	r := m.conf.Rules.Refuse(path, version, published, time.Now())
	if r == nil {
		return nil
	}
	if m.conf.DryRun && r.Rule != policy.Deny {
		m.log.Info("would be refused", "module", path, "version", version, "rule", r.Rule)
		return nil
	}
	return r
}

func infoTime(body []byte) time.Time {
	var info struct{ Time time.Time }
	json.Unmarshal(body, &info) // a time that cannot be read is none
	return info.Time
}

// refuseResolved is refuse for the version that an .info names.
func (m *Modules) refuseResolved(path string, f *File) error {
	if m.conf.Rules.Empty() {
		return nil
	}
	var info struct {
		Version string
		Time    time.Time
	}
	if json.Unmarshal(f.Body, &info) != nil {
		return nil
	}
	r := m.conf.Rules.Refuse(path, info.Version, info.Time, time.Now())
	if r == nil || m.conf.DryRun && r.Rule != policy.Deny {
		return nil
	}
	return r
}

// allowedList returns the list without the versions that the policy refuses. To
// learn ages it asks from the highest version down, until one is old enough: what
// is below that is nearly always older, and is judged by its own age in the end.
func (m *Modules) allowedList(ctx context.Context, path string, f *File) *File {
	rules := m.conf.Rules
	if m.conf.DryRun {
		rules = policy.Rules{Denied: rules.Denied}
	}
	if rules.Empty() {
		return f
	}
	lines := slices.Collect(bytes.Lines(f.Body))
	semverOf := func(line []byte) string {
		v, _, _ := strings.Cut(strings.TrimSpace(string(line)), " ")
		return v
	}
	order := slices.Clone(lines)
	slices.SortFunc(order, func(a, b []byte) int { return semver.Compare(semverOf(b), semverOf(a)) })
	refused := map[string]bool{}
	settled := rules.Cooldown == 0
	for _, line := range order {
		v := semverOf(line)
		if settled {
			refused[v] = rules.Refuse(path, v, time.Time{}, time.Now()) != nil
			continue
		}
		refused[v] = m.refuse(ctx, path, v) != nil
		settled = !refused[v]
	}
	var b bytes.Buffer
	for _, line := range lines {
		if !refused[semverOf(line)] {
			b.Write(line)
		}
	}
	g := *newFile(b.Bytes(), f.validators, f.Asked, false)
	g.Stale = f.Stale
	return &g
}
