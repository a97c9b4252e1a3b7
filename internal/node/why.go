package node

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/registry"
	"github.com/pkgswarm/pkgswarm/registry/artifact"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
	"github.com/pkgswarm/pkgswarm/registry/signed"
	"golang.org/x/mod/module"
)

// whyWait bounds how long the first reading of the catalogs is waited for.
const whyWait = 2 * time.Second

// Why is what /api/v1/why/ECOSYSTEM/NAME@VERSION answers: who served the file of a
// version, and what proves it. Nothing is asked of an upstream for it. Fields are
// only ever added.
type Why struct {
	Ecosystem string `json:"ecosystem"`
	Name      string `json:"name"`
	Version   string `json:"version"`

	// Proven says that the file is here, that its bytes were checked, and that one
	// of the proofs below is of them.
	Proven bool      `json:"proven"`
	File   *WhyFile  `json:"file,omitempty"`   // nil: not in the store
	Index  *WhyIndex `json:"index,omitempty"`  // what the upstream says of a crate
	Sums   *WhySums  `json:"sumdb,omitempty"`  // what the checksum database proves of a module
	Signed *WhySign  `json:"signed,omitempty"` // what an operator has signed
	// FirstSeen is the hash of a module's zip that no checksum database covers: it
	// is held to what it was at first.
	FirstSeen string   `json:"first_seen,omitempty"`
	Problems  []string `json:"problems,omitempty"`
}

// A WhyFile is a file in the store.
type WhyFile struct {
	SHA256  string    `json:"sha256"`
	H1      string    `json:"h1,omitempty"`
	Key     string    `json:"core,omitempty"` // of the static core; empty if peers may not have it
	Bytes   int64     `json:"bytes"`
	Source  string    `json:"source"` // peers, upstream, import or bundle; empty if not known
	From    []string  `json:"from,omitempty"`
	Stored  time.Time `json:"stored,omitzero"`
	Checked time.Time `json:"checked"` // when its bytes were last read and found right
}

// A WhyIndex is an index line of a crate.
type WhyIndex struct {
	URL   string    `json:"url"`
	TLS   bool      `json:"tls"`
	Asked time.Time `json:"asked,omitzero"` // when the upstream last confirmed it
	Via   string    `json:"via,omitempty"`  // what brought it in place of the upstream
	Cksum string    `json:"cksum"`
	Line  string    `json:"line"`
}

// A WhySums is a record of the checksum database, its inclusion proven again for
// this answer.
type WhySums struct {
	Database string `json:"database"`
	Record   int64  `json:"record"`
	TreeSize int64  `json:"tree_size"`
	TreeHash string `json:"tree_hash"`
	Hashes   int    `json:"proof_hashes"`
	Zip      string `json:"zip"`
	Mod      string `json:"mod"`
}

// A WhySign is what an operator has signed about a version.
type WhySign struct {
	Log           core.Key  `json:"log"`
	Block         uint64    `json:"block"` // of the event; 0 if it could not be read again
	Event         string    `json:"event,omitempty"`
	Length        uint64    `json:"length"` // of the log, as the catalog names it
	TreeHash      string    `json:"tree_hash"`
	Digest        string    `json:"digest"`
	Catalog       core.Key  `json:"catalog"`
	CatalogLength uint64    `json:"catalog_length"`
	Time          time.Time `json:"time"` // of the catalog's head
	Stale         bool      `json:"stale"`
	Agree         int       `json:"agree"` // operators that must agree
}

// errNotKnown says that nothing is held of a version.
type errNotKnown struct{ what string }

func (e errNotKnown) Error() string {
	return e.what + ": nothing of it is here, neither an index entry nor a file"
}

