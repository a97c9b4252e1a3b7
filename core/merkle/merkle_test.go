package merkle_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"golang.org/x/crypto/blake2b"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/core/merkle"
	"github.com/pkgswarm/pkgswarm/internal/compact"
	"github.com/pkgswarm/pkgswarm/internal/flattree"
)

func testBlock(i uint64) []byte {
	return bytes.Repeat([]byte{byte(i), byte(i >> 8), 'x'}, int(i*7%23))
}

// A slowTree is a tree computed the obvious way: each node from its blocks.
type slowTree struct {
	blocks [][]byte
	memo   map[uint64]merkle.Node
}

func newSlowTree(n uint64) *slowTree {
	s := &slowTree{memo: map[uint64]merkle.Node{}}
	for i := range n {
		s.blocks = append(s.blocks, testBlock(i))
	}
	return s
}

func (s *slowTree) node(index uint64) merkle.Node {
	if n, ok := s.memo[index]; ok {
		return n
	}
	var n merkle.Node
	if index%2 == 0 {
		n = merkle.Leaf(index/2, s.blocks[index/2])
	} else {
		n = merkle.Parent(s.node(flattree.LeftChild(index)), s.node(flattree.RightChild(index)))
	}
	s.memo[index] = n
	return n
}

// Node implements merkle.NodeReader; it has all nodes.
func (s *slowTree) Node(index uint64) (merkle.Node, bool, error) {
	if flattree.RightSpan(index)/2 >= uint64(len(s.blocks)) {
		return merkle.Node{}, false, nil
	}
	return s.node(index), true, nil
}

// at returns the tree of the first n blocks.
func (s *slowTree) at(n uint64) merkle.Tree {
	t := merkle.Tree{Length: n}
	for _, r := range flattree.AppendRoots(nil, n) {
		t.Roots = append(t.Roots, s.node(r))
	}
	return t
}

// reader returns a NodeReader with the roots of the tree of n blocks only.
func (s *slowTree) reader(n uint64) nodeMap {
	m := nodeMap{}
	m.put(s.at(n).Roots)
	return m
}

// honest fails the test unless everything in b is true.
func (s *slowTree) honest(b *merkle.Batch, length uint64) error {
	if want := s.at(length); b.Tree.Length != length || !slices.Equal(b.Tree.Roots, want.Roots) {
		return fmt.Errorf("tree of %d blocks, roots %v, want %v", b.Tree.Length, b.Tree.Roots, want.Roots)
	}
	for _, n := range b.Nodes {
		if n != s.node(n.Index) {
			return fmt.Errorf("false node %v", n)
		}
	}
	return nil
}

func TestAppend(t *testing.T) {
	const n = 300
	s := newSlowTree(n)
	b := merkle.NewBatch(merkle.Tree{})
	for i := range uint64(n) {
		b.Append(testBlock(i))
		if err := s.honest(b, i+1); err != nil {
			t.Fatal(err)
		}
	}
	if len(b.Nodes) != n+n-1-(len(b.Tree.Roots)-1) {
		t.Errorf("%d nodes for %d blocks", len(b.Nodes), n)
	}
	before := s.at(7)
	roots := slices.Clone(before.Roots)
	b = merkle.NewBatch(before)
	b.Append(testBlock(7))
	if !slices.Equal(before.Roots, roots) {
		t.Error("Append changed the roots of the tree the batch was made from")
	}
}

// TestLeafHash compares both ways of hashing with the definition.
func TestLeafHash(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789"), 130)
	for n := range len(data) {
		whole := binary.LittleEndian.AppendUint64([]byte{0}, uint64(n))
		want := blake2b.Sum256(append(whole, data[:n]...))
		if got := merkle.LeafHash(data[:n]); got != want {
			t.Fatalf("LeafHash of %d bytes = %x, want %x", n, got, want)
		}
	}
}

