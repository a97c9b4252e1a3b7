package replicate

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/core/merkle"
)

// A feed is one core that is replicated: all its peers, and what is wanted.
//
// Locks are taken in this order: feed.mu, conn.mu. Nothing is written to the
// network, proven, verified or stored under either.
type feed struct {
	r       *Replicator
	core    Core
	key     core.Key
	dk      core.DiscoveryKey
	release func() // may be nil
	holds   int    // sessions, peers and lookups; guarded by Replicator.mu
	unwatch func()

	mu       sync.Mutex
	err      error // why nothing more is exchanged
	stopped  bool
	sessions map[*Session]struct{}
	peers    []*peer
	nextID   uint64

	tree     merkle.Tree // as last seen; the core may be ahead
	manifest core.Manifest
	known    bool // whether manifest is known
	treeHash merkle.Hash

	blocks map[uint64]*block // wanted by somebody, or in flight
	urgent []*block          // somebody waits for them; may hold ones that are done
	retry  []uint64          // to be asked for again
	ranges []*download
	seeks  []*seek

	expected uint64   // blocks below are wanted with the tree; see Session.Expect
	upgrade  *request // in flight
	askedFor *request // manifest request in flight
	reorg    *reorg
	heads    []head // heads of peers that disagree, or that could not be compared yet
	frozen   bool   // two histories: nothing more is exchanged

	timer      *time.Timer // runs f.tick
	ticking    bool
	news       []change // not announced yet
	newsLost   bool     // there were more
	announcing bool
	announced  time.Time
	changed    chan struct{} // closed at the next change of tree, peers or their state
}

func newFeed(r *Replicator, c Core, dk core.DiscoveryKey, release func()) *feed {
	f := &feed{
		r: r, core: c, key: c.Key(), dk: dk, release: release,
		sessions: make(map[*Session]struct{}), blocks: make(map[uint64]*block),
		changed: make(chan struct{}),
	}
	f.timer = time.AfterFunc(time.Hour, f.tick)
	f.timer.Stop()
	f.refresh()
	return f
}

// start begins to watch the core. It is called with Replicator.mu held, so that
// no other hold of the feed comes before.
func (f *feed) start() { f.unwatch = f.core.Watch(f.onEvent) }

// stop ends the feed: waiters get err, channels are closed.
func (f *feed) stop(err error) {
	f.mu.Lock()
	if f.stopped {
		f.mu.Unlock()
		return
	}
	f.stopped = true
	if f.err == nil {
		f.err = err
	}
	f.timer.Stop()
	peers := slices.Clone(f.peers)
	for _, b := range f.blocks {
		b.resolve(err)
	}
	for _, d := range f.ranges {
		d.end(err)
	}
	for _, s := range f.seeks {
		s.end(err)
	}
	f.ranges, f.seeks, f.urgent, f.blocks = nil, nil, nil, nil
	f.signal()
	f.mu.Unlock()
	f.unwatch()
	for _, p := range peers {
		f.shut(p)
	}
	if f.release != nil {
		f.release()
	}
}

// signal wakes those who wait for f to change. f.mu is held.
func (f *feed) signal() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// refresh reads the head of the core. f.mu is held, or f is new.
func (f *feed) refresh() (changed bool) {
	t := f.core.Tree()
	if !f.known {
		f.manifest, f.known = f.core.Manifest()
	}
	if t.Length == f.tree.Length && t.Fork == f.tree.Fork && f.tree.Roots != nil {
		return false
	}
	f.tree, f.treeHash = t, t.Hash()
	return true
}

// compat says whether the core has no manifest to speak of.
func (f *feed) compat() bool { return f.known && f.manifest.IsCompat(f.key) }

// prologue returns that of the manifest, or nil.
func (f *feed) prologue() *merkle.Prologue {
	if !f.known || f.manifest.Version == 0 {
		return nil
	}
	return f.manifest.Prologue
}

