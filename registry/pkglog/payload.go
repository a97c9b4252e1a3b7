package pkglog

import (
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// Forms of a payload.
const (
	formPlain = 0
	formZstd  = 1
	formDelta = 2
)

// zstdFrom is the size in bytes of a delta above which zstd is tried as well.
const zstdFrom = 600

var zstdEncoder = sync.OnceValue(func() *zstd.Encoder {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderCRC(false), zstd.WithWindowSize(256<<10))
	if err != nil {
		panic("pkglog: zstd writer: " + err.Error()) // constant options
	}
	return e
})

var zstdDecoder = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(MaxEvent), zstd.WithDecoderLowmem(true))
	if err != nil {
		panic("pkglog: zstd reader: " + err.Error()) // constant options
	}
	return d
})

var deltaEncoders = sync.Pool{New: func() any { return new(deltaEncoder) }}

func dictionaryOf(e Ecosystem) *dictionary {
	if e == Cargo {
		return cargoDictionary
	}
	return goDictionary
}

// packPayload appends plain in its smallest form to b.
func packPayload(b []byte, e Ecosystem, base, plain []byte) []byte {
	enc := deltaEncoders.Get().(*deltaEncoder)
	defer deltaEncoders.Put(enc)
	delta := enc.encode(dictionaryOf(e), base, plain)
	if len(delta) > zstdFrom {
		if z := zstdEncoder().EncodeAll(plain, nil); len(z) < min(len(delta), len(plain)) {
			return append(append(b, formZstd), z...)
		}
	}
	if len(delta) < len(plain) {
		return append(append(b, formDelta), delta...)
	}
	return append(append(b, formPlain), plain...)
}

// unpackPayload returns the plain bytes of p. They may alias p.
func unpackPayload(e Ecosystem, base, p []byte) ([]byte, error) {
	form, body := p[0], p[1:]
	switch form {
	case formPlain:
		if len(body) > MaxEvent {
			return nil, fmt.Errorf("%w: %d bytes", ErrTooLarge, len(body))
		}
		return body, nil
	case formZstd:
		return unpackZstd(body)
	case formDelta:
		return applyDelta(dictionaryOf(e).text, base, body, MaxEvent)
	}
	return nil, fmt.Errorf("%w: payload form %d", ErrMalformed, form)
}

// unpackZstd expands exactly one frame that states its size.
func unpackZstd(frame []byte) ([]byte, error) {
	var h zstd.Header
	if err := h.Decode(frame); err != nil {
		return nil, fmt.Errorf("%w: zstd: %w", ErrMalformed, err)
	}
	if h.Skippable || !h.HasFCS {
		return nil, fmt.Errorf("%w: zstd frame without content size", ErrMalformed)
	}
	if h.FrameContentSize > MaxEvent {
		return nil, fmt.Errorf("%w: %d bytes", ErrTooLarge, h.FrameContentSize)
	}
	out, err := zstdDecoder().DecodeAll(frame, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: zstd: %w", ErrMalformed, err)
	}
	if uint64(len(out)) != h.FrameContentSize {
		return nil, fmt.Errorf("%w: more than one zstd frame", ErrMalformed)
	}
	return out, nil
}
