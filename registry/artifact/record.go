package artifact

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"path"
	"time"

	"github.com/pkgswarm/pkgswarm/internal/compact"
)

// A Key is the key of a file's static core: a pure function of its bytes.
type Key [32]byte

// A Sum is the SHA-256 of a file, by which the store names it.
type Sum [32]byte

func (s Sum) String() string { return hex.EncodeToString(s[:]) }

// Info describes a stored file.
type Info struct {
	SHA256      Sum
	H1          *[32]byte // Go's h1: hash, if the file was stored or found by it
	Key         Key       // of the static core; zero if there is none
	Size        int64     // in bytes
	Private     bool      // not for peers
	LastRequest time.Time // to the second, and up to a minute late
	Origin      Origin
}

// Digest returns the SHA-256 of the file as a Digest.
func (i Info) Digest() Digest { return Digest{SHA256, i.SHA256} }

// path returns the file's place under the root.
func (i Info) path() string { return filePath(i.SHA256, i.Private) }

func filePath(sum Sum, private bool) string {
	name := sum.String()
	if private {
		return path.Join(privateDir, name[:2], name)
	}
	return path.Join(name[:2], name)
}

// A record is what the database holds of a file.
type record struct {
	Info
	blake3 [32]byte
}

// Flags of a record.
const (
	flagH1 = 1 << iota
	flagPrivate
	flagOrigin
)

// append encodes the record: version 1 (byte), flags (uint), size (uint), last
// request (uint, Unix seconds), core key (32), blake3 (32), h1 (32, if flagged),
// origin (if flagged; programs that do not know it pass over it).
func (r *record) append(b []byte) []byte {
	var flags uint64
	if r.H1 != nil {
		flags |= flagH1
	}
	if r.Private {
		flags |= flagPrivate
	}
	if r.Origin.Source != "" {
		flags |= flagOrigin
	}
	b = append(b, 1)
	b = compact.AppendUint(b, flags)
	b = compact.AppendUint(b, uint64(r.Size))
	b = compact.AppendUint(b, seconds(r.LastRequest))
	b = append(b, r.Key[:]...)
	b = append(b, r.blake3[:]...)
	if r.H1 != nil {
		b = append(b, r.H1[:]...)
	}
	if r.Origin.Source != "" {
		b = r.Origin.append(b)
	}
	return b
}

func parseRecord(sum Sum, b []byte) (*record, error) {
	d := compact.NewDecoder(b)
	if v := d.Byte(); d.Err() == nil && v != 1 {
		return nil, fmt.Errorf("record of %v has version %d", sum, v)
	}
	r := &record{Info: Info{SHA256: sum}}
	flags := d.Uint()
	r.Size = int64(d.Uint())
	r.LastRequest = time.Unix(int64(d.Uint()), 0)
	r.Key = d.Fixed32()
	r.blake3 = d.Fixed32()
	r.Private = flags&flagPrivate != 0
	if flags&flagH1 != 0 {
		h := d.Fixed32()
		r.H1 = &h
	}
	if flags&flagOrigin != 0 {
		r.Origin = decodeOrigin(d)
	}
	if d.Err() != nil {
		return nil, fmt.Errorf("record of %v: %w", sum, d.Err())
	}
	return r, nil
}

// seconds returns t in Unix seconds, 0 for anything before 1970.
func seconds(t time.Time) uint64 { return uint64(max(0, t.Unix())) }

func dbKey(kind byte, sum [32]byte) []byte { return append([]byte{kind}, sum[:]...) }

func lruKey(t time.Time, sum Sum) []byte {
	b := binary.BigEndian.AppendUint64([]byte{'l'}, seconds(t))
	return append(b, sum[:]...)
}

// sumOfLRU returns the file an lruKey is about.
func sumOfLRU(key []byte) (Sum, bool) {
	if len(key) != 1+8+32 {
		return Sum{}, false
	}
	return Sum(key[9:]), true
}
