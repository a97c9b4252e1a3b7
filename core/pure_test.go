package core

import (
	"bytes"
	"testing"

	"github.com/pkgswarm/pkgswarm/core/merkle"
	"github.com/pkgswarm/pkgswarm/internal/vectors"
)

func TestKeyVectors(t *testing.T) {
	var ids struct {
		KeyID []struct {
			Key vectors.Hex
			Z32 string
		}
	}
	vectors.Load(t, "encodings.json", &ids)
	if len(ids.KeyID) == 0 {
		t.Fatal("no key ids")
	}
	for _, c := range ids.KeyID {
		k := Key(c.Key)
		if k.String() != c.Z32 {
			t.Errorf("String of %x = %s, want %s", c.Key, k, c.Z32)
		}
		for _, s := range []string{c.Z32, k.Hex(), "pear://" + c.Z32} {
			if got, err := ParseKey(s); err != nil || got != k {
				t.Errorf("ParseKey(%q) = %x, %v", s, got, err)
			}
		}
	}
	for _, s := range []string{"", "pear://", ids.KeyID[0].Z32[1:], "l" + ids.KeyID[0].Z32[1:],
		ids.KeyID[0].Z32[:51] + "b", Key{}.Hex()[1:] + "g", Key{}.Hex() + "0"} {
		if k, err := ParseKey(s); err == nil {
			t.Errorf("ParseKey(%q) = %s, want an error", s, k)
		}
	}
}

func TestCryptoVectors(t *testing.T) {
	var v struct {
		KeyPairs []struct {
			Seed, PublicKey, Message, Signature vectors.Hex
		}
		DiscoveryKey []struct{ Key, DiscoveryKey vectors.Hex }
		Namespaces   struct {
			Hypercore map[string]vectors.Hex
			Corestore map[string]vectors.Hex
		}
		Capability struct {
			Key, HandshakeHash, Initiator, Responder vectors.Hex
		}
		TreeSignable struct {
			WithManifestHash struct{ Signable vectors.Hex }
		}
	}
	vectors.Load(t, "crypto.json", &v)
	for _, c := range v.KeyPairs {
		p := NewKeyPair([32]byte(c.Seed))
		if pub := p.Public(); !bytes.Equal(pub[:], c.PublicKey) {
			t.Errorf("public key of seed %x = %x, want %x", c.Seed, pub, c.PublicKey)
		}
		if sig := p.Sign(c.Message); !bytes.Equal(sig[:], c.Signature) {
			t.Errorf("signature of seed %x = %x, want %x", c.Seed, sig, c.Signature)
		}
	}
	for _, c := range v.DiscoveryKey {
		if got := Key(c.Key).Discovery(); !bytes.Equal(got[:], c.DiscoveryKey) {
			t.Errorf("discovery key of %x = %x, want %x", c.Key, got, c.DiscoveryKey)
		}
	}
	for name, got := range map[string]namespace{
		"TREE": nsTree, "REPLICATE_INITIATOR": nsReplicateInitiator, "REPLICATE_RESPONDER": nsReplicateResponder,
		"MANIFEST": nsManifest, "DEFAULT_NAMESPACE": DefaultNamespace,
	} {
		if want := v.Namespaces.Hypercore[name]; !bytes.Equal(got[:], want) {
			t.Errorf("namespace %s = %x, want %x", name, got, want)
		}
	}
	if want := v.Namespaces.Corestore["NS"]; !bytes.Equal(nsCorestore[:], want) {
		t.Errorf("corestore namespace = %x, want %x", nsCorestore, want)
	}
	c := v.Capability
	for initiator, want := range map[bool]vectors.Hex{true: c.Initiator, false: c.Responder} {
		if got := Capability(Key(c.Key), c.HandshakeHash, initiator); !bytes.Equal(got[:], want) {
			t.Errorf("capability of initiator %v = %x, want %x", initiator, got, want)
		}
	}
}