// TestBlockProofs proves every block of every tree to a reader of its roots.
func TestBlockProofs(t *testing.T) {
	for length := uint64(0); length <= 200; length++ {
		s := newSlowTree(length)
		tree := s.at(length)
		have := s.reader(length)
		for i := range length {
			steps, err := merkle.MissingNodes(length, have, 2*i)
			if err != nil {
				t.Fatal(err)
			}
			proof := prove(t, tree, s, merkle.Request{Block: &merkle.BlockRequest{Index: i, Nodes: steps}})
			if uint64(len(proof.Block.Nodes)) != steps {
				t.Fatalf("block %d of %d: %d nodes, want %d", i, length, len(proof.Block.Nodes), steps)
			}
			b, err := merkle.Verify(tree, nil, have, proof)
			if err != nil {
				t.Fatalf("block %d of %d: %v", i, length, err)
			}
			if err := s.honest(b, length); err != nil || b.Upgraded {
				t.Fatalf("block %d of %d: upgraded %v, %v", i, length, b.Upgraded, err)
			}
		}
		if _, err := merkle.Prove(tree, 0, s, merkle.Request{Block: &merkle.BlockRequest{Index: length}}); length > 0 && !errors.Is(err, merkle.ErrRequest) {
			t.Errorf("block %d of %d: %v, want ErrRequest", length, length, err)
		}
	}
}

func prove(t *testing.T, tree merkle.Tree, s *slowTree, req merkle.Request) *merkle.Proof {
	t.Helper()
	p, err := merkle.Prove(tree, 0, s, req)
	if err != nil {
		t.Fatalf("Prove: %v", err)
	}
	if p.Block != nil {
		p.Block.Value = s.blocks[p.Block.Index]
	}
	return p
}

// TestUpgradeProofs proves every way from one length to another, with and
// without additional nodes.
func TestUpgradeProofs(t *testing.T) {
	last := uint64(200)
	s := newSlowTree(last)
	for length := uint64(1); length <= last; length++ {
		for start := range length {
			req := merkle.Request{Upgrade: &merkle.UpgradeRequest{Start: start, Length: length - start}}
			for _, end := range []uint64{length, min(length+1, last), (length + last) / 2} {
				p := prove(t, s.at(end), s, req)
				b, err := merkle.Verify(s.at(start), nil, s.reader(start), p)
				if err != nil {
					t.Fatalf("upgrade %d..%d of %d: %v", start, length, end, err)
				}
				if err := s.honest(b, end); err != nil || !b.Upgraded {
					t.Fatalf("upgrade %d..%d of %d: %v", start, length, end, err)
				}
				if b.Prefix.Hash() != s.at(length).Hash() || b.Prefix.Length != length {
					t.Fatalf("upgrade %d..%d of %d: prefix is of %d blocks", start, length, end, b.Prefix.Length)
				}
			}
		}
	}
}

// TestCombinedProofs proves every block or hash or position together with every
// upgrade.
func TestCombinedProofs(t *testing.T) {
	for length := uint64(1); length <= 33; length++ {
		s := newSlowTree(length)
		tree := s.at(length)
		for start := range length {
			have := s.reader(start)
			up := &merkle.UpgradeRequest{Start: start, Length: length - start}
			for i := range length {
				steps, _ := merkle.MissingNodes(start, have, 2*i)
				for _, req := range []merkle.Request{
					{Upgrade: up, Block: &merkle.BlockRequest{Index: i, Nodes: steps}},
					{Upgrade: up, Hash: &merkle.HashRequest{Index: 2 * i, Nodes: steps}},
				} {
					checkProof(t, s, tree, s.at(start), have, req)
				}
			}
			for bytes := range tree.ByteLength() + 1 {
				checkProof(t, s, tree, s.at(start), have, merkle.Request{Upgrade: up, Seek: &merkle.SeekRequest{Bytes: bytes}})
			}
		}
	}
}

func checkProof(t *testing.T, s *slowTree, tree, before merkle.Tree, have nodeMap, req merkle.Request) {
	t.Helper()
	p := prove(t, tree, s, req)
	b, err := merkle.Verify(before, nil, have, p)
	if err == nil {
		err = s.honest(b, tree.Length)
	}
	if err != nil {
		t.Fatalf("%d..%d %+v %+v %+v: %v", before.Length, tree.Length, req.Block, req.Hash, req.Seek, err)
	}
}

