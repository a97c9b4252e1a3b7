package pkglog

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/bits"

	"github.com/pkgswarm/pkgswarm/internal/compact"
)

// Instructions of a delta, in the two low bits of their first integer.
const (
	opCopy   = 0 // n bytes of the dictionary, from where the next int says
	opInsert = 1 // the next n bytes
	opHex    = 2 // the next n bytes as 2n hexadecimal digits in lower case
)

const (
	// minMatch is the shortest run worth a copy, which takes 2 to 8 bytes.
	minMatch = 6
	// minHex is the fewest hexadecimal digits worth an instruction of their own.
	minHex = 16

	indexBits = 12 // of the hash table over the base

	// baseStep is how far apart the positions of a base are that matches are
	// looked for at. They are extended backwards, so that only short ones are
	// missed.
	baseStep = 2
)

// A dictionary is what the deltas of one ecosystem copy from besides their
// base: a fixed text. It is part of the format and never changes.
type dictionary struct {
	text  []byte
	index [1 << indexBits]int32 // hash of minMatch bytes -> position + 1
}

func newDictionary(text string) *dictionary {
	d := &dictionary{text: []byte(text)}
	indexText(&d.index, d.text, 0)
	return d
}

// indexText enters every position of text, offset by start.
func indexText(index *[1 << indexBits]int32, text []byte, start int) {
	for i := 0; i+8 <= len(text); i++ {
		index[hashAt(text, i)] = int32(start + i + 1)
	}
}

// hashAt hashes the minMatch bytes at b[i:]; eight must be there to be read.
func hashAt(b []byte, i int) uint32 {
	v := binary.LittleEndian.Uint64(b[i:]) << 16
	return uint32(v * 0x9e3779b185ebca87 >> (64 - indexBits))
}

// A deltaEncoder makes deltas. It is kept for its tables; not for concurrent use.
type deltaEncoder struct {
	base  [1 << indexBits]slot // as dictionary.index, for the base
	epoch uint32               // of the current base
	dict  *dictionary
	b     []byte // the base
	src   []byte
	out   []byte
	next  int // where the last copy ended, in dictionary || base
	from  int // start of the bytes of src not yet written
}

// A slot is of the base only if it bears its epoch: others are left over.
type slot struct {
	epoch uint32
	pos   int32
}

// encode returns the delta that turns dict || base into src, valid until the
// next call.
func (e *deltaEncoder) encode(dict *dictionary, base, src []byte) []byte {
	e.dict, e.b, e.src = dict, base, src
	e.out = compact.AppendUint(e.out[:0], uint64(len(src)))
	e.next, e.from = len(dict.text), 0
	e.indexBase()
	for i := 0; i < len(src); {
		pos, back, n := e.match(i)
		if n < minMatch {
			i++
			continue
		}
		e.insert(i - back)
		e.copy(pos-back, n+back)
		i += n
		e.from = i
	}
	e.insert(len(src))
	return e.out
}

func (e *deltaEncoder) indexBase() {
	if e.epoch++; e.epoch == 0 { // after 2^32 deltas
		clear(e.base[:])
		e.epoch = 1
	}
	for i := 0; i+8 <= len(e.b); i += baseStep {
		e.base[hashAt(e.b, i)] = slot{e.epoch, int32(len(e.dict.text) + i)}
	}
}

// match finds a run that starts at src[i] or up to back bytes before: first
// where the last copy would go on if this many bytes had been replaced, then
// in the base, then in the dictionary.
func (e *deltaEncoder) match(i int) (pos, back, n int) {
	pos = e.next + i - e.from
	if n = e.run(pos, i); n >= minMatch {
		return pos, e.backward(pos, i), n
	}
	if i+8 > len(e.src) {
		return 0, 0, 0
	}
	h := hashAt(e.src, i)
	if s := e.base[h]; s.epoch == e.epoch {
		if m := e.run(int(s.pos), i); m > n {
			pos, n = int(s.pos), m
		}
	}
	if p := e.dict.index[h]; p != 0 {
		if m := e.run(int(p-1), i); m > n {
			pos, n = int(p-1), m
		}
	}
	if n < minMatch {
		return 0, 0, 0
	}
	return pos, e.backward(pos, i), n
}

// part returns the text that holds pos and pos within it.
func (e *deltaEncoder) part(pos int) ([]byte, int) {
	if pos < len(e.dict.text) {
		return e.dict.text, pos
	}
	return e.b, pos - len(e.dict.text)
}

// run is common, but 0 where there are fewer than minMatch, which is so for most.
func (e *deltaEncoder) run(pos, i int) int {
	if t, p := e.part(pos); p+8 <= len(t) && i+8 <= len(e.src) {
		if x := binary.LittleEndian.Uint64(t[p:]) ^ binary.LittleEndian.Uint64(e.src[i:]); x<<(64-8*minMatch) != 0 {
			return 0
		}
	}
	return e.common(pos, i)
}