func TestCorestoreVectors(t *testing.T) {
	var v struct {
		PrimaryKey vectors.Hex
		Derived    []struct {
			Namespaces   []string
			Name         string
			Namespace    vectors.Hex
			KeyPair      struct{ PublicKey vectors.Hex }
			Key          vectors.Hex
			DiscoveryKey vectors.Hex
		}
		ManifestVersion2 struct{ PublicKey, Key, Manifest vectors.Hex }
	}
	vectors.Load(t, "corestore.json", &v)
	if len(v.Derived) == 0 {
		t.Fatal("no derived keys")
	}
	second := SingleSigner(PublicKey(v.ManifestVersion2.PublicKey))
	second.Version = 2
	if k := second.Key(); !bytes.Equal(k[:], v.ManifestVersion2.Key) || !bytes.Equal(second.Encode(), v.ManifestVersion2.Manifest) {
		t.Errorf("manifest of version 2 is %x, key %x, want %x", second.Encode(), k, v.ManifestVersion2.Key)
	}
	for _, c := range v.Derived {
		var n Namespace
		for _, s := range c.Namespaces {
			n = n.Sub(s)
		}
		if !bytes.Equal(n[:], c.Namespace) {
			t.Errorf("namespace %q = %x, want %x", c.Namespaces, n, c.Namespace)
		}
		pub := DeriveKeyPair([32]byte(v.PrimaryKey), n, c.Name).Public()
		if !bytes.Equal(pub[:], c.KeyPair.PublicKey) {
			t.Errorf("public key of %q %q = %x, want %x", c.Namespaces, c.Name, pub, c.KeyPair.PublicKey)
		}
		m := SingleSigner(pub)
		k := m.Key()
		if d := k.Discovery(); !bytes.Equal(k[:], c.Key) || !bytes.Equal(d[:], c.DiscoveryKey) {
			t.Errorf("key of %q %q = %x, want %x", c.Namespaces, c.Name, k, c.Key)
		}
	}
}

type nodeVector struct {
	Index, Size uint64
	Hash        vectors.Hex
}

func nodesOf(list []nodeVector) []merkle.Node {
	var out []merkle.Node
	for _, n := range list {
		out = append(out, merkle.Node{Index: n.Index, Size: n.Size, Hash: merkle.Hash(n.Hash)})
	}
	return out
}

func TestManifestVectors(t *testing.T) {
	var v struct {
		Manifests []struct {
			Name     string
			Manifest struct {
				Version    uint64
				AllowPatch bool
				Quorum     uint64
				Signers    []struct{ Namespace, PublicKey vectors.Hex }
				Prologue   *struct {
					Hash   vectors.Hex
					Length uint64
				}
				Linked   []vectors.Hex
				UserData vectors.Hex
			}
			Encoded, Key, DiscoveryKey vectors.Hex
		}
		Rejects []struct {
			Name    string
			Encoded vectors.Hex
		}
	}
	vectors.Load(t, "manifests.json", &v)
	if len(v.Manifests) == 0 || len(v.Rejects) == 0 {
		t.Fatal("vector file lacks a section")
	}
	for _, c := range v.Manifests {
		m := Manifest{Version: c.Manifest.Version, AllowPatch: c.Manifest.AllowPatch, Quorum: c.Manifest.Quorum, UserData: c.Manifest.UserData}
		for _, s := range c.Manifest.Signers {
			m.Signers = append(m.Signers, Signer{[32]byte(s.Namespace), PublicKey(s.PublicKey)})
		}
		if p := c.Manifest.Prologue; p != nil {
			m.Prologue = &merkle.Prologue{Hash: merkle.Hash(p.Hash), Length: p.Length}
		}
		for _, l := range c.Manifest.Linked {
			m.Linked = append(m.Linked, Key(l))
		}
		if got := m.Encode(); !bytes.Equal(got, c.Encoded) {
			t.Errorf("%s: Encode = %x, want %x", c.Name, got, c.Encoded)
		}
		got, err := DecodeManifest(c.Encoded)
		if err != nil || !bytes.Equal(got.Encode(), c.Encoded) {
			t.Errorf("%s: DecodeManifest = %+v, %v", c.Name, got, err)
		}
		if k := got.Key(); !bytes.Equal(k[:], c.Key) || got.CheckKey(k) != nil {
			t.Errorf("%s: key %x, want %x", c.Name, k, c.Key)
		}
		if err := got.CheckKey(Key{1}); err == nil {
			t.Errorf("%s: CheckKey accepts another key", c.Name)
		}
	}
	for _, c := range v.Rejects {
		if m, err := DecodeManifest(c.Encoded); err == nil {
			t.Errorf("%s: DecodeManifest = %+v, want an error", c.Name, m)
		}
	}
}

