package bee

import (
	"github.com/pkgswarm/pkgswarm/internal/compact"
	"google.golang.org/protobuf/encoding/protowire"
)

// ExtensionName is the name of Hyperbee's extension of the replication protocol.
// Its messages are a length (compact encoding) and a protobuf message
//
//	Extension { Cache cache = 1; Get get = 2; Iterator iterator = 3; }
//	Get       { uint64 version = 1; bytes key = 2; }
//	Cache     { uint64 start = 1; uint64 end = 2; repeated uint64 blocks = 3; }
//
// A reader that has to wait for a block sends a get to its peers; they answer with
// the blocks that the look-up will read, as [Tree.Touched] finds them, and the
// reader fetches those all at once. Both are hints: who ignores them loses time only.
const ExtensionName = "hyperbee"

// maxHint bounds the blocks of one cache message.
const maxHint = 128

// A GetRequest asks which blocks a look-up needs.
type GetRequest struct {
	Version uint64 // of the tree
	Key     []byte // as stored
}

// EncodeGet returns the extension message of a request.
func EncodeGet(r GetRequest) []byte {
	var get []byte
	get = protowire.AppendVarint(append(get, 0x08), r.Version)
	get = appendBytes(get, 2, r.Key)
	return compact.AppendBytes(nil, appendBytes(nil, 2, get))
}

// EncodeCache returns the extension messages that name blocks, none for none.
func EncodeCache(blocks []uint64) [][]byte {
	var out [][]byte
	for len(blocks) > 0 {
		part := blocks[:min(len(blocks), maxHint)]
		blocks = blocks[len(part):]
		start, end := part[0], part[0]
		var list []byte
		for _, b := range part {
			start, end = min(start, b), max(end, b)
			list = protowire.AppendVarint(list, b)
		}
		var cache []byte
		cache = protowire.AppendVarint(append(cache, 0x08), start)
		cache = protowire.AppendVarint(append(cache, 0x10), end+1)
		cache = appendBytes(cache, 3, list)
		out = append(out, compact.AppendBytes(nil, appendBytes(nil, 1, cache)))
	}
	return out
}

// DecodeExtension reads an extension message: a request, or the blocks of a cache
// message, of which there are at most 128. Both are nil for others and malformed ones,
// which the reference ignores too.
func DecodeExtension(payload []byte) (get *GetRequest, blocks []uint64) {
	d := compact.NewDecoder(payload)
	b := d.Bytes()
	if d.Err() != nil {
		return nil, nil
	}
	err := eachField(b, func(num protowire.Number, v []byte) (err error) {
		switch num {
		case 1:
			blocks, err = decodeCache(v)
		case 2:
			get, err = decodeGet(v)
		}
		return err
	})
	if err != nil {
		return nil, nil
	}
	return get, blocks
}

func decodeGet(b []byte) (*GetRequest, error) {
	r := &GetRequest{Key: []byte{}}
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil, ErrFormat
		}
		b = b[n:]
		switch {
		case num == 1 && typ == protowire.VarintType:
			r.Version, n = protowire.ConsumeVarint(b)
		case num == 2 && typ == protowire.BytesType:
			var v []byte
			v, n = protowire.ConsumeBytes(b)
			r.Key = append([]byte{}, v...)
		default:
			n = protowire.ConsumeFieldValue(num, typ, b)
		}
		if n < 0 {
			return nil, ErrFormat
		}
		b = b[n:]
	}
	return r, nil
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
