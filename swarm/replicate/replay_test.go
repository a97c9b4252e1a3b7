package replicate

import (
	"bytes"
	"fmt"
	"testing"

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
		switch r.Name { // what the notes say of blocks that are not listed
		case "small wants":
			for i := range 9000 {
				r.Blocks = append(r.Blocks, vectors.Hex{byte(i), byte(i >> 8)})
			}
		case "sparse peer":
			r.Blocks = append(r.Blocks, vectors.Hex("one more"))
		}
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
