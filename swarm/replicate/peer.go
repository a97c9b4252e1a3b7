package replicate

import (
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/pkgswarm/pkgswarm/core/merkle"
	"github.com/pkgswarm/pkgswarm/internal/compact"
)

// A peer is a core on a connection. Its fields are guarded by feed.mu unless
// noted.
type peer struct {
	f  *feed
	c  *conn
	ch atomic.Pointer[Channel] // set once our side is open

	dead  atomic.Bool // removed; nothing more is written for it
	ended atomic.Bool // the channel is closed, or being closed

	since time.Time // when our side was opened
	open  bool      // the remote has opened its side, and may know of the core
	gone  bool      // removed
	busy  bool      // has requests in flight; guarded by conn.mu
	seeks bool      // understands seeks

	// What the remote said.
	synced       bool
	fork, length uint64
	acked        uint64 // our length, as it last heard it
	canUpgrade   bool
	uploading    bool
	downloading  bool
	hasManifest  bool
	allowPush    bool
	have         have
	wants        wantSet
	asked        []uint64 // pages of the bitfield that we asked for, oldest first

	// What we said.
	told     syncMessage
	toldOnce bool
	canProve bool
	pushed   uint64 // our length that was proven to it, though it has not said so yet
	toldAll  uint64 // length at which it was told that we have all blocks

	inFlight   map[uint64]*request // by id
	order      []*request          // oldest first; may hold ones that are done
	heard      time.Time           // last answer
	strikes    int                 // unasked or useless messages
	invalid    int                 // requests that nobody could answer; counted by the writer
	refused    map[uint64]struct{} // blocks it did not have though it seemed so; bounded
	refusedAt  time.Time           // when the first of them was refused
	forkDenied bool                // it did not show the history of its fork
	failures   int                 // upgrades it promised and did not deliver
	pardoned   int                 // answers that may still come to requests we cancelled
	paused     bool                // sent a wrong proof that may be explained yet
	blamed     error               // the wrong proof
	stalled    bool                // did not answer in time, and nothing since
	stalledAt  time.Time
	work       chunk // what it downloads of a range
	help       int   // chunks it may be asked for now though others could bring them
	helped     int   // what help began with the last time
	speed      speed
	grown      time.Time           // when it last told of blocks that it got
	promised   map[uint64]*request // tree nodes that answers in flight will bring

	checked   uint64    // our histories are known to agree up to this length
	checkedAt time.Time // when a head was last asked for
	checking  bool
	shown     []uint64 // lengths at which it has shown its history, the latest ones

	extension string // name of its last extension message; used by the reading goroutine only
}

func (p *peer) setChannel(ch Channel) {
	p.ch.Store(&ch)
	p.c.signal()
}

// openChannel returns the channel, or nil if it is not open yet. Messages are
// queued only after the remote has opened, which is after ours was.
func (p *peer) openChannel() Channel {
	if ch := p.ch.Load(); ch != nil {
		return *ch
	}
	return nil
}

// send queues a message.
func (p *peer) send(kind int, payload []byte) { p.c.send(p, kind, payload) }

// blame drops the connection because of what p sent.
func (p *peer) blame(fault Fault, err error) error { return p.c.blame(p.f.key, fault, err) }

// requests returns those in flight, oldest first. feed.mu is held.
func (p *peer) requests() []*request {
	return slices.DeleteFunc(slices.Clone(p.order), func(r *request) bool { return p.inFlight[r.id] != r })
}

// strike counts something useless; too many of them are an error.
func (p *peer) strike() error {
	if p.strikes++; p.strikes > maxInvalid {
		return p.blame(FaultUnasked, nil)
	}
	return nil
}

