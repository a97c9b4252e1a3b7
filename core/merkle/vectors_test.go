package merkle_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"testing"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/core/merkle"
	"github.com/pkgswarm/pkgswarm/internal/compact"
	"github.com/pkgswarm/pkgswarm/internal/vectors"
)

// nodeMap is a NodeReader in memory.
type nodeMap map[uint64]merkle.Node

func (m nodeMap) Node(index uint64) (merkle.Node, bool, error) {
	n, ok := m[index]
	return n, ok, nil
}

func (m nodeMap) put(nodes []merkle.Node) {
	for _, n := range nodes {
		m[n.Index] = n
	}
}

// A vectorNode is a node written as [index, size, hash].
type vectorNode merkle.Node

func (n *vectorNode) UnmarshalJSON(b []byte) error {
	var hash vectors.Hex
	if err := json.Unmarshal(b, &[]any{&n.Index, &n.Size, &hash}); err != nil {
		return err
	}
	n.Hash = merkle.Hash(hash)
	return nil
}

func nodesOf(list []vectorNode) []merkle.Node {
	out := make([]merkle.Node, len(list))
	for i, n := range list {
		out[i] = merkle.Node(n)
	}
	return out
}

type merkleVectors struct {
	Key, Manifest vectors.Hex
	Blocks        []vectors.Hex
	Trees         []struct {
		Length, ByteLength  uint64
		Roots, Nodes        []vectorNode
		TreeHash, Signature vectors.Hex
	}
	Proofs []struct {
		Name       string
		TreeLength uint64
		Request    merkle.Request
		Error      string
		Message    vectors.Hex
		Reader     struct {
			Before             uint64
			Error              string
			Accepted           bool
			Length, ByteLength uint64
			TreeHash           vectors.Hex
			StoredNodes        []uint64
		}
	}
	Missing []struct{ MissingNodes, MaxMissingNodes []uint64 }
	Bad     []struct {
		Name    string
		Message vectors.Hex
		Result  struct {
			Error    string
			Accepted bool
		}
	}
}

func loadMerkle(t testing.TB) *merkleVectors {
	var v merkleVectors
	vectors.Load(t, "merkle.json", &v)
	if len(v.Trees) == 0 || len(v.Proofs) == 0 || len(v.Missing) != 2 || len(v.Bad) == 0 {
		t.Fatal("vector file lacks a section")
	}
	return &v
}

// build returns the tree of the first n blocks and all its nodes.
func (v *merkleVectors) build(n uint64) (merkle.Tree, nodeMap) {
	b := merkle.NewBatch(merkle.Tree{})
	for _, block := range v.Blocks[:n] {
		b.Append(block)
	}
	m := nodeMap{}
	m.put(b.Nodes)
	return b.Tree, m
}

func (v *merkleVectors) signature(t *testing.T, length uint64) []byte {
	for _, tree := range v.Trees {
		if tree.Length == length {
			return tree.Signature
		}
	}
	t.Fatalf("no signature of length %d", length)
	return nil
}

func TestTreeVectors(t *testing.T) {
	v := loadMerkle(t)
	for _, c := range v.Trees {
		tree, nodes := v.build(c.Length)
		if !slices.Equal(tree.Roots, nodesOf(c.Roots)) {
			t.Errorf("length %d: roots %v, want %v", c.Length, tree.Roots, c.Roots)
		}
		if h := tree.Hash(); !bytes.Equal(h[:], c.TreeHash) || tree.ByteLength() != c.ByteLength {
			t.Errorf("length %d: tree hash %x of %d bytes, want %x of %d", c.Length, h, tree.ByteLength(), c.TreeHash, c.ByteLength)
		}
		for _, n := range nodesOf(c.Nodes) {
			if nodes[n.Index] != n {
				t.Errorf("length %d: node %v, want %v", c.Length, nodes[n.Index], n)
			}
		}
	}
}

func TestHashVectors(t *testing.T) {
	var v struct {
		Leaf   []struct{ Data, Hash vectors.Hex }
		Parent []struct {
			Left, Right struct {
				Index, Size uint64
				Hash        vectors.Hex
			}
			Hash vectors.Hex
		}
		Tree []struct {
			Roots []struct {
				Index, Size uint64
				Hash        vectors.Hex
			}
			Hash vectors.Hex
		}
	}
	vectors.Load(t, "crypto.json", &v)
	for _, c := range v.Leaf {
		if h := merkle.LeafHash(c.Data); !bytes.Equal(h[:], c.Hash) {
			t.Errorf("LeafHash of %d bytes = %x, want %x", len(c.Data), h, c.Hash)
		}
	}
	for _, c := range v.Parent {
		l := merkle.Node{Index: c.Left.Index, Size: c.Left.Size, Hash: merkle.Hash(c.Left.Hash)}
		r := merkle.Node{Index: c.Right.Index, Size: c.Right.Size, Hash: merkle.Hash(c.Right.Hash)}
		if n := merkle.Parent(l, r); !bytes.Equal(n.Hash[:], c.Hash) {
			t.Errorf("Parent(%v, %v) = %x, want %x", l, r, n.Hash, c.Hash)
		}
	}
	for _, c := range v.Tree {
		var roots []merkle.Node
		for _, r := range c.Roots {
			roots = append(roots, merkle.Node{Index: r.Index, Size: r.Size, Hash: merkle.Hash(r.Hash)})
		}
		if h := merkle.TreeHash(roots); !bytes.Equal(h[:], c.Hash) {
			t.Errorf("TreeHash(%v) = %x, want %x", roots, h, c.Hash)
		}
	}
}

