package secretstream

import (
	"crypto/ed25519"
	"crypto/sha512"
	"errors"
	"io"

	"filippo.io/edwards25519"
	"github.com/flynn/noise"
)

// dhEd25519 is Noise's DH over the Ed25519 group instead of Curve25519, as
// noise-curve-ed of the reference: keys are Ed25519 key pairs, public keys are
// sent in Edwards form, and the shared secret is a compressed point.
type dhEd25519 struct{}

func (dhEd25519) DHName() string { return "Ed25519" }
func (dhEd25519) DHLen() int     { return 32 }

func (dhEd25519) GenerateKeypair(random io.Reader) (noise.DHKey, error) {
	var seed [ed25519.SeedSize]byte
	if _, err := io.ReadFull(random, seed[:]); err != nil {
		return noise.DHKey{}, err
	}
	return dhKey(ed25519.NewKeyFromSeed(seed[:])), nil
}

func dhKey(k ed25519.PrivateKey) noise.DHKey {
	return noise.DHKey{Private: k, Public: k.Public().(ed25519.PublicKey)}
}

var errPublicKey = errors.New("secretstream: invalid public key")

// order is ℓ-1, the order of the group less one.
var orderMinusOne = func() *edwards25519.Scalar {
	one := make([]byte, 32)
	one[0] = 1
	s, err := edwards25519.NewScalar().SetCanonicalBytes(one)
	if err != nil {
		panic(err)
	}
	return edwards25519.NewScalar().Negate(s)
}()

// DH multiplies the public key by the clamped scalar of the private one. Keys
// that are not canonical, of small order or outside the prime-order group are
// refused, as libsodium does.
func (dhEd25519) DH(private, public []byte) ([]byte, error) {
	p, err := new(edwards25519.Point).SetBytes(public)
	if err != nil || string(p.Bytes()) != string(public) {
		return nil, errPublicKey
	}
	identity := edwards25519.NewIdentityPoint()
	if new(edwards25519.Point).MultByCofactor(p).Equal(identity) == 1 {
		return nil, errPublicKey
	}
	last := new(edwards25519.Point).ScalarMult(orderMinusOne, p)
	if last.Add(last, p).Equal(identity) != 1 {
		return nil, errPublicKey
	}
	h := sha512.Sum512(private[:ed25519.SeedSize])
	s, err := edwards25519.NewScalar().SetBytesWithClamping(h[:32])
	if err != nil {
		return nil, err
	}
	return new(edwards25519.Point).ScalarMult(s, p).Bytes(), nil
}
