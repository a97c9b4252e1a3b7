package core

import (
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/blake2b"
)

// A Key identifies a core. For most cores it is the hash of the manifest; for
// old ones, the public key of the only signer. Who knows it may read the core.
type Key [32]byte

// A DiscoveryKey is a hash of a [Key]. It finds peers without telling the key.
type DiscoveryKey [32]byte

// A PublicKey is the Ed25519 public key of a signer.
type PublicKey [32]byte

// Discovery returns the discovery key of k.
func (k Key) Discovery() DiscoveryKey {
	return DiscoveryKey(keyedHash(k[:], []byte("hypercore")))
}

// String returns k in z-base-32, 52 characters.
func (k Key) String() string { return z32Encode(k) }

// Hex returns k as 64 hexadecimal digits.
func (k Key) Hex() string { return hex.EncodeToString(k[:]) }

// Short returns the first 8 hexadecimal digits, for logs and errors.
func (k Key) Short() string { return hex.EncodeToString(k[:4]) }

// MarshalText implements [encoding.TextMarshaler] with z-base-32.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler]; it takes what
// [ParseKey] takes.
func (k *Key) UnmarshalText(b []byte) (err error) {
	*k, err = ParseKey(string(b))
	return err
}

// String returns d as 64 hexadecimal digits.
func (d DiscoveryKey) String() string { return hex.EncodeToString(d[:]) }

// ErrKey is matched by the errors of [ParseKey].
var ErrKey = errors.New("core: not a key")

// ParseKey reads a key of 64 hexadecimal digits or 52 characters of z-base-32,
// either of them behind "pear://" or not.
func ParseKey(s string) (Key, error) {
	t := strings.TrimPrefix(s, "pear://")
	var k Key
	switch len(t) {
	case 64:
		if _, err := hex.Decode(k[:], []byte(t)); err == nil {
			return k, nil
		}
	case 52:
		if k, ok := z32Decode(t); ok {
			return k, nil
		}
	}
	return Key{}, fmt.Errorf("%w: %q", ErrKey, s)
}

const z32Alphabet = "ybndrfg8ejkmcpqxot1uwisza345h769"

// z32Encode writes the 256 bits of k, highest first, and 4 zero bits.
func z32Encode(k [32]byte) string {
	var out [52]byte
	for i := range out {
		out[i] = z32Alphabet[z32Group(&k, i)]
	}
	return string(out[:])
}

// z32Group returns bits 5i to 5i+4 of k.
func z32Group(k *[32]byte, i int) byte {
	at := 5 * i
	w := uint16(k[at/8]) << 8
	if at/8 < 31 {
		w |= uint16(k[at/8+1])
	}
	return byte(w>>(11-at%8)) & 31
}

// z32Decode is the inverse of z32Encode and refuses everything else, so that a
// key has one spelling.
func z32Decode(s string) (k Key, ok bool) {
	for i := range 52 {
		v := strings.IndexByte(z32Alphabet, s[i])
		if v < 0 {
			return Key{}, false
		}
		at := 5 * i
		w := uint16(v) << (11 - at%8)
		k[at/8] |= byte(w >> 8)
		if at/8 < 31 {
			k[at/8+1] |= byte(w)
		} else if byte(w) != 0 {
			return Key{}, false
		}
	}
	return k, z32Encode(k) == s
}

// A KeyPair signs. It keeps a secret: never log one.
type KeyPair struct {
	private ed25519.PrivateKey
}

// NewKeyPair returns the key pair of an Ed25519 seed.
func NewKeyPair(seed [32]byte) KeyPair {
	return KeyPair{private: ed25519.NewKeyFromSeed(seed[:])}
}

// Public returns the public key.
func (p KeyPair) Public() PublicKey {
	return PublicKey(p.private.Public().(ed25519.PublicKey))
}

// Seed returns the secret that the pair was made from.
func (p KeyPair) Seed() [32]byte { return [32]byte(p.private.Seed()) }

// Sign returns the Ed25519 signature of message.
func (p KeyPair) Sign(message []byte) [64]byte {
	return [64]byte(ed25519.Sign(p.private, message))
}

// IsZero says whether p is the zero value, which cannot sign.
func (p KeyPair) IsZero() bool { return p.private == nil }

// String hides the secret.
func (p KeyPair) String() string {
	if p.IsZero() {
		return "no key pair"
	}
	return fmt.Sprintf("key pair of %x", p.Public())
}

// GoString hides the secret.
func (p KeyPair) GoString() string { return p.String() }

// keyedHash returns the BLAKE2b-256 hash of the parts under key.
func keyedHash(key []byte, parts ...[]byte) [32]byte {
	h, err := blake2b.New256(key)
	if err != nil {
		panic("core: BLAKE2b key of more than 64 bytes: " + err.Error())
	}
	for _, p := range parts {
		h.Write(p)
	}
	return [32]byte(h.Sum(nil))
}

// A namespace separates the uses of hashes and signatures.
type namespace = [32]byte

// newNamespace returns number i of the namespaces of name.
func newNamespace(name string, i byte) namespace {
	h := blake2b.Sum256([]byte(name))
	return blake2b.Sum256(append(h[:], i))
}

var (
	nsTree               = newNamespace("hypercore", 0)
	nsReplicateInitiator = newNamespace("hypercore", 1)
	nsReplicateResponder = newNamespace("hypercore", 2)
	nsManifest           = newNamespace("hypercore", 3)
	nsCorestore          = newNamespace("corestore", 0)

	// DefaultNamespace is the namespace of signers that do not choose one.
	DefaultNamespace = newNamespace("hypercore", 4)
)

// Capability proves to the other end of an encrypted stream that the sender
// knows key. handshakeHash is that of the stream, 64 bytes; initiator is the
// role of the sender on it.
func Capability(key Key, handshakeHash []byte, initiator bool) [32]byte {
	ns := nsReplicateResponder
	if initiator {
		ns = nsReplicateInitiator
	}
	return keyedHash(handshakeHash, ns[:], key[:])
}

// A Namespace is where the names of a store's cores live. The zero value is the
// root.
type Namespace [32]byte

// Sub returns the namespace called name below n.
func (n Namespace) Sub(name string) Namespace {
	return blake2b.Sum256(append(n[:], name...))
}

// DeriveKeyPair returns the key pair of the core that is called name in n, in
// the store with that primary key. It is what the reference's corestore does.
func DeriveKeyPair(primaryKey [32]byte, n Namespace, name string) KeyPair {
	return NewKeyPair(keyedHash(primaryKey[:], nsCorestore[:], n[:], []byte(name)))
}
