package replicate

import (
	"errors"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/core/merkle"
)

// A reorg replaces our history by one of a higher fork, as p proves it.
type reorg struct {
	p    *peer
	fork uint64
	req  *request      // in flight
	g    *merkle.Reorg // nil until the new head is verified
}

// checkFork begins a reorg if p has a higher fork. f.mu is held.
func (f *feed) checkFork(p *peer) {
	if !p.open || !p.synced || p.gone || p.paused || p.stalled || p.forkDenied || !p.uploading || p.length == 0 || p.fork <= f.tree.Fork || f.frozen {
		return
	}
	if !f.allowsReorg() {
		if f.downloading() {
			f.r.log.Warn("higher fork refused", "core", f.key.Short(), "peer", p.c.id, "fork", p.fork)
		}
		return
	}
	if f.reorg != nil && f.reorg.fork >= p.fork {
		return
	}
	f.reorg = &reorg{p: p, fork: p.fork, req: &request{why: forReorg, msg: merkle.Request{
		Fork: p.fork, Upgrade: &merkle.UpgradeRequest{Length: p.length}, Manifest: !f.known && p.hasManifest,
	}}}
	f.ask(p, f.reorg.req, 0)
}

// onReorg takes an answer of a reorg. f.mu is held.
func (f *feed) onReorg(p *peer, req *request, proof *merkle.Proof) error {
	r := f.reorg
	if r == nil || r.req != req {
		return nil // another one has begun, or the peer was too slow
	}
	var err error
	if r.g == nil {
		r.g, err = f.core.BeginReorg(proof)
	} else {
		err = f.core.UpdateReorg(r.g, proof)
	}
	if err != nil {
		f.reorg = nil
		if errors.Is(err, core.ErrStale) || errors.Is(err, core.ErrFork) {
			f.refresh()
			f.checkFork(p)
			return nil
		}
		return p.blame(FaultProof, err)
	}
	want, more := r.g.Want()
	if more {
		i := p.have.next(want.Start, want.End)
		if i >= want.End {
			i = want.Start
		}
		r.req = &request{why: forReorg, msg: merkle.Request{
			Fork: r.fork, Hash: &merkle.HashRequest{Index: 2 * i, Nodes: want.Nodes},
		}}
		f.ask(p, r.req, 0)
		return nil
	}
	f.reorg = nil
	f.mu.Unlock() // the core tells of the change before it returns
	err = f.core.FinishReorg(r.g)
	f.mu.Lock()
	if f.err != nil {
		return nil
	}
	if err != nil {
		f.r.log.Error("fork not stored", "core", f.key.Short(), "err", err)
		return nil
	}
	f.forked()
	return nil
}

// forked drops what belonged to the old history. f.mu is held.
func (f *feed) forked() {
	for _, p := range f.peers {
		for _, req := range p.requests() {
			if req.msg.Fork != f.core.Tree().Fork {
				p.pardoned++
				f.giveUp(req)
			}
		}
		p.work, p.refused = chunk{}, nil
	}
	f.heads = nil
	f.treeChanged()
	for _, d := range f.ranges {
		d.restart(f.core, f.tree.Length, f.blockBytes())
	}
	f.pump()
}