// downloading says whether somebody here wants the core. f.mu is held.
func (f *feed) downloading() bool { return len(f.sessions) > 0 && !f.frozen }

// allowsReorg says whether no session forbids a higher fork. f.mu is held.
func (f *feed) allowsReorg() bool {
	for s := range f.sessions {
		if s.o.NoReorg {
			return false
		}
	}
	return len(f.sessions) > 0
}

// maxLength returns the length in blocks from which on heads are passed over.
// f.mu is held.
func (f *feed) maxLength() uint64 {
	n := uint64(merkle.MaxLength)
	for s := range f.sessions {
		if s.o.MaxLength > 0 {
			n = min(n, s.o.MaxLength)
		}
	}
	return n
}

// allowsPush says whether a session takes blocks that were not asked for.
func (f *feed) allowsPush() bool {
	for s := range f.sessions {
		if s.o.AllowPush {
			return true
		}
	}
	return false
}

// offer opens the feed on a new connection if it is wanted here.
func (f *feed) offer(c *conn) {
	f.mu.Lock()
	want := f.downloading() && f.err == nil
	f.mu.Unlock()
	if want {
		// The peer may know nothing of it; then it is rejected and removed again.
		f.attach(c)
	}
}

// attach opens our side of the channel on c, unless it is open.
func (f *feed) attach(c *conn) error {
	p := &peer{f: f, c: c, since: time.Now()}
	p.have.budget = &c.pages
	c.mu.Lock()
	for c.peers[f.dk] != nil && c.peers[f.dk].ended.Load() {
		// Its channel has ended or is about to, and the next one is wanted already.
		old := c.peers[f.dk]
		c.mu.Unlock()
		if ch := old.openChannel(); ch != nil {
			ch.Close()
		}
		old.f.remove(old)
		c.mu.Lock()
	}
	if c.err != nil || c.peers[f.dk] != nil {
		err := c.err
		c.mu.Unlock()
		return err
	}
	c.peers[f.dk] = p
	c.mu.Unlock()

	f.r.mu.Lock()
	f.holds++
	f.r.mu.Unlock()
	f.mu.Lock()
	if f.err != nil || f.frozen {
		f.mu.Unlock()
		f.remove(p)
		return fmt.Errorf("core %s: %w", f.key.Short(), ErrClosed)
	}
	f.peers = append(f.peers, p)
	f.mu.Unlock()

	h := handshake{seeks: true, capability: core.Capability(f.key, c.mux.HandshakeHash(), c.mux.Initiator())}
	ch, err := c.mux.Open(f.dk, h.append(nil), p)
	if err != nil {
		f.remove(p)
		return fmt.Errorf("open channel of core %s: %w", f.key.Short(), err)
	}
	p.setChannel(ch)
	if p.dead.Load() {
		ch.Close() // shut has not seen it
	}
	return nil
}

// remove forgets p. What it was asked for is asked of others.
func (f *feed) remove(p *peer) {
	p.c.mu.Lock()
	mine := p.c.peers[f.dk] == p
	if mine {
		delete(p.c.peers, f.dk)
	}
	p.c.mu.Unlock()
	if !mine {
		return
	}
	p.dead.Store(true)
	p.c.dropUploads(p)

	f.mu.Lock()
	f.peers = slices.DeleteFunc(f.peers, func(q *peer) bool { return q == p })
	p.gone = true
	for _, req := range p.requests() {
		f.giveUp(req)
	}
	if p.work.d != nil {
		p.work.d.putBack(&p.work)
	}
	p.have.forgetAll()
	if f.err == nil {
		f.signal()
		f.pump()
	}
	f.mu.Unlock()
	f.r.unhold(f)
}

// closed is called when the other side has closed the channel of p. It may have
// done so because we did not want the core, and by now we do.
func (f *feed) closed(p *peer) {
	f.mu.Lock()
	idle := p.open && p.synced && !p.downloading && p.uploading
	f.mu.Unlock()
	f.remove(p)
	if idle {
		f.r.offerAgain(p.c, f.dk)
	}
}

