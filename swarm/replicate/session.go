package replicate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/core/merkle"
)

// SessionOptions says how a core is downloaded.
type SessionOptions struct {
	// NoReorg refuses higher forks: the history that is stored stays.
	NoReorg bool
	// MaxLength passes over heads of more blocks, signed as they may be, as if
	// who has them had none; 0 takes all. Whoever took one up could never follow
	// a history again that its signers go on with.
	MaxLength uint64
	// AllowPush takes blocks that peers send unasked.
	AllowPush bool
	// Extensions gets extension messages about this core by name, before those
	// of the Config do.
	Extensions map[string]func(from PeerID, payload []byte)
}

// A Session downloads one core while it is open, and reads it: what is not
// stored is fetched from peers. Growth of the core is followed as it comes.
type Session struct {
	f    *feed
	core Core
	o    SessionOptions
	done chan struct{}
}

// Open begins to download c from all peers, present and future. The caller
// keeps c open until the session is closed.
func (r *Replicator) Open(c Core, o SessionOptions) (*Session, error) {
	f, err := r.feedOfSession(c)
	if err != nil {
		return nil, err
	}
	s := &Session{f: f, core: c, o: o, done: make(chan struct{})}
	f.mu.Lock()
	if f.frozen {
		f.mu.Unlock()
		r.unhold(f)
		return nil, fmt.Errorf("core %s: %w", f.key.Short(), ErrConflict)
	}
	f.sessions[s] = struct{}{}
	for _, p := range f.peers {
		if p.length > f.maxLength() {
			p.length = 0
			p.have.truncate(0)
		}
		f.updateSync(p)
		f.checkFork(p)
	}
	f.pump()
	f.mu.Unlock()
	for _, c := range r.connections() {
		f.offer(c)
	}
	return s, nil
}

// feedOfSession returns the feed of a core that the caller of Open will close. Peers
// may go on reading it then, if it is one that is served: so the feed opens it
// once more.
func (r *Replicator) feedOfSession(c Core) (*feed, error) {
	if r.cfg.Open != nil {
		// What is not served yet, as a file that is being downloaded, is read from
		// the caller's core, and only as long as there is a session.
		if own, release, err := r.cfg.Open(context.Background(), c.Key().Discovery()); err == nil {
			return r.feedFor(own, release)
		}
	}
	return r.feedFor(c, nil)
}

// Close ends the session. Calls in progress return ErrClosed. The core stays
// open, and is served on.
func (s *Session) Close() error {
	s.f.mu.Lock()
	if _, open := s.f.sessions[s]; !open {
		s.f.mu.Unlock()
		return nil
	}
	delete(s.f.sessions, s)
	close(s.done)
	for _, p := range s.f.peers {
		s.f.updateSync(p)
	}
	borrowed := s.f.release == nil && len(s.f.sessions) == 0
	s.f.mu.Unlock()
	if borrowed {
		s.f.r.drop(s.f)
	}
	s.f.r.unhold(s.f)
	return nil
}

// Key returns the key of the core.
func (s *Session) Key() core.Key { return s.f.key }

// Length returns the length that is known and proven, in blocks.
func (s *Session) Length() uint64 { return s.core.Tree().Length }

// Fork returns how often the history was rewritten, as far as is known here.
func (s *Session) Fork() uint64 { return s.core.Tree().Fork }

// Has says whether block i is stored, so that Get does not have to wait.
func (s *Session) Has(i uint64) bool { return s.core.Has(i) }

// Tree returns the head that is known and proven.
func (s *Session) Tree() merkle.Tree { return s.core.Tree() }

// A PeerInfo is what a peer says about the core.
type PeerInfo struct {
	ID           PeerID
	Length, Fork uint64
	Contiguous   uint64 // it has all blocks below
	Uploading    bool
	Downloading  bool
}

// Peers returns the peers that have the core open.
func (s *Session) Peers() []PeerInfo {
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	var list []PeerInfo
	for _, p := range s.f.peers {
		if p.open && p.synced {
			list = append(list, PeerInfo{p.c.id, p.length, p.fork, min(p.have.contiguous, p.length), p.uploading, p.downloading})
		}
	}
	return list
}

// Get returns block i, from the store or from whichever peer brings it first.
// It waits for one that has it; a block beyond the length, until the core has
// grown so far.
func (s *Session) Get(ctx context.Context, i uint64) ([]byte, error) {
	for {
		if s.core.Has(i) {
			v, err := s.core.Get(ctx, i)
			if !errors.Is(err, core.ErrMissing) {
				return v, err
			}
		}
		if err := s.fetch(ctx, i); err != nil {
			return nil, fmt.Errorf("get block %d of core %s: %w", i, s.f.key.Short(), err)
		}
	}
}