// common counts the equal bytes at pos of the dictionary and i of src.
func (e *deltaEncoder) common(pos, i int) int {
	t, p := e.part(pos)
	if p > len(t) {
		return 0
	}
	a, b := t[p:], e.src[i:]
	n, limit := 0, min(len(a), len(b))
	for ; n+8 <= limit; n += 8 {
		if x := binary.LittleEndian.Uint64(a[n:]) ^ binary.LittleEndian.Uint64(b[n:]); x != 0 {
			return n + bits.TrailingZeros64(x)/8
		}
	}
	for n < limit && a[n] == b[n] {
		n++
	}
	return n
}

// backward counts the equal bytes before them, not going behind e.from.
func (e *deltaEncoder) backward(pos, i int) int {
	t, p := e.part(pos)
	n := 0
	for n < p && i-n > e.from && t[p-n-1] == e.src[i-n-1] {
		n++
	}
	return n
}

func (e *deltaEncoder) copy(pos, n int) {
	e.out = compact.AppendUint(e.out, uint64(n)<<2|opCopy)
	e.out = compact.AppendInt(e.out, int64(pos-e.next))
	e.next = pos + n
}

// insert writes src[e.from:end], long runs of hexadecimal digits as bytes.
func (e *deltaEncoder) insert(end int) {
	e.next += end - e.from // a replaced text usually has the same length
	plain := e.from
	for i := e.from; i < end; {
		n := hexRun(e.src[i:end])
		if n < minHex {
			i += n + 1
			continue
		}
		e.plain(plain, i)
		e.out = compact.AppendUint(e.out, uint64(n/2)<<2|opHex)
		at := len(e.out)
		e.out = append(e.out, e.src[i:i+n/2]...) // room
		hex.Decode(e.out[at:], e.src[i:i+n])
		i += n
		plain = i
	}
	e.plain(min(plain, end), end)
	e.from = end
}

func (e *deltaEncoder) plain(lo, hi int) {
	if lo < hi {
		e.out = compact.AppendUint(e.out, uint64(hi-lo)<<2|opInsert)
		e.out = append(e.out, e.src[lo:hi]...)
	}
}

// hexRun returns the length of the digits at the front of b, an even number.
func hexRun(b []byte) int {
	n := 0
	for n < len(b) && (b[n] >= '0' && b[n] <= '9' || b[n] >= 'a' && b[n] <= 'f') {
		n++
	}
	return n &^ 1
}

// applyDelta returns what delta makes of dict || base. It allocates as much as
// the result has bytes, at most limit.
func applyDelta(dict, base, delta []byte, limit int) ([]byte, error) {
	d := compact.NewDecoder(delta)
	total := strictUint(d)
	if d.Err() == nil && total > uint64(limit) {
		return nil, fmt.Errorf("%w: %d bytes", ErrTooLarge, total)
	}
	// A delta of n bytes may be that of a far larger text, but no more than its
	// copies: grow with them rather than trust the number.
	out := make([]byte, 0, min(total, uint64(len(delta)+len(base)+len(dict))))
	next := int64(len(dict))
	for d.Len() > 0 {
		head := strictUint(d)
		n := head >> 2
		produced := n
		if head&3 == opHex {
			produced *= 2
		}
		if n == 0 || produced > total-uint64(len(out)) {
			return nil, fmt.Errorf("%w: delta instruction of %d bytes", ErrMalformed, n)
		}
		switch head & 3 {
		case opCopy:
			pos := next + strictInt(d)
			part, ok := slicePart(dict, base, pos, int64(n))
			if !ok {
				return nil, fmt.Errorf("%w: delta copies %d bytes from %d", ErrMalformed, n, pos)
			}
			out = append(out, part...)
			next = pos + int64(n)
		case opInsert:
			out = append(out, d.Fixed(int(n))...)
			next += int64(n)
		case opHex:
			out = hex.AppendEncode(out, d.Fixed(int(n)))
			next += int64(2 * n)
		default:
			return nil, fmt.Errorf("%w: delta instruction %d", ErrMalformed, head&3)
		}
	}
	if err := d.Err(); err != nil {
		return nil, fmt.Errorf("%w: delta: %w", ErrMalformed, err)
	}
	if uint64(len(out)) != total {
		return nil, fmt.Errorf("%w: delta makes %d of %d bytes", ErrMalformed, len(out), total)
	}
	return out, nil
}

// slicePart returns n bytes at pos of dict || base; they must not cross from
// one into the other.
func slicePart(dict, base []byte, pos, n int64) ([]byte, bool) {
	part := dict
	if pos >= int64(len(dict)) {
		part, pos = base, pos-int64(len(dict))
	}
	if pos < 0 || pos > int64(len(part)) || n > int64(len(part))-pos {
		return nil, false
	}
	return part[pos : pos+n], true
}

// strictUint reads an integer that has its shortest form.
func strictUint(d *compact.Decoder) uint64 {
	before := d.Len()
	n := d.Uint()
	if d.Err() == nil && before-d.Len() != compact.SizeUint(n) {
		d.Fail(fmt.Errorf("%w: integer longer than needed", ErrMalformed))
	}
	return n
}

// strictInt reads a zig-zag integer that has its shortest form.
func strictInt(d *compact.Decoder) int64 {
	n := strictUint(d)
	return int64(n>>1) ^ -int64(n&1)
}