// TestSeek finds every byte position, downloading nodes as it goes.
func TestSeek(t *testing.T) {
	for _, length := range []uint64{1, 2, 3, 5, 11, 16, 33, 100} {
		s := newSlowTree(length)
		tree := s.at(length)
		var want merkle.Position // of byte number bytes
		want.Found = true
		for bytes := range tree.ByteLength() + 1 {
			if bytes > 0 {
				want.Offset++
				for want.Start < length && want.Offset >= uint64(len(s.blocks[want.Start])) {
					want.Offset -= uint64(len(s.blocks[want.Start]))
					want.Start++
				}
			}
			have := s.reader(length)
			got, err := merkle.Seek(tree, have, bytes, 0)
			for rounds := 0; err == nil && !got.Found; rounds++ {
				if rounds > 1 {
					t.Fatalf("seek %d of %d needs more than one round trip", bytes, length)
				}
				p := prove(t, tree, s, merkle.Request{
					Hash: &merkle.HashRequest{Index: 2 * got.Start, Nodes: got.Nodes},
					Seek: &merkle.SeekRequest{Bytes: bytes},
				})
				b, err := merkle.Verify(tree, nil, have, p)
				if err != nil {
					t.Fatalf("seek %d of %d: %v", bytes, length, err)
				}
				have.put(b.Nodes)
				got, err = merkle.Seek(tree, have, bytes, 0)
				if err != nil {
					t.Fatalf("seek %d of %d: %v", bytes, length, err)
				}
			}
			if bytes == 0 {
				continue // block 0, even if it is empty
			}
			if err != nil || !samePosition(s, got, want) {
				t.Fatalf("seek %d of %d = %+v, %v, want %+v", bytes, length, got, err, want)
			}
			full, err := merkle.Seek(tree, s, bytes, 0)
			if err != nil || !samePosition(s, full, want) {
				t.Fatalf("seek %d of %d in the full tree = %+v, %v, want %+v", bytes, length, full, err, want)
			}
		}
		if _, err := merkle.Seek(tree, s, tree.ByteLength()+1, 0); !errors.Is(err, merkle.ErrRequest) {
			t.Errorf("seek past the end: %v", err)
		}
	}
}

// samePosition says whether a and b differ by empty blocks only.
func samePosition(s *slowTree, a, b merkle.Position) bool {
	for a.Found && a.Start < uint64(len(s.blocks)) && a.Offset >= uint64(len(s.blocks[a.Start])) {
		a.Offset -= uint64(len(s.blocks[a.Start]))
		a.Start++
	}
	return a.Found && a.Start == b.Start && a.Offset == b.Offset
}

func TestByteOffset(t *testing.T) {
	for length := uint64(0); length <= 70; length++ {
		s := newSlowTree(length)
		var want uint64
		for i := range length + 1 {
			if got, err := merkle.ByteOffset(s.at(length), s, i); got != want || err != nil {
				t.Fatalf("ByteOffset(%d of %d) = %d, %v, want %d", i, length, got, err, want)
			}
			want += uint64(len(testBlock(i)))
		}
		if _, err := merkle.ByteOffset(s.at(length), s, length+1); !errors.Is(err, merkle.ErrRequest) {
			t.Errorf("ByteOffset past the end of %d: %v", length, err)
		}
	}
}

// TestFlippedBits changes every bit of proofs of each kind. Such a proof must
// be refused, or everything it adds must be true all the same (it may have lost
// a part that is optional). // SEC-1
func TestFlippedBits(t *testing.T) {
	pair := core.NewKeyPair([32]byte{1})
	manifest := core.SingleSigner(pair.Public())
	key := manifest.Key()
	lengths := []uint64{1, 2, 6, 11, 21}
	if testing.Short() {
		lengths = lengths[:3]
	}
	for _, length := range lengths {
		s := newSlowTree(length)
		tree := s.at(length)
		sig, err := manifest.SignTree(key, tree, pair)
		if err != nil {
			t.Fatal(err)
		}
		for _, start := range []uint64{0, length / 2, length - 1} {
			up := &merkle.UpgradeRequest{Start: start, Length: length - start}
			part := &merkle.UpgradeRequest{Start: start, Length: (length - start + 1) / 2}
			last := length - 1
			for _, req := range []merkle.Request{
				{Upgrade: up}, {Upgrade: part}, {Upgrade: up, Block: &merkle.BlockRequest{Index: last}},
				{Upgrade: part, Block: &merkle.BlockRequest{Index: start}},
				{Upgrade: up, Hash: &merkle.HashRequest{Index: 2 * last}},
				{Upgrade: up, Seek: &merkle.SeekRequest{Bytes: tree.ByteLength() * 2 / 3}},
			} {
				p := prove(t, tree, s, req)
				p.Upgrade.Signature = sig
				flipAll(t, s, s.at(start), s.reader(start), p, manifest, key)
			}
		}
		have := s.reader(length)
		for i := range length {
			steps, _ := merkle.MissingNodes(length, have, 2*i)
			flipAll(t, s, tree, have, prove(t, tree, s, merkle.Request{Block: &merkle.BlockRequest{Index: i, Nodes: steps}}), manifest, key)
			flipAll(t, s, tree, have, prove(t, tree, s, merkle.Request{Hash: &merkle.HashRequest{Index: 2 * i, Nodes: steps}}), manifest, key)
		}
	}
}

