package modules

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"time"

	"github.com/zeebo/blake3"

	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

// A File is a small file of a module. It is not to be changed.
type File struct {
	Body []byte
	// ETag is a strong validator, the same for the same bytes on every node.
	ETag string
	// Asked is when the upstream last said that these are the right bytes.
	Asked time.Time
	// Permanent says that the bytes never change.
	Permanent bool
	// Stale says that they may be out of date: no upstream answers.
	Stale bool

	validators upstream.Validators // of the upstream
	proven     bool                // in this process, or nothing could prove it
}

func newFile(body []byte, v upstream.Validators, asked time.Time, permanent bool) *File {
	sum := blake3.Sum256(body)
	return &File{Body: body, ETag: `"` + hex.EncodeToString(sum[:16]) + `"`, Asked: asked, Permanent: permanent, validators: v}
}

// encode returns f as it is kept on disk: version 1, the time in Unix
// nanoseconds (u64be), ETag and Last-Modified of the upstream (each a length,
// u16be, and the text), and the body.
func (f *File) encode() []byte {
	b := []byte{1}
	b = binary.BigEndian.AppendUint64(b, uint64(f.Asked.UnixNano()))
	for _, s := range []string{f.validators.ETag, f.validators.LastModified} {
		b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
		b = append(b, s...)
	}
	return append(b, f.Body...)
}

var errCacheFormat = errors.New("cache entry of another format")

func decodeFile(b []byte, permanent bool) (*File, error) {
	if len(b) < 9 || b[0] != 1 {
		return nil, errCacheFormat
	}
	asked := time.Unix(0, int64(binary.BigEndian.Uint64(b[1:])))
	b = b[9:]
	var s [2]string
	for i := range s {
		if len(b) < 2 || len(b)-2 < int(binary.BigEndian.Uint16(b)) {
			return nil, errCacheFormat
		}
		n := int(binary.BigEndian.Uint16(b))
		s[i], b = string(b[2:2+n]), b[2+n:]
	}
	return newFile(bytes.Clone(b), upstream.Validators{ETag: s[0], LastModified: s[1]}, asked, permanent), nil
}

// fresh reports whether f may be served without asking. A clock that was set back
// does not make it fresh for longer (REL-10).
func (f *File) fresh(ttl time.Duration, now time.Time) bool {
	age := now.Sub(f.Asked)
	return f.Permanent || age >= 0 && age < ttl
}
