package replicate

import (
	"math/bits"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/pkgswarm/pkgswarm/core/merkle"
)

// A download is a range of blocks that somebody wants. It is cut into chunks;
// each peer works on one at a time. Fields are guarded by feed.mu.
type download struct {
	lo, hi  uint64
	low     uint64 // all blocks of it below are stored
	linear  bool   // lowest blocks first
	size    uint64 // blocks of a chunk
	pending []chunk
	done    chan struct{} // closed when all blocks are stored, or it ended
	err     error
	over    bool
}

// A chunk is a part of a download that is not stored yet.
type chunk struct {
	d          *download
	next, end  uint64
	incomplete bool // the peer working on it lacks some of its blocks
	first      uint64
}

const (
	// chunkBytes is about the number of bytes in a chunk.
	chunkBytes = 1 << 20
	// minChunks and maxChunks are about the least and the most chunks of a download.
	minChunks = 64
	maxChunks = 1 << 15
)

// chunkSize returns the blocks of a chunk: a power of 2, so that nodes that know
// cores of about the same length mostly agree.
func chunkSize(blocks, blockBytes uint64) uint64 {
	n := min(chunkBytes/blockBytes, 2048, blocks/minChunks)
	n = max(n, (blocks+maxChunks-1)/maxChunks, 4)
	return 1 << bits.Len64(n-1)
}

// newDownload returns a download of the blocks [lo, hi).
func newDownload(c Core, lo, hi uint64, linear bool, blockBytes uint64) *download {
	d := &download{lo: lo, hi: hi, linear: linear, done: make(chan struct{})}
	d.low = absent(c, lo, hi)
	if d.low >= hi {
		d.end(nil)
		return d
	}
	d.size = chunkSize(hi-lo, blockBytes)
	for i := d.low; i < hi; {
		end := min(i+d.size-i%d.size, hi)
		d.pending = append(d.pending, chunk{d: d, first: i, next: i, end: end})
		i = end
	}
	if !linear {
		rand.Shuffle(len(d.pending), func(i, j int) { d.pending[i], d.pending[j] = d.pending[j], d.pending[i] })
	}
	return d
}

func (d *download) end(err error) {
	if !d.over {
		d.over, d.err = true, err
		close(d.done)
	}
}

// advance notes that [start, end) is stored, and says whether the download is
// complete.
func (d *download) advance(c Core, start, end uint64) bool {
	if start <= d.low && d.low < end {
		d.low = absent(c, d.low, d.hi)
		if d.low >= d.hi {
			d.end(nil)
		}
	}
	return d.over
}

// restart begins anew with a core that was cut to length blocks or changed.
func (d *download) restart(c Core, length, blockBytes uint64) {
	n := newDownload(c, d.lo, max(min(d.hi, length), d.lo), d.linear, blockBytes)
	d.hi, d.low, d.size, d.pending = n.hi, n.low, n.size, n.pending
	for i := range d.pending {
		d.pending[i].d = d
	}
	if n.over {
		d.end(nil)
	}
}

// putBack makes what is left of a chunk available to others.
func (d *download) putBack(w *chunk) {
	if w.d != nil && !d.over {
		d.pending = append(d.pending, chunk{d: d, first: w.first, next: w.first, end: w.end})
		if d.linear {
			slices.SortFunc(d.pending, func(a, b chunk) int { return compare(a.first, b.first) })
		}
	}
	*w = chunk{}
}

