package replicate

import (
	"bytes"
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/core/merkle"
	"github.com/pkgswarm/pkgswarm/internal/compact"
	"github.com/pkgswarm/pkgswarm/internal/vectors"
)

// A script is a Mux whose other end is a recording.
type script struct {
	hash []byte
	r    *Replicator

	mu       sync.Mutex
	handlers map[core.DiscoveryKey]Handler
	sent     []recorded
}

func (s *script) Peer() PeerID               { return PeerID{7} }
func (s *script) HandshakeHash() []byte      { return s.hash }
func (s *script) Initiator() bool            { return true }
func (s *script) Batch(f func() error) error { return f() }
func (s *script) Close(error)                {}

func (s *script) Open(id core.DiscoveryKey, hs []byte, h Handler) (Channel, error) {
	s.put(recorded{id: id, kind: frameOpen, payload: hs})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handlers[id] = h
	return &scriptChannel{s, id}, nil
}

func (s *script) put(m recorded) {
	m.payload = bytes.Clone(m.payload)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent = append(s.sent, m)
}

func (s *script) take() []recorded {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.sent
	s.sent = nil
	return out
}

type scriptChannel struct {
	s  *script
	id core.DiscoveryKey
}

func (c *scriptChannel) Send(kind int, b []byte) error {
	c.s.put(recorded{id: c.id, kind: kind, payload: b})
	return nil
}
func (c *scriptChannel) Close() error { return nil }

// TestRecordedRequests puts our node in the place of the recorded writer: the
// reader's messages must be answered with the same bytes, all of them.
func TestRecordedRequests(t *testing.T) {
	for _, r := range loadRecordings(t) {
		t.Run(r.Name, func(t *testing.T) {
			simulate(t, func(t *testing.T, ctx context.Context) {
				newReplay(t, r).run(ctx)
			})
		})
	}
}

// A replay is a recording of which our node plays the writer.
type replay struct {
	t        *testing.T
	r        *recording
	messages []recorded // from is empty once ours has sent the same
	writer   map[core.DiscoveryKey]*memCore
	n        *node
	s        *script // the connection; nil before the first
	at       int     // its number
	serving  sync.WaitGroup
}

func newReplay(t *testing.T, r *recording) *replay {
	p := &replay{t: t, r: r, messages: r.messages(t), writer: map[core.DiscoveryKey]*memCore{}}
	var cores []*memCore
	for _, rc := range r.Cores {
		c := emptyCore(core.Key(rc.Key))
		m, err := core.DecodeManifest(rc.Manifest)
		if err != nil {
			t.Fatal(err)
		}
		c.manifest, c.known = m, true
		p.writer[c.key.Discovery()] = c
		cores = append(cores, c)
	}
	if r.Name == "bad data" {
		p.undoLie()
	}
	p.n = newNode(t, 1, cores...)
	return p
}

// undoLie takes back the byte that the recorded writer has put behind a block:
// ours tells the truth.
func (p *replay) undoLie() {
	for i, m := range p.messages {
		if m.from != "a" || m.kind != msgData {
			continue
		}
		if proof, id := merkle.DecodeProof(compact.NewDecoder(m.payload)); proof.Block != nil {
			proof.Block.Value = bytes.TrimSuffix(proof.Block.Value, []byte("!"))
			p.messages[i].payload = proof.AppendMessage(nil, id)
		}
	}
}

func (p *replay) run(ctx context.Context) {
	for i, m := range p.messages {
		if p.s == nil || m.connection != p.at {
			p.connect(ctx, m.connection)
		}
		c := p.writer[m.id]
		switch {
		case m.from != "b":
			if m.from == "a" && c != nil {
				p.lead(i, m, c)
			}
		case c == nil: // a core that the writer does not have
			if err := p.n.r.RemoteOpen(ctx, p.s, m.id); err == nil {
				p.t.Errorf("channel of unknown core %x is opened", m.id)
			}
		default:
			p.take(ctx, i, m, c)
		}
		if i+1 < len(p.messages) && p.messages[i+1].kind == msgCancel {
			continue // it came in the same frame
		}
		time.Sleep(time.Millisecond)
		for _, got := range p.s.take() {
			p.compare(got)
		}
	}
	for _, m := range p.messages {
		if m.from == "a" && (m.kind == msgData || m.kind == msgNoData) {
			p.t.Errorf("message %d %x was not sent", m.kind, m.payload)
		}
	}
	p.n.r.Close()
	p.serving.Wait()
}

