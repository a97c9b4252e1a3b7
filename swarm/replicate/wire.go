package replicate

import (
	"github.com/pkgswarm/pkgswarm/internal/compact"
)

// Message types of the channel. The payloads are:
//
//	handshake  uint flags (1: understands seeks), 32 bytes capability
//	sync       uint flags (1 canUpgrade, 2 uploading, 4 downloading, 8
//	           hasManifest, 16 allowPush), uint fork, uint length, uint remote
//	           length
//	request    see merkle.Request
//	cancel     uint id
//	data       see merkle.Proof
//	no-data    uint id, [uint flags (1: reason follows), uint reason]
//	want       uint start, uint length, [uint flags (1: any)]
//	unwant     as want
//	bitfield   uint start, uint words, 4 bytes for each; bit i of word w is
//	           block start + 32·w + i
//	range      uint flags (1 drop, 2 length is 1), uint start, [uint length]
//	extension  string name (empty: the one before), rest payload
const (
	msgSync = iota
	msgRequest
	msgCancel
	msgData
	msgNoData
	msgWant
	msgUnwant
	msgBitfield
	msgRange
	msgExtension
	numMessages
)

// protocol is the name of the channel in protomux.
const protocol = "hypercore/alpha"

// flagBit returns bit if set, else 0.
func flagBit(set bool, bit uint64) uint64 {
	if set {
		return bit
	}
	return 0
}

// A handshake opens a channel.
type handshake struct {
	seeks      bool
	capability [32]byte
}

func (h handshake) append(b []byte) []byte {
	b = compact.AppendUint(b, flagBit(h.seeks, 1))
	return append(b, h.capability[:]...)
}

func decodeHandshake(d *compact.Decoder) handshake {
	return handshake{seeks: d.Uint()&1 != 0, capability: d.Fixed32()}
}

// A syncMessage tells the state of the sender's core.
type syncMessage struct {
	fork, length uint64
	remoteLength uint64 // length last heard from the receiver, of the same fork
	canUpgrade   bool   // the sender can prove the way from remoteLength to length
	uploading    bool
	downloading  bool
	hasManifest  bool
	allowPush    bool
}

func (m syncMessage) append(b []byte) []byte {
	b = compact.AppendUint(b, flagBit(m.canUpgrade, 1)|flagBit(m.uploading, 2)|flagBit(m.downloading, 4)|
		flagBit(m.hasManifest, 8)|flagBit(m.allowPush, 16))
	b = compact.AppendUint(b, m.fork)
	b = compact.AppendUint(b, m.length)
	return compact.AppendUint(b, m.remoteLength)
}

func decodeSync(d *compact.Decoder) syncMessage {
	f := d.Uint()
	return syncMessage{
		fork: d.Uint(), length: d.Uint(), remoteLength: d.Uint(),
		canUpgrade: f&1 != 0, uploading: f&2 != 0, downloading: f&4 != 0,
		hasManifest: f&8 != 0, allowPush: f&16 != 0,
	}
}

func appendCancel(b []byte, id uint64) []byte { return compact.AppendUint(b, id) }

func decodeCancel(d *compact.Decoder) uint64 { return d.Uint() }

// Reasons of a no-data message.
const (
	reasonNone = iota
	reasonNotAvailable
	reasonInvalid
)

// A noDataMessage says that a request will not be answered with data.
type noDataMessage struct{ id, reason uint64 }

func (m noDataMessage) append(b []byte) []byte {
	b = compact.AppendUint(b, m.id)
	b = compact.AppendUint(b, flagBit(m.reason != 0, 1))
	if m.reason != 0 {
		b = compact.AppendUint(b, m.reason)
	}
	return b
}

func decodeNoData(d *compact.Decoder) noDataMessage {
	m := noDataMessage{id: d.Uint()}
	if d.Len() > 0 && d.Uint()&1 != 0 {
		m.reason = d.Uint()
	}
	return m
}

// A wantMessage asks to be told which of the blocks [start, start+length) the
// receiver has, now and in future. With any, one of them is enough.
type wantMessage struct {
	start, length uint64
	any           bool
}

func (m wantMessage) append(b []byte) []byte {
	b = compact.AppendUint(b, m.start)
	b = compact.AppendUint(b, m.length)
	if m.any {
		b = append(b, 1)
	}
	return b
}

func decodeWant(d *compact.Decoder) wantMessage {
	m := wantMessage{start: d.Uint(), length: d.Uint()}
	m.any = d.Len() > 0 && d.Uint()&1 != 0
	return m
}

// A bitfieldMessage tells exactly which blocks from start on the sender has.
// The words are little endian, as on the wire.
type bitfieldMessage struct {
	start uint64 // a multiple of 32
	words []byte // 4 bytes each; aliases the message it was decoded from
}

func (m bitfieldMessage) append(b []byte) []byte {
	b = compact.AppendUint(b, m.start)
	b = compact.AppendUint(b, uint64(len(m.words)/4))
	return append(b, m.words...)
}

func decodeBitfield(d *compact.Decoder) bitfieldMessage {
	m := bitfieldMessage{start: d.Uint()}
	m.words = d.Fixed(4 * d.Count(4))
	return m
}

// A rangeMessage says that the sender has the blocks [start, start+length), or
// with drop that it has them no more.
type rangeMessage struct {
	start, length uint64
	drop          bool
}

func (m rangeMessage) append(b []byte) []byte {
	b = compact.AppendUint(b, flagBit(m.drop, 1)|flagBit(m.length == 1, 2))
	b = compact.AppendUint(b, m.start)
	if m.length != 1 {
		b = compact.AppendUint(b, m.length)
	}
	return b
}

func decodeRange(d *compact.Decoder) rangeMessage {
	f := d.Uint()
	m := rangeMessage{start: d.Uint(), length: 1, drop: f&1 != 0}
	if f&2 == 0 {
		m.length = d.Uint()
	}
	return m
}

// An extensionMessage is for an extension of the protocol.
type extensionMessage struct {
	name    string // empty: that of the extension message before
	payload []byte // aliases the message it was decoded from
}

func (m extensionMessage) append(b []byte) []byte {
	b = compact.AppendString(b, m.name)
	return append(b, m.payload...)
}

func decodeExtension(d *compact.Decoder) extensionMessage {
	return extensionMessage{name: d.String(), payload: d.Rest()}
}
