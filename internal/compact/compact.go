// Package compact is the binary encoding of the Hypercore protocols, as the
// reference's compact-encoding defines it.
//
// All integers are little endian. A uint takes one byte up to 0xfc; above that
// a marker byte says how many bytes follow: 0xfd two, 0xfe four, 0xff eight. A
// buffer or string is a uint length followed by the bytes. Fixed-size values
// have no length.
//
// Encoders are append functions that write the shortest form. A [Decoder]
// accepts uints that are longer than needed, as the reference does; code whose
// bytes are covered by a hash or signature compares the re-encoding instead.
// Values of 2^53 and above are refused, since the reference cannot hold them.
package compact

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// MaxUint is the largest integer that may be encoded: 2^53 - 1.
const MaxUint = 1<<53 - 1

// MaxElements is the largest element count of an array that the reference reads.
const MaxElements = 0x100000

var (
	// ErrShort means that the input ends before the value does.
	ErrShort = errors.New("compact: input too short")
	// ErrRange means that an integer is 2^53 or more.
	ErrRange = errors.New("compact: integer out of range")
	// ErrCount means that an array claims more elements than its input can hold.
	ErrCount = errors.New("compact: too many elements")
)

// SizeUint returns the number of bytes that AppendUint writes for n: 1, 3, 5 or 9.
func SizeUint(n uint64) int {
	switch {
	case n <= 0xfc:
		return 1
	case n <= 0xffff:
		return 3
	case n <= 0xffffffff:
		return 5
	}
	return 9
}

// SizeBytes returns the number of bytes that AppendBytes writes for n bytes.
func SizeBytes(n int) int { return SizeUint(uint64(n)) + n }

// AppendUint appends n, which must be at most MaxUint.
func AppendUint(b []byte, n uint64) []byte {
	switch {
	case n <= 0xfc:
		return append(b, byte(n))
	case n <= 0xffff:
		return binary.LittleEndian.AppendUint16(append(b, 0xfd), uint16(n))
	case n <= 0xffffffff:
		return binary.LittleEndian.AppendUint32(append(b, 0xfe), uint32(n))
	}
	return binary.LittleEndian.AppendUint64(append(b, 0xff), n)
}

// AppendInt appends n in zig-zag form: 2n if n is not negative, else -2n - 1.
func AppendInt(b []byte, n int64) []byte {
	return AppendUint(b, uint64(n<<1)^uint64(n>>63))
}

// AppendBytes appends the length of v and v. A null buffer of the reference is
// an empty one here: both are written as length 0.
func AppendBytes(b, v []byte) []byte {
	return append(AppendUint(b, uint64(len(v))), v...)
}

// AppendString appends the length of s in bytes and s.
func AppendString(b []byte, s string) []byte {
	return append(AppendUint(b, uint64(len(s))), s...)
}

// AppendBool appends one byte, 1 or 0.
func AppendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

// A Decoder reads values from the front of a byte slice. The first failure
// sticks: all later reads return zero values, and Err reports it. A Decoder
// never allocates; slices it returns alias its input.
type Decoder struct {
	buf []byte
	err error
}

// NewDecoder returns a Decoder that reads b.
func NewDecoder(b []byte) *Decoder { return &Decoder{buf: b} }

// Err returns the first failure, or nil.
func (d *Decoder) Err() error { return d.err }

// Len returns the number of bytes not read yet, 0 after a failure.
func (d *Decoder) Len() int { return len(d.buf) }

// Fail makes err the failure of d unless it has failed before.
func (d *Decoder) Fail(err error) {
	if d.err == nil {
		d.err = err
	}
	d.buf = nil
}

// Fixed reads n bytes without a length.
func (d *Decoder) Fixed(n int) []byte {
	if n < 0 || n > len(d.buf) {
		d.Fail(ErrShort)
		return nil
	}
	v := d.buf[:n:n]
	d.buf = d.buf[n:]
	return v
}

// Fixed32 reads 32 bytes without a length.
func (d *Decoder) Fixed32() (v [32]byte) {
	copy(v[:], d.Fixed(32))
	return v
}

// Fixed64 reads 64 bytes without a length.
func (d *Decoder) Fixed64() (v [64]byte) {
	copy(v[:], d.Fixed(64))
	return v
}

// Byte reads one byte.
func (d *Decoder) Byte() byte {
	if b := d.Fixed(1); b != nil {
		return b[0]
	}
	return 0
}

// Uint reads an integer in [0, MaxUint].
func (d *Decoder) Uint() uint64 {
	var n uint64
	switch a := d.Byte(); a {
	case 0xfd:
		n = uint64(d.Uint16())
	case 0xfe:
		n = uint64(d.Uint32())
	case 0xff:
		n = d.Uint64()
	default:
		n = uint64(a)
	}
	if n > MaxUint {
		d.Fail(ErrRange)
		return 0
	}
	return n
}

// Int reads a zig-zag integer.
func (d *Decoder) Int() int64 {
	n := d.Uint()
	return int64(n>>1) ^ -int64(n&1)
}

// Uint16 reads 2 bytes.
func (d *Decoder) Uint16() uint16 {
	if b := d.Fixed(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

// Uint32 reads 4 bytes.
func (d *Decoder) Uint32() uint32 {
	if b := d.Fixed(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

// Uint64 reads 8 bytes.
func (d *Decoder) Uint64() uint64 {
	if b := d.Fixed(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

// Bool reads one byte: 1 is true, everything else false.
func (d *Decoder) Bool() bool { return d.Byte() == 1 }

// Bytes reads a length and that many bytes. The result is nil if the length is
// 0, which is how the reference writes a null buffer.
func (d *Decoder) Bytes() []byte {
	n := d.Uint()
	if n > uint64(len(d.buf)) {
		d.Fail(ErrShort)
		return nil
	}
	if n == 0 {
		return nil
	}
	return d.Fixed(int(n))
}

// String reads a length and that many bytes.
func (d *Decoder) String() string { return string(d.Bytes()) }

// Rest reads all that is left.
func (d *Decoder) Rest() []byte { return d.Fixed(len(d.buf)) }

// Count reads the element count of an array whose elements take at least size
// bytes each, size being at least 1. A count that the rest of the input cannot
// hold, or above MaxElements, is a failure: so callers may allocate by it.
func (d *Decoder) Count(size int) int {
	n := d.Uint()
	if n > MaxElements || n > uint64(len(d.buf)/size) {
		d.Fail(fmt.Errorf("%w: %d", ErrCount, n))
		return 0
	}
	return int(n)
}
