package replicate

import (
	"encoding/binary"
	"slices"
	"time"
)

// A turn says when a chunk is ours to fetch from a seed: all nodes that download
// it have an order among them for each chunk. Who is first fetches it, its own
// chunks in the order of their lots; who is next helps if the first is slow, and
// begins with what the first comes to last.
type turn struct {
	rank  int    // how many nodes come before us
	first PeerID // who comes first
	lot   uint64 // of the first with the chunk, from the other end if it is not us
}

// maxRank is behind all ranks; the one before is that of chunks that other peers
// have already.
const maxRank = 1 << 20

func (t turn) before(o turn) bool { return t.rank < o.rank || t.rank == o.rank && t.lot < o.lot }

// turnOf returns our turn for the chunk that begins at first.
func (f *feed) turnOf(first uint64, rivals []PeerID) turn {
	self := f.r.cfg.Self
	ours := lot(first, self)
	t := turn{first: self, lot: ours}
	for _, id := range rivals {
		l := lot(first, id)
		if l < ours {
			t.rank++
		}
		if l < t.lot {
			t.first, t.lot = id, l
		}
	}
	if t.rank > 0 {
		t.lot = ^t.lot
	}
	return t
}

const (
	// helpAfter is how long a seed must have been idle before it is asked for what
	// should come from others, for each that comes before us.
	helpAfter = 200 * time.Millisecond
	// maxHelp bounds the chunks that a seed is then asked for at once.
	maxHelp = 8
)

// idle returns how long p has had nothing to answer.
func (p *peer) idle() time.Duration {
	if len(p.inFlight) > 0 {
		return 0
	}
	return time.Since(p.heard)
}

// mayHelp says whether p, a seed, may be asked for a chunk that others could
// bring: if all others together are slower than half of what p was, after a pause,
// and for more each time.
func (f *feed) mayHelp(p *peer, rank int) bool {
	if p.help == 0 {
		pause := helpAfter * time.Duration(min(rank, 4))
		now := time.Now()
		if p.idle() < pause || 2*f.speedBeside(p, now) > p.speed.most {
			return false
		}
		p.helped = min(2*p.helped+1, maxHelp)
		p.help = p.helped
	}
	p.help--
	return true
}

// speedBeside returns what all peers but p bring, in bytes a second.
func (f *feed) speedBeside(p *peer, now time.Time) (sum float64) {
	for _, q := range f.peers {
		if q != p {
			sum += q.speed.now(now)
		}
	}
	return sum
}

// A speed measures what a peer brings, in bytes a second.
type speed struct {
	start time.Time // of the present window
	bytes float64   // in it
	last  float64   // in the one before
	most  float64   // in any
}

// speedWindow is over what time a speed is measured.
const speedWindow = 500 * time.Millisecond

func (s *speed) add(n int, now time.Time) {
	if d := now.Sub(s.start); d >= speedWindow {
		if s.last = s.now(now); d > 2*speedWindow {
			s.last = 0 // there was a pause
		}
		s.most = max(s.most, s.last)
		s.start, s.bytes = now, 0
	}
	s.bytes += float64(n)
}

// now returns the speed of about the last window.
func (s *speed) now(now time.Time) float64 {
	d := now.Sub(s.start)
	if d < speedWindow {
		return max(s.last, s.bytes/speedWindow.Seconds())
	}
	return s.bytes / d.Seconds()
}

// rivalTime is how long a peer that says it downloads may get no further until its
// part falls to others.
const rivalTime = time.Second

// rivals returns the peers other than p that download the core as we do.
func (f *feed) rivals(p *peer) []PeerID {
	var ids []PeerID
	for _, q := range f.peers {
		if q != p && q.downloading && q.have.contiguous < f.tree.Length && f.usable(q) && !q.stalled && time.Since(q.grown) < rivalTime {
			ids = append(ids, q.c.id)
		}
	}
	return ids
}

// lot mixes a block number and a peer. Keys are random already.
func lot(first uint64, id PeerID) uint64 {
	x := binary.LittleEndian.Uint64(id[:]) ^ first*0x9e3779b97f4a7c15
	x ^= x >> 32
	x *= 0xd6e8feb86659fd93
	return x ^ x>>32
}

// elsewhere says whether a peer that is no seed has block i.
func (f *feed) elsewhere(i uint64) bool {
	return slices.ContainsFunc(f.peers, func(q *peer) bool { return q.have.has(i) && !q.seeds() && f.usable(q) })
}

// seeds says whether p has everything.
func (p *peer) seeds() bool { return p.have.contiguous >= p.length }
