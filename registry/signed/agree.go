package signed

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/registry/catalog"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
)

// A DisagreementError says that operators name different digests for a version.
type DisagreementError struct {
	Package pkglog.Header
	Version string
	Said    map[core.Key]string // operator to digest
}

func (e *DisagreementError) Error() string {
	var said []string
	for k, d := range e.Said {
		said = append(said, k.Short()+" says "+d)
	}
	slices.Sort(said)
	return fmt.Sprintf("operators disagree on %s@%s: %s", e.Package.Name(), e.Version, strings.Join(said, ", "))
}

// Is makes disagreement an operator fault.
func (e *DisagreementError) Is(target error) bool { return target == ErrOperator }

// agreed asks all operators and answers with the versions whose digest as many
// as must agree have named. A version on which any two differ is refused: one
// of them lies, and which one is not for a majority of few to say. SEC-18
func (r *Registry) agreed(ctx context.Context, h pkglog.Header) (*Answer, error) {
	answers, errs := r.askAll(ctx, h)
	if len(answers) == 0 {
		return nil, joinMissing(errs)
	}
	if len(answers) < r.c.Agree {
		return nil, errors.Join(append(errs, fmt.Errorf("%w: %d of %d know %s", ErrOnlySome, len(answers), r.c.Agree, h.Name()))...)
	}
	said := make(map[string]map[core.Key]string) // version to operator to digest
	for _, a := range answers {
		for v, d := range digests(a.State) {
			if said[v] == nil {
				said[v] = make(map[core.Key]string)
			}
			said[v][a.Operator] = d
		}
	}
	refused := make(map[string]error)
	for v, by := range said {
		switch {
		case differ(by):
			refused[v] = &DisagreementError{h, v, by}
		case len(by) < r.c.Agree:
			refused[v] = fmt.Errorf("%s@%s: %w: %d of %d", h.Name(), v, ErrOnlySome, len(by), r.c.Agree)
		}
	}
	a := *answers[0]
	a.Stale = r.fewFresh(answers)
	r.report(refused)
	if len(refused) == 0 {
		return &a, nil
	}
	var err error
	if a.State, err = without(a.State, refused); err != nil {
		return nil, err
	}
	a.Refused = refused
	return &a, nil
}

// fewFresh reports whether too few of the operators that answered have been heard
// of lately to agree on what is new.
func (r *Registry) fewFresh(answers []*Answer) bool {
	fresh := 0
	for _, a := range answers {
		if !a.Stale {
			fresh++
		}
	}
	return fresh < r.c.Agree
}

// report logs each disagreement once, with who said what.
func (r *Registry) report(refused map[string]error) {
	for _, err := range refused {
		d, ok := errors.AsType[*DisagreementError](err)
		if !ok {
			continue // an operator that lags behind
		}
		if known, _ := r.reported.ContainsOrAdd(d.Error(), struct{}{}); !known {
			r.c.Logger.Error("version refused", "err", d)
		}
	}
}

// disagreement returns what operators disagree on of a package, nil if nothing.
func (a *Answer) disagreement() error {
	var all []error
	for _, v := range slices.Sorted(maps.Keys(a.Refused)) {
		if d, ok := errors.AsType[*DisagreementError](a.Refused[v]); ok {
			all = append(all, d)
		}
	}
	return errors.Join(all...)
}

func (r *Registry) askAll(ctx context.Context, h pkglog.Header) (answers []*Answer, errs []error) {
	got := make([]*Answer, len(r.followers))
	failed := make([]error, len(r.followers))
	var wg sync.WaitGroup
	for i, f := range r.followers {
		wg.Go(func() { got[i], failed[i] = f.answer(ctx, h) })
	}
	wg.Wait()
	for i := range got {
		if failed[i] != nil {
			errs = append(errs, failed[i])
			continue
		}
		answers = append(answers, got[i])
	}
	return answers, errs
}

func differ(by map[core.Key]string) bool {
	first := ""
	for _, d := range by {
		if first == "" {
			first = d
		}
		if d != first {
			return true
		}
	}
	return false
}

// An indexLine is what agreement is about in an index line.
type indexLine struct {
	Vers  string `json:"vers"`
	Cksum string `json:"cksum"`
}

func parseLine(b []byte) indexLine {
	var l indexLine
	json.Unmarshal(b, &l) // what is no line names no version
	return l
}

// digests returns what a log says each version's bytes are. A version with two
// lines counts with both.
func digests(s *pkglog.State) map[string]string {
	all := make(map[string]string)
	for _, b := range s.Lines() {
		l := parseLine(b)
		if d, ok := all[l.Vers]; ok && d != l.Cksum {
			l.Cksum = d + "+" + l.Cksum
		}
		all[l.Vers] = l.Cksum
	}
	for _, v := range s.Versions() {
		m := s.Module(v)
		all[v] = fmt.Sprintf("%x/%x", m.ZipHash, m.ModHash)
	}
	return all
}

// without returns s without the versions in refused.
func without(s *pkglog.State, refused map[string]error) (*pkglog.State, error) {
	out := pkglog.NewState(s.Header())
	add := func(e pkglog.Event) error {
		_, err := out.Append(e)
		return err
	}
	for _, b := range s.Lines() {
		if refused[parseLine(b).Vers] == nil {
			if err := add(pkglog.Event{Kind: pkglog.Published, Position: len(out.Lines()), Line: b}); err != nil {
				return nil, err
			}
		}
	}
	for _, v := range s.Versions() {
		if refused[v] == nil {
			if err := add(pkglog.Event{Kind: pkglog.Published, Module: s.Module(v)}); err != nil {
				return nil, err
			}
		}
	}
	for v := range digests(out) {
		for _, a := range s.Artifacts(v) {
			if err := add(pkglog.Event{Kind: pkglog.HasArtifact, Version: v, Artifact: a}); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// Snapshots returns the heads that answers come from now, in the order of
// preference.
func (r *Registry) Snapshots() []*catalog.Snapshot {
	var all []*catalog.Snapshot
	for _, f := range r.followers {
		if s := f.current(); s != nil {
			all = append(all, s)
		}
	}
	return all
}
