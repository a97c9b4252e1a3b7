package catalog

import (
	"errors"
	"fmt"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/core/merkle"
	"github.com/pkgswarm/pkgswarm/internal/compact"
)

// A SignedHead is a head of a core and what convinces anybody that its signers
// signed it.
type SignedHead struct {
	Key      core.Key
	Manifest []byte      // encoded; hashes to Key
	Message  []byte      // a data message of the replication protocol: the upgrade from 0
	Tree     merkle.Tree // what Message proves
}

// A Prover proves what it holds of a core. *core.Core is one.
type Prover interface {
	Key() core.Key
	Prove(merkle.Request) (*merkle.Proof, error)
}

// signedHead returns the head of length blocks, which must be the newest.
func signedHead(c Prover, length uint64) (*SignedHead, error) {
	p, err := prove(c, length)
	if err != nil {
		return nil, err
	}
	h := &SignedHead{Key: c.Key(), Manifest: p.Manifest}
	p.Manifest = nil
	h.Message = p.AppendMessage(nil, 0)
	return h, h.verify()
}

// prove proves the first length blocks of c, and the way from there to its head.
func prove(c Prover, length uint64) (*merkle.Proof, error) {
	return c.Prove(merkle.Request{Upgrade: &merkle.UpgradeRequest{Length: length}, Manifest: true})
}

// verify checks the manifest against the key, and the head against the manifest,
// and sets Tree.
func (h *SignedHead) verify() error {
	m, err := core.DecodeManifest(h.Manifest)
	if err != nil {
		return err
	}
	if err := m.CheckKey(h.Key); err != nil {
		return err
	}
	d := compact.NewDecoder(h.Message)
	p, _ := merkle.DecodeProof(d)
	if d.Err() != nil {
		return d.Err()
	}
	b, err := merkle.VerifyHead(m.Prologue, p)
	if err != nil {
		return err
	}
	h.Tree = b.Tree
	return m.VerifyTree(h.Key, b.Tree, b.Signature)
}

// evidenceAgainst proves that c, whose newest head is signed, does not go on from
// the head last, which is as well. SEC-13
func evidenceAgainst(c Prover, last *SignedHead) (*core.Evidence, error) {
	p, err := prove(c, last.Tree.Length)
	if err != nil {
		return nil, err
	}
	p.Manifest = nil
	e := &core.Evidence{Key: last.Key, Manifest: last.Manifest, A: last.Message, B: p.AppendMessage(nil, 0)}
	if err := e.Verify(); err != nil {
		return nil, errors.Join(fmt.Errorf("catalog %s forks, but that cannot be proven", last.Key.Short()), err)
	}
	return e, nil
}
