package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/bee"
	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/core/merkle"
	"github.com/pkgswarm/pkgswarm/internal/compact"
	"github.com/pkgswarm/pkgswarm/internal/flattree"
	"github.com/pkgswarm/pkgswarm/internal/testenv"
	"github.com/pkgswarm/pkgswarm/internal/vectors"
)

// A pair is two stores with one primary key, ours and one of the reference:
// after the same operations everything about their cores has to be the same.
type pair struct {
	t     *testing.T
	r     *rand.Rand
	js    *testenv.Node
	store *core.Store

	versions map[string][]uint64 // of bees, between batches
}

func newPair(t *testing.T) *pair {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	p := &pair{t: t, r: rand.New(rand.NewPCG(seed, 0)), js: testenv.StartNode(t, "reference.mjs"), versions: map[string][]uint64{}}
	var primary [32]byte
	for i := range primary {
		primary[i] = byte(p.r.Uint32())
	}
	store, err := core.OpenStore(t.TempDir(), core.Options{PrimaryKey: &primary, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	p.store = store
	p.call("open", fmt.Sprintf("%x", primary), nil)
	return p
}

func (p *pair) call(method string, in, out any) {
	p.t.Helper()
	p.js.MustCall(p.t, method, in, out)
}

func (p *pair) named(name string) *core.Core {
	p.t.Helper()
	c, err := p.store.Named(name)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { c.Close() })
	return c
}

func (p *pair) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(p.r.Uint32())
	}
	return b
}

// A state is what the reference says about a core.
type state struct {
	Key, DiscoveryKey, Manifest, TreeHash vectors.Hex
	Length, ByteLength, Fork              uint64
}

func stateOf(c *core.Core) string {
	m, _ := c.Manifest()
	key, dk, hash := c.Key(), c.DiscoveryKey(), c.TreeHash()
	return state{key[:], dk[:], m.Encode(), hash[:], c.Length(), c.ByteLength(), c.Fork()}.String()
}

func (s state) String() string {
	return fmt.Sprintf("key %x, discovery key %x, manifest %x, length %d, byte length %d, fork %d, tree hash %x",
		[]byte(s.Key), []byte(s.DiscoveryKey), []byte(s.Manifest), s.Length, s.ByteLength, s.Fork, []byte(s.TreeHash))
}

func (p *pair) same(what string, c *core.Core, js state) {
	p.t.Helper()
	if got, want := stateOf(c), js.String(); got != want {
		p.t.Fatalf("%s:\n got %s\nwant %s", what, got, want)
	}
}

func hexOf(blocks [][]byte) []string {
	out := make([]string, len(blocks))
	for i, b := range blocks {
		out[i] = fmt.Sprintf("%x", b)
	}
	return out
}

// TestReferenceCores appends, in batches of up to 1 000, and truncates at random.
func TestReferenceCores(t *testing.T) {
	p := newPair(t)
	for round := range 3 {
		name := fmt.Sprintf("core %d", round)
		c := p.named(name)
		var js state
		p.call("state", name, &js)
		p.same("new core", c, js)
		for range 12 {
			p.mutate(name, c)
		}
		p.sameBlocks(name, c)
	}
}

// mutate does the same to both sides.
func (p *pair) mutate(name string, c *core.Core) {
	p.t.Helper()
	var js state
	if n := c.Length(); n > 0 && p.r.IntN(4) == 0 {
		to, fork := p.r.Uint64N(n), uint64(0)
		if p.r.IntN(3) == 0 {
			fork = c.Fork() + 1 + p.r.Uint64N(300)
		}
		if err := c.TruncateFork(to, fork); err != nil {
			p.t.Fatal(err)
		}
		p.call("truncate", params{"name": name, "length": to, "fork": fork}, &js)
		p.same(fmt.Sprintf("truncated from %d to %d", n, to), c, js)
		return
	}
	p.grow(name, c)
}

