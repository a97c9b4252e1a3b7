package exchange

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pkgswarm/pkgswarm/internal/compact"
	"github.com/pkgswarm/pkgswarm/registry/artifact"
	"github.com/pkgswarm/pkgswarm/registry/fetch"
)

// A Downloader gets static cores from peers.
type Downloader interface {
	// Download writes the size bytes of the static core to w, verified block by
	// block against its key. peers say that they have it. progress is called with
	// the bytes received since its last call. It returns when ctx ends. Until release
	// is called, which is to be once w is committed or given up, the core is not
	// downloaded for anybody else: they wait.
	Download(ctx context.Context, key artifact.Key, size int64, peers []PeerKey, w fetch.Writer, progress func(int64)) (release func(), err error)
}

var (
	errNobody = errors.New("no peer has it")
	errLease  = errors.New("the fleet leaves it to this node")
	errHolder = errors.New("the holder of the lease does not deliver")
	errSilent = errors.New("the holder of the lease does not answer")
)

// An attempt is a search for one artifact. Its fields are guarded by
// Exchange.mu, but for the constant ones at the top.
type attempt struct {
	ids     map[uint64]artifact.Digest // of the wants and the lease request
	digests []artifact.Digest
	began   time.Time
	wake    chan struct{}

	asked      map[PeerKey]*asked
	candidates []*candidate
	finished   bool
	downloaded func() // releases the core that was downloaded; nil if there is none

	// In a fleet:
	keeper   PeerKey               // whom we have asked for the lease; zero if nobody
	askedOf  *Peer                 // its connection then
	askedAt  time.Time             // when
	holder   PeerKey               // who has it; zero while not known
	heldBy   *Peer                 // its connection when we learnt of it
	heldAt   time.Time             // when that was
	failed   map[PeerKey]time.Time // holders that turned out not to have it, and since when
	released bool
}

// asked is what we know of a peer that we have asked.
type asked struct {
	open    int  // wants not answered
	getting bool // it is getting the file
	lacks   bool // it said "not here" since it was last asked
}

// A candidate is a core that is said to be the file.
type candidate struct {
	digest artifact.Digest
	key    artifact.Key
	size   uint64
	peers  []PeerKey
	tried  bool
}

func (a *attempt) signal() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// Fetch implements [fetch.Peers].
func (x *Exchange) Fetch(ctx context.Context, ds []artifact.Digest, t *fetch.Transfer) (fetch.Writer, error) {
	a := x.begin(ds)
	defer x.forget(a)
	t.Finally = func(stored bool) { x.finish(a, stored) }
	for {
		c, wait, next := x.decide(a, t)
		switch {
		case c != nil:
			if w := x.download(ctx, a, c, t); w != nil {
				return w, nil
			}
			continue
		case next != nil:
			x.log.Debug("no peer delivers", "digest", ds[0].String(), "err", next)
			return nil, next
		}
		timer := time.NewTimer(wait)
		select {
		case <-a.wake:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		}
		timer.Stop()
	}
}

// begin asks the connected peers.
func (x *Exchange) begin(ds []artifact.Digest) *attempt {
	a := &attempt{
		ids:     make(map[uint64]artifact.Digest),
		digests: ds,
		began:   time.Now(),
		wake:    make(chan struct{}, 1),
		asked:   make(map[PeerKey]*asked),
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, d := range ds {
		x.nextID++
		a.ids[x.nextID] = d
		x.attempts[x.nextID] = a
		x.fetching[d]++
	}
	for _, p := range x.peers { // in random order
		if len(a.asked) == maxAsked {
			break
		}
		x.ask(a, p)
	}
	x.beat(a)
	return a
}

// ask sends the wants of a to p. The caller holds x.mu.
func (x *Exchange) ask(a *attempt, p *Peer) {
	a.asked[p.key] = &asked{open: len(a.ids)}
	for id, d := range a.ids {
		p.push(msgWant, appendWant(nil, want{id, d}))
	}
}

// forget ends the waiting for answers.
func (x *Exchange) forget(a *attempt) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for id := range a.ids {
		delete(x.attempts, id)
	}
	for key, s := range a.asked {
		p := x.peers[key]
		if p == nil || s.open == 0 && !s.getting {
			continue
		}
		for id := range a.ids {
			p.push(msgCancel, compact.AppendUint(nil, id))
		}
	}
}

