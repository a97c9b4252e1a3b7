package main

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/pkgswarm/pkgswarm/internal/node"
	"github.com/pkgswarm/pkgswarm/registry/signed"
)

const (
	clockSlack = 5 * time.Minute // by which a clock may be wrong
	lowDisk    = 512 << 20       // bytes of free space at which a store is as good as full
)

func (d *doctor) examineNode(ctx context.Context) {
	st, err := askStatus(ctx, d.url)
	if err != nil {
		d.bad("node", "start it with pkgswarm serve, or give another --url", "none answers at %s", d.url)
		return
	}
	d.node = &st
	if st.Ready {
		d.ok("node", "%s at %s is ready", st.Version, st.Listen)
	} else {
		d.bad("node", "its log says which part has ended; start it again", "it is not ready")
	}
	d.examineStore(st.Store)
	d.examineUpstreams(ctx, st)
	for _, r := range st.Registries {
		d.examineRegistry(r)
	}
	d.examineSwarm(st.Swarm)
}

func (d *doctor) examineStore(st node.StoreStatus) {
	if st.Trouble != "" {
		d.bad("store", "restart the node; if it comes again, look at the disk", "%s", st.Trouble)
	}
	switch {
	case st.Damaged > 0:
		d.bad("store", "stop the node and run pkgswarm verify --repair; if it goes on, look at the disk", "%d artifacts were damaged since the start", st.Damaged)
	case st.Free >= 0 && st.Free < lowDisk:
		d.bad("store", "free some space, or set --disk-cap", "%s are free on its disk: what is fetched is not kept", humanize.Bytes(uint64(st.Free)))
	default:
		d.ok("store", "%d artifacts, none found damaged", st.Files)
	}
}

// examineUpstreams asks each upstream for its root, through the proxy that is set if
// there is one, and compares its clock with ours.
func (d *doctor) examineUpstreams(ctx context.Context, st node.Status) {
	if st.Offline {
		d.note("upstream", "none is asked (--offline)", "")
		return
	}
	client := &http.Client{
		Timeout:       askTimeout,
		Transport:     &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	var clock time.Time
	for _, url := range st.Upstreams {
		if !strings.HasPrefix(url, "http") {
			continue // a directory
		}
		at, err := reach(ctx, client, url)
		if err != nil {
			d.bad("upstream", "look at the network and at HTTPS_PROXY; disk and peers are used meanwhile", "%v", err)
			continue
		}
		d.ok("upstream", "%s answers", url)
		if !at.IsZero() {
			clock = at
		}
	}
	d.examineClock(clock, st.Registries)
}

// reach returns the time that whoever serves url has on its clock.
func reach(ctx context.Context, client *http.Client, url string) (time.Time, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, url, nil)
	if err != nil {
		return time.Time{}, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return time.Time{}, err
	}
	resp.Body.Close() // any answer will do: the root need not exist
	at, _ := http.ParseTime(resp.Header.Get("Date"))
	return at, nil
}

// examineClock compares our clock with an upstream's, which is zero if none has told
// it, and with what operators have signed: neither is of the future. REL-10
func (d *doctor) examineClock(upstream time.Time, registries []node.RegistryStatus) {
	const do = "set it, by hand or with NTP: certificates and the age of catalogs depend on it"
	now := time.Now()
	if !upstream.IsZero() {
		if off := now.Sub(upstream); off.Abs() > clockSlack {
			d.bad("clock", do, "this machine's differs from an upstream's by %s", off.Abs().Round(time.Minute))
			return
		}
	}
	for _, r := range registries {
		if at, err := time.Parse(time.RFC3339, r.Time); err == nil && at.Sub(now) > clockSlack {
			d.bad("clock", do, "this machine's is behind that of the operator of %s by %s", r.Key, at.Sub(now).Round(time.Minute))
			return
		}
	}
	if !upstream.IsZero() {
		d.ok("clock", "right, as far as an upstream's tells")
	}
}

func (d *doctor) examineRegistry(r node.RegistryStatus) {
	switch {
	case r.Forked:
		d.bad("registry", "ask its operator for another key; pkgswarm verify --evidence shows what was signed", "the operator of catalog %s has signed two histories: it is not used", r.Key)
	case r.Length == 0:
		d.bad("registry", "name a peer that has it with --peer", "catalog %s has not been read yet", r.Key)
	case r.Stale:
		d.bad("registry", "ask its operator; until then the upstream is asked what is new, unless --offline keeps it from that", "catalog %s was last vouched for at %s", r.Key, r.Time)
	case r.Error != "":
		d.bad("registry", "ask its operator; what was accepted before is used meanwhile", "%s", registryLine(r))
	default:
		d.ok("registry", "%s", registryLine(r))
	}
	if r.Mirror != nil {
		d.examineMirror(r.Mirror)
	}
}

func (d *doctor) examineMirror(m *signed.MirrorStatus) {
	left := 0
	if m.Files != nil {
		left = m.Files.LeftOut
	}
	switch err := cmp.Or(m.Err, filesErr(m.Files)); {
	case err != "":
		d.bad("mirror", "it goes on by itself once that is over", "%s", printable(err))
	case m.Wrong > 0:
		d.bad("mirror", "ask the operator; the node's log names them", "%d package logs are not as their operator signed them", m.Wrong)
	case left > 0:
		d.note("mirror", fmt.Sprintf("the files of %d packages do not fit", left), "raise --disk-cap and start the node again")
	default:
		d.ok("mirror", "%s", strings.TrimPrefix(mirrorLine(m), "mirror: "))
	}
}

func filesErr(f *signed.FilesStatus) string {
	if f == nil {
		return ""
	}
	return f.Err
}

func (d *doctor) examineSwarm(st node.SwarmStatus) {
	if n := len(st.Peers); n > 0 {
		d.ok("peers", "%d connected", n)
	} else {
		d.note("peers", "none connected: all comes from disk or the upstream", "name some with --peer HOST:PORT, or start nodes on this network")
	}
	if st.LAN {
		d.ok("lan", "peers on the local network are looked for")
	} else {
		d.note("lan", "peers on the local network are not looked for", "start the node without --no-lan")
	}
	if len(st.Listen) > 0 {
		d.ok("ports", "peers connect to %s", strings.Join(st.Listen, ", "))
	} else {
		d.note("ports", "peers cannot connect to this node, it connects to them", "give it --swarm-listen :7071 to change that")
	}
}