func TestSignedVectors(t *testing.T) {
	alice := aliceOf(t)
	var v struct {
		Signed []struct {
			Name     string
			Key      vectors.Hex
			Manifest vectors.Hex
			Steps    []struct {
				Length, Fork        uint64
				TreeHash            vectors.Hex
				Roots               []nodeVector
				Signable, Signature vectors.Hex
			}
		}
	}
	vectors.Load(t, "manifests.json", &v)
	if len(v.Signed) == 0 {
		t.Fatal("no signed trees")
	}
	for _, c := range v.Signed {
		m, err := DecodeManifest(c.Manifest)
		if err != nil {
			t.Fatalf("%s: %v", c.Name, err)
		}
		key := Key(c.Key)
		for _, s := range c.Steps {
			tree := merkle.Tree{Fork: s.Fork, Length: s.Length, Roots: nodesOf(s.Roots)}
			if h := tree.Hash(); !bytes.Equal(h[:], s.TreeHash) {
				t.Errorf("%s: tree hash at %d = %x, want %x", c.Name, s.Length, h, s.TreeHash)
			}
			if got := m.signable(key, 0, tree); !bytes.Equal(got, s.Signable) {
				t.Errorf("%s: signable at %d = %x, want %x", c.Name, s.Length, got, s.Signable)
			}
			if err := m.VerifyTree(key, tree, s.Signature); err != nil {
				t.Errorf("%s: %v", c.Name, err)
			}
			if got, err := m.SignTree(key, tree, alice); err != nil || !bytes.Equal(got, s.Signature) {
				t.Errorf("%s: SignTree at %d = %x, %v, want %x", c.Name, s.Length, got, err, s.Signature)
			}
			refuseOthers(t, m, key, tree, s.Signature)
		}
	}
}

// refuseOthers checks that sig vouches for nothing but the tree. // SEC-9
func refuseOthers(t *testing.T, m Manifest, key Key, tree merkle.Tree, sig []byte) {
	t.Helper()
	if !m.IsCompat(key) && m.Version > 0 {
		other := key
		other[3] ^= 1
		if m.VerifyTree(other, tree, sig) == nil {
			t.Errorf("signature also fits another core")
		}
	}
	fork, length := tree, tree
	fork.Fork++
	length.Length++
	if m.VerifyTree(key, fork, sig) == nil || m.VerifyTree(key, length, sig) == nil {
		t.Errorf("signature also fits another fork or length")
	}
	for i := range sig {
		for bit := range 8 {
			bad := bytes.Clone(sig)
			bad[i] ^= 1 << bit
			if m.VerifyTree(key, tree, bad) == nil && !ignoredBit(m, key, sig, i) {
				t.Errorf("signature with bit %d of byte %d flipped is accepted", bit, i)
			}
		}
	}
	for i := range sig {
		if m.VerifyTree(key, tree, sig[:i]) == nil {
			t.Errorf("signature cut to %d bytes is accepted", i)
		}
	}
}

// ignoredBit says whether byte i of a signature says something that is not
// looked at: the patch length without AllowPatch.
func ignoredBit(m Manifest, key Key, sig []byte, i int) bool {
	return !m.hasPlainSignature(key) && !m.AllowPatch && i == len(sig)-2
}

func aliceOf(t *testing.T) KeyPair {
	var v struct {
		KeyPairs []struct{ Seed vectors.Hex }
	}
	vectors.Load(t, "crypto.json", &v)
	return NewKeyPair([32]byte(v.KeyPairs[0].Seed))
}