func flipAll(t *testing.T, s *slowTree, before merkle.Tree, have nodeMap, p *merkle.Proof, m core.Manifest, key core.Key) {
	t.Helper()
	message := p.AppendMessage(nil, 1)
	if err := apply(before, have, p, m, key); err != nil {
		t.Fatalf("the proof itself: %v", err)
	}
	for i := range message {
		for bit := range 8 {
			bad := bytes.Clone(message)
			bad[i] ^= 1 << bit
			d := compact.NewDecoder(bad)
			q, _ := merkle.DecodeProof(d)
			if d.Err() != nil || apply(before, have, q, m, key) != nil {
				continue
			}
			b, err := merkle.Verify(before, m.Prologue, have, q)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.honest(b, b.Tree.Length); err != nil {
				t.Fatalf("bit %d of byte %d of %x flipped: %v", bit, i, message, err)
			}
			if q.Block != nil && (p.Block == nil || q.Block.Index != p.Block.Index || !bytes.Equal(q.Block.Value, p.Block.Value)) {
				t.Fatalf("bit %d of byte %d of %x flipped: false block %d is accepted", bit, i, message, q.Block.Index)
			}
		}
	}
}

func TestPrologue(t *testing.T) {
	s := newSlowTree(20)
	prologue := &merkle.Prologue{Hash: s.at(11).Hash(), Length: 11}
	for _, c := range []struct{ length, upgrade uint64 }{{11, 11}, {20, 11}, {20, 20}} {
		p := prove(t, s.at(c.length), s, merkle.Request{Upgrade: &merkle.UpgradeRequest{Length: c.upgrade}})
		if b, err := merkle.Verify(merkle.Tree{}, prologue, nodeMap{}, p); err != nil || b.Tree.Length != c.length {
			t.Errorf("upgrade to %d of %d: %v", c.upgrade, c.length, err)
		}
	}
	widened, err := merkle.Prove(s.at(20), 11, s, merkle.Request{Upgrade: &merkle.UpgradeRequest{Start: 3, Length: 2}})
	if err != nil || widened.Upgrade.Start != 0 || widened.Upgrade.Length != 11 {
		t.Errorf("upgrade inside the prologue: %+v, %v", widened, err)
	}
	short := prove(t, s.at(20), s, merkle.Request{Upgrade: &merkle.UpgradeRequest{Length: 10}})
	if _, err := merkle.Verify(merkle.Tree{}, prologue, nodeMap{}, short); !errors.Is(err, merkle.ErrPrologue) {
		t.Errorf("upgrade to less than the prologue: %v", err)
	}
	prologue.Hash[0]++
	other := prove(t, s.at(11), s, merkle.Request{Upgrade: &merkle.UpgradeRequest{Length: 11}})
	if _, err := merkle.Verify(merkle.Tree{}, prologue, nodeMap{}, other); !errors.Is(err, merkle.ErrPrologue) {
		t.Errorf("upgrade to another tree than the prologue: %v", err)
	}
}