// fetch waits until block i was stored.
func (s *Session) fetch(ctx context.Context, i uint64) error {
	f := s.f
	f.mu.Lock()
	if f.err != nil {
		defer f.mu.Unlock()
		return f.err
	}
	if f.core.Has(i) {
		f.mu.Unlock()
		return nil
	}
	b := f.block(i)
	b.waiters++
	switch {
	case b.asked() == 0:
		f.requeue(b)
		f.pump()
	case b.waiters == 1:
		f.arm() // hedged if it takes too long
	}
	f.mu.Unlock()

	var err error
	select {
	case <-b.done:
		err = b.err
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-s.done:
		err = ErrClosed
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if b.waiters--; b.waiters == 0 && !b.over && f.err == nil {
		f.forsake(b)
	}
	return err
}

// forsake ends the requests for a block that nobody waits for any more, unless
// a download wants it. f.mu is held.
func (f *feed) forsake(b *block) {
	if f.inRange(b.index) {
		return
	}
	for _, req := range slices.Clone(b.reqs) {
		if req.why == forBlock && req.p.inFlight[req.id] == req {
			req.p.send(msgCancel, appendCancel(nil, req.id))
			req.p.pardoned++
			f.finish(req, 0)
		}
	}
	if len(b.reqs) == 0 {
		delete(f.blocks, b.index)
	}
}

// Download stores the blocks [lo, hi), as far as they are within the length;
// hi may be ^uint64(0) for all. Which comes first is left to chance and to what
// is rare, so that peers that download the same can give it to each other.
func (s *Session) Download(ctx context.Context, lo, hi uint64) error {
	return s.download(ctx, lo, hi, false)
}

// DownloadInOrder is Download with the lowest blocks first, for who reads them
// meanwhile.
func (s *Session) DownloadInOrder(ctx context.Context, lo, hi uint64) error {
	return s.download(ctx, lo, hi, true)
}

func (s *Session) download(ctx context.Context, lo, hi uint64, linear bool) error {
	f := s.f
	f.mu.Lock()
	if f.err != nil {
		defer f.mu.Unlock()
		return f.err
	}
	hi = min(hi, f.tree.Length)
	if lo >= hi {
		f.mu.Unlock()
		return nil
	}
	d := newDownload(f.core, lo, hi, linear, f.blockBytes())
	if !d.over {
		f.ranges = append(f.ranges, d)
		f.pump()
		f.arm()
	}
	f.mu.Unlock()

	var err error
	select {
	case <-d.done:
		return d.err
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-s.done:
		err = ErrClosed
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	d.end(err)
	f.ranges = slices.DeleteFunc(f.ranges, func(o *download) bool { return o == d })
	return fmt.Errorf("download core %s: %w", f.key.Short(), err)
}

// Update waits until a peer has told its state, all peers have that are quick
// enough, and what they can prove is known here. It says whether the core has
// grown.
func (s *Session) Update(ctx context.Context) (bool, error) {
	f := s.f
	before := s.core.Tree()
	for {
		f.mu.Lock()
		err, settled, changed := f.err, f.settled(), f.changed
		f.mu.Unlock()
		now := s.core.Tree()
		grown := now.Length > before.Length || now.Fork > before.Fork
		switch {
		case err != nil:
			return false, err
		case settled:
			return grown, nil
		}
		select {
		case <-changed:
		case <-time.After(syncGrace): // slow peers are no longer waited for
		case <-ctx.Done():
			return grown, fmt.Errorf("update core %s: %w", f.key.Short(), context.Cause(ctx))
		case <-s.done:
			return grown, ErrClosed
		}
	}
}

// settled says whether a peer has synced and none can bring a longer core.
// f.mu is held.
func (f *feed) settled() bool {
	any := false
	for _, p := range f.peers {
		if !p.open || !p.synced {
			if time.Since(p.since) < syncGrace {
				return false
			}
			continue
		}
		if p.paused {
			continue
		}
		any = true
		if p.fork == f.tree.Fork && p.uploading && p.canUpgrade && p.length > f.tree.Length {
			return false
		}
		if !f.known && p.hasManifest && p.length > 0 {
			return false
		}
	}
	return any && f.upgrade == nil && f.reorg == nil
}

// A seek is a search for a byte position.
type seek struct {
	bytes uint64
	pos   merkle.Position
	req   *request
	steps int
	done  chan struct{}
	err   error
	over  bool
}

func (s *seek) end(err error) {
	if !s.over {
		s.over, s.err = true, err
		close(s.done)
	}
}

// Seek returns the block that holds the byte at position bytes, and where in
// the block it is. The end of the core is its length, 0. A position beyond it
// is an error that matches merkle.ErrRequest.
//
// Peers send tree nodes for it, whose sizes are proven down to pairs of
// neighbours: a lying peer could shift the border between the two last ones.
// Who reads on notices when the block arrives.
func (s *Session) Seek(ctx context.Context, bytes uint64) (block, offset uint64, err error) {
	f := s.f
	k := &seek{bytes: bytes, done: make(chan struct{})}
	f.mu.Lock()
	if f.err != nil {
		defer f.mu.Unlock()
		return 0, 0, f.err
	}
	f.seeks = append(f.seeks, k)
	f.stepSeek(k)
	if !k.over {
		f.pump()
		f.arm()
	}
	f.mu.Unlock()
	select {
	case <-k.done:
		err = k.err
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-s.done:
		err = ErrClosed
	}
	if err == nil {
		return k.pos.Start, k.pos.Offset, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seeks = slices.DeleteFunc(f.seeks, func(o *seek) bool { return o == k })
	return 0, 0, fmt.Errorf("seek byte %d of core %s: %w", bytes, f.key.Short(), err)
}

// maxSeekSteps bounds the round trips of one seek.
const maxSeekSteps = 64

// stepSeek looks at the stored nodes again. f.mu is held.
func (f *feed) stepSeek(k *seek) {
	if k.over {
		return
	}
	pos, err := merkle.Seek(f.tree, f.core, k.bytes, 0)
	if k.steps++; err == nil && k.steps > maxSeekSteps {
		err = merkle.ErrNotStored
	}
	k.pos = pos
	if err != nil || pos.Found {
		k.end(err)
		f.seeks = slices.DeleteFunc(f.seeks, func(o *seek) bool { return o == k })
	}
}

// moveSeeks begins all seeks anew after the tree has changed. f.mu is held.
func (f *feed) moveSeeks() {
	for _, k := range slices.Clone(f.seeks) {
		k.steps = 0
		f.stepSeek(k)
	}
}

// askSeeks asks p for the nodes that seeks need.
func (f *feed) askSeeks(p *peer) {
	for _, k := range f.seeks {
		if k.req != nil || !p.seeks {
			continue
		}
		i := p.have.next(k.pos.Start, k.pos.End)
		if i >= k.pos.End || !p.offers(i) {
			f.wantPage(p, k.pos.Start)
			continue
		}
		k.req = &request{why: forSeek, seek: k, msg: merkle.Request{
			Fork: f.tree.Fork,
			Hash: &merkle.HashRequest{Index: 2 * i, Nodes: k.pos.Nodes},
			Seek: &merkle.SeekRequest{Bytes: k.bytes},
		}}
		f.ask(p, k.req, 1)
	}
}

// Prefetch asks for the given blocks without waiting for them. It is a hint:
// where very many are under way already, more are passed over.
func (s *Session) Prefetch(blocks ...uint64) {
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	if s.f.err != nil {
		return
	}
	for _, i := range blocks {
		if len(s.f.ranges) >= maxPrefetched {
			break
		}
		if i < s.f.tree.Length && !s.core.Has(i) && s.f.blocks[i] == nil {
			d := newDownload(s.core, i, i+1, true, s.f.blockBytes())
			s.f.ranges = append(s.f.ranges, d)
			// Few blocks, which somebody waits for: answers that come in another
			// order than they were asked for must not cost a round trip more.
			s.f.block(i).timid = true
		}
	}
	s.f.pump()
}

// Expect says that the core has at least length blocks and that all of them will
// be wanted. They are then asked for in one round trip with the tree that they
// belong to, instead of in the one after it. It is a hint: what is asked for is
// still to be had with Update and Download.
func (s *Session) Expect(length uint64) {
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	if length > s.f.expected {
		s.f.expected = length
		s.f.pump()
	}
}

// SendBest sends an extension message to one peer: of those that have the whole
// core, else of all, the one that is likely to answer soonest.
func (s *Session) SendBest(name string, payload []byte) {
	f := s.f
	f.mu.Lock()
	defer f.mu.Unlock()
	var best *peer
	for _, p := range f.ranked() {
		whole := p.have.contiguous >= p.length
		if f.usable(p) && p.length > 0 && (best == nil || whole) {
			if best = p; whole {
				break
			}
		}
	}
	if best != nil {
		best.send(msgExtension, extensionMessage{name: name, payload: payload}.append(nil))
	}
}

// Broadcast sends an extension message to all peers of the core.
func (s *Session) Broadcast(name string, payload []byte) {
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	m := extensionMessage{name: name, payload: payload}.append(nil)
	for _, p := range s.f.peers {
		if p.open && !p.paused {
			p.send(msgExtension, m)
		}
	}
}

// onExtension hands an extension message on.
func (p *peer) onExtension(m extensionMessage) error {
	if m.name == "" {
		m.name = p.extension
	}
	p.extension = m.name
	if len(m.payload) > maxExtension || len(m.name) > 64 {
		return p.blame(FaultMessage, fmt.Errorf("extension message of %d bytes", len(m.payload)))
	}
	if !p.c.extensions.Allow() {
		return p.blame(FaultFlood, fmt.Errorf("extension messages"))
	}
	f := p.f
	f.mu.Lock()
	var handlers []func(PeerID, []byte)
	if p.open && !p.paused {
		for s := range f.sessions {
			if h := s.o.Extensions[m.name]; h != nil {
				handlers = append(handlers, h)
			}
		}
	}
	ok := p.open && !p.paused && !f.frozen
	f.mu.Unlock()
	for _, h := range handlers {
		h(p.c.id, m.payload)
	}
	if h := f.r.cfg.Extensions[m.name]; h != nil && ok {
		h(f.core, m.payload, func(reply []byte) {
			p.send(msgExtension, extensionMessage{name: m.name, payload: reply}.append(nil))
		}, p.push)
	}
	return nil
}