// finish tells those who wait how the fetching, by whatever way, has ended.
func (x *Exchange) finish(a *attempt, stored bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if a.finished {
		return
	}
	a.finished = true
	if a.downloaded != nil {
		a.downloaded()
	}
	delete(x.held, a.digests[0])
	for _, d := range a.digests {
		if x.fetching[d]--; x.fetching[d] <= 0 {
			delete(x.fetching, d)
		}
	}
	x.release(a, stored)
	for _, p := range x.peers {
		for id, d := range p.waiting {
			if x.fetching[d] == 0 {
				delete(p.waiting, id)
				p.queue(want{id, d}) // answered by another goroutine, from the store
			}
		}
	}
}

// beat tells those who wait that we are still at it. The caller holds x.mu.
func (x *Exchange) beat(a *attempt) {
	time.AfterFunc(heartbeat, func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		if a.finished {
			return
		}
		for _, p := range x.peers {
			for id, d := range p.waiting {
				for _, ours := range a.digests {
					if d == ours {
						p.push(msgMissing, appendMissing(nil, missing{id, x.state(d)}))
					}
				}
			}
		}
		x.beat(a)
	})
}

// decide returns a core to download, or why to give up, or how long to wait for
// news.
func (x *Exchange) decide(a *attempt, t *fetch.Transfer) (c *candidate, wait time.Duration, giveUp error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, c := range a.candidates {
		if !c.tried {
			c.tried = true
			return &candidate{digest: c.digest, key: c.key, size: c.size, peers: append([]PeerKey(nil), c.peers...)}, 0, nil
		}
	}
	if x.c.Fleet != nil {
		wait, err := x.decideFleet(a)
		t.Expect(leasePatience) // what decideFleet waits for, it bounds itself
		return nil, wait, err
	}
	for key, s := range a.asked {
		if s.open > 0 && x.peers[key] != nil {
			return nil, time.Minute, nil // the flight asks the upstream meanwhile
		}
	}
	return nil, 0, errNobody
}

// decideFleet says whether to go to the upstream, and if not, how long to wait.
// The caller holds x.mu.
func (x *Exchange) decideFleet(a *attempt) (time.Duration, error) {
	now := time.Now()
	self := x.c.Fleet.Self
	if now.Sub(a.began) > leasePatience {
		return 0, errHolder
	}
	if a.holder != (PeerKey{}) && a.holder != self && !x.connected(a.heldBy) {
		if a.heldBy == nil { // we have no connection to it
			return x.holderFailed(a, now)
		}
		a.holder, a.askedOf = PeerKey{}, nil // it left: ask again who goes
	}
	if a.holder == (PeerKey{}) && (!x.connected(a.askedOf) || a.askedOf.patience(a.askedAt, now) <= 0) {
		if a.askedOf != nil {
			a.askedOf.suspect = now // passed over, by this attempt and the next
		}
		x.requestLease(a, now)
	}
	switch {
	case a.holder == self:
		// Somebody may have it already: the answers come within moments of the lease.
		if left := x.answersDue(a, now); left > 0 {
			return left, nil
		}
		return 0, errLease
	case a.holder == (PeerKey{}):
		return a.askedOf.patience(a.askedAt, now), nil
	}
	if s := a.asked[a.holder]; s != nil && s.lacks {
		return x.holderFailed(a, now)
	}
	left := a.heldBy.patience(a.heldAt, now)
	if left <= 0 {
		return 0, errSilent
	}
	return left, nil
}

