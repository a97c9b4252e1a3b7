package bee

import (
	"context"
	"slices"

	"github.com/pkgswarm/pkgswarm/internal/compact"
	"google.golang.org/protobuf/encoding/protowire"
)

// ExtensionName is the name of Hyperbee's extension of the replication protocol.
// Its messages are a length (compact encoding) and a protobuf message
//
//	Extension { Cache cache = 1; Get get = 2; Iterator iterator = 3; }
//	Cache     { uint64 start = 1; uint64 end = 2; repeated uint64 blocks = 3; }
//	Get       { uint64 version = 1; bytes key = 2; }
//	Iterator  { uint64 version = 1; bytes gte = 2; bytes gt = 3; bytes lte = 4;
//	            bytes lt = 5; uint64 limit = 6 (0: none); bool reverse = 7;
//	            repeated uint64 checkpoint = 8; }
//
// A reader that has to wait for a block sends a get or an iterator to its peers;
// they answer with the blocks that the look-up, or reading on in the range, will
// read, as [Tree.Touched] and [Tree.TouchedRange] find them, and the reader fetches
// those all at once. All are hints: who ignores them loses time only.
const ExtensionName = "hyperbee"

const (
	// maxHint bounds the blocks of one cache message.
	maxHint = 128
	// RangeHint is for how many blocks of a range a reader asks at once, as the
	// reference does.
	RangeHint = 2048
)

// A GetRequest asks which blocks a look-up needs.
type GetRequest struct {
	Version uint64 // of the tree
	Key     []byte // as stored
}

// A RangeRequest asks which blocks reading a range needs, from the checkpoint on.
type RangeRequest struct {
	Version uint64
	Range   Range // bounds as stored

	// Checkpoint is where the reader is: three numbers for each tree node on its
	// way, from the root down: its block, its position in that block's index, and
	// what comes next in it, 2k for child k and 2k+1 for key k. Empty is the start.
	Checkpoint []uint64
}

// A Message is an extension message; at most one of its fields is set.
type Message struct {
	Get    *GetRequest
	Range  *RangeRequest
	Blocks []uint64 // of a cache message; at most 128
}

// EncodeGet returns the extension message of a request.
func EncodeGet(r GetRequest) []byte {
	var get []byte
	get = protowire.AppendVarint(append(get, 0x08), r.Version)
	get = appendBytes(get, 2, r.Key)
	return compact.AppendBytes(nil, appendBytes(nil, 2, get))
}

// EncodeRange returns the extension message of a request.
func EncodeRange(r RangeRequest) []byte {
	b := protowire.AppendVarint([]byte{0x08}, r.Version)
	for i, bound := range [][]byte{r.Range.GTE, r.Range.GT, r.Range.LTE, r.Range.LT} {
		if bound != nil {
			b = appendBytes(b, protowire.Number(2+i), bound)
		}
	}
	b = protowire.AppendVarint(append(b, 0x30), uint64(max(r.Range.Limit, 0)))
	b = protowire.AppendVarint(append(b, 0x38), protowire.EncodeBool(r.Range.Reverse))
	if len(r.Checkpoint) > 0 {
		b = appendBytes(b, 8, packed(r.Checkpoint))
	}
	return compact.AppendBytes(nil, appendBytes(nil, 3, b))
}

// EncodeCache returns the extension messages that name blocks, none for none.
func EncodeCache(blocks []uint64) [][]byte {
	var out [][]byte
	for part := range slices.Chunk(blocks, maxHint) {
		cache := protowire.AppendVarint([]byte{0x08}, slices.Min(part))
		cache = protowire.AppendVarint(append(cache, 0x10), slices.Max(part)+1)
		cache = appendBytes(cache, 3, packed(part))
		out = append(out, compact.AppendBytes(nil, appendBytes(nil, 1, cache)))
	}
	return out
}

func packed(list []uint64) (b []byte) {
	for _, v := range list {
		b = protowire.AppendVarint(b, v)
	}
	return b
}

// DecodeExtension reads an extension message. It is empty for others and malformed
// ones, which the reference ignores too.
func DecodeExtension(payload []byte) Message {
	d := compact.NewDecoder(payload)
	b := d.Bytes()
	if d.Err() != nil {
		return Message{}
	}
	var m Message
	err := eachField(b, func(num protowire.Number, v []byte) (err error) {
		m = Message{}
		switch num {
		case 1:
			m.Blocks, err = decodeCache(v)
		case 2:
			m.Get, err = decodeGet(v)
		case 3:
			m.Range, err = decodeRange(v)
		}
		return err
	})
	if err != nil {
		return Message{}
	}
	return m
}