// TestNodeLimit: a proof from a peer has at most [merkle.MaxNodes] nodes, wherever in
// it they are. SEC-20
func TestNodeLimit(t *testing.T) {
	for _, c := range []struct{ block, hash, seek, upgrade, additional int }{
		{block: 1}, {hash: 1}, {seek: 1}, {upgrade: 1}, {additional: 1}, {1, 1, 1, 1, 1}, {upgrade: 1, additional: 2},
	} {
		decode := func(most int) error {
			parts := c.block + c.hash + c.seek + c.upgrade + c.additional
			each, left := most/parts, most%parts
			nodes := func(share int) []merkle.Node {
				n := share * each
				if share > 0 {
					n, left = n+left, 0
				}
				return make([]merkle.Node, n)
			}
			p := &merkle.Proof{
				Block: &merkle.BlockProof{Nodes: nodes(c.block)}, Hash: &merkle.HashProof{Nodes: nodes(c.hash)},
				Seek:    &merkle.SeekProof{Nodes: nodes(c.seek)},
				Upgrade: &merkle.UpgradeProof{Nodes: nodes(c.upgrade), Additional: nodes(c.additional)},
			}
			d := compact.NewDecoder(p.AppendMessage(nil, 1))
			merkle.DecodeProof(d)
			return d.Err()
		}
		for n, refused := range map[int]bool{merkle.MaxNodes: false, merkle.MaxNodes + 1: true, 100_000: true} {
			if err := decode(n); (err != nil) != refused {
				t.Errorf("%d nodes in %+v: %v, refused should be %v", n, c, err, refused)
			}
		}
	}
}

// TestAbsurd sends numbers at the edge of what the encoding holds. // SEC-20
func TestAbsurd(t *testing.T) {
	node := func(i, size uint64) merkle.Node { return merkle.Node{Index: i, Size: size} }
	many := make([]merkle.Node, 60)
	index := uint64(0)
	for i := range many {
		many[i] = node(flattree.Sibling(index), 1)
		index = flattree.Parent(index)
	}
	for name, p := range map[string]*merkle.Proof{
		"upgrade of 2^53":   {Upgrade: &merkle.UpgradeProof{Start: compact.MaxUint, Length: compact.MaxUint}},
		"length of 2^50":    {Upgrade: &merkle.UpgradeProof{Length: 1 << 50}},
		"one root of 2^53":  {Upgrade: &merkle.UpgradeProof{Length: 1, Nodes: []merkle.Node{node(0, 1)}, Additional: []merkle.Node{node(compact.MaxUint, 1)}}},
		"two huge sizes":    {Upgrade: &merkle.UpgradeProof{Length: 3, Nodes: []merkle.Node{node(1, compact.MaxUint), node(4, compact.MaxUint)}}},
		"block 2^53":        {Block: &merkle.BlockProof{Index: compact.MaxUint}},
		"hash 2^53":         {Hash: &merkle.HashProof{Index: compact.MaxUint, Nodes: []merkle.Node{node(compact.MaxUint, 1)}}},
		"path of 60 nodes":  {Block: &merkle.BlockProof{Nodes: many}},
		"seek at 2^53":      {Seek: &merkle.SeekProof{Nodes: []merkle.Node{node(compact.MaxUint, 1)}}},
		"hash without node": {Hash: &merkle.HashProof{}},
		"huge siblings":     {Hash: &merkle.HashProof{Nodes: []merkle.Node{node(0, compact.MaxUint), node(2, compact.MaxUint)}}},
	} {
		if _, err := merkle.Verify(merkle.Tree{}, nil, nodeMap{}, p); !errors.Is(err, merkle.ErrMalformed) {
			t.Errorf("%s: %v, want ErrMalformed", name, err)
		}
	}
	// A tree of 2^50 blocks is no more work than a small one.
	tree := merkle.Tree{Length: 1 << 50, Roots: []merkle.Node{node(1<<50-1, 1<<52)}}
	have := nodeMap{1<<50 - 1: tree.Roots[0]}
	for _, req := range []merkle.Request{
		{Block: &merkle.BlockRequest{Index: 1 << 49, Nodes: 50}},
		{Block: &merkle.BlockRequest{Index: 5, Nodes: compact.MaxUint}},
		{Hash: &merkle.HashRequest{Index: compact.MaxUint}},
		{Upgrade: &merkle.UpgradeRequest{Start: 1 << 49, Length: 1 << 49}},
		{Upgrade: &merkle.UpgradeRequest{Length: compact.MaxUint}},
		{Seek: &merkle.SeekRequest{Padding: compact.MaxUint}, Upgrade: &merkle.UpgradeRequest{Length: 1 << 50}},
	} {
		if _, err := merkle.Prove(tree, 0, have, req); err == nil {
			t.Errorf("Prove(%+v) succeeds", req)
		}
	}
	if n, err := merkle.MissingNodes(tree.Length, have, 2<<49); n != 49+1 || err != nil {
		t.Errorf("MissingNodes = %d, %v", n, err)
	}
}

