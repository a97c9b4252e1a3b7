package replicate

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/core/merkle"
	"github.com/pkgswarm/pkgswarm/internal/flattree"
)

// What a request is for.
type purpose int

const (
	forBlock   purpose = iota
	forUpgrade         // perhaps with a block
	forManifest
	forSeek
	forHead  // to compare histories
	forReorg // head of a higher fork, or a step down to where it branches off
)

// A request is what we asked of a peer. Its fields are guarded by feed.mu.
type request struct {
	id    uint64
	p     *peer
	why   purpose
	msg   merkle.Request
	sent  time.Time
	block *block // forBlock, and forUpgrade with a block
	seek  *seek
	late  bool // timed out: others may be asked for the same, but an answer counts
	bold  bool // relies on nodes that other answers will bring first
}

// A block is one that somebody waits for, or that is in flight.
type block struct {
	index   uint64
	waiters int
	done    chan struct{} // closed when it is stored or given up
	err     error         // why it was given up
	over    bool
	reqs    []*request
	queued  bool // in feed.urgent
	timid   bool // the next request must not be bold
}

func (b *block) resolve(err error) {
	if !b.over {
		b.over, b.err = true, err
		close(b.done)
	}
}

// asked returns the number of requests in flight that are not late.
func (b *block) asked() int {
	n := 0
	for _, r := range b.reqs {
		if !r.late {
			n++
		}
	}
	return n
}

// askedOf says whether p was asked, and the answer is still due.
func (b *block) askedOf(p *peer) bool {
	return slices.ContainsFunc(b.reqs, func(r *request) bool { return r.p == p })
}

// block returns the block of that index, making it if needed.
func (f *feed) block(index uint64) *block {
	b := f.blocks[index]
	if b == nil {
		b = &block{index: index, done: make(chan struct{})}
		f.blocks[index] = b
	}
	return b
}

// ask sends req to p. f.mu is held.
func (f *feed) ask(p *peer, req *request, priority uint64) {
	f.nextID++
	req.id, req.p, req.sent = f.nextID, p, time.Now()
	if p.inFlight == nil {
		p.inFlight = make(map[uint64]*request)
	}
	p.inFlight[req.id] = req
	p.order = append(p.order, req)
	p.c.sent(p, len(p.inFlight) == 1)
	if req.block != nil {
		req.block.reqs = append(req.block.reqs, req)
		f.r.download.settle(0, int(f.blockBytes()))
	}
	p.send(msgRequest, req.msg.AppendMessage(nil, req.id, priority))
	f.arm()
}

// finish ends req; took is how long the answer needed, 0 if there was none. f.mu is
// held.
func (f *feed) finish(req *request, took time.Duration) {
	f.land(req, took)
	f.forget(req)
}

// land takes req out of flight. What it asked for is not asked for again until
// forget is called, when the answer has been stored.
func (f *feed) land(req *request, took time.Duration) {
	p := req.p
	if p.inFlight[req.id] != req {
		return
	}
	delete(p.inFlight, req.id)
	for len(p.order) > 0 && p.inFlight[p.order[0].id] != p.order[0] {
		p.order[0] = nil
		p.order = p.order[1:]
	}
	if len(p.inFlight) == 0 {
		p.promised = nil
	}
	p.c.answered(p, len(p.inFlight) == 0, took)
}

// forget makes what req asked for be asked for again unless it is here.
func (f *feed) forget(req *request) {
	if b := req.block; b != nil {
		b.reqs = slices.DeleteFunc(b.reqs, func(r *request) bool { return r == req })
	}
	if f.upgrade == req {
		f.upgrade = nil
		f.signal()
	}
	if f.askedFor == req {
		f.askedFor = nil
	}
	if s := req.seek; s != nil && s.req == req {
		s.req = nil
	}
}

// giveUp ends req without answer, so that others can be asked. f.mu is held.
func (f *feed) giveUp(req *request) {
	f.finish(req, 0)
	if b := req.block; b != nil {
		f.requeue(b)
	}
	if req.seek != nil {
		f.stepSeek(req.seek)
	}
	if req.p.checking && req.why == forHead {
		req.p.checking = false
	}
	if f.reorg != nil && f.reorg.req == req {
		f.reorg = nil
	}
}

