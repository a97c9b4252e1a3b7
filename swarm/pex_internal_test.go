package swarm

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"

	"github.com/pkgswarm/pkgswarm/swarm/protomux"
)

// SEC-8: no message panics, errors are the peer's fault, and what is read is
// written back the same.
func FuzzPEX(f *testing.F) {
	f.Add(appendPEX(nil, []netip.AddrPort{netip.MustParseAddrPort("1.2.3.4:5"), netip.MustParseAddrPort("[2001:db8::1]:65535")}))
	f.Add([]byte{0})
	f.Add([]byte{1, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 1, 2, 3, 4, 9})
	f.Fuzz(func(t *testing.T, b []byte) {
		addrs, err := decodePEX(b)
		if err != nil {
			if !errors.Is(err, protomux.ErrProtocol) && !errors.Is(err, protomux.ErrLimit) {
				t.Fatalf("%x: %v", b, err)
			}
			return
		}
		again, err := decodePEX(appendPEX(nil, addrs))
		if err != nil || !bytes.Equal(appendPEX(nil, again), appendPEX(nil, addrs)) {
			t.Fatalf("%v: %v, %v", addrs, again, err)
		}
	})
}
