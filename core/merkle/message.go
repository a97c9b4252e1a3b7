package merkle

import "github.com/pkgswarm/pkgswarm/internal/compact"

// MaxNodes is the largest number of nodes in all parts of a proof from a peer.
// Five paths of a tree of 2^25 blocks fit.
const MaxNodes = 128

// A Request asks for a proof. At most one of Block and Hash is set. Seek counts
// only together with Block, Hash or Upgrade.
type Request struct {
	Fork     uint64
	Block    *BlockRequest
	Hash     *HashRequest
	Seek     *SeekRequest
	Upgrade  *UpgradeRequest
	Manifest bool // the manifest, too, please
}

// A BlockRequest asks for a block and a path of Nodes siblings above it.
type BlockRequest struct {
	Index uint64 // block index, from 0
	Nodes uint64 // steps from its leaf up to a node the reader has
}

// A HashRequest asks for a node and a path of Nodes siblings above it.
type HashRequest struct {
	Index uint64 // node index
	Nodes uint64 // steps from it up to a node the reader has
}

// A SeekRequest asks for the path to the node that holds a byte position.
type SeekRequest struct {
	Bytes   uint64 // position in the core, from 0
	Padding uint64 // bytes of each block that do not count; at most maxPadding
}

// An UpgradeRequest asks for the way from the tree of Start blocks to that of
// Start + Length.
type UpgradeRequest struct {
	Start, Length uint64 // in blocks
}

// A Proof answers a [Request]. What was not asked for is nil.
type Proof struct {
	Fork     uint64
	Block    *BlockProof
	Hash     *HashProof
	Seek     *SeekProof
	Upgrade  *UpgradeProof
	Manifest []byte // as encoded
}

// A BlockProof is a block and the siblings on its way up, from the leaf on.
type BlockProof struct {
	Index uint64
	Value []byte
	Nodes []Node
}

// A HashProof is a node, the first of Nodes, and the siblings on its way up.
type HashProof struct {
	Index uint64 // node index
	Nodes []Node
}

// A SeekProof is a node, the first of Nodes, and the siblings on its way up.
type SeekProof struct {
	Bytes uint64
	Nodes []Node
}

// An UpgradeProof leads from the tree of Start blocks to that of
// Start + Length, and by Additional to the signed one.
type UpgradeProof struct {
	Start, Length uint64
	Nodes         []Node
	Additional    []Node
	Signature     []byte // nil if there is none
}

// Flags of request and data messages: which parts follow.
const (
	flagBlock = 1 << iota
	flagHash
	flagSeek
	flagUpgrade
	flagManifest
	flagPriority
)

// AppendMessage appends the request as the replication protocol's request
// message with that id and priority; a priority of 0 is left out.
func (r *Request) AppendMessage(b []byte, id, priority uint64) []byte {
	flags := flagIf(r.Block != nil, flagBlock) | flagIf(r.Hash != nil, flagHash) |
		flagIf(r.Seek != nil, flagSeek) | flagIf(r.Upgrade != nil, flagUpgrade) |
		flagIf(r.Manifest, flagManifest) | flagIf(priority != 0, flagPriority)
	b = append(b, flags)
	b = compact.AppendUint(b, id)
	b = compact.AppendUint(b, r.Fork)
	if p := r.Block; p != nil {
		b = compact.AppendUint(compact.AppendUint(b, p.Index), p.Nodes)
	}
	if p := r.Hash; p != nil {
		b = compact.AppendUint(compact.AppendUint(b, p.Index), p.Nodes)
	}
	if p := r.Seek; p != nil {
		b = compact.AppendUint(compact.AppendUint(b, p.Bytes), p.Padding)
	}
	if p := r.Upgrade; p != nil {
		b = compact.AppendUint(compact.AppendUint(b, p.Start), p.Length)
	}
	if priority != 0 {
		b = compact.AppendUint(b, priority)
	}
	return b
}

func flagIf(set bool, flag byte) byte {
	if set {
		return flag
	}
	return 0
}

