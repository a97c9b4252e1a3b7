package core

import (
	"fmt"

	"github.com/pkgswarm/pkgswarm/internal/compact"
)

// A record is what the store knows of a core besides its content.
//
//	version u8 = 1, uint id, key, flags u8 (1 manifest, 2 named, 4 file),
//	[buffer manifest] [namespace, string name] [string path]
type record struct {
	id        uint32
	key       Key
	manifest  *Manifest
	named     bool
	namespace Namespace
	name      string
	path      string // static cores whose blocks are in a file
}

func (r *record) encode() []byte {
	b := compact.AppendUint([]byte{1}, uint64(r.id))
	b = append(b, r.key[:]...)
	flags := byte(0)
	if r.manifest != nil {
		flags |= 1
	}
	if r.named {
		flags |= 2
	}
	if r.path != "" {
		flags |= 4
	}
	b = append(b, flags)
	if r.manifest != nil {
		b = compact.AppendBytes(b, r.manifest.Encode())
	}
	if r.named {
		b = compact.AppendString(append(b, r.namespace[:]...), r.name)
	}
	if r.path != "" {
		b = compact.AppendString(b, r.path)
	}
	return b
}

func decodeRecord(b []byte) (record, error) {
	d := compact.NewDecoder(b)
	if v := d.Byte(); v != 1 {
		return record{}, fmt.Errorf("core record of version %d", v)
	}
	id := d.Uint()
	r := record{id: uint32(id), key: d.Fixed32()}
	flags := d.Byte()
	if flags&1 != 0 {
		m, err := DecodeManifest(d.Bytes())
		if err != nil {
			return record{}, err
		}
		r.manifest = &m
	}
	if flags&2 != 0 {
		r.named, r.namespace, r.name = true, d.Fixed32(), d.String()
	}
	if flags&4 != 0 {
		r.path = d.String()
	}
	if id > 1<<32-1 {
		d.Fail(compact.ErrRange)
	}
	return r, d.Err()
}