func (n *Node) serveWhy(w http.ResponseWriter, r *http.Request) {
	name, version, ok := cutLast(chi.URLParam(r, "*"), "@")
	if !ok || version == "" {
		http.Error(w, "write it as ECOSYSTEM/NAME@VERSION", http.StatusBadRequest)
		return
	}
	var y *Why
	var err error
	switch eco := chi.URLParam(r, "ecosystem"); eco {
	case "cargo":
		y, err = n.whyCrate(r.Context(), name, version)
	case "go":
		y, err = n.whyModule(r.Context(), name, version)
	default:
		http.Error(w, "the ecosystems are cargo and go", http.StatusBadRequest)
		return
	}
	if err != nil {
		status := http.StatusBadRequest
		if _, unknown := errors.AsType[errNotKnown](err); unknown {
			status = http.StatusNotFound
		}
		http.Error(w, err.Error(), status)
		return
	}
	writeJSON(w, y)
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.Encode(v)
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

func (n *Node) whyCrate(ctx context.Context, name, version string) (*Why, error) {
	crate, err := registry.ParseCrate(name)
	if err != nil {
		return nil, err
	}
	y := &Why{Ecosystem: "cargo", Name: name, Version: version}
	var ds []artifact.Digest
	p, err := n.crates.Provenance(crate, version)
	if err == nil && len(p.Lines) > 0 {
		if l := p.Lines[len(p.Lines)-1]; p.Index != "" {
			y.Index = &WhyIndex{URL: p.Index, TLS: strings.HasPrefix(p.Index, "https:"), Asked: p.Asked.UTC(), Via: p.Via,
				Cksum: fmt.Sprintf("%x", l.Cksum), Line: string(l.Raw)}
		}
		for _, l := range p.Lines {
			ds = append(ds, artifact.Digest{Alg: artifact.SHA256, Sum: l.Cksum})
		}
	}
	if r := n.crates.Refused(crate, version); r != nil {
		y.Problems = append(y.Problems, r.Error())
	}
	h := pkglog.Header{Ecosystem: pkglog.Cargo, Package: string(crate)}
	if a := n.whyPackage(ctx, y, h); a != nil {
		for _, raw := range a.State.Lines() {
			if l, err := registry.ParseCargoLine(crate, raw); err == nil && l.Vers == version {
				ds = append(ds, artifact.Digest{Alg: artifact.SHA256, Sum: l.Cksum})
				n.whySigned(ctx, y, a, fmt.Sprintf("%x", l.Cksum), func(e *pkglog.Event) bool { return bytes.Equal(e.Line, raw) })
			}
		}
	}
	if len(ds) == 0 {
		return nil, errNotKnown{name + "@" + version}
	}
	n.whyFile(y, ds)
	y.Proven = y.File != nil && (y.Signed != nil && y.Signed.Digest == y.File.SHA256 ||
		y.Signed == nil && y.Index != nil && slices.ContainsFunc(p.Lines, func(l registry.CargoLine) bool {
			return fmt.Sprintf("%x", l.Cksum) == y.File.SHA256
		}))
	return y, nil
}

func (n *Node) whyModule(ctx context.Context, path, version string) (*Why, error) {
	v := module.Version{Path: path, Version: version}
	if err := module.CheckPath(path); err != nil {
		return nil, err
	}
	y := &Why{Ecosystem: "go", Name: path, Version: version}
	p, err := n.modules.Provenance(v)
	if err != nil {
		return nil, err
	}
	var ds []artifact.Digest
	add := func(h1 string) {
		if d, err := artifact.ParseH1(h1); err == nil {
			ds = append(ds, d)
		}
	}
	switch {
	case p.First != nil:
		y.FirstSeen = p.First.String()
		add(y.FirstSeen)
	case p.Covered && n.sums != nil:
		n.whySums(ctx, y, v)
		if y.Sums != nil {
			add(y.Sums.Zip)
		}
	}
	signedZip := ""
	if a := n.whyPackage(ctx, y, pkglog.Header{Ecosystem: pkglog.Go, Package: path}); a != nil && !p.Private {
		if m := a.State.Module(version); m != nil {
			signedZip = "h1:" + base64.StdEncoding.EncodeToString(m.ZipHash[:])
			add(signedZip)
			n.whySigned(ctx, y, a, signedZip, func(e *pkglog.Event) bool { return e.Module != nil && e.Module.Version == version })
		}
	}
	if len(ds) == 0 {
		return nil, errNotKnown{path + "@" + version}
	}
	n.whyFile(y, ds)
	y.Proven = y.File != nil && (y.Sums != nil && y.File.H1 == y.Sums.Zip || y.Sums == nil && signedZip != "" && y.File.H1 == signedZip)
	return y, nil
}

func (n *Node) whySums(ctx context.Context, y *Why, v module.Version) {
	in, err := n.sums.Inclusion(ctx, v)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			y.Problems = append(y.Problems, err.Error())
		}
		return
	}
	y.Sums = &WhySums{Database: n.sums.Name(), Record: in.ID, TreeSize: in.Tree.N, TreeHash: in.Tree.Hash.String(),
		Hashes: len(in.Proof), Zip: in.Zip, Mod: in.Mod}
}

// whyPackage returns what the catalogs say of a package, nil if there are none.
func (n *Node) whyPackage(ctx context.Context, y *Why, h pkglog.Header) *signed.Answer {
	if n.signed == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, whyWait)
	defer cancel()
	n.signed.Ready(ctx) // if they are not, Package says so
	a, err := n.signed.Package(ctx, h)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			y.Problems = append(y.Problems, err.Error())
		}
		return nil
	}
	if err := a.Refused[y.Version]; err != nil {
		y.Problems = append(y.Problems, err.Error())
	}
	return a
}

func (n *Node) whySigned(ctx context.Context, y *Why, a *signed.Answer, digest string, match func(*pkglog.Event) bool) {
	s := &WhySign{Log: a.Entry.Log, Length: a.Entry.Length, TreeHash: fmt.Sprintf("%x", a.Entry.TreeHash[:]), Digest: digest,
		Catalog: a.Operator, Time: a.Head.Time.UTC(), Stale: a.Stale, Agree: max(1, n.c.Agree)}
	for _, snap := range n.signed.Snapshots() {
		if snap.Key == a.Operator {
			s.CatalogLength = snap.Length
		}
	}
	block, kind, err := n.signed.LastEvent(ctx, a, match)
	if err != nil {
		y.Problems = append(y.Problems, err.Error())
	} else if block > 0 {
		s.Block, s.Event = block, kind.String()
	}
	y.Signed = s
}

// whyFile looks the file up under the first of the digests that the store has.
func (n *Node) whyFile(y *Why, ds []artifact.Digest) {
	for _, d := range ds {
		info, at, err := n.artifacts.Checked(d)
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				y.Problems = append(y.Problems, err.Error())
			}
			continue
		}
		y.File = &WhyFile{SHA256: info.SHA256.String(), Bytes: info.Size, Source: info.Origin.Source, From: info.Origin.From, Checked: at.UTC()}
		if info.H1 != nil {
			y.File.H1 = artifact.Digest{Alg: artifact.H1, Sum: *info.H1}.String()
		}
		if info.Key != (artifact.Key{}) {
			y.File.Key = core.Key(info.Key).String()
		}
		if info.Origin.Source != "" {
			y.File.Stored = info.Origin.Time.UTC()
		}
		return
	}
}
