package secretstream

import (
	"errors"
	"sync"
)

const (
	// largeFrame is the size from which frames that are being read count, in bytes.
	// A block of 64 KiB with its proof is below.
	largeFrame = 256 << 10
	// largeTotal bounds what the frames above that take on all connections of the
	// process together, in bytes (SEC-20).
	largeTotal = 32 << 20
)

// ErrMemory means that a frame was refused because the connections of this process
// hold too many large ones already. It is not the peer's fault.
var ErrMemory = errors.New("secretstream: too many large frames at once")

var largeFrames struct {
	mu   sync.Mutex
	used int
}

// A reservation is what one connection holds of largeTotal.
type reservation struct {
	held   int // guarded by largeFrames.mu
	closed bool
}

// grow makes the reservation n bytes at least, unless there is no room.
func (r *reservation) grow(n int) bool {
	largeFrames.mu.Lock()
	defer largeFrames.mu.Unlock()
	more := n - r.held
	switch {
	case more <= 0:
		return true
	case r.closed || largeFrames.used+more > largeTotal:
		return false
	}
	largeFrames.used += more
	r.held = n
	return true
}

// release gives everything back.
func (r *reservation) release() {
	largeFrames.mu.Lock()
	defer largeFrames.mu.Unlock()
	largeFrames.used -= r.held
	r.held = 0
}

// close is release for good.
func (r *reservation) close() {
	r.release()
	largeFrames.mu.Lock()
	defer largeFrames.mu.Unlock()
	r.closed = true
}