// shut closes the channel of p. f.mu is not held.
func (f *feed) shut(p *peer) {
	p.ended.Store(true)
	if ch := p.openChannel(); ch != nil {
		ch.Close() // if it fails, the connection has ended
	}
	f.remove(p)
	f.r.offerAgain(p.c, f.dk)
}

// offerAgain opens a channel on c if the core is wanted here: somebody may have
// begun to want it while the channel before was being closed.
func (r *Replicator) offerAgain(c *conn, dk core.DiscoveryKey) {
	r.mu.Lock()
	f := r.feeds[dk]
	r.mu.Unlock()
	if f != nil {
		f.offer(c)
	}
}

// opened is called when the remote side of the channel is open, and with the
// right capability: now we may speak.
func (f *feed) opened(p *peer, seeks bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if p.open || p.gone {
		return
	}
	p.open, p.seeks = true, seeks
	p.canProve = f.tree.Fork == 0
	f.sendSync(p)
	f.tellContiguous(p)
}

// tellContiguous announces the blocks that we have from the first on.
func (f *feed) tellContiguous(p *peer) {
	if c := min(f.core.ContiguousLength(), f.tree.Length); c > 0 {
		f.tell(p, rangeMessage{start: 0, length: c})
	}
}

// sendSync tells p where we are. f.mu is held.
func (f *feed) sendSync(p *peer) {
	m := syncMessage{
		fork: f.tree.Fork, length: f.tree.Length,
		canUpgrade: p.canProve, uploading: true, downloading: f.downloading(),
		hasManifest: f.known && !f.compat(), allowPush: f.allowsPush(),
	}
	if p.synced && p.fork == m.fork {
		m.remoteLength = p.length
	} else if p.synced {
		m.canUpgrade = false
	}
	p.told, p.toldOnce = m, true
	p.send(msgSync, m.append(nil))
}

// updateSync sends a sync if there is something to tell. f.mu is held.
func (f *feed) updateSync(p *peer) {
	if !p.open {
		return
	}
	if p.synced {
		p.canProve = f.canProve(p)
	}
	t := p.told
	if !t.downloading && f.downloading() {
		p.asked = nil // peers tell only those who download
	}
	if t.fork != f.tree.Fork || t.length != f.tree.Length || t.downloading != f.downloading() ||
		t.allowPush != f.allowsPush() || t.canUpgrade != p.canProve || t.hasManifest != (f.known && !f.compat()) {
		f.sendSync(p)
	}
}

// canProve says whether we can prove the way from p's length to ours.
func (f *feed) canProve(p *peer) bool {
	if p.fork != f.tree.Fork {
		return false
	}
	if p.length == 0 {
		return true
	}
	if p.length >= f.tree.Length {
		return false
	}
	_, err := merkle.RootsAt(nil, f.core, p.length)
	return err == nil
}

// A change is something to tell peers.
type change struct {
	tree       bool   // length or fork changed
	start, end uint64 // these blocks are here now or, with dropped, no more
	dropped    bool
}

// onEvent is called by the core.
func (f *feed) onEvent(e core.Event) {
	var ch change
	switch e.Kind {
	case core.Appended:
		ch.tree = true
	case core.Truncated:
		ch = change{tree: true, start: e.Start, end: e.End, dropped: true}
	case core.Arrived:
		ch = change{start: e.Start, end: e.End}
	case core.Cleared:
		ch = change{start: e.Start, end: e.End, dropped: true}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return
	}
	f.note(ch)
}

// maxNews bounds the changes that wait to be announced; more become one.
const maxNews = 256

