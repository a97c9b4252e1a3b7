package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/internal/node"
)

// REL-10: a clock that is wrong is found by that of an upstream, and by what operators
// have signed.
func TestDoctorClock(t *testing.T) {
	upstreamAt := func(off time.Duration) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Date", time.Now().Add(off).UTC().Format(http.TimeFormat))
			http.NotFound(w, nil)
		}))
		t.Cleanup(s.Close)
		return s.URL + "/"
	}
	for _, c := range []struct {
		name   string
		off    time.Duration
		signed time.Duration
		want   string
	}{
		{"right", 0, -time.Hour, "right, as far as"},
		{"a minute", time.Minute, 0, "right, as far as"},
		{"a year behind", 365 * 24 * time.Hour, 0, "differs from an upstream's by 8760h"},
		{"a year ahead", -365 * 24 * time.Hour, 0, "differs from an upstream's by 8760h"},
		{"behind an operator", 0, time.Hour, "behind that of the operator of abc by 1h0m0s"},
	} {
		d := &doctor{}
		st := node.Status{Upstreams: []string{upstreamAt(c.off), "file:///srv/index"}, Registries: []node.RegistryStatus{
			{Key: "abc", Time: time.Now().Add(c.signed).UTC().Format(time.RFC3339)},
		}}
		d.examineUpstreams(t.Context(), st)
		if len(d.findings) != 2 {
			t.Fatalf("%s: %+v", c.name, d.findings)
		}
		up, clock := d.findings[0], d.findings[1]
		if !up.OK || up.What != "upstream" || clock.What != "clock" || clock.OK != strings.HasPrefix(c.want, "right") || !strings.Contains(clock.Text, c.want) {
			t.Errorf("%s: %+v, %+v, want %s", c.name, up, clock, c.want)
		}
	}
}

// What is wrong, and what is only worth knowing, each with what to do about it.
func TestDoctorNode(t *testing.T) {
	for _, c := range []struct {
		name string
		look func(*doctor)
		want string // what: ok, note or wrong
	}{
		{"upstream down", func(d *doctor) {
			d.examineUpstreams(t.Context(), node.Status{Upstreams: []string{"http://127.0.0.1:1/"}})
		}, "upstream: wrong"},
		{"offline", func(d *doctor) { d.examineUpstreams(t.Context(), node.Status{Offline: true}) }, "upstream: note"},
		{"full disk", func(d *doctor) { d.examineStore(node.StoreStatus{Free: 1 << 20}) }, "store: wrong"},
		{"free space unknown", func(d *doctor) { d.examineStore(node.StoreStatus{Free: -1}) }, "store: ok"},
		{"damage", func(d *doctor) { d.examineStore(node.StoreStatus{Free: -1, Damaged: 2}) }, "store: wrong"},
		{"stale catalog", func(d *doctor) { d.examineRegistry(node.RegistryStatus{Key: "k", Length: 9, Stale: true}) }, "registry: wrong"},
		{"catalog not read", func(d *doctor) { d.examineRegistry(node.RegistryStatus{Key: "k"}) }, "registry: wrong"},
		{"fresh catalog", func(d *doctor) { d.examineRegistry(node.RegistryStatus{Key: "k", Length: 9}) }, "registry: ok"},
		{"alone", func(d *doctor) { d.examineSwarm(node.SwarmStatus{}) }, "peers: note, lan: note, ports: note"},
		{"in company", func(d *doctor) {
			d.examineSwarm(node.SwarmStatus{LAN: true, Listen: []string{"0.0.0.0:7071"}, Peers: make([]node.PeerStatus, 2)})
		}, "peers: ok, lan: ok, ports: ok"},
	} {
		d := &doctor{}
		c.look(d)
		var got []string
		for _, f := range d.findings {
			state := map[bool]string{true: "ok", false: "wrong"}[f.OK]
			if f.Note {
				state = "note"
			}
			if !f.OK && f.Do == "" {
				t.Errorf("%s: %s, and not what to do", c.name, f.Text)
			}
			got = append(got, f.What+": "+state)
		}
		if s := strings.Join(got, ", "); s != c.want {
			t.Errorf("%s: %s, want %s", c.name, s, c.want)
		}
	}
}
