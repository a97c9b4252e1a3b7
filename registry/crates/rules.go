package crates

import (
	"time"

	"github.com/pkgswarm/pkgswarm/registry"
	"github.com/pkgswarm/pkgswarm/registry/policy"
)

// refuse returns why the policy does not let a version out, or nil.
func (s *Crates) refuse(l registry.CargoLine) *policy.Refusal {
	published, _ := time.Parse(time.RFC3339, l.PubTime) // a time that cannot be read is none
	r := s.c.Rules.Refuse(l.Name, l.Vers, published, time.Now())
	if r != nil && s.c.DryRun && r.Rule != policy.Deny {
		s.log.Info("would be refused", "crate", l.Name, "version", l.Vers, "rule", r.Rule)
		return nil
	}
	return r
}

// Refused returns why the policy does not let a version out that is held, or nil. It
// asks nobody.
func (s *Crates) Refused(name registry.CrateName, version string) *policy.Refusal {
	f, err := s.held(name)
	if err != nil {
		return nil
	}
	for _, l := range f.version(version) {
		if r := s.refuse(l); r != nil {
			return r
		}
	}
	return nil
}

// tellHidden logs that the policy hides versions of a crate, once for each: cargo only
// says that a version which a lock file names cannot be selected.
func (s *Crates) tellHidden(r *policy.Refusal) {
	key := r.Name + "@" + r.Version + " " + r.Rule
	if _, told := s.hidden.Get(key); told {
		return
	}
	s.hidden.Add(key, struct{}{})
	s.log.Info("version hidden by the policy", "crate", r.Name, "version", r.Version, "rule", r.Rule, "reason", r.Reason)
}

// allowed returns f without the versions that the policy refuses: f itself if there
// are none, so that it stays byte for byte the upstream's. If none is left it
// returns why, which cargo shows.
func (s *Crates) allowed(name registry.CrateName, f *File) (*File, error) {
	if s.c.Rules.Empty() {
		return f, nil
	}
	var body []byte
	left := 0
	var refusal *policy.Refusal
	for _, l := range f.Lines {
		if r := s.refuse(l); r != nil {
			refusal = r
			s.tellHidden(r)
		} else {
			body = append(append(body, l.Raw...), '\n')
			left++
		}
	}
	if left == len(f.Lines) {
		return f, nil
	}
	if left == 0 {
		return nil, refusal
	}
	g, err := newFile(name, body)
	if err != nil {
		return nil, err
	}
	g.Stale = f.Stale
	return g, nil
}
