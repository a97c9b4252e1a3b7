package compact_test

import (
	"bytes"
	"testing"

	"github.com/pkgswarm/pkgswarm/internal/compact"
	"github.com/pkgswarm/pkgswarm/internal/vectors"
)

func TestVectors(t *testing.T) {
	var v struct {
		Uint []struct {
			Value uint64
			Hex   vectors.Hex
		}
		UintDecodeOnly []struct {
			Hex     vectors.Hex
			Decodes *uint64
		}
		Int []struct {
			Value int64
			Hex   vectors.Hex
		}
		Buffer []struct {
			Value, Hex vectors.Hex
		}
		BufferDecodeOnly []struct{ Hex vectors.Hex }
		String           []struct {
			Value string
			Hex   vectors.Hex
		}
		Bool []struct {
			Value bool
			Hex   vectors.Hex
		}
	}
	vectors.Load(t, "encodings.json", &v)
	if len(v.Uint) == 0 || len(v.UintDecodeOnly) == 0 || len(v.Int) == 0 || len(v.Buffer) == 0 || len(v.String) == 0 {
		t.Fatal("vector file lacks a section")
	}
	for _, c := range v.Uint {
		if got := compact.AppendUint(nil, c.Value); !bytes.Equal(got, c.Hex) {
			t.Errorf("AppendUint(%d) = %x, want %x", c.Value, got, c.Hex)
		}
		if got := compact.SizeUint(c.Value); got != len(c.Hex) {
			t.Errorf("SizeUint(%d) = %d, want %d", c.Value, got, len(c.Hex))
		}
		check(t, c.Hex, c.Value, (*compact.Decoder).Uint)
	}
	for _, c := range v.UintDecodeOnly {
		if c.Decodes != nil {
			check(t, c.Hex, *c.Decodes, (*compact.Decoder).Uint)
			continue
		}
		d := compact.NewDecoder(c.Hex)
		if n := d.Uint(); d.Err() == nil {
			t.Errorf("Uint of %x = %d, want an error", c.Hex, n)
		}
	}
	for _, c := range v.Int {
		if got := compact.AppendInt(nil, c.Value); !bytes.Equal(got, c.Hex) {
			t.Errorf("AppendInt(%d) = %x, want %x", c.Value, got, c.Hex)
		}
		check(t, c.Hex, c.Value, (*compact.Decoder).Int)
	}
	for _, c := range v.Buffer {
		if got := compact.AppendBytes(nil, c.Value); !bytes.Equal(got, c.Hex) {
			t.Errorf("AppendBytes(%x) = %x, want %x", c.Value, got, c.Hex)
		}
		check(t, c.Hex, string(c.Value), func(d *compact.Decoder) string { return string(d.Bytes()) })
	}
	for _, c := range v.BufferDecodeOnly {
		d := compact.NewDecoder(c.Hex)
		if b := d.Bytes(); d.Err() == nil {
			t.Errorf("Bytes of %x = %x, want an error", c.Hex, b)
		}
	}
	for _, c := range v.String {
		if got := compact.AppendString(nil, c.Value); !bytes.Equal(got, c.Hex) {
			t.Errorf("AppendString(%q) = %x, want %x", c.Value, got, c.Hex)
		}
		check(t, c.Hex, c.Value, (*compact.Decoder).String)
	}
	for _, c := range v.Bool {
		if got := compact.AppendBool(nil, c.Value); !bytes.Equal(got, c.Hex) {
			t.Errorf("AppendBool(%v) = %x, want %x", c.Value, got, c.Hex)
		}
		check(t, c.Hex, c.Value, (*compact.Decoder).Bool)
	}
}

func check[T comparable](t *testing.T, in []byte, want T, read func(*compact.Decoder) T) {
	t.Helper()
	d := compact.NewDecoder(in)
	if got := read(d); got != want || d.Err() != nil || d.Len() != 0 {
		t.Errorf("decoding %x = %v, %v with %d bytes left, want %v", in, got, d.Err(), d.Len(), want)
	}
}

// SEC-8: a count is refused before anybody allocates by it.
func TestCountBounded(t *testing.T) {
	for _, n := range []uint64{2, compact.MaxElements + 1, 1 << 50, compact.MaxUint} {
		d := compact.NewDecoder(append(compact.AppendUint(nil, n), make([]byte, 32)...))
		if got := d.Count(32); got != 0 || d.Err() == nil {
			t.Errorf("Count of %d elements in 32 bytes = %d, %v, want an error", n, got, d.Err())
		}
	}
}

func FuzzDecoder(f *testing.F) {
	f.Add([]byte{0xfd, 1, 0, 3, 'a', 'b', 'c'})
	f.Add([]byte{0xff, 0, 0, 0, 0, 0, 0, 0x20, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		d := compact.NewDecoder(b)
		n := d.Uint()
		v := d.Bytes()
		i := d.Int()
		if d.Err() != nil {
			if n := d.Uint(); n != 0 || d.Len() != 0 {
				t.Fatalf("reads go on after %v", d.Err())
			}
			return
		}
		again := compact.NewDecoder(compact.AppendInt(compact.AppendBytes(compact.AppendUint(nil, n), v), i))
		if n2, v2, i2 := again.Uint(), again.Bytes(), again.Int(); n2 != n || !bytes.Equal(v2, v) || i2 != i {
			t.Fatalf("%d %x %d came back as %d %x %d", n, v, i, n2, v2, i2)
		}
	})
}
