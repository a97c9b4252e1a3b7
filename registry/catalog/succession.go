package catalog

import (
	"crypto/ed25519"
	"errors"
	"fmt"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/core/merkle"
	"github.com/pkgswarm/pkgswarm/internal/compact"
)

// ErrSuccession is matched by errors about a successor that does not count.
var ErrSuccession = errors.New("invalid successor")

const successionContext = "pkgswarm/successor"

// A successor is the entry of a replaced catalog that names the one to follow.
type successor struct {
	manifest   []byte // of the new core, encoded
	signatures []byte // array of {uint signer, fixed64 signature}
}

// A Predecessor is the entry of a catalog that names the final head of the one
// it replaces.
type Predecessor struct {
	Key      core.Key
	Length   uint64
	TreeHash merkle.Hash
}

func statement(old, new core.Key) []byte {
	b := append([]byte(successionContext), old[:]...)
	return append(b, new[:]...)
}

// newSuccessor returns the entry by which old is followed by next's catalog.
func newSuccessor(old core.Key, next *Operator) successor {
	m, pairs := next.Catalog()
	msg := statement(old, m.Key())
	sigs := compact.AppendUint(nil, m.Quorum)
	for i, p := range pairs[:m.Quorum] {
		sigs = compact.AppendUint(sigs, uint64(i))
		s := p.Sign(msg)
		sigs = append(sigs, s[:]...)
	}
	return successor{m.Encode(), sigs}
}

func (s successor) encode() []byte {
	b := compact.AppendUint(nil, valueVersion)
	b = compact.AppendBytes(b, s.manifest)
	return compact.AppendBytes(b, s.signatures)
}

// verifySuccessor reads the successor entry of old and returns the key of the
// catalog to follow, if that catalog's quorum agreed. SEC-17
func verifySuccessor(old core.Key, value []byte) (core.Key, error) {
	d, err := decoder(value, "successor")
	if err != nil {
		return core.Key{}, err
	}
	s := successor{d.Bytes(), d.Bytes()}
	if err := canonical(d, value, s.encode, "successor"); err != nil {
		return core.Key{}, err
	}
	m, err := core.DecodeManifest(s.manifest)
	if err != nil {
		return core.Key{}, fmt.Errorf("%w: %w", ErrSuccession, err)
	}
	if m.Quorum == 0 || m.Prologue != nil || m.Key() == old {
		return core.Key{}, fmt.Errorf("%w: a catalog that nobody signs, or itself", ErrSuccession)
	}
	if !quorumSigned(&m, statement(old, m.Key()), s.signatures) {
		return core.Key{}, fmt.Errorf("%w: %s has not signed", ErrSuccession, m.Key().Short())
	}
	return m.Key(), nil
}

// quorumSigned checks exactly as many signatures as the quorum, by different
// signers in ascending order.
func quorumSigned(m *core.Manifest, msg, signatures []byte) bool {
	d := compact.NewDecoder(signatures)
	n := d.Count(65)
	if uint64(n) != m.Quorum {
		return false
	}
	next := uint64(0)
	for range n {
		i, sig := d.Uint(), d.Fixed64()
		if d.Err() != nil || i < next || i >= uint64(len(m.Signers)) {
			return false
		}
		if !ed25519.Verify(m.Signers[i].PublicKey[:], msg, sig[:]) {
			return false
		}
		next = i + 1
	}
	return d.Len() == 0
}

func (p Predecessor) encode() []byte {
	b := compact.AppendUint(nil, valueVersion)
	b = append(b, p.Key[:]...)
	b = compact.AppendUint(b, p.Length)
	return append(b, p.TreeHash[:]...)
}

func decodePredecessor(value []byte) (Predecessor, error) {
	d, err := decoder(value, "predecessor")
	if err != nil {
		return Predecessor{}, err
	}
	p := Predecessor{d.Fixed32(), d.Uint(), d.Fixed32()}
	return p, canonical(d, value, p.encode, "predecessor")
}