// grow appends the same to both sides.
func (p *pair) grow(name string, c *core.Core) {
	p.t.Helper()
	var js state
	count := []int{1, 1, 2, 7, 64, 1000}[p.r.IntN(6)]
	blocks := make([][]byte, count)
	for i := range blocks {
		blocks[i] = p.bytes(p.r.IntN(120))
	}
	if p.r.IntN(3) == 0 {
		blocks[0] = p.bytes(1 + p.r.IntN(200_000))
	}
	if _, err := c.Append(blocks...); err != nil {
		p.t.Fatal(err)
	}
	p.call("append", params{"name": name, "blocks": hexOf(blocks)}, &js)
	p.same(fmt.Sprintf("%d blocks appended", count), c, js)
}

// sameBlocks compares all blocks.
func (p *pair) sameBlocks(name string, c *core.Core) {
	p.t.Helper()
	var js []vectors.Hex
	p.call("blocks", params{"name": name, "start": 0, "end": c.Length()}, &js)
	for i, want := range js {
		got, err := c.Get(p.t.Context(), uint64(i))
		if err != nil {
			p.t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			p.t.Fatalf("block %d = %.80x, want %.80x", i, got, []byte(want))
		}
	}
}

// TestReferenceProofs has either side prove and the other verify.
func TestReferenceProofs(t *testing.T) {
	p := newPair(t)
	for round := range 3 {
		name := fmt.Sprintf("proofs %d", round)
		c := p.named(name)
		for c.Length() == 0 || p.r.IntN(4) > 0 {
			p.grow(name, c)
		}
		p.sameProofs(name, c, p.replica(c))
	}
}

// TestReferenceForks has replicas on either side follow a core through several
// forks: they find what the histories have in common by the other side's proofs,
// and are then filled by more of them.
func TestReferenceForks(t *testing.T) {
	p := newPair(t)
	name := "forks"
	c := p.named(name)
	for c.Length() < 3 {
		p.grow(name, c)
	}
	replica := p.replica(c)
	p.sameProofs(name, c, replica)
	for range 6 {
		for fork := c.Fork(); c.Fork() == fork || c.Length() == 0; {
			p.mutate(name, c)
		}
		p.reorgHere(name, c, replica)
		p.reorgThere(name, c)
		p.sameProofs(name, c, replica)
	}
}

// head is the request with which a reorganisation begins.
func head(c *core.Core) merkle.Request {
	return merkle.Request{Fork: c.Fork(), Upgrade: &merkle.UpgradeRequest{Length: c.Length()}}
}

// wanted is a request for something that a reorganisation wants.
func (p *pair) wanted(c *core.Core, start, end, nodes uint64) merkle.Request {
	end = min(end, c.Length())
	i := start
	if start < end {
		i += p.r.Uint64N(end - start)
	}
	return merkle.Request{Fork: c.Fork(), Hash: &merkle.HashRequest{Index: 2 * i, Nodes: nodes}}
}

// theirProof has the reference answer a request, and decodes it.
func (p *pair) theirProof(name string, req merkle.Request) *merkle.Proof {
	p.t.Helper()
	var theirs []vectors.Hex
	p.call("prove", params{"name": name, "requests": []any{requestJSON(req)}}, &theirs)
	proof, ok := decodes(theirs[0])
	if !ok {
		p.t.Fatalf("proof of %s does not decode: %x", show(req), []byte(theirs[0]))
	}
	return proof
}

// ourMessage answers a request, encoded.
func (p *pair) ourMessage(c *core.Core, req merkle.Request) []byte {
	p.t.Helper()
	proof, err := c.Prove(req)
	if err != nil {
		p.t.Fatalf("prove %s: %v", show(req), err)
	}
	return proof.AppendMessage(nil, 1)
}

