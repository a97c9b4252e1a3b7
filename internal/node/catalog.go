package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pkgswarm/pkgswarm/registry"
	"github.com/pkgswarm/pkgswarm/registry/artifact"
	"github.com/pkgswarm/pkgswarm/registry/crates"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
	"github.com/pkgswarm/pkgswarm/registry/signed"
)

// signedCrates answers from the catalogs, and carries out what they withdraw.
type signedCrates struct {
	*signed.Registry
	n *Node
}

func (s signedCrates) CrateIndex(ctx context.Context, name string) ([]byte, bool, error) {
	h := pkglog.Header{Ecosystem: pkglog.Cargo, Package: name}
	if a, err := s.Package(ctx, h); err == nil {
		s.n.withdrawRemoved(h, a.State)
	}
	body, stale, err := s.Registry.CrateIndex(ctx, name)
	if _, ok := errors.AsType[*signed.DisagreementError](err); ok {
		err = fmt.Errorf("%w: %w", crates.ErrDisputed, err)
	}
	return body, stale, err
}

// refreshed is told of a package that has changed in a catalog: clients see it at
// once.
func (n *Node) refreshed(h pkglog.Header) {
	if h.Ecosystem == pkglog.Cargo && n.crates != nil {
		n.crates.Expire(registry.CrateName(h.Package))
	}
}

// withdrawRemoved takes back the files of removed versions, by whatever way they
// came here (SEC-19).
func (n *Node) withdrawRemoved(h pkglog.Header, st *pkglog.State) {
	for _, w := range st.Withdrawn() {
		var ds []artifact.Digest
		for _, a := range w.Artifacts {
			ds = append(ds, artifact.Digest{Alg: digestAlgorithm(h), Sum: a.Digest})
		}
		if h.Ecosystem == pkglog.Cargo {
			if l, err := registry.ParseCargoLine(registry.CrateName(h.Package), w.Line); err == nil {
				ds = append(ds, artifact.Digest{Alg: artifact.SHA256, Sum: l.Cksum})
			}
		}
		for _, d := range ds {
			if err := n.withdraw(d, "removed from the registry by its operator"); err != nil {
				n.log.Error("withdraw a removed version", "err", err)
			}
		}
	}
}

func digestAlgorithm(h pkglog.Header) artifact.Algorithm {
	if h.Ecosystem == pkglog.Go {
		return artifact.H1
	}
	return artifact.SHA256
}

// withdraw withdraws the file of that digest, once.
func (n *Node) withdraw(d artifact.Digest, reason string) error {
	info, err := n.artifacts.Stat(d)
	if err != nil {
		return nil // not here, or withdrawn already
	}
	return n.artifacts.Withdraw(info.SHA256, reason)
}

// RegistryStatus describes a catalog that the node follows.
type RegistryStatus struct {
	Key string `json:"key"` // as configured
	// Successor is the key that it was replaced by; empty if it was not.
	Successor string `json:"successor,omitempty"`

	Length uint64 `json:"length"` // of the head in use; 0 if there is none yet
	Time   string `json:"time,omitempty"`
	Cargo  uint64 `json:"cargo_packages"`
	Go     uint64 `json:"go_packages"`
	Stale  bool   `json:"stale"`
	Forked bool   `json:"forked,omitempty"` // the operator has signed two histories: it is not used
	Error  string `json:"error,omitempty"`  // what is wrong with the newest head

	Mirror *signed.MirrorStatus `json:"mirror,omitempty"` // nil if it is not mirrored
}

func (n *Node) registryStatus() []RegistryStatus {
	rs := []RegistryStatus{}
	if n.signed == nil {
		return rs
	}
	for _, s := range n.signed.Status() {
		r := RegistryStatus{
			Key: s.Configured.String(), Length: s.Length, Cargo: s.Head.Cargo, Go: s.Head.Go,
			Stale: s.Stale || !s.Ready, Forked: s.Forked, Error: s.Err, Mirror: s.Mirrored,
		}
		if s.Key != s.Configured {
			r.Successor = s.Key.String()
		}
		if s.Ready {
			r.Time = s.Head.Time.UTC().Format(time.RFC3339)
		}
		rs = append(rs, r)
	}
	return rs
}