// requeue makes b be asked for again unless it is in flight or done.
func (f *feed) requeue(b *block) {
	if b.over || b.asked() > 0 || f.err != nil {
		return
	}
	if b.waiters > 0 {
		if !b.queued {
			b.queued = true
			f.urgent = append(f.urgent, b)
		}
		return
	}
	if len(b.reqs) == 0 && !b.timid {
		delete(f.blocks, b.index)
	}
	f.retry = append(f.retry, b.index)
}

// usable says whether p may be asked for blocks. f.mu is held.
func (f *feed) usable(p *peer) bool {
	return p.open && p.synced && p.uploading && !p.paused && !p.gone && !f.frozen && p.fork == f.tree.Fork
}

// offers says whether p is thought to have block i.
func (p *peer) offers(i uint64) bool {
	if i >= p.length || !p.have.has(i) {
		return false
	}
	_, no := p.refused[i]
	return !no
}

// maxRefused bounds peer.refused.
const maxRefused = 1024

// refuse notes that p does not have block i after all.
func (p *peer) refuse(i uint64) {
	if len(p.refused) >= maxRefused {
		p.have.forgetAll()
		p.asked, p.refused = nil, nil
		return
	}
	if p.refused == nil {
		p.refused, p.refusedAt = make(map[uint64]struct{}), time.Now()
	}
	p.refused[i] = struct{}{}
}

// blockBytes returns the mean size of a block, at least 1.
func (f *feed) blockBytes() uint64 {
	if f.tree.Length == 0 {
		return 64 << 10
	}
	return max(f.tree.ByteLength()/f.tree.Length, 1)
}

// maxBytesInFlight bounds what may be on its way from one peer, in bytes.
const maxBytesInFlight = 8 << 20

// room returns how many requests more p may get. f.mu is held.
func (f *feed) room(p *peer) int {
	n := min(uint64(p.c.share(p)), max(maxBytesInFlight/f.blockBytes(), 1))
	return int(n) - len(p.inFlight)
}

// askBlock asks p for b. f.mu is held.
func (f *feed) askBlock(p *peer, b *block, urgent bool) {
	req := &request{why: forBlock, block: b}
	nodes, bold := f.missing(p, 2*b.index, b.timid)
	req.bold = bold
	req.msg = merkle.Request{Fork: f.tree.Fork, Block: &merkle.BlockRequest{Index: b.index, Nodes: nodes}}
	priority := uint64(0)
	if urgent {
		priority = 1
	}
	f.ask(p, req, priority)
	if !b.timid {
		f.promise(p, req, 2*b.index, nodes)
	}
	b.timid = false
}

// missing returns the number of steps from node n up to one that is stored, or
// that another answer of p will bring first: then the request is bold.
func (f *feed) missing(p *peer, n uint64, timid bool) (steps uint64, bold bool) {
	head := 2 * f.coming(p)
	for ; !flattree.Contains(n, head); n = flattree.Parent(n) {
		if r := p.promised[n]; r != nil && !timid && !r.late && p.inFlight[r.id] == r {
			return steps, true
		}
		if _, ok, err := f.core.Node(n); ok || err != nil {
			break
		}
		steps++
	}
	return steps, bold
}

// maxPromised bounds peer.promised.
const maxPromised = 1 << 14

// promise notes which nodes the answer to req will bring: answers of one
// connection are handled in order, and peers mostly send them in order.
func (f *feed) promise(p *peer, req *request, n, steps uint64) {
	if p.promised == nil || len(p.promised) > maxPromised {
		p.promised = make(map[uint64]*request)
	}
	p.promised[n] = req
	for range steps {
		p.promised[flattree.Sibling(n)] = req
		n = flattree.Parent(n)
		p.promised[n] = req
	}
}

// promiseRoots notes that the answer to req, an upgrade, will bring the roots of
// its tree.
func (f *feed) promiseRoots(p *peer, req *request) {
	if f.expected <= f.tree.Length {
		return // nothing will be asked for that relies on them
	}
	if p.promised == nil {
		p.promised = make(map[uint64]*request)
	}
	for _, n := range flattree.AppendRoots(nil, f.coming(p)) {
		p.promised[n] = req
	}
}

// An answer is a data message, and what it answers.
type answer struct {
	proof *merkle.Proof
	id    uint64
	req   *request
}

