package pkglog

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/pkgswarm/pkgswarm/internal/compact"
)

// An Ecosystem is the kind of registry that a package belongs to.
type Ecosystem string

// The ecosystems of format 1.
const (
	Cargo Ecosystem = "cargo"
	Go    Ecosystem = "go"
)

// Format is the version of the block formats that this package writes.
const Format = 1

const magic = "pkgswarm/package-log"

// Limits on what a block may hold.
const (
	MaxEvent   = 16 << 20      // bytes of a payload, expanded
	MaxFolded  = 64 << 20      // bytes of all payloads of a folded log
	MaxLog     = 2 * MaxFolded // bytes of all blocks of a log; a larger one is not fetched
	MaxPackage = 1 << 10       // bytes of a package's name
	MaxVersion = 1 << 10       // bytes of a version
)

var (
	// ErrMalformed means that a block breaks the format: whoever signed it is at
	// fault.
	ErrMalformed = errors.New("malformed package log")
	// ErrTooLarge means that a payload is larger than MaxEvent.
	ErrTooLarge = errors.New("package log event too large")
	// ErrFormat means that a log has a format that is newer than this program.
	ErrFormat = errors.New("unknown package log format")
)

// A Header is block 0: which package the log is about.
type Header struct {
	Ecosystem Ecosystem
	Package   string // crate name in lower case, or module path, not escaped
}

// Name returns the name of the package's key in a catalog, but for the escaping
// of module paths: ecosystem, slash, package.
func (h Header) Name() string { return string(h.Ecosystem) + "/" + h.Package }

// Encode returns block 0.
func (h Header) Encode() []byte {
	b := compact.AppendString(nil, magic)
	b = compact.AppendUint(b, Format)
	b = compact.AppendString(b, string(h.Ecosystem))
	return compact.AppendString(b, h.Package)
}

// DecodeHeader reads block 0.
func DecodeHeader(block []byte) (Header, error) {
	d := compact.NewDecoder(block)
	m, format := d.String(), d.Uint()
	if d.Err() != nil || m != magic {
		return Header{}, fmt.Errorf("%w: block 0 is no header", ErrMalformed)
	}
	if format != Format {
		return Header{}, fmt.Errorf("%w: %d", ErrFormat, format)
	}
	h := Header{Ecosystem(d.String()), d.String()}
	switch {
	case d.Err() != nil:
		return Header{}, fmt.Errorf("%w: header: %w", ErrMalformed, d.Err())
	case h.Ecosystem != Cargo && h.Ecosystem != Go:
		return Header{}, fmt.Errorf("%w: ecosystem %q", ErrMalformed, h.Ecosystem)
	case h.Package == "" || len(h.Package) > MaxPackage:
		return Header{}, fmt.Errorf("%w: package name of %d bytes", ErrMalformed, len(h.Package))
	case string(h.Encode()) != string(block):
		return Header{}, fmt.Errorf("%w: header not canonical", ErrMalformed)
	}
	return h, nil
}

// A Kind says what an event reports.
type Kind uint8

// The kinds of events.
const (
	Published Kind = 1 + iota
	Changed
	HasArtifact
	Removed
	Reordered
)