// Message implements Handler.
func (p *peer) Message(kind int, payload []byte) error {
	d := compact.NewDecoder(payload)
	var err error
	switch kind {
	case msgSync:
		if m := decodeSync(d); d.Err() == nil {
			err = p.f.onSync(p, m)
		}
	case msgRequest:
		if r, id, priority := merkle.DecodeRequest(d); d.Err() == nil {
			err = p.c.enqueue(p, r, id, priority)
		}
	case msgCancel:
		if id := decodeCancel(d); d.Err() == nil {
			p.c.cancelUpload(p, id)
		}
	case msgData:
		p.c.keep(p, payload)
	case msgNoData:
		if m := decodeNoData(d); d.Err() == nil {
			err = p.f.onNoData(p, m)
		}
	case msgWant:
		if m := decodeWant(d); d.Err() == nil {
			err = p.f.onWant(p, m)
		}
	case msgUnwant:
		if m := decodeWant(d); d.Err() == nil {
			p.f.onUnwant(p, m)
		}
	case msgBitfield:
		if m := decodeBitfield(d); d.Err() == nil {
			err = p.f.onBitfield(p, m)
		}
	case msgRange:
		if m := decodeRange(d); d.Err() == nil {
			err = p.f.onRange(p, m)
		}
	case msgExtension:
		if m := decodeExtension(d); d.Err() == nil {
			err = p.onExtension(m)
		}
	}
	if d.Err() != nil {
		return p.blame(FaultMessage, fmt.Errorf("message %d: %w", kind, d.Err()))
	}
	return err
}

// onSync takes the state of the peer's core.
func (f *feed) onSync(p *peer, m syncMessage) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m.length > merkle.MaxLength {
		return p.blame(FaultMessage, fmt.Errorf("length %d", m.length))
	}
	if f.frozen || p.gone {
		return nil
	}
	if m.length > f.maxLength() {
		m.length = 0
	}
	if m.fork != p.fork || m.length < p.length {
		p.pushed = 0
	}
	if p.synced && m.fork == p.fork && m.length < p.length {
		p.have.truncate(m.length)
		p.checked = min(p.checked, m.length)
	} else if p.synced && m.fork != p.fork {
		p.have.truncate(min(p.have.contiguous, m.length))
		p.refused = nil
		p.checked = 0
	}
	first := !p.synced
	if first {
		p.grown = time.Now()
	}
	if m.fork != p.fork || m.length != p.length {
		p.failures = 0
	}
	p.forkDenied = false
	resumed := p.synced && !p.downloading && m.downloading
	p.synced = true
	p.fork, p.length = m.fork, m.length
	p.canUpgrade, p.uploading, p.downloading = m.canUpgrade, m.uploading, m.downloading
	p.hasManifest, p.allowPush = m.hasManifest, m.allowPush
	p.acked = 0
	if m.fork == f.tree.Fork {
		p.acked = m.remoteLength
	}
	f.signal()
	if !p.downloading && !f.downloading() {
		p.ended.Store(true)
		go f.shut(p) // not under f.mu
		return nil
	}
	p.canProve = f.canProve(p)
	if m.fork == f.tree.Fork && f.tree.Length > m.length ||
		m.fork == f.tree.Fork && p.told.remoteLength != m.length && f.tree.Length <= m.length {
		f.sendSync(p)
	} else {
		f.updateSync(p)
	}
	if resumed {
		f.tellContiguous(p)
	}
	f.checkHead(p)
	f.checkFork(p)
	if first && m.length > 0 && (len(f.urgent) > 0 || f.expected > f.tree.Length) {
		// The range that says which blocks it has is right behind; blocks can then
		// come with the upgrade.
		time.AfterFunc(rangeGrace, func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.pump()
		})
		return nil
	}
	f.pump()
	return nil
}