func (p *pair) reorgHere(name string, c, replica *core.Core) {
	p.t.Helper()
	g, err := replica.BeginReorg(p.theirProof(name, head(c)))
	if err != nil {
		p.t.Fatal(err)
	}
	for want, open := g.Want(); open; want, open = g.Want() {
		req := p.wanted(c, want.Start, want.End, want.Nodes)
		if err := replica.UpdateReorg(g, p.theirProof(name, req)); err != nil {
			p.t.Fatalf("reorganise with the proof of %s: %v", show(req), err)
		}
	}
	if err := replica.FinishReorg(g); err != nil {
		p.t.Fatal(err)
	}
	if got, want := stateOf(replica), stateOf(c); got != want {
		p.t.Fatalf("reorganised:\n got %s\nwant %s", got, want)
	}
	for i := range replica.Length() { // what is left is of the common history
		if !replica.Has(i) {
			continue
		}
		got, err := replica.Get(p.t.Context(), i)
		want, _ := c.Get(p.t.Context(), i)
		if err != nil || !bytes.Equal(got, want) {
			p.t.Fatalf("block %d after the reorganisation is %.40x, %v, want %.40x", i, got, err, want)
		}
	}
}

func (p *pair) reorgThere(name string, c *core.Core) {
	p.t.Helper()
	m, _ := c.Manifest()
	req := head(c)
	for {
		var js struct {
			state
			OK   bool
			Want *struct{ Start, End, Nodes uint64 }
		}
		p.call("reorg", params{"replica": "replica of " + name, "manifest": fmt.Sprintf("%x", m.Encode()),
			"message": fmt.Sprintf("%x", p.ourMessage(c, req))}, &js)
		if js.Want == nil {
			if !js.OK {
				p.t.Fatal("the reference does not reorganise")
			}
			p.same("reorganised there", c, js.state)
			return
		}
		req = p.wanted(c, js.Want.Start, js.Want.End, js.Want.Nodes)
	}
}

func (p *pair) sameProofs(name string, c, replica *core.Core) {
	p.t.Helper()
	for range 16 {
		req := p.request(name, c, replica)
		if _, err := c.Prove(req); errors.Is(err, merkle.ErrRequest) {
			if p.js.Call("prove", params{"name": name, "requests": []any{requestJSON(req)}}, nil) == nil {
				p.t.Fatalf("prove %s: %v, but the reference does", show(req), err)
			}
			continue
		}
		ours := p.ourMessage(c, req)
		var theirs []vectors.Hex
		p.call("prove", params{"name": name, "requests": []any{requestJSON(req)}}, &theirs)
		if !bytes.Equal(ours, theirs[0]) {
			p.t.Fatalf("proof of %s:\n got %x\nwant %x", show(req), ours, []byte(theirs[0]))
		}
		p.verifyThere(c, name, req, ours)
		p.verifyHere(replica, req, theirs[0])
		if replica.TreeHash() != c.TreeHash() {
			p.t.Fatalf("tree hash after %s = %x, want %x", show(req), replica.TreeHash(), c.TreeHash())
		}
	}
}

// replica opens a core that knows only key and manifest of c, in a store of its own.
func (p *pair) replica(c *core.Core) *core.Core {
	p.t.Helper()
	store, err := core.OpenStore(p.t.TempDir(), core.Options{NoSync: true})
	if err != nil {
		p.t.Fatal(err)
	}
	m, _ := c.Manifest()
	r, err := store.Create(m)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { r.Close(); store.Close() })
	return r
}

// request makes up what the replica could ask c next: an upgrade first.
func (p *pair) request(name string, c, replica *core.Core) merkle.Request {
	req := merkle.Request{Fork: c.Fork()}
	if replica.Length() < c.Length() {
		req.Upgrade = &merkle.UpgradeRequest{Start: replica.Length(), Length: c.Length() - replica.Length()}
	}
	if req.Upgrade != nil && p.r.IntN(2) == 0 {
		return req
	}
	switch p.r.IntN(5) {
	case 0, 1, 2:
		i := p.r.Uint64N(c.Length())
		req.Block = &merkle.BlockRequest{Index: i, Nodes: p.missing(name, replica, 2*i)}
	case 3:
		i := p.r.Uint64N(2 * c.Length())
		for flattree.RightSpan(i) >= 2*c.Length() {
			i = p.r.Uint64N(2 * c.Length())
		}
		req.Hash = &merkle.HashRequest{Index: i, Nodes: p.missing(name, replica, i)}
	}
	if size := c.ByteLength(); size > 0 && p.seekable(c, req) {
		req.Seek = &merkle.SeekRequest{Bytes: p.r.Uint64N(size)}
	}
	return req
}