// onData takes answers of p, in order. Nothing is kept of them. An error has
// ended the connection.
func (f *feed) onData(p *peer, list []answer) error {
	f.mu.Lock()
	kept := list[:0]
	for _, a := range list {
		store, err := f.receive(p, &a)
		if err != nil {
			// Those before have verified nothing yet; they are asked for again.
			for _, b := range kept {
				f.giveUp(b.req)
			}
			f.mu.Unlock()
			return err
		}
		if store {
			kept = append(kept, a)
		}
	}
	f.mu.Unlock()
	if len(kept) == 0 {
		return nil
	}

	proofs := make([]*merkle.Proof, len(kept))
	for i, a := range kept {
		proofs[i] = a.proof
	}
	applied, errs := f.core.ApplyAll(proofs)

	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return nil
	}
	length := f.tree.Length
	f.treeChanged()
	var fault error
	for i, a := range kept {
		if errs[i] == nil {
			f.accepted(p, a.req, a.proof, applied[i])
		} else if err := f.refused(p, a, errs[i]); err != nil && fault == nil {
			fault = err
		}
	}
	if f.tree.Length != length || len(f.retry) > 0 {
		f.pump()
	} else {
		f.fill(p)
	}
	return fault
}

// receive finds the request that a answers, and says whether a is to be stored.
// f.mu is held.
func (f *feed) receive(p *peer, a *answer) (store bool, err error) {
	if p.gone || f.frozen || f.err != nil {
		return false, nil
	}
	proof := a.proof
	if proof.Block != nil && len(proof.Block.Value) > maxBlock {
		return false, p.blame(FaultMessage, fmt.Errorf("block of %d bytes", len(proof.Block.Value)))
	}
	req := p.inFlight[a.id]
	if req == nil {
		if a.id == 0 && proof.Fork == f.tree.Fork && f.allowsPush() && proof.Block != nil {
			a.req = &request{p: p}
			f.r.download.settle(0, len(proof.Block.Value))
			return true, nil
		}
		return false, f.onUnasked(p, proof, a.id)
	}
	now := time.Now()
	f.land(req, now.Sub(req.sent))
	p.stalled, p.heard = false, now
	if !req.matches(proof) {
		f.giveUp(req)
		f.deny(p, req)
		f.pump()
		return false, p.strike()
	}
	switch req.why {
	case forHead:
		f.forget(req)
		return false, f.onHead(p, proof)
	case forReorg:
		f.forget(req)
		return false, f.onReorg(p, req, proof)
	}
	a.req = req
	return true, nil
}

// matches says whether proof answers what was asked. An answer with the
// manifest alone is one, too.
func (req *request) matches(proof *merkle.Proof) bool {
	m := req.msg
	if proof.Fork != m.Fork {
		return false
	}
	if proof.Block != nil && (m.Block == nil || proof.Block.Index != m.Block.Index) ||
		proof.Hash != nil && (m.Hash == nil || proof.Hash.Index != m.Hash.Index) ||
		proof.Seek != nil && (m.Seek == nil || proof.Seek.Bytes != m.Seek.Bytes) ||
		proof.Upgrade != nil && m.Upgrade == nil {
		return false
	}
	if proof.Manifest != nil && m.Manifest && proof.Block == nil && proof.Hash == nil && proof.Upgrade == nil {
		return true
	}
	return (m.Block == nil || proof.Block != nil) && (m.Hash == nil || proof.Hash != nil) &&
		(m.Upgrade == nil || proof.Upgrade != nil)
}

// overtaken says whether a is an upgrade from less than is known now, which may not
// fit: another peer was quicker, or the same one over another connection.
func (a answer) overtaken(length uint64) bool {
	return a.proof.Upgrade != nil && a.req.msg.Upgrade != nil && a.req.msg.Upgrade.Start < length
}

// accepted goes on after proof was stored. f.mu is held.
func (f *feed) accepted(p *peer, req *request, proof *merkle.Proof, applied core.Applied) {
	f.forget(req)
	if applied.Upgraded {
		p.failures = 0
		p.checked = max(p.checked, applied.Length)
	}
	if proof.Manifest != nil && !f.known {
		f.refresh()
		f.signal()
	}
	if p.strikes > 0 {
		p.strikes-- // answers cross changes of the tree now and then
	}
	if proof.Block != nil {
		p.speed.add(len(proof.Block.Value), time.Now())
		p.have.add(proof.Block.Index, proof.Block.Index+1)
		f.arrived(proof.Block.Index, proof.Block.Index+1)
	} else if req.block != nil {
		f.requeue(req.block) // only the manifest came
	}
	if req.seek != nil {
		f.stepSeek(req.seek)
	}
}

