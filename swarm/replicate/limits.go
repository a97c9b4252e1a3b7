package replicate

import "time"

// What a peer can push against. Announced lengths, ranges and bitfields cost
// memory by these limits, not by what they claim.
const (
	// maxBlock is the largest block that is accepted, in bytes. The protocol
	// itself allows 15 MiB.
	maxBlock = 15 << 20

	// pageBits is the number of blocks in a page of a peer's bitfield, and in
	// the wants sent. A page takes 4 KiB.
	pageBits = 1 << 15

	// maxPages bounds the pages kept for one peer and core; the oldest go, and
	// are asked for again when needed.
	maxPages = 64

	// maxConnPages bounds the pages kept for one connection: 8 MiB.
	maxConnPages = 2048

	// maxRuns bounds the ranges of more than a page kept for one peer and core.
	maxRuns = 64

	// maxWants bounds the wants remembered for one peer and core. More, or odd
	// ones, count as a want of everything.
	maxWants = 512

	// maxWantLength is the longest want that is answered, in blocks.
	maxWantLength = 1 << 21

	// maxQueued bounds the requests of one channel that wait to be answered; a
	// peer with more is dropped. The reference sends up to 512.
	maxQueued = 1024

	// maxConnQueued bounds the same for all channels of a connection.
	maxConnQueued = 8192

	// maxPushes bounds the blocks that wait to be sent unasked over a connection;
	// more are not sent.
	maxPushes = 4096

	// maxExpected bounds the blocks that are asked for with the tree that they belong
	// to, which is not known to be as long as a peer says.
	maxExpected = 1024

	// maxInFlight bounds the requests that wait for one peer, over all cores.
	maxInFlight = 256

	// maxControlBytes bounds the control messages that wait to be written to
	// one connection; a peer that does not read them is dropped.
	maxControlBytes = 8 << 20

	// maxInvalid is how many requests that nobody could answer, or answers that
	// nobody asked for, are tolerated from a peer.
	maxInvalid = 64

	// maxPendingProofs bounds the proofs of other histories being looked into
	// for one core.
	maxPendingProofs = 16

	// maxExtension is the longest extension message handed on, in bytes.
	maxExtension = 64 << 10

	// maxPrefetched bounds the downloads of a core beyond which Prefetch does
	// nothing: peers say what is worth fetching ahead, and may say it without end.
	maxPrefetched = 8192
)

// Timers.
const (
	// tick is how often a core with requests in flight looks at its timers.
	tick = 50 * time.Millisecond

	// minTimeout and maxTimeout bound the time after which a request counts as
	// stalled and is sent to another peer; between them it follows the round
	// trips measured.
	minTimeout = 500 * time.Millisecond
	maxTimeout = 10 * time.Second

	// pardonTime is after how long a peer that has stalled, and is asked for nothing
	// any more, gets another chance.
	pardonTime = 5 * time.Second

	// minHedge is the least time after which a block somebody waits for is
	// asked of a second peer.
	minHedge = 150 * time.Millisecond

	// rangeGrace is how long the first request to a peer waits for it to say
	// which blocks it has, when somebody waits for one.
	rangeGrace = 2 * time.Millisecond

	// syncGrace is how long an update waits for a peer to tell its state once
	// another has.
	syncGrace = 2 * time.Second

	// announceDelay is how long news of blocks are collected.
	announceDelay = 5 * time.Millisecond

	// headInterval is the least time between two comparisons of one peer's
	// history with ours.
	headInterval = time.Second

	// headTimeout is how long a peer may take to show its signed head when it
	// is under suspicion.
	headTimeout = 10 * time.Second

	// refusalTime is how long a peer that did not have a block, though it had
	// announced it, is not asked for it again.
	refusalTime = 5 * time.Second

	// rttWindow is how long the least round trip measured counts.
	rttWindow = 30 * time.Second
)