// seekable says whether to add a seek to a request. With a block or node that is
// not below the first root, the reference adds a number to undefined and answers
// with a path to somewhere else; ours goes to the byte.
func (p *pair) seekable(c *core.Core, req merkle.Request) bool {
	target := uint64(0)
	switch {
	case req.Block != nil:
		target = 2 * req.Block.Index
	case req.Hash != nil:
		target = req.Hash.Index
	default:
		return true
	}
	return flattree.RightSpan(target) <= flattree.RightSpan(c.Tree().Roots[0].Index) && p.r.IntN(3) == 0
}

// missing returns how long a path the replicas on both sides need. Ours may know
// more: a node above two known ones need not come from a proof.
func (p *pair) missing(name string, replica *core.Core, index uint64) uint64 {
	p.t.Helper()
	ours, err := replica.MissingNodes(index)
	if err != nil {
		p.t.Fatal(err)
	}
	var theirs uint64
	p.call("missing", params{"replica": "replica of " + name, "index": index}, &theirs)
	return max(ours, theirs)
}

func requestJSON(r merkle.Request) params {
	out := params{"fork": r.Fork}
	if r.Block != nil {
		out["block"] = params{"index": r.Block.Index, "nodes": r.Block.Nodes}
	}
	if r.Hash != nil {
		out["hash"] = params{"index": r.Hash.Index, "nodes": r.Hash.Nodes}
	}
	if r.Seek != nil {
		out["seek"] = params{"bytes": r.Seek.Bytes, "padding": r.Seek.Padding}
	}
	if r.Upgrade != nil {
		out["upgrade"] = params{"start": r.Upgrade.Start, "length": r.Upgrade.Length}
	}
	return out
}

func show(r merkle.Request) string {
	b, _ := json.Marshal(requestJSON(r))
	return string(b)
}

func (p *pair) verifyHere(replica *core.Core, req merkle.Request, message []byte) {
	p.t.Helper()
	d := compact.NewDecoder(message)
	proof, _ := merkle.DecodeProof(d)
	if err := d.Err(); err != nil {
		p.t.Fatalf("decode proof of %s: %v", show(req), err)
	}
	// SEC-1: one flipped bit, and nothing of the proof is taken.
	forged := bytes.Clone(message)
	at := 2 + p.r.IntN(len(forged)-2) // after flags and request id
	forged[at] ^= 1 << p.r.IntN(8)
	before := stateOf(replica)
	if f, ok := decodes(forged); ok {
		if _, err := replica.Apply(f); err == nil && !bytes.Equal(f.AppendMessage(nil, 1), message) {
			p.harmless(replica, proof, f, at)
		} else if after := stateOf(replica); err != nil && after != before {
			p.t.Fatalf("a forged proof changed the replica from %s to %s", before, after)
		}
	}
	if _, err := replica.Apply(proof); err != nil {
		p.t.Fatalf("verify %s: %v", show(req), err)
	}
}

func decodes(message []byte) (*merkle.Proof, bool) {
	d := compact.NewDecoder(message)
	p, _ := merkle.DecodeProof(d)
	return p, d.Err() == nil
}