// DecodeRequest reads a request message; see [Request.AppendMessage].
func DecodeRequest(d *compact.Decoder) (r *Request, id, priority uint64) {
	flags := d.Uint()
	id = d.Uint()
	r = &Request{Fork: d.Uint(), Manifest: flags&flagManifest != 0}
	if flags&flagBlock != 0 {
		r.Block = &BlockRequest{Index: d.Uint(), Nodes: d.Uint()}
	}
	if flags&flagHash != 0 {
		r.Hash = &HashRequest{Index: d.Uint(), Nodes: d.Uint()}
	}
	if flags&flagSeek != 0 {
		r.Seek = &SeekRequest{Bytes: d.Uint(), Padding: d.Uint()}
	}
	if flags&flagUpgrade != 0 {
		r.Upgrade = &UpgradeRequest{Start: d.Uint(), Length: d.Uint()}
	}
	if flags&flagPriority != 0 {
		priority = d.Uint()
	}
	return r, id, priority
}

// AppendMessage appends the proof as the replication protocol's data message
// that answers the request of that id.
func (p *Proof) AppendMessage(b []byte, id uint64) []byte {
	flags := flagIf(p.Block != nil, flagBlock) | flagIf(p.Hash != nil, flagHash) |
		flagIf(p.Seek != nil, flagSeek) | flagIf(p.Upgrade != nil, flagUpgrade) |
		flagIf(p.Manifest != nil, flagManifest)
	b = append(b, flags)
	b = compact.AppendUint(b, id)
	b = compact.AppendUint(b, p.Fork)
	if p := p.Block; p != nil {
		b = compact.AppendUint(b, p.Index)
		b = compact.AppendBytes(b, p.Value)
		b = AppendNodes(b, p.Nodes)
	}
	if p := p.Hash; p != nil {
		b = AppendNodes(compact.AppendUint(b, p.Index), p.Nodes)
	}
	if p := p.Seek; p != nil {
		b = AppendNodes(compact.AppendUint(b, p.Bytes), p.Nodes)
	}
	if p := p.Upgrade; p != nil {
		b = compact.AppendUint(compact.AppendUint(b, p.Start), p.Length)
		b = AppendNodes(b, p.Nodes)
		b = AppendNodes(b, p.Additional)
		b = compact.AppendBytes(b, p.Signature)
	}
	return append(b, p.Manifest...)
}

// CountNodes returns the number of nodes in all parts of p.
func (p *Proof) CountNodes() int {
	n := 0
	if p.Block != nil {
		n += len(p.Block.Nodes)
	}
	if p.Hash != nil {
		n += len(p.Hash.Nodes)
	}
	if p.Seek != nil {
		n += len(p.Seek.Nodes)
	}
	if p.Upgrade != nil {
		n += len(p.Upgrade.Nodes) + len(p.Upgrade.Additional)
	}
	return n
}

// DecodeProof reads a data message; see [Proof.AppendMessage]. Block value,
// signature and manifest alias the input. The manifest, which has no length, is
// all that is left. More than [MaxNodes] nodes are a failure.
func DecodeProof(d *compact.Decoder) (p *Proof, id uint64) {
	flags := d.Uint()
	id = d.Uint()
	p = &Proof{Fork: d.Uint()}
	limit := MaxNodes
	nodes := func() []Node {
		n := DecodeNodes(d, limit)
		limit -= len(n)
		return n
	}
	if flags&flagBlock != 0 {
		p.Block = &BlockProof{Index: d.Uint(), Value: d.Bytes(), Nodes: nodes()}
	}
	if flags&flagHash != 0 {
		p.Hash = &HashProof{Index: d.Uint(), Nodes: nodes()}
	}
	if flags&flagSeek != 0 {
		p.Seek = &SeekProof{Bytes: d.Uint(), Nodes: nodes()}
	}
	if flags&flagUpgrade != 0 {
		p.Upgrade = &UpgradeProof{
			Start: d.Uint(), Length: d.Uint(),
			Nodes: nodes(), Additional: nodes(), Signature: d.Bytes(),
		}
	}
	if flags&flagManifest != 0 {
		p.Manifest = d.Rest()
	}
	return p, id
}
