package replicate

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/core/merkle"
	"github.com/pkgswarm/pkgswarm/internal/compact"
	"github.com/pkgswarm/pkgswarm/internal/vectors"
)

// A recording is what two reference peers have said to each other.
type recording struct {
	Name   string
	Core   recordedCore
	Cores  []recordedCore
	Blocks []vectors.Hex
	Forked []vectors.Hex

	Connections []struct{ HandshakeHash vectors.Hex }
	Log         []struct {
		From  string
		Noise *int
		Plain vectors.Hex
	}
}

type recordedCore struct {
	Key, DiscoveryKey, Manifest vectors.Hex
	Blocks                      []vectors.Hex
}

// A recorded message is one of a channel, or the open of one.
type recorded struct {
	from       string
	connection int
	id         core.DiscoveryKey
	kind       int // message, frameOpen or frameClose
	payload    []byte
}

// messages takes the frames of a recording apart.
func (r *recording) messages(t *testing.T) []recorded {
	var out []recorded
	connection := -1
	channels := map[string]core.DiscoveryKey{}
	for _, e := range r.Log {
		if e.Noise != nil && *e.Noise == 0 && e.From == "a" {
			connection++
			clear(channels)
		}
		if len(e.Plain) == 0 {
			continue
		}
		frame := func(channel uint64, d *compact.Decoder) {
			m := recorded{from: e.From, connection: connection, kind: int(d.Uint())}
			name := func(n uint64) string { return fmt.Sprint(e.From, n) }
			switch {
			case channel > 0:
				m.id = channels[name(channel)]
			case m.kind == 1:
				number := d.Uint()
				if p := d.String(); p != protocol {
					t.Fatalf("%s: protocol %q", r.Name, p)
				}
				m.kind, m.id = frameOpen, core.DiscoveryKey(d.Bytes())
				channels[name(number)] = m.id
			case m.kind == 3:
				m.kind, m.id = frameClose, channels[name(d.Uint())]
			default:
				return
			}
			m.payload = d.Rest()
			out = append(out, m)
		}
		d := compact.NewDecoder(e.Plain)
		channel := d.Uint()
		if channel > 0 || e.Plain[1] != 0 {
			frame(channel, d)
			continue
		}
		d.Uint()
		for channel = d.Uint(); d.Len() > 0; {
			if entry := d.Bytes(); len(entry) > 0 {
				frame(channel, compact.NewDecoder(entry))
			} else {
				channel = d.Uint()
			}
		}
	}
	if len(out) == 0 {
		t.Fatalf("%s: no messages", r.Name)
	}
	return out
}

func loadRecordings(t *testing.T) []*recording {
	var v struct{ Recordings []*recording }
	vectors.Load(t, "replication.json", &v)
	if len(v.Recordings) < 14 {
		t.Fatalf("%d recordings", len(v.Recordings))
	}
	for _, r := range v.Recordings {
		if len(r.Cores) == 0 {
			r.Core.Blocks = r.Blocks
			r.Cores = []recordedCore{r.Core}
		}
	}
	return v.Recordings
}

// TestRecordedMessages encodes every recorded message again.
func TestRecordedMessages(t *testing.T) {
	for _, r := range loadRecordings(t) {
		for _, m := range r.messages(t) {
			if m.kind < 0 {
				continue
			}
			if got, err := recode(t, kinds[m.kind], m.payload, nil); err != nil || !bytes.Equal(got, m.payload) {
				t.Errorf("%s: %s %x encodes to %x, %v", r.Name, kinds[m.kind], m.payload, got, err)
			}
		}
	}
}

