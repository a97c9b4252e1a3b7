package exchange

import (
	"bytes"
	"time"

	"github.com/pkgswarm/pkgswarm/registry/artifact"
	"github.com/zeebo/blake3"
)

// keeper returns the member that keeps the lease of d: the one with the highest
// keyed hash. Every member computes the same from the same members; one that
// leaves changes only the leases it kept.
func keeper(secret [32]byte, d artifact.Digest, members []PeerKey) PeerKey {
	var best PeerKey
	var high []byte
	for _, m := range members {
		h, err := blake3.NewKeyed(secret[:])
		if err != nil {
			panic("exchange: a fleet's secret has 32 bytes: " + err.Error())
		}
		h.Write(appendDigest(nil, d))
		h.Write(m[:])
		if sum := h.Sum(nil); high == nil || bytes.Compare(sum, high) > 0 {
			best, high = m, sum
		}
	}
	return best
}

// leases are what a member keeps. The zero value is empty. The caller locks.
type leases struct {
	held map[artifact.Digest]lease
}

type lease struct {
	holder PeerKey
	since  time.Time
	stored bool // the holder has fetched the file
}

// request returns who holds the lease of d, which is from if nobody does.
func (l *leases) request(d artifact.Digest, from PeerKey, now time.Time) PeerKey {
	if have, ok := l.held[d]; ok && !have.expired(now) && have.holder != from {
		return have.holder
	}
	if l.held == nil {
		l.held = make(map[artifact.Digest]lease)
	}
	if len(l.held) >= maxLeases {
		l.expire(now)
	}
	if len(l.held) < maxLeases { // else the lease is not remembered: more fetches, no more memory
		l.held[d] = lease{holder: from, since: now}
	}
	return from
}

func (l lease) expired(now time.Time) bool {
	limit := leasePatience
	if l.stored {
		limit = leaseMemory
	}
	return now.Sub(l.since) > limit
}

func (l *leases) expire(now time.Time) {
	for d, have := range l.held {
		if have.expired(now) {
			delete(l.held, d)
		}
	}
}

// release ends from's lease of d. That a file was stored is remembered for a
// while, for those whose request crosses the release.
func (l *leases) release(d artifact.Digest, from PeerKey, stored bool, now time.Time) {
	have, ok := l.held[d]
	if !ok || have.holder != from {
		return
	}
	if stored {
		l.held[d] = lease{from, now, true}
	} else {
		delete(l.held, d)
	}
}

// left ends all leases of a member that is gone.
func (l *leases) left(m PeerKey) {
	for d, have := range l.held {
		if have.holder == m {
			delete(l.held, d)
		}
	}
}