// connect begins the next of the recorded connections.
func (p *replay) connect(ctx context.Context, number int) {
	s := &script{hash: p.r.Connections[number].HandshakeHash, r: p.n.r, handlers: map[core.DiscoveryKey]Handler{}}
	if p.s != nil {
		p.n.r.connOf(p.s).fail(nil)
	}
	p.s, p.at = s, number
	p.serving.Go(func() { p.n.r.Serve(ctx, s) })
	synctest.Wait()
}

// lead does to c what the recorded writer must have done to send m.
func (p *replay) lead(i int, m recorded, c *memCore) {
	switch m.kind {
	case msgSync:
		p.become(c, decodeSync(compact.NewDecoder(m.payload)), p.messages[i:])
	case msgData:
		proof, id := merkle.DecodeProof(compact.NewDecoder(m.payload))
		if id == 0 && proof.Block != nil {
			p.n.r.connOf(p.s).peers[m.id].push(proof.Block.Index)
		}
	}
}

// take hands a message of the reader to our node.
func (p *replay) take(ctx context.Context, i int, m recorded, c *memCore) {
	h := p.s.handlers[m.id]
	switch {
	case m.kind == frameOpen:
		for k, o := range p.messages[i:] { // the first sync tells the writer's length
			if o.from == "a" && o.kind == msgSync && o.id == m.id {
				p.become(c, decodeSync(compact.NewDecoder(o.payload)), p.messages[i+k:])
				break
			}
		}
		if err := p.n.r.RemoteOpen(ctx, p.s, m.id); err != nil {
			p.t.Fatal(err)
		}
		if err := p.s.handlers[m.id].Opened(m.payload); err != nil {
			p.t.Fatal(err)
		}
	case h == nil:
	case m.kind == frameClose:
		h.Closed()
	default:
		if err := h.Message(m.kind, m.payload); err != nil {
			p.t.Fatal(err)
		}
	}
}

// compare looks for an answer of ours among those recorded.
func (p *replay) compare(got recorded) {
	if got.kind != frameOpen && got.kind != msgData && got.kind != msgNoData && got.kind != msgBitfield {
		return
	}
	for i, m := range p.messages {
		if m.from == "a" && m.id == got.id && m.kind == got.kind && bytes.Equal(m.payload, got.payload) {
			p.messages[i].from = "" // used up: ids are used again
			return
		}
	}
	p.t.Errorf("message %d %x was not recorded", got.kind, got.payload)
}

// become makes c what the recorded writer had when it sent a sync: its blocks, and
// the signature that it sends next.
func (p *replay) become(c *memCore, m syncMessage, rest []recorded) {
	blocks := p.blocks(c.key)
	c.mu.Lock()
	defer c.mu.Unlock()
	if m.fork > c.tree.Fork { // the last blocks were replaced
		common := m.length - uint64(len(p.r.Forked))
		b, err := merkle.Truncate(c.tree, nodeReader{c}, common, m.fork)
		if err != nil {
			p.t.Fatal(err)
		}
		c.store(b)
		blocks = append(blocks[:common:common], p.r.Forked...)
	}
	if m.length <= c.tree.Length {
		return
	}
	b := merkle.NewBatch(c.tree)
	for i := c.tree.Length; i < m.length; i++ {
		b.Append(blocks[i])
		if !p.cleared(i) {
			c.blocks[i] = append([]byte{}, blocks[i]...)
		}
	}
	c.store(b)
	for _, o := range rest {
		if o.from == "a" && o.kind == msgData && o.id == c.key.Discovery() {
			if proof, _ := merkle.DecodeProof(compact.NewDecoder(o.payload)); proof.Upgrade != nil {
				c.sig = proof.Upgrade.Signature
				return
			}
		}
	}
}

// cleared says whether the recorded writer lacked block i.
func (p *replay) cleared(i uint64) bool {
	switch p.r.Name {
	case "sparse peer":
		return i >= 10 && i < 20 || i == 35
	case "requests that cannot be answered":
		return i == 4
	case "small wants":
		return i >= 10 && i < 20 || i == 5000
	}
	return false
}

// blocks returns the blocks of one of the cores.
func (p *replay) blocks(key core.Key) []vectors.Hex {
	for _, rc := range p.r.Cores {
		if core.Key(rc.Key) == key {
			return rc.Blocks
		}
	}
	return nil
}
