package bee

import (
	"errors"
	"fmt"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
)

// ErrFormat is matched by the errors of blocks that are not Hyperbee's.
var ErrFormat = errors.New("bee: malformed block")

// protocol is what the header names.
const protocol = "hyperbee"

// maxKeys bounds the keys of a node that is read; writers make at most 8.
const maxKeys = 1 << 12

// Metadata is the optional part of a tree's header block.
type Metadata struct {
	ContentFeed []byte // key of a companion core, nil if there is none
	UserData    []byte // the application's; nil if there is none
}

// An address is where a tree node is: position offset in the index of block seq.
type address struct{ seq, offset uint64 }

// A level is a tree node as it is stored.
type level struct {
	keys     []uint64  // blocks that hold key and value
	children []address // one more than keys, or none in a leaf
}

// A block is one decoded Node message. It is never modified.
type block struct {
	seq    uint64
	key    []byte
	value  []byte // nil if there is none
	levels []level
}

// deletes reports whether the block records a deletion.
func (b *block) deletes() bool {
	if b.value != nil {
		return false
	}
	for _, l := range b.levels {
		for _, seq := range l.keys {
			if seq == b.seq {
				return false
			}
		}
	}
	return true
}

// encodeHeader returns block 0.
func encodeHeader(m *Metadata) []byte {
	b := appendBytes(nil, 1, []byte(protocol))
	if m == nil {
		return b
	}
	var meta []byte
	if m.ContentFeed != nil {
		meta = appendBytes(meta, 1, m.ContentFeed)
	}
	if m.UserData != nil {
		meta = appendBytes(meta, 2, m.UserData)
	}
	return appendBytes(b, 2, meta)
}

// DecodeHeader reads block 0 of a tree. The error matches [ErrFormat] if it is
// not that of a Hyperbee.
func DecodeHeader(b []byte) (*Metadata, error) {
	var name string
	var meta *Metadata
	err := eachField(b, func(num protowire.Number, v []byte) error {
		switch num {
		case 1:
			name = string(v)
		case 2:
			meta = &Metadata{}
			return eachField(v, func(num protowire.Number, v []byte) error {
				switch num {
				case 1:
					meta.ContentFeed = append([]byte{}, v...)
				case 2:
					meta.UserData = append([]byte{}, v...)
				}
				return nil
			})
		}
		return nil
	})
	if err == nil && name != protocol {
		err = fmt.Errorf("%w: header names %q", ErrFormat, name)
	}
	return meta, err
}

func appendBytes(b []byte, num protowire.Number, v []byte) []byte {
	b = protowire.AppendTag(b, num, protowire.BytesType)
	return protowire.AppendBytes(b, v)
}

// eachField calls f with every field of a message that has bytes, and skips the
// others.
func eachField(b []byte, f func(num protowire.Number, v []byte) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return ErrFormat
		}
		b = b[n:]
		if typ != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
				return ErrFormat
			}
			b = b[n:]
			continue
		}
		v, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return ErrFormat
		}
		if err := f(num, v); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// decodeBlock reads block seq. The result aliases b.
func decodeBlock(seq uint64, b []byte) (*block, error) {
	out := &block{seq: seq}
	var index, key bool
	err := eachField(b, func(num protowire.Number, v []byte) (err error) {
		switch num {
		case 1:
			index = true
			out.levels, err = decodeIndex(v)
		case 2:
			key, out.key = true, v
		case 3:
			if out.value = v; v == nil {
				out.value = []byte{}
			}
		}
		return err
	})
	if err == nil && (!index || !key) {
		err = ErrFormat
	}
	if err == nil {
		err = out.check()
	}
	if err != nil {
		return nil, fmt.Errorf("block %d: %w", seq, err)
	}
	return out, nil
}

// check refuses references that a reader could follow for ever or not at all.
func (b *block) check() error {
	for _, l := range b.levels {
		if len(l.keys) > maxKeys || len(l.children) > 0 && len(l.children) != len(l.keys)+1 {
			return fmt.Errorf("%w: node of %d keys and %d children", ErrFormat, len(l.keys), len(l.children))
		}
		// Nodes of a batch that are out of use may name later blocks.
		if slices.Contains(l.keys, 0) || slices.ContainsFunc(l.children, func(c address) bool { return c.seq == 0 }) {
			return fmt.Errorf("%w: reference to the header", ErrFormat)
		}
	}
	return nil
}

func decodeIndex(b []byte) ([]level, error) {
	levels := make([]level, 0, 4) // a change of a tree of many thousands of keys
	err := eachField(b, func(num protowire.Number, v []byte) error {
		if num != 1 {
			return nil
		}
		var l level
		err := eachField(v, func(num protowire.Number, v []byte) (err error) {
			switch num {
			case 1:
				l.keys, err = appendVarints(l.keys, v)
			case 2:
				l.children, err = appendAddresses(l.children, v)
			}
			return err
		})
		levels = append(levels, l)
		return err
	})
	return levels, err
}

// appendAddresses appends pairs of integers.
func appendAddresses(dst []address, b []byte) ([]address, error) {
	n := integers(b)
	if n%2 != 0 {
		return nil, ErrFormat
	}
	dst = slices.Grow(dst, n/2)
	for len(b) > 0 {
		seq, k := consumeInteger(b)
		if k < 0 {
			return nil, ErrFormat
		}
		offset, m := consumeInteger(b[k:])
		if m < 0 {
			return nil, ErrFormat
		}
		dst, b = append(dst, address{seq, offset}), b[k+m:]
	}
	return dst, nil
}

func appendVarints(dst []uint64, b []byte) ([]uint64, error) {
	dst = slices.Grow(dst, integers(b))
	for len(b) > 0 {
		v, n := consumeInteger(b)
		if n < 0 {
			return nil, ErrFormat
		}
		dst, b = append(dst, v), b[n:]
	}
	return dst, nil
}

// consumeInteger is [protowire.ConsumeVarint] for what the reference can represent.
func consumeInteger(b []byte) (v uint64, n int) {
	v, n = protowire.ConsumeVarint(b)
	if v > 1<<53-1 {
		return 0, -1
	}
	return v, n
}

// integers counts the integers of a packed field: each ends in a byte without
// the bit that says that more follow.
func integers(b []byte) (n int) {
	for _, c := range b {
		if c < 0x80 {
			n++
		}
	}
	return n
}
