package core

import (
	"errors"
	"fmt"

	"golang.org/x/crypto/blake2b"

	"github.com/pkgswarm/pkgswarm/core/merkle"
	"github.com/pkgswarm/pkgswarm/internal/compact"
)

// A Manifest says what makes the blocks of a core valid: who signs it, or what
// its content is. The key of a core is the hash of its manifest.
//
// Encoded, with flags 1 allowPatch, 2 prologue, 4 linked, 8 userData:
//
//	version 0:    uint 0, uint hash (0: BLAKE2b), uint type, then
//	              type 0: prologue hash
//	              type 1: signer (quorum 1, no allowPatch)
//	              type 2: uint flags, uint quorum, array(signer)
//	version 1..3: uint version, uint flags, uint hash, uint quorum,
//	              array(signer), [hash, uint length], [array(key)], [buffer]
//	signer:       uint 0 (Ed25519), namespace, public key
type Manifest struct {
	Version    uint64           // 0 to 3; new ones have 1, or 2 with Linked or UserData
	AllowPatch bool             // signatures of several signers may cover different lengths
	Quorum     uint64           // how many of Signers must have signed
	Signers    []Signer         // order matters
	Prologue   *merkle.Prologue // how the core begins, or all it is; version 0 has no length
	Linked     []Key            // from version 2 on; nil is absent
	UserData   []byte           // from version 2 on; nil is absent
}

// A Signer is one who may sign a core.
type Signer struct {
	Namespace [32]byte
	PublicKey PublicKey
}

// SingleSigner returns the manifest that a core with one writer has by default.
func SingleSigner(pub PublicKey) Manifest {
	return Manifest{Version: 1, Quorum: 1, Signers: []Signer{{DefaultNamespace, pub}}}
}

// MultiSigner returns the manifest of a core that quorum of the given signers
// must sign. A quorum of 0 means the majority.
func MultiSigner(quorum int, pubs ...PublicKey) Manifest {
	if quorum == 0 {
		quorum = len(pubs)/2 + 1
	}
	m := Manifest{Version: 1, Quorum: uint64(quorum)}
	for _, p := range pubs {
		m.Signers = append(m.Signers, Signer{DefaultNamespace, p})
	}
	return m
}

// StaticManifest returns the manifest of a core whose content is fixed: the
// tree of length blocks with that tree hash.
func StaticManifest(treeHash merkle.Hash, length uint64) Manifest {
	return Manifest{Version: 1, Prologue: &merkle.Prologue{Hash: treeHash, Length: length}}
}

// IsStatic says whether m fixes all content of its core, so that nobody can
// append to it.
func (m *Manifest) IsStatic() bool { return m.Prologue != nil && len(m.Signers) == 0 }

// Flags of manifests.
const (
	manifestPatch = 1 << iota
	manifestPrologue
	manifestLinked
	manifestUserData
)

// minSigner is the length of a signer's encoding, in bytes.
const minSigner = 65

// Encode returns the encoding of m, from which its key is computed.
func (m *Manifest) Encode() []byte {
	b := compact.AppendUint(nil, m.Version)
	if m.Version == 0 {
		return m.appendVersion0(b)
	}
	flags := uint64(0)
	if m.AllowPatch {
		flags |= manifestPatch
	}
	if m.Prologue != nil {
		flags |= manifestPrologue
	}
	if m.Linked != nil {
		flags |= manifestLinked
	}
	if m.UserData != nil {
		flags |= manifestUserData
	}
	b = compact.AppendUint(b, flags)
	b = compact.AppendUint(b, 0) // BLAKE2b
	b = compact.AppendUint(b, m.Quorum)
	b = appendSigners(b, m.Signers)
	if m.Prologue != nil {
		b = append(b, m.Prologue.Hash[:]...)
		b = compact.AppendUint(b, m.Prologue.Length)
	}
	if m.Linked != nil {
		b = compact.AppendUint(b, uint64(len(m.Linked)))
		for _, k := range m.Linked {
			b = append(b, k[:]...)
		}
	}
	if m.UserData != nil {
		b = compact.AppendBytes(b, m.UserData)
	}
	return b
}

func (m *Manifest) appendVersion0(b []byte) []byte {
	b = compact.AppendUint(b, 0) // BLAKE2b
	switch {
	case m.Prologue != nil && len(m.Signers) == 0:
		b = compact.AppendUint(b, 0)
		return append(b, m.Prologue.Hash[:]...)
	case m.Quorum == 1 && len(m.Signers) == 1 && !m.AllowPatch:
		b = compact.AppendUint(b, 1)
		return m.Signers[0].append(b)
	}
	b = compact.AppendUint(b, 2)
	b = compact.AppendBool(b, m.AllowPatch)
	b = compact.AppendUint(b, m.Quorum)
	return appendSigners(b, m.Signers)
}

func (s *Signer) append(b []byte) []byte {
	b = compact.AppendUint(b, 0) // Ed25519
	b = append(b, s.Namespace[:]...)
	return append(b, s.PublicKey[:]...)
}

