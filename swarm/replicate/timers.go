package replicate

import (
	"slices"
	"time"
)

// arm starts the timers. f.mu is held.
func (f *feed) arm() {
	if !f.ticking && f.err == nil {
		f.ticking = true
		f.timer.Reset(tick)
	}
}

// tick looks for requests that take too long.
func (f *feed) tick() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ticking = false
	if f.err != nil {
		return
	}
	now := time.Now()
	busy := len(f.ranges) > 0 || len(f.urgent) > 0 || len(f.retry) > 0 || len(f.seeks) > 0 || len(f.heads) > 0
	for _, p := range slices.Clone(f.peers) {
		f.watchPeer(p, now)
		busy = busy || len(p.inFlight) > 0 || p.stalled || f.headToCheck(p) > 0
	}
	f.pump()
	if busy {
		f.arm()
	}
}

// watchPeer looks at the requests of one peer.
func (f *feed) watchPeer(p *peer, now time.Time) {
	f.checkHead(p)
	if p.refused != nil && now.Sub(p.refusedAt) > refusalTime {
		p.refused = nil
	}
	if p.stalled && len(p.inFlight) == 0 && now.Sub(p.stalledAt) > pardonTime {
		p.stalled = false
	}
	timeout := p.c.timeout()
	for _, req := range p.requests() { // some may end meanwhile
		if p.inFlight[req.id] != req || req.late {
			continue
		}
		waited := now.Sub(req.sent)
		if waited < minHedge {
			break // so are those behind it
		}
		if req.why == forHead {
			if waited > headTimeout {
				f.noHead(p, req)
			}
			continue
		}
		silent := now.Sub(p.c.heard(req.sent))
		if silent > timeout || waited > 4*timeout {
			f.stall(p)
			return
		}
		if b := req.block; b != nil && b.waiters > 0 && b.asked() < 3 && waited > max(minHedge, 2*p.c.roundTrip()) {
			f.hedge(b)
		}
	}
}

// stall lets others answer what p is asked for. Its answers still count.
func (f *feed) stall(p *peer) {
	p.stalled, p.stalledAt = true, time.Now()
	p.c.stalled()
	for _, req := range p.requests() {
		if req.late || req.why == forHead {
			continue
		}
		req.late = true
		switch {
		case f.upgrade == req:
			f.upgrade = nil
			p.failures++
			p.canUpgrade = false // until it says so again
		case f.askedFor == req:
			f.askedFor = nil
		case req.seek != nil && req.seek.req == req:
			req.seek.req = nil
		case f.reorg != nil && f.reorg.req == req:
			f.reorg = nil
		}
		if req.block != nil {
			f.requeue(req.block)
		}
	}
	if p.work.d != nil {
		p.work.d.putBack(&p.work)
	}
}

// hedge asks one more peer for a block that somebody waits for.
func (f *feed) hedge(b *block) {
	for _, p := range f.ranked() {
		if f.usable(p) && !p.stalled && !b.askedOf(p) && p.offers(b.index) && f.room(p) > 0 {
			f.askBlock(p, b, true)
			return
		}
	}
}