// harmless fails the test unless what was accepted is part of the truth, as a
// proof without its upgrade can be.
func (p *pair) harmless(replica *core.Core, proof, forged *merkle.Proof, at int) {
	p.t.Helper()
	if forged.Block != nil && (proof.Block == nil || forged.Block.Index != proof.Block.Index || !bytes.Equal(forged.Block.Value, proof.Block.Value)) {
		p.t.Fatalf("a proof with byte %d changed was accepted, and its block stored", at)
	}
	if forged.Upgrade != nil && proof.Upgrade != nil && replica.Length() != proof.Upgrade.Start+proof.Upgrade.Length {
		p.t.Fatalf("a proof with byte %d changed was accepted, and its length is %d", at, replica.Length())
	}
}

func (p *pair) verifyThere(c *core.Core, name string, req merkle.Request, message []byte) {
	p.t.Helper()
	m, _ := c.Manifest()
	var js struct {
		state
		OK bool
	}
	p.call("verify", params{"replica": "replica of " + name, "key": c.Key().Hex(),
		"manifest": fmt.Sprintf("%x", m.Encode()), "message": fmt.Sprintf("%x", message)}, &js)
	if !js.OK {
		p.t.Fatalf("the reference refuses our proof of %s", show(req))
	}
	p.same("replica of the reference", c, js.state)
}

// TestReferenceStatic compares keys of static cores of 0 to 70 000 blocks.
func TestReferenceStatic(t *testing.T) {
	p := newPair(t)
	for _, count := range []int{0, 1, 2, 3, 64, 1000, 4095, 70_000} {
		b := merkle.NewBatch(merkle.Tree{})
		for i := range count {
			b.Append(fmt.Append(nil, i))
		}
		m := core.StaticManifest(b.Tree.Hash(), b.Tree.Length)
		p.sameStatic(fmt.Sprintf("%d blocks", count), "static", count, m)
	}
	for _, length := range []int{1, core.StaticBlock - 1, core.StaticBlock, core.StaticBlock + 1, 5*core.StaticBlock + 17, 100 * core.StaticBlock} {
		file := make([]byte, length)
		for i := range file {
			file[i] = byte(i * 31 >> 8)
		}
		tree, err := core.HashStatic(bytes.NewReader(file), int64(length))
		if err != nil {
			t.Fatal(err)
		}
		p.sameStatic(fmt.Sprintf("file of %d bytes", length), "staticFile", length, tree.Manifest())
	}
}

func (p *pair) sameStatic(what, method string, size int, m core.Manifest) {
	p.t.Helper()
	var js state
	p.call(method, size, &js)
	key := m.Key()
	dk := key.Discovery()
	got := state{Key: key[:], DiscoveryKey: dk[:], Manifest: m.Encode(), TreeHash: m.Prologue.Hash[:]}
	if got.String() != js.String() {
		p.t.Errorf("%s:\n got %s\nwant %s", what, got, js)
	}
}

// An op is an operation on a bee: "put", key, value or "del", key. A list of
// them is a batch.
type op []any

func beeOp(r *rand.Rand, universe, deletions int) op {
	key := fmt.Sprintf("%x", fmt.Sprintf("key %d", r.IntN(universe)))
	if r.IntN(10) < deletions {
		return op{"del", key}
	}
	switch r.IntN(20) {
	case 0:
		return op{"put", key, nil}
	case 1:
		return op{"put", key, ""}
	}
	return op{"put", key, fmt.Sprintf("%x", fmt.Sprint(r.IntN(1000)))}
}

// A changer is a tree or a batch.
type changer interface {
	Put(ctx context.Context, key, value []byte) error
	Delete(ctx context.Context, key []byte) error
}

