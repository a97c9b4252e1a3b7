package core

import (
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"filippo.io/edwards25519"

	"github.com/pkgswarm/pkgswarm/core/merkle"
	"github.com/pkgswarm/pkgswarm/internal/compact"
	"github.com/pkgswarm/pkgswarm/internal/flattree"
)

// ErrSignature is matched by the error of a tree that its core's manifest does
// not vouch for.
var ErrSignature = errors.New("core: invalid signature")

// VerifyTree checks that the manifest m of the core key vouches for t. sig is
// the encoded signature, which may be empty for a core whose content is fixed.
// The caller has checked that m belongs to key; see [Manifest.CheckKey].
//
// The error matches [ErrSignature].
func (m *Manifest) VerifyTree(key Key, t merkle.Tree, sig []byte) error {
	if !m.vouches(key, t, sig) {
		return fmt.Errorf("%w: core %s, length %d, fork %d", ErrSignature, key.Short(), t.Length, t.Fork)
	}
	return nil
}

func (m *Manifest) vouches(key Key, t merkle.Tree, sig []byte) bool {
	if m.hasPlainSignature(key) {
		return m.Signers[0].verify(m.signable(key, 0, t), sig)
	}
	if m.Version > 0 && m.Prologue != nil && t.Length <= m.Prologue.Length {
		return t.Length == m.Prologue.Length && t.Hash() == m.Prologue.Hash
	}
	return m.vouchesMulti(key, t, sig)
}

// hasPlainSignature says whether signatures are the bare 64 bytes.
func (m *Manifest) hasPlainSignature(key Key) bool {
	return m.IsCompat(key) || m.Version == 0 && len(m.Signers) == 1 && !m.AllowPatch
}

// vouchesMulti looks at the first Quorum signatures; all must be good.
func (m *Manifest) vouchesMulti(key Key, t merkle.Tree, sig []byte) bool {
	if m.Quorum == 0 {
		return false
	}
	parts, nodes, err := decodeMulti(m.Version, sig)
	if err != nil || uint64(len(parts)) < m.Quorum {
		return false
	}
	parts = parts[:m.Quorum]
	for i, p := range parts {
		if p.Signer >= uint64(len(m.Signers)) {
			return false
		}
		if slices.ContainsFunc(parts[:i], func(q Partial) bool { return q.Signer == p.Signer }) {
			return false
		}
		signed := t
		if p.Patch > 0 && m.AllowPatch {
			if signed, err = merkle.Extend(t, nodes, p.Patch); err != nil {
				return false
			}
		}
		if !m.Signers[p.Signer].verify(m.signable(key, int(p.Signer), signed), p.Signature[:]) {
			return false
		}
	}
	return true
}

// verify checks a plain Ed25519 signature. As libsodium does, it refuses public
// keys of small order, under which one signature fits many messages.
func (s *Signer) verify(message, sig []byte) bool {
	if len(sig) != ed25519.SignatureSize {
		return false
	}
	p, err := new(edwards25519.Point).SetBytes(s.PublicKey[:])
	if err != nil || PublicKey(p.Bytes()) != s.PublicKey {
		return false
	}
	if new(edwards25519.Point).MultByCofactor(p).Equal(edwards25519.NewIdentityPoint()) == 1 {
		return false
	}
	return ed25519.Verify(s.PublicKey[:], message, sig)
}

// signable returns what signer number i signs to vouch for t:
//
//	TREE || context || tree hash || LE64(length) || LE64(fork)
//
// The context is the key, the namespace of the signer in version 0, and absent
// in compat cores.
func (m *Manifest) signable(key Key, i int, t merkle.Tree) []byte {
	b := make([]byte, 0, 112)
	b = append(b, nsTree[:]...)
	switch {
	case m.IsCompat(key):
	case m.Version == 0:
		b = append(b, m.Signers[i].Namespace[:]...)
	default:
		b = append(b, key[:]...)
	}
	hash := t.Hash()
	b = append(b, hash[:]...)
	b = binary.LittleEndian.AppendUint64(b, t.Length)
	return binary.LittleEndian.AppendUint64(b, t.Fork)
}

// A Partial is the signature of one signer of several.
type Partial struct {
	Signer    uint64 // its place in the manifest, from 0
	Signature [64]byte

	// With AllowPatch, the signer may have signed Patch blocks more than the
	// others; Nodes then are the upgrade nodes that lead there.
	Patch uint64
	Nodes []merkle.Node
}

// Sign returns the signature of t by the signer whose key pair p is. The error
// matches [ErrSignature] when m has no such signer.
func (m *Manifest) Sign(key Key, t merkle.Tree, p KeyPair) (Partial, error) {
	pub := p.Public()
	for i, s := range m.Signers {
		if s.PublicKey == pub {
			return Partial{Signer: uint64(i), Signature: p.Sign(m.signable(key, i, t))}, nil
		}
	}
	return Partial{}, fmt.Errorf("%w: %x is not a signer of core %s", ErrSignature, pub[:4], key.Short())
}