// holderFailed asks the keeper who gets the lease after a holder that does not have
// the file, or cannot be reached. The keeper may hear of that later than we: what the
// holder sends to it takes another way. So it is asked again, now and then and for a
// while, if it insists on the holder.
// The caller holds x.mu.
func (x *Exchange) holderFailed(a *attempt, now time.Time) (time.Duration, error) {
	since, again := a.failed[a.holder]
	if again && now.Sub(since) >= memberSilence {
		return 0, errHolder
	}
	if left := heartbeat - now.Sub(a.askedAt); again && left > 0 {
		return left, nil
	}
	if a.failed == nil {
		a.failed = make(map[PeerKey]time.Time)
	}
	if !again {
		a.failed[a.holder] = now
	}
	a.holder = PeerKey{}
	x.requestLease(a, now)
	return time.Millisecond, nil // the lease may be ours at once
}

// connected reports whether what was asked over p's connection can be answered.
func (x *Exchange) connected(p *Peer) bool { return p != nil && x.peers[p.key] == p }

// patience returns how long to wait still for a member that was asked something
// then: as long as it says anything at all, it, or this machine, is slow, not dead.
func (p *Peer) patience(asked, now time.Time) time.Duration {
	if p.heard.After(asked) {
		asked = p.heard
	}
	return memberSilence - now.Sub(asked)
}

// answersDue returns how long to wait for peers that have not answered yet. One
// that lets the time pass is not waited for again for a minute. The caller holds
// x.mu.
func (x *Exchange) answersDue(a *attempt, now time.Time) time.Duration {
	left := answerSilence - now.Sub(a.began)
	for key, s := range a.asked {
		p := x.peers[key]
		if s.open == 0 || p == nil || now.Sub(p.mute) < time.Minute {
			continue
		}
		if left > 0 {
			return left
		}
		p.mute = now
	}
	return 0
}

// requestLease asks the keeper for the lease. The caller holds x.mu.
func (x *Exchange) requestLease(a *attempt, now time.Time) {
	f := x.c.Fleet
	members := []PeerKey{f.Self}
	for key, p := range x.peers {
		if p.member && now.Sub(p.suspect) > time.Minute {
			members = append(members, key)
		}
	}
	d := a.digests[0]
	a.keeper, a.askedAt = keeper(f.Secret, d, members), now
	a.askedOf = x.peers[a.keeper] // nil for ourselves
	if a.keeper == f.Self {
		x.setHolder(a, x.leases.request(d, f.Self, now))
		return
	}
	for id, ad := range a.ids {
		if ad == d {
			a.askedOf.push(msgLease, appendWant(nil, want{id, d}))
		}
	}
}

// setHolder notes who has the lease and asks it for the file. The caller holds x.mu.
func (x *Exchange) setHolder(a *attempt, holder PeerKey) {
	a.holder, a.heldAt, a.heldBy = holder, time.Now(), x.peers[holder]
	if a.heldBy != nil {
		x.ask(a, a.heldBy) // it may have said "not here" before it began
	}
	if holder == x.c.Fleet.Self {
		x.claim(a.digests[0])
	}
	a.signal()
}

// claim tells those who wait for d that the lease is ours. The caller holds x.mu.
func (x *Exchange) claim(d artifact.Digest) {
	x.held[d] = true
	for _, p := range x.peers {
		for id, w := range p.waiting {
			if w == d {
				p.push(msgMissing, appendMissing(nil, missing{id, leaseHeld}))
			}
		}
	}
}

// state returns what we say of a file that we are getting. The caller holds x.mu.
func (x *Exchange) state(d artifact.Digest) byte {
	if x.held[d] {
		return leaseHeld
	}
	return beingFetched
}

// yield leaves the fetching to p, which has the lease. While connections come and
// go, members may know of different keepers, so that two get a lease: that of the
// lower key counts, unless the other has gone to the upstream. The caller holds x.mu.
func (a *attempt) yield(p *Peer, self PeerKey) {
	if a.holder == (PeerKey{}) || a.holder == self && bytes.Compare(p.key[:], self[:]) < 0 {
		a.holder, a.heldAt, a.heldBy = p.key, time.Now(), p
	}
}