func TestMultiSignatureVectors(t *testing.T) {
	var v struct {
		Multi []struct {
			Name          string
			Manifest, Key vectors.Hex
			Length, Fork  uint64
			TreeHash      vectors.Hex
			Roots         []nodeVector
			Parts         []struct {
				Signer, Patch       uint64
				Signature, Signable vectors.Hex
				Nodes               []nodeVector
			}
			Signature vectors.Hex
			Verifies  bool
		}
		SignableLength []struct {
			Lengths []uint64
			Quorum  int
			Length  uint64
		}
	}
	vectors.Load(t, "manifests.json", &v)
	if len(v.Multi) == 0 || len(v.SignableLength) == 0 {
		t.Fatal("vector file lacks a section")
	}
	for _, c := range v.Multi {
		m, err := DecodeManifest(c.Manifest)
		if err != nil {
			t.Fatalf("%s: %v", c.Name, err)
		}
		tree := merkle.Tree{Fork: c.Fork, Length: c.Length, Roots: nodesOf(c.Roots)}
		if err := m.VerifyTree(Key(c.Key), tree, c.Signature); (err == nil) != c.Verifies {
			t.Errorf("%s: VerifyTree = %v, want ok %v", c.Name, err, c.Verifies)
		}
		var parts []Partial
		for _, p := range c.Parts {
			parts = append(parts, Partial{Signer: p.Signer, Signature: [64]byte(p.Signature), Patch: p.Patch, Nodes: nodesOf(p.Nodes)})
		}
		if got := m.Assemble(Key(c.Key), parts...); !bytes.Equal(got, c.Signature) {
			t.Errorf("%s: Assemble = %x, want %x", c.Name, got, c.Signature)
		}
	}
	for _, c := range v.SignableLength {
		if got := SignableLength(c.Lengths, c.Quorum); got != c.Length {
			t.Errorf("SignableLength(%v, %d) = %d, want %d", c.Lengths, c.Quorum, got, c.Length)
		}
	}
}

// SEC-9: a public key of small order would let one signature fit many trees.
func TestSmallOrderSigner(t *testing.T) {
	m := SingleSigner(PublicKey{1}) // the identity
	tree := merkle.Tree{}
	sig := append([]byte{1, 0, 1}, make([]byte, 63)...) // R = identity, S = 0
	sig = append(sig, 0, 0)
	if m.VerifyTree(m.Key(), tree, sig) == nil {
		t.Error("signature under a key of small order is accepted")
	}
}

func FuzzDecodeManifest(f *testing.F) {
	var v struct {
		Manifests []struct{ Encoded vectors.Hex }
	}
	vectors.Load(f, "manifests.json", &v)
	for _, c := range v.Manifests {
		f.Add([]byte(c.Encoded))
	}
	f.Fuzz(func(t *testing.T, b []byte) { // SEC-8
		m, err := DecodeManifest(b)
		if err == nil && !bytes.Equal(m.Encode(), b) {
			t.Errorf("%x decodes to what encodes to %x", b, m.Encode())
		}
	})
}

func FuzzSignature(f *testing.F) {
	var v struct {
		Multi []struct{ Signature vectors.Hex }
	}
	vectors.Load(f, "manifests.json", &v)
	for _, c := range v.Multi {
		f.Add([]byte(c.Signature), true)
	}
	f.Fuzz(func(t *testing.T, sig []byte, old bool) { // SEC-8
		m := MultiSigner(2, PublicKey{2}, PublicKey{3}, PublicKey{4})
		m.AllowPatch = true
		if old {
			m.Version = 0
		}
		if m.VerifyTree(m.Key(), merkle.Tree{Length: 1, Roots: []merkle.Node{{}}}, sig) == nil {
			t.Error("accepted")
		}
	})
}

func FuzzParseKey(f *testing.F) {
	f.Add(Key{}.String())
	f.Add(Key{}.Hex())
	f.Fuzz(func(t *testing.T, s string) { // SEC-8
		k, err := ParseKey(s)
		if err != nil {
			return
		}
		if again, err := ParseKey(k.String()); err != nil || again != k {
			t.Errorf("ParseKey(%q) = %s, which parses to %s, %v", s, k, again, err)
		}
	})
}