func compare(a, b uint64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// ranked returns the peers, the ones that are likely to answer soonest first.
// f.mu is held.
func (f *feed) ranked() []*peer {
	if len(f.peers) < 2 {
		return f.peers
	}
	type scored struct {
		p     *peer
		score time.Duration
	}
	list := make([]scored, len(f.peers))
	for i, p := range f.peers {
		s := p.c.roundTrip()
		if s == 0 {
			s = 100 * time.Millisecond
		}
		s += s * time.Duration(len(p.inFlight)) / 16
		if p.stalled {
			s += maxTimeout
		}
		list[i] = scored{p, s}
	}
	slices.SortStableFunc(list, func(a, b scored) int { return int(a.score - b.score) })
	peers := make([]*peer, len(list))
	for i, s := range list {
		peers[i] = s.p
	}
	return peers
}

// pump asks all peers for what they can bring. f.mu is held.
func (f *feed) pump() {
	if f.err != nil || f.frozen {
		return
	}
	for _, p := range f.ranked() {
		if f.reorg == nil {
			f.checkFork(p)
		}
		f.fill(p)
	}
}

// fill asks p for as much as it has room for. f.mu is held.
func (f *feed) fill(p *peer) {
	if f.err != nil || !f.downloading() || !p.open || !p.synced || !p.uploading || p.paused || p.gone {
		return
	}
	if p.fork != f.tree.Fork {
		return
	}
	f.askManifest(p)
	f.askUpgrade(p)
	f.askExpected(p)
	f.askSeeks(p)
	for room := f.room(p); room > 0; room-- {
		if !f.askNext(p) {
			return
		}
	}
}

// askManifest asks a peer without blocks what the core is.
func (f *feed) askManifest(p *peer) {
	if f.known || f.askedFor != nil || !p.hasManifest || p.length > 0 {
		return
	}
	f.askedFor = &request{why: forManifest, msg: merkle.Request{Fork: f.tree.Fork, Manifest: true}}
	f.ask(p, f.askedFor, 0)
}

// askUpgrade asks p for the way to its length, together with a block beyond our
// length if somebody waits for one.
func (f *feed) askUpgrade(p *peer) {
	if f.upgrade != nil || !p.canUpgrade || p.length <= f.tree.Length || p.acked != f.tree.Length || p.failures >= maxFailures {
		return
	}
	req := &request{why: forUpgrade, msg: merkle.Request{
		Fork:     f.tree.Fork,
		Upgrade:  &merkle.UpgradeRequest{Start: f.tree.Length, Length: p.length - f.tree.Length},
		Manifest: !f.known && p.hasManifest,
	}}
	priority := uint64(0)
	for i, b := range f.urgent {
		if b.index >= f.tree.Length && !b.over && b.waiters > 0 && b.asked() == 0 && p.offers(b.index) {
			f.urgent = slices.Delete(f.urgent, i, i+1)
			b.queued = false
			req.block, priority = b, 1
			req.msg.Block = &merkle.BlockRequest{Index: b.index}
			break
		}
	}
	f.upgrade = req
	f.ask(p, req, priority)
	f.promiseRoots(p, req)
}

// askExpected asks p, which is about to prove a longer tree, for the blocks of it
// that are expected to be wanted. f.mu is held.
func (f *feed) askExpected(p *peer) {
	end := min(f.expected, f.coming(p), f.tree.Length+maxExpected)
	for i := f.tree.Length; i < end && f.room(p) > 0; i++ {
		if b := f.blocks[i]; b != nil && (len(b.reqs) > 0 || b.timid) || !p.offers(i) {
			continue
		}
		if !f.r.download.turn(f, 0, f.pumpSoon) {
			return
		}
		f.askBlock(p, f.block(i), false) // urgent ones would overtake the tree
	}
}

// coming returns the length of the tree that p is proving, or of the one that is
// here. f.mu is held.
func (f *feed) coming(p *peer) uint64 {
	if r := f.upgrade; r != nil && r.p == p && p.inFlight[r.id] == r {
		return max(r.msg.Upgrade.Start+r.msg.Upgrade.Length, f.tree.Length)
	}
	return f.tree.Length
}

// askNext asks p for one block. It returns false if there is none to ask for, or
// none may be asked for yet.
func (f *feed) askNext(p *peer) bool {
	if len(f.urgent) == 0 && len(f.retry) == 0 && len(f.ranges) == 0 {
		return false
	}
	if !f.r.download.turn(f, 0, f.pumpSoon) { // ask takes what it costs
		return false
	}
	if f.askUrgent(p) || f.askRetry(p) {
		return true
	}
	for _, d := range f.ranges {
		if f.askRange(p, d) {
			return true
		}
	}
	return len(f.ranges) > 0 && f.askAgain(p)
}

// pumpSoon is pump for those who may hold locks.
func (f *feed) pumpSoon() {
	time.AfterFunc(0, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.pump()
	})
}

// maxExamined bounds the entries of a queue that are looked at for one request.
const maxExamined = 256

// askUrgent asks for a block somebody waits for.
func (f *feed) askUrgent(p *peer) bool {
	for i := 0; i < min(len(f.urgent), maxExamined); i++ {
		b := f.urgent[i]
		if b.over || b.waiters == 0 || b.asked() > 0 {
			f.urgent = slices.Delete(f.urgent, i, i+1)
			b.queued = false
			i--
			continue
		}
		if b.index >= f.tree.Length || b.askedOf(p) {
			continue
		}
		if !p.offers(b.index) {
			f.wantPage(p, b.index)
			continue
		}
		f.urgent = slices.Delete(f.urgent, i, i+1)
		b.queued = false
		f.askBlock(p, b, true)
		return true
	}
	return false
}

// askRetry asks for a block of a range that another peer did not bring.
func (f *feed) askRetry(p *peer) bool {
	for i := 0; i < min(len(f.retry), maxExamined); i++ {
		index := f.retry[i]
		b := f.blocks[index]
		if index >= f.tree.Length || f.core.Has(index) || b != nil && b.asked() > 0 || !f.inRange(index) {
			f.retry = slices.Delete(f.retry, i, i+1)
			i--
			continue
		}
		if b != nil && b.askedOf(p) {
			continue
		}
		if !p.offers(index) {
			f.wantPage(p, index)
			continue
		}
		f.retry = slices.Delete(f.retry, i, i+1)
		f.askBlock(p, f.block(index), false)
		return true
	}
	return false
}

