package replicate

import (
	"fmt"
	"sync"

	"github.com/pkgswarm/pkgswarm/core/merkle"
	"github.com/pkgswarm/pkgswarm/internal/compact"
)

// An inbox holds the data messages of a connection until they are verified and
// stored.
type inbox struct {
	mu     sync.Mutex
	filled *sync.Cond // there is something, or it is closed
	room   *sync.Cond // there is room, or it is closed
	list   []kept
	bytes  int
	spare  [][]byte // buffers to be used again
	large  int64    // bytes of large messages that wait, taken from Replicator.large
	closed bool
}

// A kept is a data message that waits, or the end of p's channel.
type kept struct {
	p       *peer
	payload []byte
	end     bool
}

const (
	// maxInbox bounds the messages that wait, in bytes; reading pauses above it.
	maxInbox = 4 << 20
	// maxStored bounds what is stored in one step, in bytes.
	maxStored = 1 << 20
	// largeMessage is the size from which messages count towards maxLarge.
	largeMessage = 256 << 10
	// maxLarge bounds those that wait on all connections, in bytes; reading pauses
	// for them.
	maxLarge = 24 << 20
	// maxSpare bounds the buffers that are kept to be used again.
	maxSpare = 64
)

func (b *inbox) init() {
	b.filled, b.room = sync.NewCond(&b.mu), sync.NewCond(&b.mu)
}

// close takes nothing more. What is there is still handed out unless drop is
// true.
func (b *inbox) close(drop bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed, b.spare = true, nil
	if drop {
		b.list = nil
	}
	b.filled.Broadcast()
	b.room.Broadcast()
}

// keep takes a data message of p, waiting while too much waits already.
func (c *conn) keep(p *peer, payload []byte) {
	b := &c.inbox
	large := int64(0)
	if len(payload) > largeMessage {
		large = int64(len(payload))
		if c.r.large.Acquire(c.ctx, large) != nil {
			return // the connection has ended
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.bytes > maxInbox && !b.closed {
		b.room.Wait()
	}
	if b.closed {
		c.r.large.Release(large)
		return
	}
	var buf []byte
	if n := len(b.spare); n > 0 {
		buf, b.spare = b.spare[n-1], b.spare[:n-1]
	}
	b.list = append(b.list, kept{p: p, payload: append(buf[:0], payload...)})
	b.bytes += len(payload)
	b.large += large
	b.filled.Signal()
}

// ended notes that the channel of p has ended, after what has arrived for it.
func (c *conn) ended(p *peer) {
	b := &c.inbox
	b.mu.Lock()
	closed := b.closed
	if !closed {
		b.list = append(b.list, kept{p: p, end: true})
		b.filled.Signal()
	}
	b.mu.Unlock()
	if closed {
		p.f.remove(p)
	}
}

// take waits for messages of one peer, the next ones in order; nil at the end.
func (b *inbox) take() []kept {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.list) == 0 && !b.closed {
		b.filled.Wait()
	}
	if len(b.list) == 0 {
		return nil
	}
	n, bytes := 0, 0
	for n < len(b.list) && b.list[n].p == b.list[0].p && b.list[n].end == b.list[0].end && (n == 0 || bytes < maxStored) {
		bytes += len(b.list[n].payload)
		n++
	}
	out := b.list[:n:n]
	if b.list = b.list[n:]; len(b.list) == 0 {
		b.list = nil
	}
	return out
}

// stored gives back what take returned.
func (c *conn) stored(list []kept) {
	b := &c.inbox
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, k := range list {
		if n := int64(len(k.payload)); n > largeMessage {
			b.large -= n
			c.r.large.Release(n)
		}
	}
	for _, k := range list {
		b.bytes -= len(k.payload)
		if len(b.spare) < maxSpare && cap(k.payload) <= 128<<10 && !b.closed {
			b.spare = append(b.spare, k.payload)
		}
	}
	b.room.Broadcast()
}

// store verifies and stores what arrives until the connection ends.
func (c *conn) store() {
	for {
		list := c.inbox.take()
		if list == nil {
			return
		}
		if list[0].end {
			list[0].p.f.closed(list[0].p)
			continue
		}
		answers := make([]answer, 0, len(list))
		for _, k := range list {
			d := compact.NewDecoder(k.payload)
			proof, id := merkle.DecodeProof(d)
			if d.Err() != nil {
				k.p.blame(FaultMessage, fmt.Errorf("message %d: %w", msgData, d.Err()))
				return
			}
			answers = append(answers, answer{proof: proof, id: id})
		}
		if list[0].p.f.onData(list[0].p, answers) != nil {
			return // it has ended the connection
		}
		c.stored(list)
	}
}