// note remembers a change to be announced soon. f.mu is held.
func (f *feed) note(ch change) {
	if n := len(f.news); n > 0 {
		l := &f.news[n-1]
		switch {
		case l.dropped == ch.dropped && l.end == ch.start && ch.end > ch.start && l.end > l.start:
			l.end, l.tree = ch.end, l.tree || ch.tree
			ch = change{}
		case n >= maxNews && !ch.dropped:
			f.newsLost = true // peers ask for what they need
			ch = change{}
		}
	}
	if ch != (change{}) {
		f.news = append(f.news, ch)
	}
	if f.announcing {
		return
	}
	f.announcing = true
	delay := time.Duration(0)
	if time.Since(f.announced) < announceDelay {
		delay = announceDelay
	}
	time.AfterFunc(delay, f.announce)
}

// absent returns the first block in [from, end) that is not stored, or end. A
// store that cannot tell has nothing to ask for: then it is end, too.
func (f *feed) absent(from, end uint64) uint64 { return absent(f.core, from, end) }

func absent(c Core, from, end uint64) uint64 {
	if from >= end {
		return end
	}
	i, err := c.NextAbsent(from, end)
	if err != nil {
		return end
	}
	return i
}

// present returns the first block in [from, end) that is stored, or end.
func (f *feed) present(from, end uint64) uint64 {
	if from >= end {
		return end
	}
	i, err := f.core.NextPresent(from, end)
	if err != nil {
		return end
	}
	return i
}

// announce tells peers what changed, and does what the change allows.
func (f *feed) announce() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.announcing = false
	f.announced = time.Now()
	news := f.news
	f.news = nil
	if f.err != nil {
		return
	}
	if f.refresh() {
		f.signal()
		f.moveSeeks()
	}
	contiguous := f.core.ContiguousLength()
	for _, p := range f.peers {
		if !p.open {
			continue
		}
		f.updateSync(p)
		for _, ch := range news {
			f.tellChange(p, ch, contiguous)
		}
	}
	for _, ch := range news {
		if !ch.dropped {
			f.arrived(ch.start, ch.end)
		}
	}
	if f.newsLost {
		f.newsLost = false
		f.lookAround()
	}
	f.pump()
}

// lookAround ends what waits for blocks that are stored by now. f.mu is held.
func (f *feed) lookAround() {
	for _, b := range f.blocks {
		if f.core.Has(b.index) {
			f.blockDone(b)
		}
	}
	f.ranges = slices.DeleteFunc(f.ranges, func(d *download) bool { return d.advance(f.core, d.low, d.low+1) })
}

// quietTail is the distance from the end of an incomplete core below which
// blocks are announced to those only who asked.
const quietTail = 256

// tellChange announces one change to p. f.mu is held.
func (f *feed) tellChange(p *peer, ch change, contiguous uint64) {
	if ch.start >= ch.end {
		return
	}
	if ch.dropped {
		p.toldAll = min(p.toldAll, ch.start)
		f.tell(p, rangeMessage{start: ch.start, length: ch.end - ch.start, drop: true})
		return
	}
	if p.synced && !p.downloading || p.paused {
		return
	}
	length := f.tree.Length
	switch {
	case contiguous >= length:
		if p.toldAll < length || p.toldAll == 0 {
			p.toldAll = length
			f.tell(p, rangeMessage{start: 0, length: length})
		}
	case ch.start+quietTail >= length || p.wants.covers(ch.start, ch.end):
		if ch.end-ch.start == 1 && p.have.has(ch.start) || p.have.contiguous >= ch.end {
			return
		}
		f.tell(p, rangeMessage{start: ch.start, length: ch.end - ch.start})
	}
}

// tell sends a range. f.mu is held.
func (f *feed) tell(p *peer, m rangeMessage) { p.send(msgRange, m.append(nil)) }

// treeChanged is called after our own Apply or reorg. f.mu is held.
func (f *feed) treeChanged() {
	if !f.refresh() {
		return
	}
	f.signal()
	f.moveSeeks()
	for _, p := range f.peers {
		f.updateSync(p)
	}
}