func (k Kind) String() string {
	switch k {
	case Published:
		return "published"
	case Changed:
		return "changed"
	case HasArtifact:
		return "artifact"
	case Removed:
		return "removed"
	case Reordered:
		return "reordered"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// An Event is what one block says. Which fields count depends on Kind and on the
// log's ecosystem.
type Event struct {
	Kind Kind

	// Position is the line that a cargo event is about: where it now stands
	// (published) or stood (changed, removed).
	Position int
	// Line is the index line of a cargo event, without newline. Of a removed
	// event, which does not hold it, folding fills it in; likewise Replaced, the
	// line before a change.
	Line, Replaced []byte
	// NoNewline: the index file ends without newline from now on (published,
	// changed).
	NoNewline bool

	// Module is the version of a go event (published, changed).
	Module *ModuleVersion

	// Version is that of an artifact or a removed module version.
	Version string
	// Artifact is where the bytes of Version are.
	Artifact Artifact

	// All: the whole package was removed.
	All bool
	// Order is how lines were reordered.
	Order []Run
}

// An Artifact names the file of one version.
type Artifact struct {
	Key        [32]byte // of the static core that holds the file
	ByteLength uint64
	Digest     [32]byte // SHA-256 of a .crate, h1 hash of a module's zip
}

// A Run is count lines from First on that stay together in a reordering.
type Run struct{ First, Count int }

// A ModuleVersion is one version of a Go module.
type ModuleVersion struct {
	Version string   // canonical, such as v1.2.3
	Time    int64    // of the version, in seconds since 1970
	ModHash [32]byte // h1 of Mod, as the checksum database has it
	ZipHash [32]byte // h1 of the zip
	Info    []byte   // the .info file, verbatim
	Mod     []byte   // the .mod file, verbatim
}

func (v *ModuleVersion) append(b []byte) []byte {
	b = compact.AppendString(b, v.Version)
	b = compact.AppendInt(b, v.Time)
	b = append(b, v.ModHash[:]...)
	b = append(b, v.ZipHash[:]...)
	b = compact.AppendBytes(b, v.Info)
	return compact.AppendBytes(b, v.Mod)
}

func decodeModuleVersion(b []byte) (*ModuleVersion, error) {
	d := compact.NewDecoder(b)
	v := &ModuleVersion{Version: d.String(), Time: d.Int(), ModHash: d.Fixed32(), ZipHash: d.Fixed32(), Info: d.Bytes(), Mod: d.Bytes()}
	if err := d.Err(); err != nil {
		return nil, fmt.Errorf("%w: module version: %w", ErrMalformed, err)
	}
	if !validVersion(v.Version) || string(v.append(nil)) != string(b) {
		return nil, fmt.Errorf("%w: module version not canonical", ErrMalformed)
	}
	return v, nil
}

func validVersion(v string) bool { return v != "" && len(v) <= MaxVersion }

// Flags of records.
const (
	flagPosition  = 1 // published
	flagNoNewline = 2 // published, changed
	flagAll       = 1 // removed
)

// A record is the outer form of an event: its payload is not expanded yet,
// which needs the log before it.
type record struct {
	kind     Kind
	flags    uint64
	position uint64
	version  string
	artifact Artifact
	runs     []Run
	payload  []byte // form and bytes
}

func (r *record) append(b []byte, e Ecosystem) []byte {
	b = compact.AppendUint(b, uint64(r.kind))
	switch r.kind {
	case Published, Changed:
		if e == Cargo {
			b = compact.AppendUint(b, r.flags)
			if r.kind == Changed || r.flags&flagPosition != 0 {
				b = compact.AppendUint(b, r.position)
			}
		}
		b = append(b, r.payload...)
	case HasArtifact:
		b = compact.AppendString(b, r.version)
		b = append(b, r.artifact.Key[:]...)
		b = compact.AppendUint(b, r.artifact.ByteLength)
		b = append(b, r.artifact.Digest[:]...)
	case Removed:
		b = compact.AppendUint(b, r.flags)
		switch {
		case r.flags&flagAll != 0:
		case e == Cargo:
			b = compact.AppendUint(b, r.position)
		default:
			b = compact.AppendString(b, r.version)
		}
	case Reordered:
		b = compact.AppendUint(b, uint64(len(r.runs)))
		for _, run := range r.runs {
			b = compact.AppendUint(b, uint64(run.First))
			b = compact.AppendUint(b, uint64(run.Count))
		}
	}
	return b
}

// decodeRecord reads the outer form of block. Slices of the result alias it.
func decodeRecord(block []byte, e Ecosystem) (*record, error) {
	d := compact.NewDecoder(block)
	r := &record{kind: Kind(min(d.Uint(), math.MaxUint8))}
	var known uint64 // flags
	switch r.kind {
	case Published, Changed:
		if e == Cargo {
			r.flags, known = d.Uint(), flagNoNewline
			if r.kind == Published {
				known |= flagPosition
			}
			if r.kind == Changed || r.flags&flagPosition != 0 {
				r.position = d.Uint()
			}
		}
		r.payload = d.Rest()
		if len(r.payload) == 0 {
			d.Fail(errors.New("no payload"))
		}
	case HasArtifact:
		r.version = d.String()
		r.artifact = Artifact{d.Fixed32(), d.Uint(), d.Fixed32()}
	case Removed:
		r.flags, known = d.Uint(), flagAll
		switch {
		case r.flags&flagAll != 0:
		case e == Cargo:
			r.position = d.Uint()
		default:
			r.version = d.String()
		}
	case Reordered:
		r.runs = decodeRuns(d)
	default:
		d.Fail(fmt.Errorf("event of %v", r.kind))
	}
	switch {
	case d.Err() != nil:
		return nil, fmt.Errorf("%w: %w", ErrMalformed, d.Err())
	case r.flags&^known != 0 || r.kind == Reordered && e != Cargo:
		return nil, fmt.Errorf("%w: %v event with flags %d", ErrMalformed, r.kind, r.flags)
	case string(r.append(nil, e)) != string(block):
		return nil, fmt.Errorf("%w: %v event not canonical", ErrMalformed, r.kind)
	}
	return r, nil
}

func decodeRuns(d *compact.Decoder) []Run {
	runs := make([]Run, d.Count(2))
	for i := range runs {
		first, count := d.Uint(), d.Uint()
		if first > math.MaxInt32 || count > math.MaxInt32 {
			d.Fail(compact.ErrRange)
			return nil
		}
		runs[i] = Run{int(first), int(count)}
	}
	return runs
}

// permute returns lines in the order of runs, which must name each line once
// and be as few as possible.
func permute(lines [][]byte, runs []Run) ([][]byte, bool) {
	out := make([][]byte, 0, len(lines))
	used := make([]bool, len(lines))
	end := -1 // of the previous run
	for _, r := range runs {
		if r.Count <= 0 || r.First < 0 || r.First > len(lines)-r.Count || r.First == end {
			return nil, false
		}
		if slices.Contains(used[r.First:r.First+r.Count], true) {
			return nil, false
		}
		for i := r.First; i < r.First+r.Count; i++ {
			used[i] = true
			out = append(out, lines[i])
		}
		end = r.First + r.Count
	}
	return out, len(out) == len(lines) && len(runs) > 1
}