// TestShiftedSizes moves bytes from one of the two lowest nodes of a hash proof
// to the other, which no hash forbids. When the block arrives, its leaf must
// replace the false one and not be taken for a lie.
func TestShiftedSizes(t *testing.T) {
	s := newSlowTree(8)
	tree, have := s.at(8), s.reader(8)
	p := prove(t, tree, s, merkle.Request{Hash: &merkle.HashRequest{Index: 6, Nodes: 3}})
	p.Hash.Nodes[0].Size++
	p.Hash.Nodes[1].Size--
	b, err := merkle.Verify(tree, nil, have, p)
	if err != nil {
		t.Fatal(err)
	}
	have.put(b.Nodes)
	b, err = merkle.Verify(tree, nil, have, prove(t, tree, s, merkle.Request{Block: &merkle.BlockRequest{Index: 3}}))
	if err != nil {
		t.Fatal(err)
	}
	have.put(b.Nodes)
	if have[6] != s.node(6) {
		t.Errorf("leaf is %v, want %v", have[6], s.node(6))
	}
}

// TestReorg replaces trees by others that share a prefix of every length.
func TestReorg(t *testing.T) {
	for _, oldLength := range []uint64{1, 2, 5, 8, 13} {
		for _, newLength := range []uint64{1, 3, 8, 11, 16} {
			for common := range min(oldLength, newLength) + 1 {
				testReorg(t, oldLength, newLength, common, false)
				testReorg(t, oldLength, newLength, common, true)
			}
		}
	}
}

func testReorg(t *testing.T, oldLength, newLength, common uint64, random bool) {
	t.Helper()
	was, now := newSlowTree(oldLength), newSlowTree(newLength)
	for i := common; i < newLength; i++ {
		now.blocks[i] = append([]byte("new"), now.blocks[i]...)
	}
	head := now.at(newLength)
	head.Fork = 1
	p := prove(t, head, now, merkle.Request{Upgrade: &merkle.UpgradeRequest{Length: newLength}})
	g, err := merkle.NewReorg(was.at(oldLength), nil, was, p)
	if err != nil {
		t.Fatal(err)
	}
	rounds := 0
	for want, ok := g.Want(); ok; want, ok = g.Want() {
		if rounds++; rounds > 1 && !random || rounds > 5 {
			t.Fatalf("reorg of %d to %d after %d needs %d round trips", oldLength, newLength, common, rounds)
		}
		if err := g.Update(was, &merkle.Proof{}); err == nil {
			t.Fatal("an empty answer is accepted")
		}
		i := max(want.Start, min(common, want.End-1)) // the best guess there is
		if random {
			i = want.Start + rand.Uint64N(want.End-want.Start)
		}
		p := prove(t, head, now, merkle.Request{Hash: &merkle.HashRequest{Index: 2 * i, Nodes: want.Nodes}})
		if err := g.Update(was, p); err != nil {
			t.Fatal(err)
		}
	}
	b := g.Batch()
	if b.Ancestors != common || !b.Upgraded || b.Tree.Fork != 1 {
		t.Fatalf("reorg of %d to %d after %d: common length %d, tree %v", oldLength, newLength, common, b.Ancestors, b.Tree)
	}
	if err := now.honest(b, newLength); err != nil {
		t.Fatal(err)
	}
	// Stored, it leaves nothing of the old tree.
	have := nodeMap{}
	for i := range 2 * oldLength {
		if n, ok, _ := was.Node(i); ok {
			have[i] = n
		}
	}
	for _, i := range b.Stale(nil) {
		delete(have, i)
	}
	for i := range have {
		if i >= 2*b.Ancestors {
			delete(have, i)
		}
	}
	have.put(b.Nodes)
	for i, n := range have {
		if flattree.RightSpan(i) < 2*newLength && n != now.node(i) {
			t.Fatalf("reorg of %d to %d after %d: old node %d stays", oldLength, newLength, common, i)
		}
	}
}

