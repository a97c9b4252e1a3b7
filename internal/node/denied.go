package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pkgswarm/pkgswarm/internal/durable"
	"github.com/pkgswarm/pkgswarm/registry"
	"github.com/pkgswarm/pkgswarm/registry/artifact"
	"github.com/pkgswarm/pkgswarm/registry/policy"
	"golang.org/x/mod/module"
)

const (
	maxChange = 64 << 10 // bytes of a request that changes something
	maxReason = 500      // bytes
	maxDenied = 100_000  // versions
)

// A Denial says that a version is not handed out by this node, whatever its
// registry says: by name it is refused, and its file is neither served nor given to
// peers, though it may be on the disk (SEC-19). Denials are in the state directory,
// so that no restored cache undoes them.
type Denial struct {
	Ecosystem string    `json:"ecosystem"` // cargo or go
	Name      string    `json:"name"`
	Version   string    `json:"version"`
	Reason    string    `json:"reason"` // shown to whoever asks for it
	Time      time.Time `json:"time"`
}

// check returns an error if d cannot be about anything.
func (d *Denial) check() error {
	var err error
	switch {
	case d.Ecosystem == "cargo":
		if _, err = registry.ParseCrate(d.Name); err == nil {
			err = registry.CheckCrateVersion(d.Version)
		}
	case d.Ecosystem == "go":
		err = module.Check(d.Name, d.Version)
	default:
		err = errors.New("the ecosystems are cargo and go")
	}
	if err == nil && len(d.Reason) > maxReason {
		err = fmt.Errorf("a reason has at most %d bytes", maxReason)
	}
	return err
}

// sameAs reports whether two denials are about the same.
func (d *Denial) sameAs(o *Denial) bool {
	same := d.Name == o.Name || d.Ecosystem == "cargo" && strings.EqualFold(d.Name, o.Name)
	return same && d.Ecosystem == o.Ecosystem && d.Version == o.Version
}

func (n *Node) deniedFile() string { return filepath.Join(n.c.State, "denied.json") }

// openDenied reads the denials and puts them into the policy.
func (n *Node) openDenied() error {
	n.c.Policy.Cargo.Denied, n.c.Policy.Go.Denied = &policy.Denials{Fold: true}, &policy.Denials{}
	b, err := os.ReadFile(n.deniedFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(b, &n.denied)
	}
	if err != nil {
		return fmt.Errorf("%s: %w: what it forbade would be served again: put it right, or remove it if nothing is to be denied", n.deniedFile(), err)
	}
	for _, d := range n.denied {
		n.denials(d.Ecosystem).Set(d.Name, d.Version, d.Reason)
	}
	return nil
}

func (n *Node) denials(ecosystem string) *policy.Denials {
	if ecosystem == "go" {
		return n.c.Policy.Go.Denied
	}
	return n.c.Policy.Cargo.Denied
}

// deny refuses a version from now on, also after a restart.
func (n *Node) deny(d Denial) error {
	n.deniedMu.Lock()
	defer n.deniedMu.Unlock()
	others := slices.DeleteFunc(slices.Clone(n.denied), func(o Denial) bool { return o.sameAs(&d) })
	if len(others) >= maxDenied {
		return fmt.Errorf("%d versions are denied already: use a policy", len(others))
	}
	if err := n.saveDenied(append(others, d)); err != nil {
		return err
	}
	n.denials(d.Ecosystem).Set(d.Name, d.Version, d.Reason)
	for _, sum := range n.sumsOf(d) {
		if err := n.artifacts.Withdraw(sum, d.Reason); err != nil {
			return err
		}
	}
	return nil
}

// withdrawDenied withdraws the files of what is denied. A data directory that was
// restored may not know of it.
func (n *Node) withdrawDenied() {
	for _, d := range n.denied {
		for _, sum := range n.sumsOf(d) {
			if err := n.artifacts.Withdraw(sum, d.Reason); err != nil {
				n.log.Error("withdraw a denied version", "package", d.Name, "version", d.Version, "err", err)
			}
		}
	}
}

// allow undoes deny. It reports whether there was something to undo.
func (n *Node) allow(d Denial) (bool, error) {
	n.deniedMu.Lock()
	defer n.deniedMu.Unlock()
	others := slices.DeleteFunc(slices.Clone(n.denied), func(o Denial) bool { return o.sameAs(&d) })
	if len(others) == len(n.denied) {
		return false, nil
	}
	if err := n.saveDenied(others); err != nil {
		return false, err
	}
	n.denials(d.Ecosystem).Remove(d.Name, d.Version)
	for _, sum := range n.sumsOf(d) {
		if err := n.artifacts.Restore(sum); err != nil {
			return true, err
		}
	}
	return true, nil
}