// inRange says whether block i is wanted by a download.
func (f *feed) inRange(i uint64) bool {
	return slices.ContainsFunc(f.ranges, func(d *download) bool { return d.lo <= i && i < d.hi })
}

// askRange asks for the next block of the chunk p works on, or of a new one.
func (f *feed) askRange(p *peer, d *download) bool {
	for {
		if p.work.d != d {
			if p.work.d != nil && !p.work.d.over {
				return false // it works for another download
			}
			if !f.takeChunk(p, d) {
				return false
			}
		}
		if i, ok := f.nextOf(p, &p.work); ok {
			f.askBlock(p, f.block(i), false)
			return true
		}
		if p.work.incomplete && d.low < p.work.end {
			d.putBack(&p.work)
		}
		p.work = chunk{}
	}
}

// nextOf returns the next block of w to ask p for.
func (f *feed) nextOf(p *peer, w *chunk) (uint64, bool) {
	for {
		end := min(w.end, f.tree.Length)
		i := f.absent(w.next, end)
		if i >= end {
			return 0, false
		}
		w.next = i + 1
		if b := f.blocks[i]; b != nil && (len(b.reqs) > 0 || b.waiters > 0) {
			continue
		}
		if p.offers(i) {
			return i, true
		}
		w.incomplete = true
	}
}

// takeChunk gives p a chunk of d to work on, of those it can bring something of.
//
// Of a peer that has everything we take what no other peer has, and of that what
// falls to us: nodes that download the same from the same seed each fetch another
// part of it there, and the rest from each other. Only when the others bring too
// little is it asked for the rest, too.
func (f *feed) takeChunk(p *peer, d *download) bool {
	var rivals []PeerID
	if p.seeds() && !d.linear {
		rivals = f.rivals(p)
	}
	start := 0
	if n := len(d.pending); n > maxExamined && !d.linear {
		start = rand.IntN(n)
	}
	best, of := turn{rank: maxRank}, -1
	left := map[PeerID]int{} // chunks that nobody has fetched from a seed yet
	for k := 0; k < min(len(d.pending), maxExamined); k++ {
		i := (start + k) % len(d.pending)
		w := &d.pending[i]
		first := f.absent(w.first, w.end)
		switch {
		case first >= w.end: // there already
			d.pending = slices.Delete(d.pending, i, i+1)
			if i < of {
				of--
			}
			k--
		case !f.canBring(p, first, w.end):
			f.wantPage(p, first)
		case len(rivals) == 0:
			return f.take(p, d, i)
		default:
			t := f.turnOf(w.first, rivals)
			if f.elsewhere(first) {
				t.rank = maxRank - 1
			} else {
				left[t.first]++
			}
			if t.before(best) {
				best, of = t, i
			}
		}
	}
	if of < 0 || of >= len(d.pending) {
		return false
	}
	switch {
	case best.rank == 0:
		p.helped = 0
	case left[best.first] > best.rank+2 && p.idle() >= tick*time.Duration(best.rank):
		// Who comes before us has enough to do for now.
	case !f.mayHelp(p, best.rank):
		f.arm() // tick asks again
		return false
	}
	return f.take(p, d, of)
}

func (f *feed) take(p *peer, d *download, i int) bool {
	p.work = d.pending[i]
	p.work.next = p.work.first
	d.pending = slices.Delete(d.pending, i, i+1)
	return true
}

// canBring says whether p has a block of [lo, hi) that is neither stored nor in
// flight.
func (f *feed) canBring(p *peer, lo, hi uint64) bool {
	for i := p.have.next(lo, hi); i < hi; i = p.have.next(i+1, hi) {
		if i = f.absent(i, hi); i >= hi {
			return false
		}
		if b := f.blocks[i]; p.offers(i) && (b == nil || b.asked() == 0 && !b.askedOf(p)) {
			return true
		}
	}
	return false
}

// askAgain is the endgame: nothing is left to ask for, so a block that is in
// flight elsewhere, and takes longer than p would need, is asked of p, too.
func (f *feed) askAgain(p *peer) bool {
	if len(f.blocks) == 0 || len(f.blocks) > 2*maxInFlight || p.stalled || len(p.inFlight) > 16 {
		return false
	}
	if slices.ContainsFunc(f.ranges, func(d *download) bool { return len(d.pending) > 0 }) {
		return false // not the end yet
	}
	now := time.Now()
	need := max(2*p.c.roundTrip(), 20*time.Millisecond)
	for _, b := range f.blocks {
		n := b.asked()
		if n == 0 || n > 2 || b.askedOf(p) || b.over || !p.offers(b.index) || b.index >= f.tree.Length {
			continue
		}
		if now.Sub(b.reqs[0].sent) > need && b.reqs[0].p.c.roundTrip() > need/2 {
			f.askBlock(p, b, b.waiters > 0)
			return true
		}
	}
	return false
}