// SignTree returns the encoded signature of t by those of the key pairs that m
// needs. It is nil for a tree that needs none because the prologue fixes it. The
// error matches [ErrSignature] when the pairs are too few.
func (m *Manifest) SignTree(key Key, t merkle.Tree, pairs ...KeyPair) ([]byte, error) {
	if m.Version > 0 && m.Prologue != nil && t.Length == m.Prologue.Length {
		return nil, nil
	}
	var parts []Partial
	for _, p := range pairs {
		if uint64(len(parts)) >= m.Quorum {
			break
		}
		part, err := m.Sign(key, t, p)
		if err != nil {
			return nil, err
		}
		parts = append(parts, part)
	}
	if len(parts) == 0 || uint64(len(parts)) < m.Quorum {
		return nil, fmt.Errorf("%w: %d of %d signers of core %s present", ErrSignature, len(parts), m.Quorum, key.Short())
	}
	return m.Assemble(key, parts...), nil
}

// Assemble returns the encoded signature that consists of the given ones.
//
//	plain:       64 bytes, for compat cores and version 0 with one signer
//	version >=1: array of {uint signer, signature, uint patch}, array(node)
//	version 0:   array of {uint flags, uint signer, signature, [flags & 1:
//	             uint start, uint length, array(uint) positions]}, array(node)
func (m *Manifest) Assemble(key Key, parts ...Partial) []byte {
	if len(parts) == 1 && m.hasPlainSignature(key) {
		return parts[0].Signature[:]
	}
	if m.Version == 0 {
		return assembleVersion0(parts)
	}
	b := compact.AppendUint(nil, uint64(len(parts)))
	var nodes []merkle.Node
	for _, p := range parts {
		for _, n := range p.Nodes {
			if !slices.ContainsFunc(nodes, func(o merkle.Node) bool { return o.Index == n.Index }) {
				nodes = append(nodes, n)
			}
		}
		b = compact.AppendUint(b, p.Signer)
		b = append(b, p.Signature[:]...)
		b = compact.AppendUint(b, p.Patch)
	}
	return merkle.AppendNodes(b, nodes)
}

func assembleVersion0(parts []Partial) []byte {
	b := compact.AppendUint(nil, uint64(len(parts)))
	var nodes []merkle.Node
	for _, p := range parts {
		b = compact.AppendBool(b, p.Patch > 0)
		b = compact.AppendUint(b, p.Signer)
		b = append(b, p.Signature[:]...)
		if p.Patch == 0 {
			continue
		}
		start := uint64(0)
		if len(p.Nodes) > 0 {
			start = flattree.RightSpan(p.Nodes[len(p.Nodes)-1].Index)/2 + 1
		}
		b = compact.AppendUint(b, start)
		b = compact.AppendUint(b, p.Patch)
		b = compact.AppendUint(b, uint64(len(p.Nodes)))
		for _, n := range p.Nodes {
			at := slices.Index(nodes, n)
			if at < 0 {
				at = len(nodes)
				nodes = append(nodes, n)
			}
			b = compact.AppendUint(b, uint64(at))
		}
	}
	return merkle.AppendNodes(b, nodes)
}

// maxPatchNodes bounds the nodes of a signature.
const maxPatchNodes = 4096

// decodeMulti reads what Assemble wrote for manifests of that version. The
// nodes are those of all parts together.
func decodeMulti(version uint64, sig []byte) (parts []Partial, nodes []merkle.Node, err error) {
	d := compact.NewDecoder(sig)
	parts = make([]Partial, d.Count(66))
	for i := range parts {
		if version > 0 {
			parts[i] = Partial{Signer: d.Uint(), Signature: d.Fixed64(), Patch: d.Uint()}
			continue
		}
		flags := d.Uint()
		parts[i] = Partial{Signer: d.Uint(), Signature: d.Fixed64()}
		if flags&1 != 0 {
			d.Uint() // start
			parts[i].Patch = d.Uint()
			for range d.Count(1) {
				d.Uint() // positions: the nodes are looked up by index instead
			}
		}
	}
	nodes = merkle.DecodeNodes(d, maxPatchNodes)
	return parts, nodes, d.Err()
}

// SignableLength returns the length that quorum signers have reached, given the
// lengths that each of them has signed: the quorum-th largest, or 0.
func SignableLength(lengths []uint64, quorum int) uint64 {
	quorum = max(quorum, 1)
	if quorum > len(lengths) {
		return 0
	}
	sorted := slices.Clone(lengths)
	slices.Sort(sorted)
	return sorted[len(sorted)-quorum]
}