// saveDenied replaces the list of denials. deniedMu is held.
func (n *Node) saveDenied(all []Denial) error {
	b, err := json.MarshalIndent(all, "", "\t")
	if err != nil {
		return err
	}
	if err := durable.WriteFile(n.deniedFile(), append(b, '\n'), 0o600); err != nil {
		return err
	}
	n.denied = all
	return nil
}

// sumsOf returns what files of a version are called in the store, as far as that is
// known without asking anybody.
func (n *Node) sumsOf(d Denial) (sums []artifact.Sum) {
	if d.Ecosystem == "cargo" {
		name, err := registry.ParseCrate(d.Name)
		if err != nil {
			return nil
		}
		p, err := n.crates.Provenance(name, d.Version)
		if err != nil {
			return nil
		}
		for _, l := range p.Lines {
			sums = append(sums, artifact.Sum(l.Cksum))
		}
		return sums
	}
	v := module.Version{Path: d.Name, Version: d.Version}
	var zips []artifact.Digest
	if p, err := n.modules.Provenance(v); err == nil && p.First != nil {
		zips = append(zips, *p.First)
	}
	if n.sums != nil {
		if rec, ok := n.sums.Held(v); ok {
			if zip, err := artifact.ParseH1(rec.Zip); err == nil {
				zips = append(zips, zip)
			}
		}
	}
	for _, zip := range zips {
		if info, err := n.artifacts.Find(zip); err == nil {
			sums = append(sums, info.SHA256)
		}
	}
	return sums
}

// changes returns the handlers of what changes something. Each takes a POST, with JSON,
// and the token in the state directory (SEC-53).
//
//	/api/v1/deny    a Denial; its time is ours
//	/api/v1/allow   a Denial to undo
//	/api/v1/denied  {}; answers with the list of denials, which names packages
//	/api/v1/gc      {}; evicts what is over the cap; answers {"freed_bytes":N}
func (n *Node) changes() map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{
		"/api/v1/deny": n.change(func(d Denial) (any, error) {
			d.Time = time.Now().UTC().Truncate(time.Second)
			return d, n.deny(d)
		}),
		"/api/v1/allow": n.change(func(d Denial) (any, error) {
			was, err := n.allow(d)
			if err == nil && !was {
				err = errNotKnown{d.Name + "@" + d.Version + " is not denied"}
			}
			return d, err
		}),
		"/api/v1/denied": n.authorized(func(w http.ResponseWriter, _ *http.Request) {
			n.deniedMu.Lock()
			all := append([]Denial{}, n.denied...)
			n.deniedMu.Unlock()
			writeJSON(w, all)
		}),
		"/api/v1/gc": n.authorized(func(w http.ResponseWriter, _ *http.Request) {
			freed, err := n.artifacts.Collect()
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			writeJSON(w, map[string]int64{"freed_bytes": freed})
		}),
	}
}

// change returns a handler of a change to one version.
func (n *Node) change(do func(Denial) (any, error)) http.HandlerFunc {
	return n.authorized(func(w http.ResponseWriter, r *http.Request) {
		var d Denial
		dec := json.NewDecoder(io.LimitReader(r.Body, maxChange))
		dec.DisallowUnknownFields()
		err := dec.Decode(&d)
		if err == nil {
			err = d.check()
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		answer, err := do(d)
		switch _, unknown := errors.AsType[errNotKnown](err); {
		case unknown:
			http.Error(w, err.Error(), http.StatusNotFound)
		case err != nil:
			n.log.Error("change refused", "err", err)
			http.Error(w, err.Error(), http.StatusInternalServerError)
		default:
			n.log.Info("changed over HTTP", "path", r.URL.Path, "package", d.Name, "version", d.Version)
			writeJSON(w, answer)
		}
	})
}

// tokenHeader carries the node's own token. Authorization may carry that of a
// client.
const tokenHeader = "Pkgswarm-Token"

// authorized lets POSTs through that carry the node's own token.
func (n *Node) authorized(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			w.Header().Set("Allow", http.MethodPost)
			http.Error(w, "this changes something: it takes a POST", http.StatusMethodNotAllowed)
			return
		}
		if !hasToken(r.Header.Get(tokenHeader), n.token) {
			http.Error(w, "this changes something: it takes the token in the node's state directory", http.StatusForbidden)
			return
		}
		next(w, r)
	}
}