// refused goes on after a was not stored because of err. f.mu is held.
func (f *feed) refused(p *peer, a answer, err error) error {
	req := a.req
	f.forget(req)
	switch {
	case a.overtaken(f.tree.Length):
		f.giveUp(req)
	case errors.Is(err, merkle.ErrChecksum), errors.Is(err, core.ErrSignature):
		f.giveUp(req)
		return f.suspect(p, err)
	case errors.Is(err, merkle.ErrMalformed), errors.Is(err, merkle.ErrPrologue),
		errors.Is(err, core.ErrManifest), errors.Is(err, core.ErrTooLarge):
		f.giveUp(req)
		return p.blame(FaultProof, err)
	case errors.Is(err, merkle.ErrDetached):
		if req.block != nil {
			req.block.timid = true
		}
		f.giveUp(req)
		if !req.bold && req.id != 0 {
			// The tree may have changed meanwhile; else it is the peer's fault.
			if err := p.strike(); err != nil {
				return err
			}
		}
	case errors.Is(err, core.ErrStale), errors.Is(err, core.ErrFork), errors.Is(err, core.ErrNoManifest):
		f.refresh()
		f.giveUp(req)
	default:
		f.r.log.Error("block not stored", "core", f.key.Short(), "err", err)
		if req.block != nil {
			req.block.resolve(err)
			delete(f.blocks, req.block.index)
		}
		for _, d := range f.ranges {
			d.end(err)
		}
		f.ranges = nil
	}
	return nil
}

// deny notes that p does not have what req asked for. f.mu is held.
func (f *feed) deny(p *peer, req *request) {
	switch req.why {
	case forBlock:
		if req.msg.Fork == p.fork {
			p.refuse(req.msg.Block.Index)
		}
	case forUpgrade:
		if req.msg.Block != nil {
			p.refuse(req.msg.Block.Index) // it may be for that alone
			return
		}
		p.failures++
		p.canUpgrade = false // until it says so again
	case forReorg:
		p.forkDenied = req.msg.Fork == p.fork // until it says so again
	case forManifest:
		p.hasManifest = false
	case forSeek:
		p.refuse(flattree.LeftSpan(req.msg.Hash.Index) / 2)
	}
}

// maxFailures is how many upgrades in a row a peer may promise and not deliver.
const maxFailures = 3

// onNoData takes a refusal.
func (f *feed) onNoData(p *peer, m noDataMessage) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	req := p.inFlight[m.id]
	if req == nil {
		if p.pardoned > 0 {
			p.pardoned--
			return nil
		}
		return p.strike()
	}
	f.finish(req, time.Since(req.sent))
	p.stalled, p.heard = false, time.Now()
	f.deny(p, req)
	f.giveUp(req)
	if req.why == forHead {
		f.noHead(p, req)
	}
	if p.failures >= maxFailures {
		return p.blame(FaultUnproven, fmt.Errorf("length %d", p.length))
	}
	f.pump()
	return nil
}

// onUnasked takes data that answers no request. f.mu is held.
func (f *feed) onUnasked(p *peer, proof *merkle.Proof, id uint64) error {
	switch {
	case id != 0 && p.pardoned > 0:
		p.pardoned--
		return nil
	case id == 0 && proof.Upgrade != nil && proof.Upgrade.Start == 0:
		return f.onHead(p, proof)
	}
	return p.strike()
}

// arrived is called when the blocks [start, end) are stored. f.mu is held.
func (f *feed) arrived(start, end uint64) {
	if end-start <= uint64(len(f.blocks)) {
		for i := start; i < end; i++ {
			if b := f.blocks[i]; b != nil {
				f.blockDone(b)
			}
		}
	} else {
		for i, b := range f.blocks {
			if start <= i && i < end {
				f.blockDone(b)
			}
		}
	}
	f.ranges = slices.DeleteFunc(f.ranges, func(d *download) bool { return d.advance(f.core, start, end) })
}

// blockDone ends b, and cancels what is still in flight for it.
func (f *feed) blockDone(b *block) {
	b.resolve(nil)
	delete(f.blocks, b.index)
	for _, req := range slices.Clone(b.reqs) {
		if req.why == forUpgrade || req.p.inFlight[req.id] != req {
			continue // its upgrade is still wanted, or its answer is being stored
		}
		req.p.send(msgCancel, appendCancel(nil, req.id))
		req.p.pardoned++
		f.finish(req, 0)
	}
}