func TestProofVectors(t *testing.T) {
	v := loadMerkle(t)
	for _, c := range v.Proofs {
		tree, nodes := v.build(c.TreeLength)
		proof, err := merkle.Prove(tree, 0, nodes, c.Request)
		if c.Error != "" {
			if !errors.Is(err, merkle.ErrRequest) {
				t.Errorf("%s: Prove = %v, want ErrRequest", c.Name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.Name, err)
			continue
		}
		if proof.Block != nil {
			proof.Block.Value = v.Blocks[proof.Block.Index]
		}
		if proof.Upgrade != nil {
			proof.Upgrade.Signature = v.signature(t, c.TreeLength)
		}
		if got := proof.AppendMessage(nil, 1); !bytes.Equal(got, c.Message) {
			t.Errorf("%s: message\n%x, want\n%x", c.Name, got, c.Message)
		}

		before, _ := v.build(c.Reader.Before)
		have := nodeMap{}
		have.put(before.Roots)
		d := compact.NewDecoder(c.Message)
		received, id := merkle.DecodeProof(d)
		if d.Err() != nil || id != 1 {
			t.Fatalf("%s: DecodeProof: id %d, %v", c.Name, id, d.Err())
		}
		batch, err := merkle.Verify(before, nil, have, received)
		if c.Reader.Error != "" {
			if !errors.Is(err, merkle.ErrMalformed) && !errors.Is(err, merkle.ErrDetached) {
				t.Errorf("%s: Verify = %v, want an error", c.Name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: Verify: %v", c.Name, err)
			continue
		}
		have.put(batch.Nodes)
		var stored []uint64
		for i := range have {
			stored = append(stored, i)
		}
		slices.Sort(stored)
		h := batch.Tree.Hash()
		if !slices.Equal(stored, c.Reader.StoredNodes) || !bytes.Equal(h[:], c.Reader.TreeHash) ||
			batch.Tree.Length != c.Reader.Length || batch.Tree.ByteLength() != c.Reader.ByteLength {
			t.Errorf("%s: Verify: length %d, nodes %v, want %d, %v", c.Name, batch.Tree.Length, stored, c.Reader.Length, c.Reader.StoredNodes)
		}
	}
}

func TestMissingVectors(t *testing.T) {
	v := loadMerkle(t)
	tree, nodes := v.build(11)
	proof, err := merkle.Prove(tree, 0, nodes, merkle.Request{
		Block: &merkle.BlockRequest{Index: 6}, Upgrade: &merkle.UpgradeRequest{Length: 11},
	})
	if err != nil {
		t.Fatal(err)
	}
	proof.Block.Value = v.Blocks[6]
	have := nodeMap{}
	batch, err := merkle.Verify(merkle.Tree{}, nil, have, proof)
	if err != nil {
		t.Fatal(err)
	}
	have.put(batch.Nodes)
	for i, want := range v.Missing[0].MissingNodes {
		if got, err := merkle.MissingNodes(11, have, 2*uint64(i)); got != want || err != nil {
			t.Errorf("MissingNodes of block %d = %d, %v, want %d", i, got, err, want)
		}
	}
	for i, want := range v.Missing[1].MaxMissingNodes {
		if got := merkle.MaxMissingNodes(11, 2*uint64(i)); got != want {
			t.Errorf("MaxMissingNodes of block %d = %d, want %d", i, got, want)
		}
	}
}

func TestBadProofVectors(t *testing.T) {
	v := loadMerkle(t)
	manifest, err := core.DecodeManifest(v.Manifest)
	if err != nil {
		t.Fatal(err)
	}
	key := core.Key(v.Key)
	known, _ := v.build(11)
	for _, c := range v.Bad {
		d := compact.NewDecoder(c.Message)
		p, _ := merkle.DecodeProof(d)
		if d.Err() != nil {
			t.Fatalf("%s: %v", c.Name, d.Err())
		}
		var tree merkle.Tree
		have := nodeMap{}
		if p.Upgrade == nil {
			tree = known
			have.put(known.Roots)
		}
		err := apply(tree, have, p, manifest, key)
		switch {
		case c.Result.Accepted:
			if err != nil {
				t.Errorf("%s: %v", c.Name, err)
			}
		case err == nil,
			c.Result.Error == "INVALID_SIGNATURE" && !errors.Is(err, core.ErrSignature) && !errors.Is(err, core.ErrManifest),
			c.Result.Error == "INVALID_CHECKSUM" && !errors.Is(err, merkle.ErrChecksum),
			c.Result.Error == "INVALID_OPERATION" && !errors.Is(err, merkle.ErrMalformed) && !errors.Is(err, merkle.ErrDetached):
			t.Errorf("%s: %v, want %s", c.Name, err, c.Result.Error)
		}
	}
}

// apply does what a reader does with a proof, short of storing it.
func apply(tree merkle.Tree, have nodeMap, p *merkle.Proof, m core.Manifest, key core.Key) error {
	if p.Fork != tree.Fork {
		return errors.New("another fork")
	}
	if p.Manifest != nil {
		got, err := core.DecodeManifest(p.Manifest)
		if err != nil {
			return err
		}
		if err := got.CheckKey(key); err != nil {
			return err
		}
	}
	batch, err := merkle.Verify(tree, m.Prologue, have, p)
	if err != nil {
		return err
	}
	if batch.Upgraded {
		return m.VerifyTree(key, batch.Tree, batch.Signature)
	}
	return nil
}
