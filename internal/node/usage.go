package node

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/pkgswarm/pkgswarm/registry/fetch"
)

// burstEnd is how long no artifact is asked for until a build counts as over.
const burstEnd = 3 * time.Second

// Usage counts artifacts by where they came from.
type Usage struct {
	Artifacts int   `json:"artifacts"`
	Bytes     int64 `json:"bytes"`
	Disk      int   `json:"from_disk"`
	Peer      int   `json:"from_peers"`
	Upstream  int   `json:"from_upstream"`
	PeerBytes int64 `json:"peer_bytes"`
	Peers     int   `json:"peers"` // different peers that delivered
	Failed    int   `json:"failed"`

	peers map[string]bool
}

func (u *Usage) add(e fetch.Event) {
	if e.Err != nil {
		u.Failed++
		return
	}
	u.Artifacts++
	u.Bytes += max(e.Bytes, 0)
	switch e.Source {
	case fetch.Disk:
		u.Disk++
	case fetch.Upstream:
		u.Upstream++
	case fetch.Peer:
		u.Peer++
		u.PeerBytes += max(e.Bytes, 0)
		for _, p := range e.Peers {
			if u.peers == nil {
				u.peers = make(map[string]bool)
			}
			if len(u.peers) < 1000 {
				u.peers[p] = true
			}
		}
		u.Peers = len(u.peers)
	}
}

// String returns the summary line, such as
// "212 artifacts 31.4 MB: 188 from 7 peers, 20 from disk, 4 from upstream; all verified".
func (u *Usage) String() string {
	var from []string
	if u.Peer > 0 {
		from = append(from, fmt.Sprintf("%d from %s", u.Peer, plural(u.Peers, "peer")))
	}
	if u.Disk > 0 {
		from = append(from, fmt.Sprintf("%d from disk", u.Disk))
	}
	if u.Upstream > 0 {
		from = append(from, fmt.Sprintf("%d from upstream", u.Upstream))
	}
	s := fmt.Sprintf("%s %s: %s; all verified", plural(u.Artifacts, "artifact"), humanize.Bytes(uint64(u.Bytes)), strings.Join(from, ", "))
	if u.Artifacts == 0 {
		s = "0 artifacts"
	}
	if u.Failed > 0 {
		s += fmt.Sprintf("; %d failed", u.Failed)
	}
	return s
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// A recorder counts artifacts since the start and in the current burst.
type recorder struct {
	summary func(Usage) // called after each burst

	mu    sync.Mutex
	total Usage
	burst Usage
	timer *time.Timer // runs while there is a burst
}

func (r *recorder) observe(e fetch.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.total.add(e)
	r.burst.add(e)
	if r.timer == nil {
		r.timer = time.AfterFunc(burstEnd, r.end)
	} else {
		r.timer.Reset(burstEnd)
	}
}

// end ends the burst, if there is one.
func (r *recorder) end() {
	r.mu.Lock()
	u := r.burst
	r.burst = Usage{}
	if r.timer != nil {
		r.timer.Stop()
		r.timer = nil
	}
	r.mu.Unlock()
	if u.Artifacts+u.Failed > 0 && r.summary != nil {
		r.summary(u)
	}
}

func (r *recorder) sum() Usage {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.total
}
