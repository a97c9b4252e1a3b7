package replicate

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/pkgswarm/pkgswarm/core/merkle"
	"github.com/pkgswarm/pkgswarm/internal/compact"
	"github.com/pkgswarm/pkgswarm/internal/vectors"
)

type decodedVector struct {
	Fork, Length, RemoteLength                                 uint64
	CanUpgrade, Uploading, Downloading, HasManifest, AllowPush bool
	ID, Request, Reason, Priority, Start                       uint64
	Drop, Any                                                  bool
	Bitfield                                                   []uint32
	Name                                                       string
	Message                                                    vectors.Hex
}

// recode decodes a message, compares it with what it should be if want is not
// nil, and encodes it again.
func recode(t testing.TB, kind string, b []byte, want *decodedVector) ([]byte, error) {
	d := compact.NewDecoder(b)
	same := true
	var out []byte
	switch kind {
	case "sync":
		m := decodeSync(d)
		out = m.append(nil)
		same = want == nil || m == syncMessage{want.Fork, want.Length, want.RemoteLength, want.CanUpgrade,
			want.Uploading, want.Downloading, want.HasManifest, want.AllowPush}
	case "request":
		r, id, priority := merkle.DecodeRequest(d)
		out = r.AppendMessage(nil, id, priority)
		same = want == nil || id == want.ID && priority == want.Priority && r.Fork == want.Fork
	case "cancel":
		id := decodeCancel(d)
		out = appendCancel(nil, id)
		same = want == nil || id == want.Request
	case "data":
		p, id := merkle.DecodeProof(d)
		out = p.AppendMessage(nil, id)
		same = want == nil || id == want.Request && p.Fork == want.Fork
	case "noData":
		m := decodeNoData(d)
		out = m.append(nil)
		same = want == nil || m == noDataMessage{want.Request, want.Reason}
	case "want", "unwant":
		m := decodeWant(d)
		out = m.append(nil)
		same = want == nil || m == wantMessage{want.Start, want.Length, want.Any}
	case "bitfield":
		m := decodeBitfield(d)
		out = m.append(nil)
		if want != nil {
			var words []byte
			for _, w := range want.Bitfield {
				words = binary.LittleEndian.AppendUint32(words, w)
			}
			same = m.start == want.Start && bytes.Equal(m.words, words)
		}
	case "range":
		m := decodeRange(d)
		out = m.append(nil)
		same = want == nil || m == rangeMessage{want.Start, want.Length, want.Drop}
	case "extension":
		m := decodeExtension(d)
		out = m.append(nil)
		same = want == nil || m.name == want.Name && bytes.Equal(m.payload, want.Message)
	default:
		t.Fatalf("unknown message %q", kind)
	}
	if !same {
		t.Errorf("%s %x decodes to something other than %+v", kind, b, *want)
	}
	return out, d.Err()
}

var kinds = []string{"sync", "request", "cancel", "data", "noData", "want", "unwant", "bitfield", "range", "extension"}

func TestMessageVectors(t *testing.T) {
	var v struct {
		Handshake []struct {
			Seeks           bool
			Capability, Hex vectors.Hex
		}
		Messages, Tolerant []struct {
			Type    string
			ID      int
			Hex     vectors.Hex
			Decoded decodedVector
		}
	}
	vectors.Load(t, "messages.json", &v)
	if len(v.Handshake) == 0 || len(v.Messages) == 0 || len(v.Tolerant) == 0 {
		t.Fatal("vector file lacks a section")
	}
	for _, c := range v.Handshake {
		d := compact.NewDecoder(c.Hex)
		h := decodeHandshake(d)
		if d.Err() != nil || h.seeks != c.Seeks || !bytes.Equal(h.capability[:], c.Capability) || !bytes.Equal(h.append(nil), c.Hex) {
			t.Errorf("handshake %x = %+v, %v", c.Hex, h, d.Err())
		}
	}
	for _, c := range v.Messages {
		if kinds[c.ID] != c.Type {
			t.Errorf("message %d is %s, want %s", c.ID, kinds[c.ID], c.Type)
		}
		if got, err := recode(t, c.Type, c.Hex, &c.Decoded); err != nil || !bytes.Equal(got, c.Hex) {
			t.Errorf("%s %x encodes back to %x, %v", c.Type, c.Hex, got, err)
		}
	}
	for _, c := range v.Tolerant {
		if _, err := recode(t, c.Type, c.Hex, nil); err != nil {
			t.Errorf("%s %x: %v", c.Type, c.Hex, err)
		}
	}
}

func FuzzMessages(f *testing.F) {
	var v struct {
		Messages []struct {
			ID  int
			Hex vectors.Hex
		}
	}
	vectors.Load(f, "messages.json", &v)
	for _, c := range v.Messages {
		f.Add(c.ID, []byte(c.Hex))
	}
	f.Fuzz(func(t *testing.T, kind int, b []byte) { // SEC-8
		if kind < 0 || kind >= len(kinds) {
			return
		}
		once, err := recode(t, kinds[kind], b, nil)
		if err != nil {
			return
		}
		if twice, err := recode(t, kinds[kind], once, nil); err != nil || !bytes.Equal(once, twice) {
			t.Errorf("%s %x: %x, then %x, %v", kinds[kind], b, once, twice, err)
		}
	})
}