func appendSigners(b []byte, signers []Signer) []byte {
	b = compact.AppendUint(b, uint64(len(signers)))
	for i := range signers {
		b = signers[i].append(b)
	}
	return b
}

// ErrManifest is matched by the errors of [DecodeManifest], and by those about
// a manifest that does not belong to its key.
var ErrManifest = errors.New("core: invalid manifest")

// DecodeManifest reads an encoded manifest. It refuses encodings that
// [Manifest.Encode] would not produce, since their hash would not be the key.
func DecodeManifest(b []byte) (Manifest, error) {
	d := compact.NewDecoder(b)
	var m Manifest
	m.Version = d.Uint()
	switch {
	case m.Version == 0:
		m.decodeVersion0(d)
	case m.Version <= 3:
		m.decode(d)
	default:
		d.Fail(fmt.Errorf("unknown version %d", m.Version))
	}
	if err := d.Err(); err != nil {
		return Manifest{}, fmt.Errorf("%w: %w", ErrManifest, err)
	}
	if string(m.Encode()) != string(b) {
		return Manifest{}, fmt.Errorf("%w: not in canonical form", ErrManifest)
	}
	return m, nil
}

func (m *Manifest) decode(d *compact.Decoder) {
	flags := d.Uint()
	expectZero(d, "hash")
	m.AllowPatch = flags&manifestPatch != 0
	m.Quorum = d.Uint()
	m.Signers = decodeSigners(d)
	if flags&manifestPrologue != 0 {
		m.Prologue = &merkle.Prologue{Hash: d.Fixed32(), Length: d.Uint()}
	}
	if flags&manifestLinked != 0 {
		m.Linked = make([]Key, d.Count(32))
		for i := range m.Linked {
			m.Linked[i] = d.Fixed32()
		}
	}
	if flags&manifestUserData != 0 {
		m.UserData = append([]byte{}, d.Bytes()...)
	}
}

func (m *Manifest) decodeVersion0(d *compact.Decoder) {
	expectZero(d, "hash")
	switch kind := d.Uint(); kind {
	case 0:
		m.Prologue = &merkle.Prologue{Hash: d.Fixed32()}
	case 1:
		m.Quorum = 1
		m.Signers = []Signer{decodeSigner(d)}
	case 2:
		m.AllowPatch = d.Uint()&1 != 0
		m.Quorum = d.Uint()
		m.Signers = decodeSigners(d)
	default:
		d.Fail(fmt.Errorf("unknown type %d", kind))
	}
}

// expectZero reads the number of an algorithm, of which only 0 is defined.
func expectZero(d *compact.Decoder, what string) {
	if n := d.Uint(); n != 0 {
		d.Fail(fmt.Errorf("unknown %s %d", what, n))
	}
}

func decodeSigner(d *compact.Decoder) Signer {
	expectZero(d, "signature")
	return Signer{Namespace: d.Fixed32(), PublicKey: d.Fixed32()}
}

func decodeSigners(d *compact.Decoder) []Signer {
	n := d.Count(minSigner)
	if n == 0 {
		return nil
	}
	signers := make([]Signer, n)
	for i := range signers {
		signers[i] = decodeSigner(d)
	}
	return signers
}

// Key returns the key of the core with this manifest.
func (m *Manifest) Key() Key {
	return blake2b.Sum256(append(nsManifest[:], m.Encode()...))
}

// IsCompat says whether m is the manifest of an old core, whose key is the
// public key of its only signer.
func (m *Manifest) IsCompat(key Key) bool {
	return len(m.Signers) == 1 && m.Signers[0].PublicKey == PublicKey(key)
}

// CheckKey returns an error that matches [ErrManifest] unless m is the manifest
// of the core key.
func (m *Manifest) CheckKey(key Key) error {
	if m.IsCompat(key) || m.Key() == key {
		return nil
	}
	return fmt.Errorf("%w: does not hash to the key of core %s", ErrManifest, key.Short())
}

// Validate checks a manifest that is about to be used for a new core.
func (m *Manifest) Validate() error {
	switch {
	case m.Version > 3:
		return fmt.Errorf("%w: unknown version %d", ErrManifest, m.Version)
	case m.Quorum > uint64(len(m.Signers)):
		return fmt.Errorf("%w: quorum %d of %d signers", ErrManifest, m.Quorum, len(m.Signers))
	case m.Version < 2 && (m.Linked != nil || m.UserData != nil):
		return fmt.Errorf("%w: linked or user data in version %d", ErrManifest, m.Version)
	case m.Prologue == nil && m.Quorum == 0:
		return fmt.Errorf("%w: neither signers nor prologue", ErrManifest)
	case m.Prologue != nil && m.Version == 0:
		return fmt.Errorf("%w: prologue in version 0", ErrManifest)
	case m.Prologue != nil && m.Prologue.Length > merkle.MaxLength:
		return fmt.Errorf("%w: prologue of %d blocks", ErrManifest, m.Prologue.Length)
	case len(m.Signers) > compact.MaxElements:
		return fmt.Errorf("%w: %d signers", ErrManifest, len(m.Signers))
	}
	return nil
}