// release gives back the lease. The caller holds x.mu.
func (x *Exchange) release(a *attempt, stored bool) {
	f := x.c.Fleet
	if f == nil || a.holder != f.Self || a.released {
		return
	}
	a.released = true
	if a.keeper == f.Self {
		x.leases.release(a.digests[0], f.Self, stored, time.Now())
	} else if p := x.peers[a.keeper]; p != nil {
		p.push(msgRelease, appendRelease(nil, release{a.digests[0], stored}))
	}
}

func (x *Exchange) onLeased(p *Peer, ls []leased) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, l := range ls {
		if a := x.attempts[l.id]; a != nil && a.keeper == p.key && a.holder == (PeerKey{}) {
			x.setHolder(a, l.holder)
		}
	}
}

func (x *Exchange) onFound(p *Peer, fs []found) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, f := range fs {
		a := x.attempts[f.id]
		if a == nil || a.asked[p.key] == nil {
			continue // too late, or never asked
		}
		a.answered(p.key)
		a.asked[p.key].getting = false
		a.add(candidate{digest: a.ids[f.id], key: f.key, size: f.size}, p.key)
		a.signal()
	}
}

// answered notes an answer of a peer.
func (a *attempt) answered(p PeerKey) {
	if s := a.asked[p]; s.open > 0 {
		s.open--
	}
}

// add notes that a peer offers c.
func (a *attempt) add(c candidate, p PeerKey) {
	for _, have := range a.candidates {
		if have.digest == c.digest && have.key == c.key && have.size == c.size {
			have.peers = append(have.peers, p)
			return
		}
	}
	if len(a.candidates) < maxAsked {
		c.peers = []PeerKey{p}
		a.candidates = append(a.candidates, &c)
	}
}

func (x *Exchange) onMissing(p *Peer, ms []missing) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, m := range ms {
		a := x.attempts[m.id]
		if a == nil || a.asked[p.key] == nil {
			continue
		}
		s := a.asked[p.key]
		if !s.getting {
			a.answered(p.key)
		}
		s.getting = m.state == beingFetched || m.state == leaseHeld
		if m.state == leaseHeld && p.member {
			a.yield(p, x.c.Fleet.Self)
		}
		s.lacks = !s.getting && s.open == 0
		a.signal()
	}
}

// download gets c and checks it. It returns nil if that fails; then others are tried.
func (x *Exchange) download(ctx context.Context, a *attempt, c *candidate, t *fetch.Transfer) fetch.Writer {
	w, err := x.tryDownload(ctx, a, c, t)
	if err == nil {
		for _, p := range c.peers {
			t.Peers = append(t.Peers, p.String())
		}
		return w
	}
	if _, wrong := errors.AsType[*artifact.MismatchError](err); wrong { // SEC-22
		for _, p := range c.peers {
			x.c.Blame(p, "offered a file that does not match its digest")
		}
	}
	x.log.Debug("artifact from peers", "digest", c.digest.String(), "peers", len(c.peers), "err", err)
	return nil
}

func (x *Exchange) tryDownload(ctx context.Context, a *attempt, c *candidate, t *fetch.Transfer) (_ fetch.Writer, err error) {
	if c.size > 1<<40 {
		return nil, fmt.Errorf("a file of %d bytes is offered", c.size)
	}
	t.Progress(0)
	w, err := t.Create(int64(c.size))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			w.Close()
		}
	}()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stall := time.AfterFunc(downloadStall, func() { cancel(errors.New("peers have stalled")) })
	defer stall.Stop()
	release, err := x.c.Download.Download(ctx, c.key, int64(c.size), c.peers, w, func(n int64) {
		stall.Reset(downloadStall)
		t.Progress(n)
	})
	if err != nil {
		return nil, errors.Join(err, context.Cause(ctx))
	}
	if err := w.Verify(c.digest); err != nil {
		release()
		return nil, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if a.finished {
		release()
	}
	a.downloaded = release
	return w, nil
}
