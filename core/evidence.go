package core

import (
	"errors"
	"fmt"

	"github.com/pkgswarm/pkgswarm/core/merkle"
	"github.com/pkgswarm/pkgswarm/internal/compact"
)

// Evidence proves that the signers of a core have signed two histories of which
// neither extends the other. It convinces anyone who has the key, offline.
//
// Encoded: uint 1, key, buffer manifest, buffer A, buffer B. A and B are data
// messages of the replication protocol: each proves the first n blocks of a
// tree, the same n in both, and leads on to the length that is signed.
type Evidence struct {
	Key      Key
	Manifest []byte // as encoded; empty if the key is the signer's public key
	A, B     []byte
}

const evidenceVersion = 1

// ErrEvidence is matched by the errors of evidence that proves nothing.
var ErrEvidence = errors.New("core: not evidence of two histories")

// Encode returns the encoding of e.
func (e *Evidence) Encode() []byte {
	b := compact.AppendUint(nil, evidenceVersion)
	b = append(b, e.Key[:]...)
	b = compact.AppendBytes(b, e.Manifest)
	b = compact.AppendBytes(b, e.A)
	return compact.AppendBytes(b, e.B)
}

// DecodeEvidence reads what Encode wrote. It does not verify it.
func DecodeEvidence(b []byte) (*Evidence, error) {
	d := compact.NewDecoder(b)
	if v := d.Uint(); v != evidenceVersion && d.Err() == nil {
		return nil, fmt.Errorf("%w: unknown version %d", ErrEvidence, v)
	}
	e := &Evidence{Key: d.Fixed32(), Manifest: d.Bytes(), A: d.Bytes(), B: d.Bytes()}
	if d.Err() == nil && d.Len() > 0 {
		return nil, fmt.Errorf("%w: %d bytes too many", ErrEvidence, d.Len())
	}
	if d.Err() != nil {
		return nil, fmt.Errorf("%w: %w", ErrEvidence, d.Err())
	}
	return e, nil
}

// Verify checks that e proves what it claims. The error matches [ErrEvidence].
func (e *Evidence) Verify() error {
	m := SingleSigner(PublicKey(e.Key))
	if len(e.Manifest) > 0 {
		var err error
		if m, err = DecodeManifest(e.Manifest); err != nil {
			return fmt.Errorf("%w: %w", ErrEvidence, err)
		}
	}
	if err := m.CheckKey(e.Key); err != nil {
		return fmt.Errorf("%w: %w", ErrEvidence, err)
	}
	a, err := e.history(&m, e.A)
	if err != nil {
		return err
	}
	b, err := e.history(&m, e.B)
	if err != nil {
		return err
	}
	switch {
	case a.Tree.Fork != b.Tree.Fork:
		return fmt.Errorf("%w: forks %d and %d", ErrEvidence, a.Tree.Fork, b.Tree.Fork)
	case a.Prefix.Length != b.Prefix.Length:
		return fmt.Errorf("%w: prefixes of %d and %d blocks", ErrEvidence, a.Prefix.Length, b.Prefix.Length)
	case a.Prefix.Hash() == b.Prefix.Hash():
		return fmt.Errorf("%w: both begin with the same %d blocks", ErrEvidence, a.Prefix.Length)
	}
	return nil
}

// history verifies one of the two sides.
func (e *Evidence) history(m *Manifest, message []byte) (*merkle.Batch, error) {
	d := compact.NewDecoder(message)
	p, _ := merkle.DecodeProof(d)
	if d.Err() != nil {
		return nil, fmt.Errorf("%w: %w", ErrEvidence, d.Err())
	}
	b, err := merkle.VerifyHead(m.Prologue, p)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrEvidence, err)
	}
	if err := m.VerifyTree(e.Key, b.Tree, b.Signature); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrEvidence, err)
	}
	return b, nil
}