// TestRecordedData stores what a recorded writer has sent, as the reader did.
func TestRecordedData(t *testing.T) {
	for _, r := range loadRecordings(t) {
		for _, rc := range r.Cores {
			c := emptyCore(core.Key(rc.Key))
			var g *merkle.Reorg
			wrong, stored := 0, 0
			for _, m := range r.messages(t) {
				if m.from != "a" || m.kind != msgData || m.id != core.DiscoveryKey(rc.DiscoveryKey) {
					continue
				}
				p, _ := merkle.DecodeProof(compact.NewDecoder(m.payload))
				var err error
				switch {
				case p.Fork > c.tree.Fork && g == nil:
					g, err = c.BeginReorg(p)
				case p.Fork > c.tree.Fork && g != nil:
					err = c.UpdateReorg(g, p)
				default:
					err = c.Apply(p)
				}
				if g != nil && err == nil {
					if _, more := g.Want(); !more {
						err = c.FinishReorg(g)
						g = nil
					}
				}
				if err != nil {
					wrong++
					t.Logf("%s: %v", r.Name, err)
				}
				stored++
			}
			if (wrong > 0) != (r.Name == "bad data") {
				t.Errorf("%s: %d answers refused", r.Name, wrong)
			}
			for i, b := range c.blocks {
				want := rc.Blocks
				if c.tree.Fork > 0 && i >= 5 {
					if !bytes.Equal(b, r.Forked[i-5]) {
						t.Errorf("%s: forked block %d = %x", r.Name, i, b)
					}
				} else if want != nil && !bytes.Equal(b, want[i]) {
					t.Errorf("%s: block %d = %x, want %x", r.Name, i, b, want[i])
				}
			}
			if stored == 0 {
				t.Errorf("%s: no data", r.Name)
			}
		}
	}
}

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
// reader's messages must be answered with the same bytes.
func TestRecordedRequests(t *testing.T) {
	for _, r := range loadRecordings(t) {
		switch r.Name {
		case "reorg", "bad data", "push", "small wants", "static core without content":
			continue // the writer does something on its own there, or has no blocks listed
		}
		t.Run(r.Name, func(t *testing.T) {
			simulate(t, func(t *testing.T, ctx context.Context) {
				messages := r.messages(t)
				writer := map[core.DiscoveryKey]*memCore{}
				var cores []*memCore
				for _, rc := range r.Cores {
					c := emptyCore(core.Key(rc.Key))
					m, err := core.DecodeManifest(rc.Manifest)
					if err != nil {
						t.Fatal(err)
					}
					c.manifest, c.known = m, true
					writer[c.key.Discovery()] = c
					cores = append(cores, c)
				}
				n := newNode(t, 1, cores...)
				var s *script
				done := make(chan error, 2)
				answers := 0
				for i, m := range messages {
					if s == nil || m.connection > 0 && bytes.Equal(s.hash, r.Connections[m.connection-1].HandshakeHash) {
						s = &script{hash: r.Connections[m.connection].HandshakeHash, r: n.r, handlers: map[core.DiscoveryKey]Handler{}}
						go func() { done <- n.r.Serve(ctx, s) }()
						synctest.Wait()
					}
					c := writer[m.id]
					if m.from != "b" {
						if m.from == "a" && m.kind == msgSync && c != nil {
							length := decodeSync(compact.NewDecoder(m.payload)).length
							if length > uint64(len(r.blocks(c.key))) {
								break // a block that is not listed
							}
							c.growTo(r, length, messages[i:])
						}
						continue
					}
					h := s.handlers[m.id]
					switch {
					case c == nil: // a core that the writer does not have
						if err := n.r.RemoteOpen(ctx, s, m.id); err == nil {
							t.Errorf("channel of unknown core %x is opened", m.id)
						}
					case m.kind == frameOpen:
						if c.tree.Length == 0 { // the first sync tells its length
							for k, o := range messages {
								if o.from == "a" && o.kind == msgSync && o.id == m.id {
									c.growTo(r, decodeSync(compact.NewDecoder(o.payload)).length, messages[k:])
									break
								}
							}
						}
						if err := n.r.RemoteOpen(ctx, s, m.id); err != nil {
							t.Fatal(err)
						}
						if err := s.handlers[m.id].Opened(m.payload); err != nil {
							t.Fatal(err)
						}
					case m.kind == frameClose:
						h.Closed()
					case h != nil:
						if err := h.Message(m.kind, m.payload); err != nil {
							t.Fatal(err)
						}
					}
					if i+1 < len(messages) && messages[i+1].kind == msgCancel {
						continue // it came in the same frame
					}
					time.Sleep(time.Millisecond)
					for _, got := range s.take() {
						answers += sameAnswer(t, messages, got)
					}
				}
				if answers == 0 {
					t.Error("nothing was answered")
				}
				n.r.Close()
				for range messages[len(messages)-1].connection + 1 {
					<-done
				}
			})
		})
	}
}

// sameAnswer looks for an answer of ours among those recorded, and returns 1 if
// it is one.
func sameAnswer(t *testing.T, messages []recorded, got recorded) int {
	t.Helper()
	if got.kind != frameOpen && got.kind != msgData && got.kind != msgNoData {
		return 0
	}
	for i, m := range messages {
		if m.from == "a" && m.id == got.id && m.kind == got.kind && bytes.Equal(m.payload, got.payload) {
			messages[i].from = "" // used up: ids are used again
			return 1
		}
	}
	t.Errorf("message %d %x was not recorded", got.kind, got.payload)
	return 0
}

// blocks returns the blocks of one of the cores.
func (r *recording) blocks(key core.Key) []vectors.Hex {
	for _, rc := range r.Cores {
		if core.Key(rc.Key) == key {
			return rc.Blocks
		}
	}
	return nil
}

// growTo makes c what the recorded writer had: the first length blocks, and the
// signature that it sends next.
func (c *memCore) growTo(r *recording, length uint64, rest []recorded) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if length <= c.tree.Length {
		return
	}
	blocks := r.blocks(c.key)
	b := merkle.NewBatch(c.tree)
	for i := c.tree.Length; i < length; i++ {
		b.Append(blocks[i])
		cleared := r.Name == "sparse peer" && (i >= 10 && i < 20 || i == 35) ||
			r.Name == "requests that cannot be answered" && i == 4
		if !cleared {
			c.blocks[i] = append([]byte{}, blocks[i]...)
		}
	}
	c.store(b)
	for _, m := range rest {
		if m.from == "a" && m.kind == msgData && m.id == c.key.Discovery() {
			if p, _ := merkle.DecodeProof(compact.NewDecoder(m.payload)); p.Upgrade != nil {
				c.sig = p.Upgrade.Signature
				return
			}
		}
	}
}
