package swarm

import (
	"crypto/ed25519"
	"encoding/binary"
	"testing"
	"testing/synctest"
	"time"
)

// SEC-22: bans grow from a minute to a day and no further, and there are never more
// than 10 000.
func TestBanLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := New(Config{Key: ed25519.NewKeyFromSeed(make([]byte, 32))})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		k := PeerKey{1}
		want := time.Minute
		for range 15 {
			s.Ban(k, "test")
			b := s.bans[string(k[:])]
			if b.last != want || time.Until(b.until) != want {
				t.Errorf("ban for %v, until in %v; want %v", b.last, time.Until(b.until), want)
			}
			time.Sleep(want - time.Second)
			if !s.banned(string(k[:])) {
				t.Errorf("a ban of %v is over a second early", want)
			}
			time.Sleep(time.Second)
			if s.banned(string(k[:])) {
				t.Errorf("a ban of %v goes on", want)
			}
			want = min(2*want, 24*time.Hour)
		}
		for i := range uint32(maxBans + 1000) {
			var k PeerKey
			binary.LittleEndian.PutUint32(k[4:], i)
			if s.Ban(k, "test"); !s.banned(string(k[:])) {
				t.Fatalf("ban %d does not count", i)
			}
			if len(s.bans) > maxBans {
				t.Fatalf("%d bans are kept", len(s.bans))
			}
		}
	})
}
