package pkglog

import (
	"bytes"
	"errors"
	"testing"
)

// FuzzDelta: what is encoded comes back; any bytes decode or fail in bounded
// memory.
func FuzzDelta(f *testing.F) {
	f.Add([]byte("hello base"), []byte("hello new base 0123456789abcdef0123456789abcdef"))
	f.Add(line("a", "1.0.0", 3, false), line("a", "1.0.1", 3, true))
	f.Add([]byte{}, []byte{8, 0})
	f.Fuzz(func(t *testing.T, base, src []byte) {
		var e deltaEncoder
		for range 2 { // the second time with used tables
			d := e.encode(cargoDictionary, base, src)
			got, err := applyDelta(cargoDictionary.text, base, d, MaxEvent)
			if err != nil || !bytes.Equal(got, src) {
				t.Fatalf("delta of %q against %q gives %q, %v", src, base, got, err)
			}
		}
		if out, err := applyDelta(goDictionary.text, base, src, 1<<16); err == nil && len(out) > 1<<16 {
			t.Fatalf("%d bytes of a limit of %d", len(out), 1<<16)
		}
	})
}

// FuzzBlock: blocks never panic, and what decodes has only one outer form. SEC-8
func FuzzBlock(f *testing.F) {
	for _, h := range []Header{serde, {Go, "example.com/m"}} {
		s := NewState(h)
		f.Add(h.Encode(), h.Ecosystem == Go)
		for _, e := range []Event{
			{Kind: Published, Line: line("serde", "1.0.0", 1, false)},
			{Kind: Published, Module: moduleVersion("v1.0.0", 2)},
			{Kind: HasArtifact, Version: "1.0.0"},
			{Kind: Removed, All: true},
			{Kind: Removed, Version: "v1.0.0"},
		} {
			r := s.record(&e)
			f.Add(r.append(nil, h.Ecosystem), h.Ecosystem == Go)
		}
	}
	f.Fuzz(func(t *testing.T, block []byte, isGo bool) {
		h := serde
		if isGo {
			h = Header{Go, "example.com/m"}
		}
		if got, err := DecodeHeader(block); err == nil && !bytes.Equal(got.Encode(), block) {
			t.Fatalf("header %q not canonical", block)
		}
		s := NewState(h)
		if !isGo {
			s.Append(Event{Kind: Published, Line: line("serde", "0.1.0", 1, false)})
			s.Append(Event{Kind: Published, Position: 1, Line: line("serde", "0.1.1", 1, false)})
		}
		before := s.Length()
		e, err := s.Apply(block)
		if err != nil {
			if s.Length() != before {
				t.Fatal("failed event counted")
			}
			return
		}
		if e.Kind == Published && !isGo && !bytes.Equal(s.Lines()[e.Position], e.Line) {
			t.Fatal("published line is not where it says")
		}
	})
}

// FuzzDiff: any two files in sequence fold back to the second. SEC-8
func FuzzDiff(f *testing.F) {
	f.Add([]byte("a\nb\nc\n"), []byte("c\na"))
	f.Add([]byte("\n\n"), []byte("\n"))
	f.Fuzz(func(t *testing.T, one, two []byte) {
		s := NewState(serde)
		key := func(l []byte) string { return string(l[:min(1, len(l))]) }
		for _, want := range [][]byte{one, two} {
			for _, e := range DiffIndex(s, want, key) {
				if _, err := s.Append(e); err != nil {
					t.Fatal(err)
				}
			}
			if !bytes.Equal(s.IndexFile(), want) {
				t.Fatalf("folded to %q, want %q", s.IndexFile(), want)
			}
		}
	})
}

// TestPayloadLimits: payloads that expand to as much as is allowed, to one byte more,
// and to absurdly much. SEC-8, SEC-20
func TestPayloadLimits(t *testing.T) {
	payload := func(form byte, n int) []byte {
		plain := bytes.Repeat([]byte("x"), n)
		switch form {
		case formZstd:
			return zstdEncoder().EncodeAll(plain, []byte{form})
		case formDelta:
			return append([]byte{form}, new(deltaEncoder).encode(cargoDictionary, nil, plain)...)
		}
		return append([]byte{form}, plain...)
	}
	for _, form := range []byte{formPlain, formZstd, formDelta} {
		for n, want := range map[int]error{MaxEvent: nil, MaxEvent + 1: ErrTooLarge} {
			got, err := unpackPayload(Cargo, nil, payload(form, n))
			if want == nil && (err != nil || len(got) != n) || want != nil && !errors.Is(err, want) {
				t.Errorf("form %d, %d bytes: %d, %v, want %v", form, n, len(got), err, want)
			}
		}
	}
	// A frame of 2^50 bytes, as it says: nothing is made for it.
	frame := append([]byte{formZstd, 0x28, 0xb5, 0x2f, 0xfd, 0xe0}, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0)
	if _, err := unpackPayload(Cargo, nil, frame); !errors.Is(err, ErrTooLarge) {
		t.Errorf("2^50 bytes: %v", err)
	}
}
