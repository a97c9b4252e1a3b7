// Package exchange lets nodes find artifacts with each other by the registry's
// own digest, with no operator: the protomux protocol "pkgswarm/artifact".
//
// A node asks its peers for digests; one that has the file, verified and free
// to share, answers with the key of its static core; the bytes then come by
// ordinary replication of that core. An answer is a hint: only the digest decides
// whether the bytes are right.
//
// # Messages
//
// The channel's handshake is the protocol version, a uint, now 1. Values are in
// compact encoding; a digest is its algorithm (a byte: 1 SHA-256 of the file, 2
// Go's h1: of a zip) and 32 bytes. Each message is a list: a uint count, then
// the entries. A count above [MaxBatch] ends the channel.
//
//	0 want     id (uint), digest
//	1 found    id (uint), core key (32 bytes), byte length (uint)
//	2 missing  id (uint), state (byte): 0 not here, 1 being fetched, 2 the same,
//	                                and by whoever has the fleet's lease
//	3 cancel   id (uint): the want is void
//	4 lease    id (uint), digest                 only between members of a fleet
//	5 leased   id (uint), holder (32 bytes)      only between members of a fleet
//	6 release  digest, outcome (byte): 0 failed, 1 stored
//
// The id is chosen by who asks and comes back with each answer. "Not here" says
// no more than that: a file that is private, withdrawn or damaged is answered
// the same as one never seen. A peer that has said "being fetched" repeats it
// every [heartbeat] and ends with found or not here.
//
// A message never makes the receiver fetch anything.
//
// # Fleets
//
// The members of a fleet agree on a keeper for each digest: the member with the
// highest BLAKE3 hash, keyed with the fleet's secret, of digest and member.
// Whoever misses an artifact asks its keeper for the lease. The first gets it
// (leased with its own key as holder), tells its peers "being fetched" and, when
// none of them has answered that it has the file, goes to the upstream; it waits
// for their answers for [answerSilence] at most. The others are told the holder,
// send it their want, and wait. They go on by themselves when the holder is silent
// for [memberSilence] or takes longer than [leasePatience]. When it leaves, cannot be
// reached, or says that it does not have the file, the keeper is asked who gets the
// lease next, every [heartbeat] and for as long: it may not have heard of that yet. A
// keeper that is silent for [memberSilence] is passed over: the next by hash is asked,
// by everybody. A member that is told by another one that it has the lease leaves the fetching to it:
// while connections come and go, two may be given it by different keepers. A
// member that sends anything on its channel is not silent, however slow it is.
package exchange

import (
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/pkgswarm/pkgswarm/internal/compact"
	"github.com/pkgswarm/pkgswarm/registry/artifact"
)

// Protocol is the name of the protomux protocol.
const Protocol = "pkgswarm/artifact"

// Version is the version of the protocol, sent in the handshake.
const Version = 1

// Limits on what a peer can make a node do, and waits.
const (
	MaxBatch      = 1024  // entries of one message
	maxWaiting    = 1024  // wants of one peer that wait for a file being fetched
	maxQueued     = 1024  // wants of one peer not yet answered; more are not here
	maxOut        = 16384 // entries not yet sent to one peer; more end the channel
	wantsPerSec   = 2000  // answered for one peer; bursts of maxQueued
	maxAsked      = 64    // peers asked for one artifact
	maxLeases     = 4096  // that a keeper remembers
	heartbeat     = 150 * time.Millisecond
	memberSilence = 3 * time.Second        // until a member that said nothing at all is taken for dead
	answerSilence = 200 * time.Millisecond // until who has the lease goes to the upstream
	leasePatience = 25 * time.Second       // a fleet's client must have its answer in time
	leaseMemory   = time.Minute            // that a keeper remembers who has fetched a file
	downloadStall = 3 * time.Second        // without a byte, until the next source is tried
)

// Message types of the channel, in order.
const (
	msgWant = iota
	msgFound
	msgMissing
	msgCancel
	msgLease
	msgLeased
	msgRelease

	// Messages is the number of message types.
	Messages
)

// States in a missing message.
const (
	notHere byte = iota
	beingFetched
	leaseHeld
)

// A PeerKey is a peer's static public key.
type PeerKey [32]byte

// String returns the first 8 bytes in hex, which is how people are shown a peer.
func (k PeerKey) String() string { return hex.EncodeToString(k[:8]) }

// ErrProtocol says that a peer breaks the protocol; its channel is to be closed.
var ErrProtocol = errors.New("artifact exchange: protocol error")

type want struct {
	id     uint64
	digest artifact.Digest
}

type found struct {
	id   uint64
	key  artifact.Key
	size uint64
}

type missing struct {
	id    uint64
	state byte
}

type leased struct {
	id     uint64
	holder PeerKey
}

type release struct {
	digest artifact.Digest
	stored bool
}

func appendDigest(b []byte, d artifact.Digest) []byte {
	return append(append(b, byte(d.Alg)), d.Sum[:]...)
}

func decodeDigest(d *compact.Decoder) artifact.Digest {
	v := artifact.Digest{Alg: artifact.Algorithm(d.Byte()), Sum: d.Fixed32()}
	if d.Err() == nil && v.Alg != artifact.SHA256 && v.Alg != artifact.H1 {
		d.Fail(fmt.Errorf("digest algorithm %d", v.Alg))
	}
	return v
}

// encode encodes a message of the entries.
func encode[E any](entries []E, add func([]byte, E) []byte) []byte {
	b := compact.AppendUint(make([]byte, 0, 8+len(entries)*48), uint64(len(entries)))
	for _, e := range entries {
		b = add(b, e)
	}
	return b
}

// decode decodes a message whose entries take at least size bytes each.
func decode[E any](b []byte, size int, entry func(*compact.Decoder) E) ([]E, error) {
	d := compact.NewDecoder(b)
	n := d.Count(size)
	if d.Err() == nil && n > MaxBatch {
		return nil, fmt.Errorf("%w: %d entries in a message", ErrProtocol, n)
	}
	entries := make([]E, 0, n)
	for range n {
		entries = append(entries, entry(d))
	}
	if d.Err() != nil {
		return nil, fmt.Errorf("%w: %w", ErrProtocol, d.Err())
	}
	return entries, nil
}

func appendWant(b []byte, w want) []byte {
	return appendDigest(compact.AppendUint(b, w.id), w.digest)
}

func decodeWant(d *compact.Decoder) want { return want{d.Uint(), decodeDigest(d)} }

func appendFound(b []byte, f found) []byte {
	b = append(compact.AppendUint(b, f.id), f.key[:]...)
	return compact.AppendUint(b, f.size)
}

func decodeFound(d *compact.Decoder) found { return found{d.Uint(), d.Fixed32(), d.Uint()} }

func appendMissing(b []byte, m missing) []byte { return append(compact.AppendUint(b, m.id), m.state) }

func decodeMissing(d *compact.Decoder) missing { return missing{d.Uint(), d.Byte()} }

func appendLeased(b []byte, l leased) []byte {
	return append(compact.AppendUint(b, l.id), l.holder[:]...)
}

func decodeLeased(d *compact.Decoder) leased { return leased{d.Uint(), d.Fixed32()} }

func appendRelease(b []byte, r release) []byte {
	return compact.AppendBool(appendDigest(b, r.digest), r.stored)
}

func decodeRelease(d *compact.Decoder) release { return release{decodeDigest(d), d.Bool()} }

func decodeID(d *compact.Decoder) uint64 { return d.Uint() }
