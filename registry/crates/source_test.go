package crates

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

// SEC-30: what one upstream has said is not taken for the word of another, be that
// one unreachable: neither an index file nor where the crates are.
func TestUpstreamsKeptApart(t *testing.T) {
	dir := t.TempDir()
	first := &fakeUpstream{files: map[string]string{
		"config.json": `{"dl":"` + base + `dl"}`, "3/b/bar": indexLine("bar", "1.0.0", "one"), "dl/bar/1.0.0/download": "one",
	}}
	s := newCrates(t, first, dir)
	if got, err := crateBody(t, s, "bar", "1.0.0"); err != nil || got != "one" {
		t.Fatalf("Crate = %q, %v", got, err)
	}
	second := &fakeUpstream{err: &upstream.Error{URL: "x", Class: upstream.ErrUnreachable, Err: errors.New("down")}}
	c := newCrates(t, second, dir).c
	c.Index = "https://other.example/"
	other := New(c)
	if f, err := other.Index(t.Context(), "bar"); !errors.Is(err, upstream.ErrUnreachable) {
		t.Errorf("Index = %v, %v, want that of the other registry not to be there", f, err)
	}
	if dl, err := other.dl(t.Context()); err == nil || len(second.origins) > 0 {
		t.Errorf("crates of the other registry are at %q, origins %v", dl, second.origins)
	}
	// A stand-in for the first one has what that has said.
	c.For = base
	wantBody(t, New(c), "bar", first.files["3/b/bar"], false)
}

// A broughtUpstream is an upstream whose answers something else has brought.
type broughtUpstream struct {
	*fakeUpstream
	at time.Time
}

func (u broughtUpstream) Get(ctx context.Context, r upstream.Request) (*upstream.Answer, error) {
	a, err := u.fakeUpstream.Get(ctx, upstream.Request{URL: r.URL})
	if err == nil {
		a.Via = upstream.Via{Name: "bundle x", Time: u.at}
	}
	return a, err
}

// What is brought in place of the upstream never replaces what is newer, and what
// brought it is told.
func TestBroughtIndex(t *testing.T) {
	dir := t.TempDir()
	old, now, new := indexLine("bar", "1.0.0", "one"), indexLine("bar", "1.1.0", "two"), indexLine("bar", "1.2.0", "three")
	bring := func(file string, at time.Time) *Crates {
		c := newCrates(t, nil, dir).c
		c.Upstream = broughtUpstream{&fakeUpstream{files: map[string]string{"3/b/bar": file}}, at}
		c.TTL = 1
		return New(c)
	}
	today := time.Now().Add(-time.Hour).Truncate(time.Second)
	wantBody(t, bring(now, today), "bar", now, false)
	wantBody(t, bring(old, today.Add(-24*time.Hour)), "bar", now, false)
	wantBody(t, bring(new, today.Add(time.Minute)), "bar", new, false)
	p, err := newCrates(t, nil, dir).Provenance("bar", "1.2.0")
	if err != nil || p.Via != "bundle x" || !p.Asked.Equal(today.Add(time.Minute)) || len(p.Lines) != 1 {
		t.Errorf("Provenance = %+v, %v", p, err)
	}
	// The upstream itself is believed again, and says so.
	u := &fakeUpstream{files: map[string]string{"3/b/bar": new}}
	wantBody(t, newCrates(t, u, dir), "bar", new, false)
	if p, err = newCrates(t, nil, dir).Provenance("bar", "1.2.0"); err != nil || p.Via != "" {
		t.Errorf("Provenance after the upstream = %+v, %v", p, err)
	}
}
