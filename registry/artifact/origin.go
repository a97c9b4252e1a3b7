package artifact

import (
	"fmt"
	"time"

	"github.com/pkgswarm/pkgswarm/internal/compact"
)

// Ways by which a file comes into the store.
const (
	FromPeers    = "peers"
	FromUpstream = "upstream"
	FromImport   = "import" // by an operator's importer
	FromBundle   = "bundle"
)

const (
	maxOriginFrom  = 8   // names kept of those who delivered
	maxOriginBytes = 300 // of one name
)

// An Origin says where the bytes of a stored file came from. It proves nothing:
// the digest does.
type Origin struct {
	Source string    // one of the constants above; empty if it is not known
	From   []string  // keys of peers, the URL at the upstream, the name of a bundle
	Time   time.Time // when the file was stored, to the second
}

// append encodes o: source (string), time (uint, Unix seconds), count (uint) and
// as many names (strings).
func (o Origin) append(b []byte) []byte {
	b = compact.AppendString(b, o.Source)
	b = compact.AppendUint(b, seconds(o.Time))
	from := o.From[:min(len(o.From), maxOriginFrom)]
	b = compact.AppendUint(b, uint64(len(from)))
	for _, name := range from {
		b = compact.AppendString(b, name[:min(len(name), maxOriginBytes)])
	}
	return b
}

func decodeOrigin(d *compact.Decoder) Origin {
	o := Origin{Source: d.String(), Time: time.Unix(int64(d.Uint()), 0)}
	n := d.Uint()
	if n > maxOriginFrom {
		d.Fail(fmt.Errorf("%d names in an origin", n))
		return o
	}
	for range n {
		o.From = append(o.From, d.String())
	}
	return o
}