// A field is one field of a protobuf message: a number or bytes.
type field struct {
	num    protowire.Number
	number uint64
	bytes  []byte // not nil if it is bytes
}

// fields calls f with each field of b that is a number or bytes.
func fields(b []byte, f func(field) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return ErrFormat
		}
		b = b[n:]
		v := field{num: num}
		switch typ {
		case protowire.VarintType:
			v.number, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			var raw []byte
			raw, n = protowire.ConsumeBytes(b)
			v.bytes = append([]byte{}, raw...)
		default:
			v.num, n = 0, protowire.ConsumeFieldValue(num, typ, b)
		}
		if n < 0 {
			return ErrFormat
		}
		if err := f(v); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func decodeGet(b []byte) (*GetRequest, error) {
	r := &GetRequest{Key: []byte{}}
	return r, fields(b, func(f field) error {
		switch {
		case f.num == 1 && f.bytes == nil:
			r.Version = f.number
		case f.num == 2 && f.bytes != nil:
			r.Key = f.bytes
		}
		return nil
	})
}

func decodeRange(b []byte) (*RangeRequest, error) {
	r := &RangeRequest{}
	return r, fields(b, func(f field) (err error) {
		switch {
		case f.num == 1 && f.bytes == nil:
			r.Version = f.number
		case f.num == 2 && f.bytes != nil:
			r.Range.GTE = f.bytes
		case f.num == 3 && f.bytes != nil:
			r.Range.GT = f.bytes
		case f.num == 4 && f.bytes != nil:
			r.Range.LTE = f.bytes
		case f.num == 5 && f.bytes != nil:
			r.Range.LT = f.bytes
		case f.num == 6 && f.bytes == nil:
			r.Range.Limit = int(min(f.number, 1<<31-1))
		case f.num == 7 && f.bytes == nil:
			r.Range.Reverse = f.number != 0
		case f.num == 8 && f.bytes != nil:
			r.Checkpoint, err = appendVarints(r.Checkpoint, f.bytes)
		}
		if len(r.Checkpoint) > 3*maxDepth {
			err = ErrFormat
		}
		return err
	})
}

func decodeCache(b []byte) (blocks []uint64, err error) {
	err = eachField(b, func(num protowire.Number, v []byte) (err error) {
		if num == 3 {
			blocks, err = appendVarints(blocks, v)
		}
		if len(blocks) > maxHint {
			err = ErrFormat
		}
		return err
	})
	return blocks, err
}

// touching returns a walk that notes up to limit blocks that it reads, and ends at
// the first that cannot be had without waiting.
func (t *Tree) touching(ctx context.Context, limit int) (w walk, touched func() []uint64, cancel func()) {
	var seqs []uint64
	seen := map[uint64]bool{}
	ctx, cancel = context.WithCancel(ctx)
	w = walk{s: t.s, ctx: ctx, noAhead: true, touch: func(seq uint64) {
		if seen[seq] {
			return
		}
		if len(seqs) >= limit || t.s.remote != nil && !t.s.remote.Has(seq) {
			cancel()
			return
		}
		seen[seq] = true
		seqs = append(seqs, seq)
	}}
	return w, func() []uint64 { return seqs }, cancel
}

// Touched returns the blocks that a look-up of key, as stored, in a version reads,
// in that order: what a peer that asks with a [GetRequest] needs. Blocks that
// cannot be had without waiting end it. At most limit blocks are returned.
func (t *Tree) Touched(ctx context.Context, version uint64, key []byte, limit int) []uint64 {
	if version == 0 || version > t.Version() {
		return nil
	}
	w, touched, cancel := t.touching(ctx, limit)
	defer cancel()
	w.get(version, key)
	return touched()
}

// TouchedRange is Touched for a peer that asks with a [RangeRequest]: the blocks
// that reading on from its checkpoint reads. What the peer has for sure, those of
// the checkpoint, is left out.
func (t *Tree) TouchedRange(ctx context.Context, r RangeRequest, limit int) []uint64 {
	if r.Version == 0 || r.Version > t.Version() {
		return nil
	}
	w, touched, cancel := t.touching(ctx, limit+len(r.Checkpoint)/3)
	defer cancel()
	c, end, err := openRange(w, r)
	most := 8 * limit // a block may hold many keys
	if r.Range.Limit > 0 {
		most = min(most, r.Range.Limit)
	}
	for n := 0; err == nil && w.ctx.Err() == nil && n < most; n++ {
		var b *block
		if b, err = c.next(); b == nil || end.before(b.key) {
			break
		}
	}
	list := touched()
	return list[min(len(list), c.resumed):]
}