func TestTruncate(t *testing.T) {
	s := newSlowTree(40)
	for length := uint64(0); length <= 40; length++ {
		b, err := merkle.Truncate(s.at(40), s, length, 3)
		if err != nil {
			t.Fatal(err)
		}
		if b.Tree.Fork != 3 || b.Ancestors != length {
			t.Errorf("Truncate(%d) = fork %d, %d", length, b.Tree.Fork, b.Ancestors)
		}
		if err := s.honest(b, length); err != nil {
			t.Errorf("Truncate(%d): %v", length, err)
		}
		for _, i := range b.Stale(nil) {
			if i >= 2*length || flattree.RightSpan(i) < 2*length {
				t.Errorf("Truncate(%d): node %d is not stale", length, i)
			}
		}
	}
	if _, err := merkle.Truncate(s.at(3), s, 4, 1); err == nil {
		t.Error("Truncate to more than there is succeeds")
	}
	if _, err := merkle.Truncate(s.at(40), s.reader(40), 5, 1); !errors.Is(err, merkle.ErrNotStored) {
		t.Errorf("Truncate without nodes: %v", err)
	}
}

func TestExtend(t *testing.T) {
	s := newSlowTree(40)
	for length := uint64(0); length <= 40; length++ {
		for start := uint64(1); start <= length; start++ {
			var nodes []merkle.Node
			if start < length {
				nodes = prove(t, s.at(length), s, merkle.Request{Upgrade: &merkle.UpgradeRequest{Start: start, Length: length - start}}).Upgrade.Nodes
			}
			rand.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
			got, err := merkle.Extend(s.at(start), nodes, length-start)
			if err != nil || got.Hash() != s.at(length).Hash() {
				t.Fatalf("Extend(%d by %d): %v", start, length-start, err)
			}
			if len(nodes) > 0 {
				if _, err := merkle.Extend(s.at(start), nodes[1:], length-start); err == nil {
					t.Fatalf("Extend(%d by %d) without node %d succeeds", start, length-start, nodes[0].Index)
				}
			}
		}
	}
}

func FuzzProof(f *testing.F) {
	v := loadMerkle(f)
	for _, c := range v.Proofs {
		f.Add([]byte(c.Message), uint64(c.Reader.Before))
	}
	manifest, err := core.DecodeManifest(v.Manifest)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, message []byte, before uint64) { // SEC-8
		d := compact.NewDecoder(message)
		p, id := merkle.DecodeProof(d)
		if d.Err() != nil {
			return
		}
		again, id2 := merkle.DecodeProof(compact.NewDecoder(p.AppendMessage(nil, id)))
		if id2 != id || !bytes.Equal(again.AppendMessage(nil, id), p.AppendMessage(nil, id)) {
			t.Errorf("%x does not survive a round trip", message)
		}
		tree, nodes := v.build(before % 101)
		if b, err := merkle.Verify(tree, nil, nodes, p); err == nil && b.Upgraded {
			manifest.VerifyTree(core.Key(v.Key), b.Tree, b.Signature)
		}
		merkle.NewReorg(tree, nil, nodes, p)
	})
}

func FuzzRequest(f *testing.F) {
	v := loadMerkle(f)
	for _, c := range v.Proofs {
		f.Add(c.Request.AppendMessage(nil, 1, 0))
	}
	tree, nodes := v.build(77)
	f.Fuzz(func(t *testing.T, message []byte) { // SEC-8
		d := compact.NewDecoder(message)
		r, id, priority := merkle.DecodeRequest(d)
		if d.Err() != nil {
			return
		}
		b := r.AppendMessage(nil, id, priority)
		r2, id2, priority2 := merkle.DecodeRequest(compact.NewDecoder(b))
		if !bytes.Equal(r2.AppendMessage(nil, id2, priority2), b) {
			t.Errorf("%x does not survive a round trip", message)
		}
		merkle.Prove(tree, 0, nodes, *r)
	})
}

func BenchmarkAppend(b *testing.B) {
	for _, size := range []int{64, 200, 65536} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			block := make([]byte, size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			batch := merkle.NewBatch(merkle.Tree{})
			for b.Loop() {
				batch.Append(block)
				batch.Nodes = batch.Nodes[:0]
			}
		})
	}
}

func BenchmarkVerifyBlock(b *testing.B) {
	s := newSlowTree(1 << 12)
	tree := s.at(1 << 12)
	have := s.reader(1 << 12)
	p, err := merkle.Prove(tree, 0, s, merkle.Request{Block: &merkle.BlockRequest{Index: 77, Nodes: 12}})
	if err != nil {
		b.Fatal(err)
	}
	p.Block.Value = s.blocks[77]
	b.ReportAllocs()
	for b.Loop() {
		if _, err := merkle.Verify(tree, nil, have, p); err != nil {
			b.Fatal(err)
		}
	}
}