// onRange takes an announcement of blocks.
func (f *feed) onRange(p *peer, m rangeMessage) error {
	if !p.c.ranges.Allow() {
		return p.blame(FaultFlood, nil)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if m.length > merkle.MaxLength || m.start > merkle.MaxLength {
		return p.blame(FaultMessage, fmt.Errorf("range of %d from %d", m.length, m.start))
	}
	end := m.start + m.length
	if m.drop {
		if m.start < p.have.contiguous {
			p.asked = nil // what lies beyond is unknown now
		}
		p.have.drop(m.start, end)
		return nil
	}
	p.refused, p.grown = nil, time.Now()
	p.have.add(m.start, end)
	f.fill(p)
	return nil
}

// onBitfield takes the exact state of some blocks.
func (f *feed) onBitfield(p *peer, m bitfieldMessage) error {
	if !p.c.bitfields.Allow() {
		return p.blame(FaultFlood, nil)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if m.start > merkle.MaxLength || m.start%32 != 0 {
		return p.blame(FaultMessage, fmt.Errorf("bitfield from %d", m.start))
	}
	p.refused = nil
	p.have.replace(m, p.length)
	f.fill(p)
	return nil
}

// A wantSet is the blocks a peer wants to hear of.
type wantSet struct {
	list []wantMessage
	all  bool
}

func (w *wantSet) add(m wantMessage) {
	if m.length < 32 || m.length&(m.length-1) != 0 || m.start%m.length != 0 || len(w.list) >= maxWants {
		w.all, w.list = true, nil
	}
	if !w.all && !slices.Contains(w.list, m) {
		w.list = append(w.list, m)
	}
}

func (w *wantSet) remove(m wantMessage) {
	w.list = slices.DeleteFunc(w.list, func(o wantMessage) bool { return o == m })
}

// covers says whether one of the blocks [start, end) is wanted.
func (w *wantSet) covers(start, end uint64) bool {
	return w.all || slices.ContainsFunc(w.list, func(m wantMessage) bool {
		return m.start < end && start < m.start+m.length
	})
}

// onWant answers which blocks of a range we have.
func (f *feed) onWant(p *peer, m wantMessage) error {
	if !p.c.wants.Allow() {
		return p.blame(FaultFlood, fmt.Errorf("wants"))
	}
	if m.length > maxWantLength || m.start > merkle.MaxLength {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !p.open || p.paused || f.frozen {
		return nil
	}
	if !m.any {
		p.wants.add(m)
	}
	length := f.core.Tree().Length
	contiguous := min(f.core.ContiguousLength(), length)
	end := min(m.start+m.length, length)
	switch {
	case contiguous > 0 && (m.start+m.length <= contiguous || contiguous == length):
		f.tell(p, rangeMessage{start: 0, length: contiguous})
	case m.start >= end:
	case m.any:
		if m.start < contiguous {
			f.tell(p, rangeMessage{start: 0, length: contiguous})
		} else if i := f.present(m.start, end); i < end {
			f.tell(p, rangeMessage{start: i, length: 1})
		}
	default:
		f.sendBits(p, m.start/32*32, end)
	}
	return nil
}

// sendBits sends our bitfield of [start, end), in parts that end at multiples
// of maxWantLength.
func (f *feed) sendBits(p *peer, start, end uint64) {
	for start < end {
		stop := min(end, (start/maxWantLength+1)*maxWantLength)
		words := make([]uint32, (stop-start+31)/32)
		if f.present(start, stop) >= stop || f.core.Present(start, words) != nil {
			start = stop
			continue
		}
		for len(words) > 0 && words[len(words)-1] == 0 {
			words = words[:len(words)-1]
		}
		b := make([]byte, 0, 4*len(words))
		for _, w := range words {
			b = append(b, byte(w), byte(w>>8), byte(w>>16), byte(w>>24))
		}
		p.send(msgBitfield, bitfieldMessage{start: start, words: b}.append(nil))
		start = stop
	}
}

func (f *feed) onUnwant(p *peer, m wantMessage) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p.wants.remove(m)
}

// wantPage asks p which blocks it has around block i, if that is not known.
// feed.mu is held.
func (f *feed) wantPage(p *peer, i uint64) {
	key := i / pageBits
	start := key * pageBits
	if i < p.have.contiguous || i >= p.length || slices.Contains(p.asked, key) {
		return
	}
	if len(p.asked) >= maxPages {
		p.send(msgUnwant, wantMessage{start: p.asked[0] * pageBits, length: pageBits}.append(nil))
		p.asked = p.asked[1:]
	}
	p.asked = append(p.asked, key)
	p.send(msgWant, wantMessage{start: start, length: pageBits}.append(nil))
}
