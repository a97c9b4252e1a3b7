package replicate

import (
	"errors"
	"fmt"
	"slices"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/core/merkle"
)

// An upload is a request of a peer that waits to be answered, or blocks to be
// sent unasked.
type upload struct {
	p        *peer
	req      *merkle.Request
	id       uint64
	priority uint64
	push     bool // blocks nobody asked for; id is 0
}

// enqueue takes a request of a peer. A second one of the same id replaces the
// first.
func (c *conn) enqueue(p *peer, req *merkle.Request, id, priority uint64) error {
	c.mu.Lock()
	same := 0
	for _, u := range c.queue {
		if u.p == p {
			if u.id == id {
				u.req, u.priority = req, priority
				c.mu.Unlock()
				return nil
			}
			same++
		}
	}
	full := same >= maxQueued || len(c.queue) >= maxConnQueued
	if !full {
		c.queue = append(c.queue, &upload{p: p, req: req, id: id, priority: priority})
	}
	c.mu.Unlock()
	if full {
		return p.blame(FaultFlood, fmt.Errorf("requests"))
	}
	c.signal()
	return nil
}

// push queues blocks for a peer that takes such, or returns false.
func (p *peer) push(blocks ...uint64) bool {
	p.f.mu.Lock()
	ok := p.open && p.allowPush && p.downloading && !p.paused
	p.f.mu.Unlock()
	if !ok {
		return false
	}
	c := p.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, i := range blocks {
		if len(c.pushes) < maxPushes {
			c.pushes = append(c.pushes, &upload{p: p, req: &merkle.Request{Block: &merkle.BlockRequest{Index: i}}, push: true})
		}
	}
	c.signal()
	return true
}

func (c *conn) cancelUpload(p *peer, id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.queue = slices.DeleteFunc(c.queue, func(u *upload) bool { return u.p == p && u.id == id })
}

func (c *conn) dropUploads(p *peer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ofP := func(u *upload) bool { return u.p == p }
	c.queue, c.pushes = slices.DeleteFunc(c.queue, ofP), slices.DeleteFunc(c.pushes, ofP)
}

// nextUpload takes the next request to answer: one with priority, the latest
// first, else a block to push, else the oldest.
func (c *conn) nextUpload() (u *upload) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := len(c.queue) - 1; i > 0 && i >= len(c.queue)-maxQueued; i-- {
		if c.queue[i].priority > 0 {
			u = c.queue[i]
			c.queue = slices.Delete(c.queue, i, i+1)
			return u
		}
	}
	urgent := len(c.queue) > 0 && c.queue[0].priority > 0
	switch {
	case len(c.pushes) > 0 && !urgent:
		u, c.pushes[0] = c.pushes[0], nil
		c.pushes = c.pushes[1:]
	case len(c.queue) > 0:
		u, c.queue[0] = c.queue[0], nil
		c.queue = c.queue[1:]
	}
	return u
}

// hasUploads says whether a request waits to be answered.
func (c *conn) hasUploads() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.queue)+len(c.pushes) > 0
}

// answerNext answers one request, for which c.guess bytes were taken from the
// upload rate, and returns about how many bytes the answer took.
func (c *conn) answerNext() (n int, err error) {
	taken := c.guess
	if u := c.nextUpload(); u != nil {
		n, err = u.answer()
	}
	c.r.upload.settle(taken, n)
	c.guess = n
	return n, err
}

// answer writes the answer and returns about how many bytes it took.
func (u *upload) answer() (int, error) {
	ch := u.p.openChannel()
	if ch == nil || u.p.dead.Load() {
		return 0, nil
	}
	proof, reason, err := u.prove()
	if err != nil {
		return 0, err
	}
	if proof == nil {
		if u.push {
			return 0, nil
		}
		return 32, ch.Send(msgNoData, noDataMessage{id: u.id, reason: reason}.append(nil))
	}
	if proof.Upgrade != nil {
		u.p.proved(proof)
	}
	size := 256
	if proof.Block != nil {
		size += len(proof.Block.Value)
	}
	return size, ch.Send(msgData, proof.AppendMessage(make([]byte, 0, size+42*proof.CountNodes()), u.id))
}

// prove builds the answer. Without proof, reason says why there is none; the
// error is for a peer that asks for too much nonsense.
func (u *upload) prove() (proof *merkle.Proof, reason uint64, err error) {
	f := u.p.f
	f.mu.Lock()
	paused, frozen := u.p.paused, f.frozen
	known, compat := f.known, f.compat()
	manifest := f.manifest
	f.mu.Unlock()
	if u.push {
		return u.provePush(paused || frozen), 0, nil
	}
	req := *u.req
	tree := f.core.Tree()
	if paused || req.Fork != tree.Fork || req.Block != nil && !f.core.Has(req.Block.Index) {
		if req.Manifest && known && !compat && !paused {
			return &merkle.Proof{Fork: tree.Fork, Manifest: manifest.Encode()}, 0, nil
		}
		return nil, reasonNotAvailable, nil
	}
	proof, err = f.core.Prove(req)
	switch {
	case err == nil:
		return proof, 0, nil
	case errors.Is(err, merkle.ErrRequest):
		f.mu.Lock()
		u.p.invalid++
		over := u.p.invalid > maxInvalid
		f.mu.Unlock()
		if over {
			return nil, 0, u.p.blame(FaultInvalid, err)
		}
		return nil, reasonInvalid, nil
	case !errors.Is(err, merkle.ErrNotStored) && !errors.Is(err, core.ErrMissing) && !errors.Is(err, core.ErrFork):
		f.r.log.Debug("request not answered", "core", f.key.Short(), "peer", u.p.c.id, "err", err)
	}
	return nil, reasonNotAvailable, nil
}

// proved notes the length up to which p can verify blocks that are pushed.
func (p *peer) proved(proof *merkle.Proof) {
	p.f.mu.Lock()
	defer p.f.mu.Unlock()
	if proof.Fork == p.fork {
		p.pushed = max(p.pushed, proof.Upgrade.Start+proof.Upgrade.Length)
	}
}

// provePush builds a proof that the peer can use whatever it has of its tree;
// nil if it could not use it.
func (u *upload) provePush(quiet bool) *merkle.Proof {
	f, p := u.p.f, u.p
	index := u.req.Block.Index
	tree := f.core.Tree()
	f.mu.Lock()
	ok := !quiet && p.open && p.synced && p.allowPush && p.downloading && p.fork == tree.Fork &&
		index < tree.Length && !p.have.has(index)
	length := max(p.length, p.pushed)
	f.mu.Unlock()
	if !ok || !f.core.Has(index) {
		return nil
	}
	req := merkle.Request{Fork: tree.Fork, Block: &merkle.BlockRequest{Index: index}, Manifest: length == 0}
	if index < length {
		req.Block.Nodes = merkle.MaxMissingNodes(length, 2*index)
	} else {
		req.Upgrade = &merkle.UpgradeRequest{Start: length, Length: tree.Length - length}
	}
	proof, err := f.core.Prove(req)
	if err != nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	p.have.add(index, index+1)
	return proof
}
