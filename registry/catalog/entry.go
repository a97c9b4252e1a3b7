package catalog

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/mod/module"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/core/merkle"
	"github.com/pkgswarm/pkgswarm/internal/compact"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
)

// Keys of a catalog that are not packages.
const (
	headKey        = "!head"
	successorKey   = "!successor"
	predecessorKey = "!predecessor"
)

const valueVersion = 1

// MaxLength is the length in blocks above which a catalog or package log is
// absurd: a thousand changes a second for a century are below it. SEC-15
const MaxLength = 1 << 42

// ErrMalformed is matched by errors about values that break the format: the
// operator is at fault.
var ErrMalformed = errors.New("malformed catalog")

// An Entry is what a catalog says about one package.
type Entry struct {
	Log      core.Key    // key of the package log
	Length   uint64      // blocks of it that count, at least 1
	TreeHash merkle.Hash // of the log at that length
	Time     time.Time   // when the operator recorded it; whole seconds
}

// A Head is a catalog's heartbeat.
type Head struct {
	Time  time.Time // whole seconds
	Cargo uint64    // packages in the catalog
	Go    uint64
}

// PackageKey returns the key of a package, which also names its log's key pair.
func PackageKey(h pkglog.Header) (string, error) {
	if h.Ecosystem != pkglog.Go {
		return h.Name(), nil
	}
	esc, err := module.EscapePath(h.Package)
	if err != nil {
		return "", err
	}
	return string(pkglog.Go) + "/" + esc, nil
}

// ParsePackageKey is the inverse of PackageKey. ok is false for keys that are
// not of a package.
func ParsePackageKey(key string) (h pkglog.Header, ok bool) {
	eco, name, _ := strings.Cut(key, "/")
	if name == "" {
		return h, false
	}
	switch pkglog.Ecosystem(eco) {
	case pkglog.Cargo:
		return pkglog.Header{Ecosystem: pkglog.Cargo, Package: name}, name == strings.ToLower(name)
	case pkglog.Go:
		path, err := module.UnescapePath(name)
		return pkglog.Header{Ecosystem: pkglog.Go, Package: path}, err == nil
	}
	return h, false
}

// Encode returns the value of e in a catalog.
func (e Entry) Encode() []byte {
	b := make([]byte, 0, 80)
	b = compact.AppendUint(b, valueVersion)
	b = append(b, e.Log[:]...)
	b = compact.AppendUint(b, e.Length)
	b = append(b, e.TreeHash[:]...)
	return compact.AppendUint(b, unix(e.Time))
}

// DecodeEntry reads the value of a package's key.
func DecodeEntry(b []byte) (Entry, error) {
	d, err := decoder(b, "entry")
	if err != nil {
		return Entry{}, err
	}
	e := Entry{Log: d.Fixed32(), Length: d.Uint(), TreeHash: d.Fixed32(), Time: fromUnix(d.Uint())}
	if err := canonical(d, b, e.Encode, "entry"); err != nil {
		return Entry{}, err
	}
	if e.Length == 0 || e.Length > MaxLength {
		return Entry{}, fmt.Errorf("%w: entry with a log of %d blocks", ErrMalformed, e.Length)
	}
	return e, nil
}

// Same reports whether e and o name the same state of the same log.
func (e Entry) Same(o Entry) bool {
	return e.Log == o.Log && e.Length == o.Length && e.TreeHash == o.TreeHash
}

// Encode returns the value of h in a catalog.
func (h Head) Encode() []byte {
	b := compact.AppendUint(nil, valueVersion)
	b = compact.AppendUint(b, unix(h.Time))
	b = compact.AppendUint(b, h.Cargo)
	return compact.AppendUint(b, h.Go)
}

// DecodeHead reads the value of the heartbeat's key.
func DecodeHead(b []byte) (Head, error) {
	d, err := decoder(b, "heartbeat")
	if err != nil {
		return Head{}, err
	}
	h := Head{Time: fromUnix(d.Uint()), Cargo: d.Uint(), Go: d.Uint()}
	return h, canonical(d, b, h.Encode, "heartbeat")
}

// Packages returns how many packages of an ecosystem the catalog names.
func (h *Head) Packages(e pkglog.Ecosystem) uint64 {
	if e == pkglog.Cargo {
		return h.Cargo
	}
	return h.Go
}

func (h *Head) count(e pkglog.Ecosystem, n uint64) {
	if e == pkglog.Cargo {
		h.Cargo += n
	} else {
		h.Go += n
	}
}

// decoder starts reading a value by checking its version.
func decoder(b []byte, what string) (*compact.Decoder, error) {
	d := compact.NewDecoder(b)
	if v := d.Uint(); d.Err() != nil || v != valueVersion {
		return nil, fmt.Errorf("%w: %s of version %d", ErrMalformed, what, v)
	}
	return d, nil
}

// canonical checks that a value was read to its end and has only one form.
func canonical(d *compact.Decoder, b []byte, encode func() []byte, what string) error {
	if err := d.Err(); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrMalformed, what, err)
	}
	if string(encode()) != string(b) {
		return fmt.Errorf("%w: %s not canonical", ErrMalformed, what)
	}
	return nil
}

func unix(t time.Time) uint64 {
	return uint64(max(t.Unix(), 0))
}

func fromUnix(n uint64) time.Time { return time.Unix(int64(n), 0).UTC() }
