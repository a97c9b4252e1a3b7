package replicate

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/core/merkle"
)

// A head is the proof of a peer's signed tree, whose prefix of length blocks
// could not be compared with ours because we lack the nodes for it.
type head struct {
	length  uint64
	hash    merkle.Hash
	message []byte // data message with an upgrade from 0 to length and on to what is signed
}

// headToCheck returns the length at which p's history should be compared with
// ours, or 0 if it is known to agree as far as both go, or cannot be compared.
// f.mu is held.
func (f *feed) headToCheck(p *peer) uint64 {
	if !p.open || !p.synced || p.gone || p.paused || f.frozen || !f.known ||
		p.fork != f.tree.Fork || f.manifest.IsStatic() {
		return 0
	}
	if n := min(f.tree.Length, p.length); n > p.checked {
		return n
	}
	for _, h := range f.heads { // somebody else's is in doubt
		if h.length <= p.length && !slices.Contains(p.shown, h.length) {
			return h.length
		}
	}
	return 0
}

// checkHead asks p to show its signed history as far as we have one, unless it
// is known to agree with ours. An upgrade that p proves to us is such a proof,
// too. f.mu is held.
func (f *feed) checkHead(p *peer) {
	n := f.headToCheck(p)
	if n == 0 || p.checking {
		return
	}
	f.arm()
	if p.length > f.tree.Length && f.upgrade != nil && f.upgrade.p == p || time.Since(p.checkedAt) < headInterval {
		return // soon
	}
	f.askHead(p, n)
}

func (f *feed) askHead(p *peer, n uint64) {
	p.checking, p.checkedAt = true, time.Now()
	f.ask(p, &request{why: forHead, msg: merkle.Request{Fork: f.tree.Fork, Upgrade: &merkle.UpgradeRequest{Length: n}}}, 0)
}

// suspect stops believing p, whose proof did not verify. It may lie, or it may
// have another history that is signed as well: its signed head tells. f.mu is
// held.
func (f *feed) suspect(p *peer, err error) error {
	n := min(f.tree.Length, p.length)
	if n == 0 || !f.known || f.manifest.IsStatic() || p.fork != f.tree.Fork || p.paused {
		return p.blame(FaultProof, err)
	}
	p.paused, p.blamed = true, err
	for _, req := range p.requests() {
		f.giveUp(req)
	}
	if p.work.d != nil {
		p.work.d.putBack(&p.work)
	}
	f.askHead(p, n)
	f.pump()
	return nil
}

// noHead is called when p did not show its head. f.mu is held.
func (f *feed) noHead(p *peer, req *request) {
	f.finish(req, 0)
	p.checking = false
	if p.blamed != nil {
		p.blame(FaultProof, p.blamed)
	}
}

// onHead takes the signed head of a peer, and compares it with ours at a common
// length. f.mu is held.
func (f *feed) onHead(p *peer, proof *merkle.Proof) error {
	p.checking = false
	if !f.known {
		return nil
	}
	b, err := merkle.VerifyHead(f.prologue(), proof)
	if err == nil {
		err = f.manifest.VerifyTree(f.key, b.Tree, b.Signature)
	}
	if err != nil {
		return p.blame(FaultProof, err)
	}
	if b.Tree.Fork != f.tree.Fork {
		p.paused, p.blamed = false, nil
		return nil
	}
	n, hash := b.Prefix.Length, b.Prefix.Hash()
	p.shown = append(p.shown[max(0, len(p.shown)-maxPendingProofs):], n)
	p.checked = max(p.checked, min(n, p.length))
	own, err := f.ownHash(n)
	switch {
	case err == nil && own == hash:
		if p.blamed != nil { // same tree, yet its proof was wrong
			return p.blame(FaultProof, p.blamed)
		}
		return nil
	case err == nil:
		return f.conflictWithOwn(n, proof)
	case !errors.Is(err, merkle.ErrNotStored):
		f.r.log.Debug("head not compared", "core", f.key.Short(), "peer", p.c.id, "err", err)
		return nil
	}
	return f.compareHeads(p, head{length: n, hash: hash, message: proof.AppendMessage(nil, 0)})
}

// ownHash returns the hash of our tree at length n; n may exceed our length.
func (f *feed) ownHash(n uint64) (merkle.Hash, error) {
	switch {
	case n == f.tree.Length:
		return f.treeHash, nil
	case n > f.tree.Length:
		return merkle.Hash{}, merkle.ErrNotStored
	}
	t, err := f.core.TreeAt(n)
	return t.Hash(), err
}

// compareHeads compares the heads of two peers where we cannot tell ourselves.
func (f *feed) compareHeads(p *peer, h head) error {
	for _, o := range f.heads {
		if o.length == h.length && o.hash != h.hash {
			f.conflict(o.message, h.message)
			return nil
		}
	}
	if !slices.ContainsFunc(f.heads, func(o head) bool { return o.length == h.length }) {
		if len(f.heads) >= maxPendingProofs {
			f.heads = f.heads[1:]
		}
		f.heads = append(f.heads, h)
	}
	for _, q := range f.peers {
		if q != p {
			f.checkHead(q)
		}
	}
	return nil
}

// conflictWithOwn makes evidence of our history and another at length n.
func (f *feed) conflictWithOwn(n uint64, other *merkle.Proof) error {
	own, err := f.core.Prove(merkle.Request{Fork: f.tree.Fork, Upgrade: &merkle.UpgradeRequest{Length: n}})
	if err != nil {
		return fmt.Errorf("prove own head of core %s: %w", f.key.Short(), err)
	}
	own.Block = nil
	f.conflict(own.AppendMessage(nil, 0), other.AppendMessage(nil, 0))
	return nil
}

// conflict ends the replication of a core that has two signed histories. All
// peers are shown both.
func (f *feed) conflict(a, b []byte) {
	e := core.Evidence{Key: f.key, A: a, B: b}
	if f.known && !f.compat() {
		e.Manifest = f.manifest.Encode()
	}
	if err := e.Verify(); err != nil {
		f.r.log.Error("evidence of two histories does not hold", "core", f.key.Short(), "err", err)
		return
	}
	f.frozen = true
	f.r.log.Error("core has two signed histories", "core", f.key.Short(), "length", f.tree.Length)
	for _, p := range f.peers {
		if p.open {
			p.send(msgData, a)
			p.send(msgData, b)
			p.send(closeChannel, nil)
		}
	}
	err := fmt.Errorf("core %s: %w", f.key.Short(), ErrConflict)
	for _, b := range f.blocks {
		b.resolve(err)
	}
	for _, d := range f.ranges {
		d.end(err)
	}
	for _, s := range f.seeks {
		s.end(err)
	}
	f.ranges, f.seeks, f.urgent, f.retry = nil, nil, nil, nil
	clear(f.blocks)
	f.err = err
	f.timer.Stop()
	f.signal()
	if f.r.cfg.OnConflict != nil {
		f.r.cfg.OnConflict(e)
	}
	for _, p := range slices.Clone(f.peers) {
		go f.remove(p) // not under f.mu
	}
}