func (p *pair) do(to changer, o op) {
	p.t.Helper()
	key := unhex(o[1])
	var err error
	if o[0] == "del" {
		err = to.Delete(p.t.Context(), key)
	} else {
		err = to.Put(p.t.Context(), key, unhex(o[2]))
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

func unhex(v any) []byte {
	s, ok := v.(string)
	if !ok {
		return nil
	}
	var b vectors.Hex
	if err := json.Unmarshal([]byte(`"`+s+`"`), &b); err != nil {
		panic(err)
	}
	return b
}

// beeOps does the same to both bees, single operations and batches mixed.
func (p *pair) beeOps(name string, tree *bee.Tree, c *core.Core, steps int, next func() op) {
	p.t.Helper()
	var ops []any
	for range steps {
		p.versions[name] = append(p.versions[name], tree.Version())
		if p.r.IntN(2) == 0 {
			o := next()
			p.do(tree, o)
			ops = append(ops, o)
			continue
		}
		b, list := tree.Batch(), []op{}
		for range p.r.IntN(60) {
			o := next()
			p.do(b, o)
			list = append(list, o)
		}
		if err := b.Flush(p.t.Context()); err != nil {
			p.t.Fatal(err)
		}
		ops = append(ops, list)
	}
	var js state
	p.call("bee", params{"name": name, "ops": ops}, &js)
	if got, want := stateOf(c), js.String(); got != want {
		p.sameBlocks(name, c) // says which one differs
		p.t.Fatalf("bee:\n got %s\nwant %s", got, want)
	}
}

// TestReferenceBee builds bees by random operations on both sides and compares
// every block, then what is read from them.
func TestReferenceBee(t *testing.T) {
	p := newPair(t)
	for round := range 3 {
		name := fmt.Sprintf("bee %d", round)
		c := p.named(name)
		tree := bee.Open(c, bee.Options{CacheBlocks: 50 + 1000*round})
		universe := []int{40, 300, 3000}[round]
		for phase := range 6 { // growth and decay
			deletions := []int{2, 8}[phase%2]
			p.beeOps(name, tree, c, 25, func() op { return beeOp(p.r, universe, deletions) })
		}
		p.sameReads(name, tree, universe)
	}
}

// TestReferenceBigBee is one of 5 000 keys, most of which are then deleted.
func TestReferenceBigBee(t *testing.T) {
	p := newPair(t)
	c := p.named("big")
	tree := bee.Open(c, bee.Options{})
	keys := p.r.Perm(5000)
	fill := func(from, to int, del bool) {
		var list []op
		b := tree.Batch()
		for _, k := range keys[from:to] {
			o := op{"put", fmt.Sprintf("%x", fmt.Sprintf("key %d", k)), "00"}
			if del {
				o = op{"del", o[1]}
			}
			p.do(b, o)
			list = append(list, o)
		}
		if err := b.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		var js state
		p.call("bee", params{"name": "big", "ops": []any{list}}, &js)
		p.same("big bee", c, js)
	}
	for i := 0; i < 5000; i += 1000 {
		fill(i, i+1000, false)
	}
	p.sameReads("big", tree, 5000)
	p.r.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
	fill(0, 2500, true)
	p.beeOps("big", tree, c, 40, func() op { return beeOp(p.r, 5000, 7) })
	fill(2500, 5000, true)
	p.sameReads("big", tree, 5000)
}

// version is one that ends no batch in the middle, or 0, the newest.
func (p *pair) version(name string) uint64 {
	list := p.versions[name]
	if len(list) == 0 || p.r.IntN(3) == 0 {
		return 0
	}
	return list[p.r.IntN(len(list))]
}

func at(tree *bee.Tree, version uint64) *bee.Tree {
	if version == 0 {
		return tree
	}
	return tree.Checkout(version)
}

// sameReads compares what both read, now and at earlier versions.
func (p *pair) sameReads(name string, tree *bee.Tree, universe int) {
	p.t.Helper()
	bound := func() string { return fmt.Sprintf("%x", fmt.Sprintf("key %d", p.r.IntN(universe))) }
	for range 12 {
		r, js := bee.Range{}, params{}
		if p.r.IntN(3) > 0 {
			s := bound()
			r.GTE, js["gte"] = unhex(s), s
		}
		if p.r.IntN(3) > 0 {
			s := bound()
			r.LT, js["lt"] = unhex(s), s
		}
		if p.r.IntN(3) == 0 {
			r.Limit = 1 + p.r.IntN(50)
			js["limit"] = r.Limit
		}
		if p.r.IntN(2) == 0 {
			r.Reverse, js["reverse"] = true, true
		}
		version := p.version(name)
		var want [][]any
		p.call("beeRange", params{"name": name, "version": version, "range": js}, &want)
		var got [][]any
		for e, err := range at(tree, version).Range(p.t.Context(), r) {
			if err != nil {
				p.t.Fatal(err)
			}
			got = append(got, row(e))
		}
		p.sameRows(fmt.Sprintf("range %v of version %d", js, version), got, want)
	}
	for range 4 {
		p.sameGets(name, tree, bound)
		p.sameDiff(name, tree, bound)
	}
	p.sameHistory(name, tree)
}

// sameDiff compares what differs between two versions.
func (p *pair) sameDiff(name string, tree *bee.Tree, bound func() string) {
	p.t.Helper()
	version, other := p.version(name), max(1, p.version(name))
	r, js := bee.Range{}, params{}
	if p.r.IntN(2) == 0 {
		s := bound()
		r.GTE, js["gte"] = unhex(s), s
	}
	if p.r.IntN(2) == 0 {
		s := bound()
		r.LT, js["lt"] = unhex(s), s
	}
	var got, want [][]any
	for d, err := range at(tree, version).Diff(p.t.Context(), other, r) {
		if err != nil {
			p.t.Fatal(err)
		}
		both := []any{nil, nil}
		for i, e := range []*bee.Entry{d.Left, d.Right} {
			if e != nil {
				both[i] = row(*e)
			}
		}
		got = append(got, both)
	}
	p.call("beeDiff", params{"name": name, "version": version, "other": other, "range": js}, &want)
	p.sameRows(fmt.Sprintf("difference of versions %d and %d in %v", version, other, js), got, want)
}

func (p *pair) sameGets(name string, tree *bee.Tree, bound func() string) {
	p.t.Helper()
	version := p.version(name)
	tree = at(tree, version)
	var keys []string
	var got, want [][]any
	for range 50 {
		k := bound()
		keys = append(keys, k)
		e, err := tree.Get(p.t.Context(), unhex(k))
		switch {
		case errors.Is(err, bee.ErrNotFound):
			got = append(got, nil)
		case err != nil:
			p.t.Fatal(err)
		default:
			got = append(got, row(e))
		}
	}
	p.call("beeGet", params{"name": name, "version": version, "keys": keys}, &want)
	p.sameRows(fmt.Sprintf("gets of version %d", version), got, want)
}

func (p *pair) sameHistory(name string, tree *bee.Tree) {
	p.t.Helper()
	var got, want [][]any
	for ch, err := range tree.History(p.t.Context(), bee.HistoryRange{}) {
		if err != nil {
			p.t.Fatal(err)
		}
		kind := "put"
		if ch.Deleted {
			kind = "del"
		}
		got = append(got, append([]any{kind}, row(ch.Entry)...))
	}
	p.call("beeHistory", name, &want)
	p.sameRows("history", got, want)
}

// row is an entry as the reference's program shows it.
func row(e bee.Entry) []any {
	if e.Value == nil {
		return []any{e.Seq, fmt.Sprintf("%x", e.Key), nil}
	}
	return []any{e.Seq, fmt.Sprintf("%x", e.Key), fmt.Sprintf("%x", e.Value)}
}

func (p *pair) sameRows(what string, got, want [][]any) {
	p.t.Helper()
	text := func(rows [][]any) []string {
		var out []string
		for _, r := range rows {
			b, err := json.Marshal(r)
			if err != nil {
				p.t.Fatal(err)
			}
			out = append(out, string(b))
		}
		return out
	}
	g, w := text(got), text(want)
	if strings.Join(g, "\n") == strings.Join(w, "\n") {
		return
	}
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			p.t.Fatalf("%s: row %d = %s, want %s", what, i, g[i], w[i])
		}
	}
	p.t.Fatalf("%s: %d rows, want %d", what, len(g), len(w))
}
