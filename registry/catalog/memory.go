package catalog

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/internal/compact"
	"github.com/pkgswarm/pkgswarm/internal/durable"
)

// A Memory keeps what must never be forgotten about catalogs in a directory
// that no cache restore replaces: for each the newest head accepted, evidence
// against it, and which catalog it was followed to. SEC-6
//
//	KEY.head      the newest head
//	KEY.older     a head that is shorter: of the same history, or of another
//	KEY.evidence  an encoded [core.Evidence]; such a catalog is not used again
//	KEY.next      the successor that was accepted
//
// KEY is the registry key in z-base-32. A head file is
//
//	string "pkgswarm/head", uint 1, uint time seen, fixed32 key,
//	buffer manifest, buffer message, fixed32 SHA-256 of all before
//
// where the message is that of the replication protocol which proves the head.
//
// Writes are durable when the methods return. The methods may be called
// concurrently for different keys.
type Memory struct{ dir string }

// A Memorized is the newest head that was accepted of a catalog.
type Memorized struct {
	SignedHead
	Seen time.Time // when, by our clock
}

// ErrMemory is matched by errors about remembered heads that cannot be read:
// without them, rollback cannot be told from news.
var ErrMemory = errors.New("remembered catalog head is damaged")

// OpenMemory opens the directory, making it if need be.
func OpenMemory(dir string) (*Memory, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return &Memory{dir}, nil
}

func (m *Memory) path(key core.Key, ext string) string {
	return filepath.Join(m.dir, key.String()+ext)
}

const headMagic = "pkgswarm/head"

// Head returns the newest head of a catalog, nil if there is none.
func (m *Memory) Head(key core.Key) (*Memorized, error) { return m.load(key, ".head") }

// Older returns a head that was refused because a longer one was known, and could
// not be told to belong to the same history then; nil if there is none.
func (m *Memory) Older(key core.Key) (*Memorized, error) { return m.load(key, ".older") }

func (m *Memory) load(key core.Key, ext string) (*Memorized, error) {
	path := m.path(key, ext)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	h, err := decodeMemorized(b)
	if err == nil && h.Key != key {
		err = errors.New("it is of another catalog")
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrMemory, path, err)
	}
	return h, nil
}

// SetOlder remembers h as a head to be compared with a longer history.
func (m *Memory) SetOlder(h *Memorized) error {
	return durable.WriteFile(m.path(h.Key, ".older"), h.encode(), 0o600)
}

// ForgetOlder forgets it: it belongs to the history that is known.
func (m *Memory) ForgetOlder(key core.Key) error { return durable.Remove(m.path(key, ".older")) }

// SetHead remembers h.
func (m *Memory) SetHead(h *Memorized) error {
	return durable.WriteFile(m.path(h.Key, ".head"), h.encode(), 0o600)
}

func (h *Memorized) encode() []byte {
	b := compact.AppendString(nil, headMagic)
	b = compact.AppendUint(b, 1)
	b = compact.AppendUint(b, unix(h.Seen))
	b = append(b, h.Key[:]...)
	b = compact.AppendBytes(b, h.Manifest)
	b = compact.AppendBytes(b, h.Message)
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

func decodeMemorized(b []byte) (*Memorized, error) {
	if len(b) < sha256.Size {
		return nil, errors.New("too short")
	}
	body, sum := b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	if sha256.Sum256(body) != [32]byte(sum) {
		return nil, errors.New("checksum does not match")
	}
	d := compact.NewDecoder(body)
	if magic, v := d.String(), d.Uint(); magic != headMagic || v != 1 {
		return nil, fmt.Errorf("%q of version %d", magic, v)
	}
	h := &Memorized{Seen: fromUnix(d.Uint())}
	h.Key = d.Fixed32()
	h.Manifest, h.Message = d.Bytes(), d.Bytes()
	if d.Err() != nil || d.Len() > 0 {
		return nil, errors.Join(errors.New("malformed"), d.Err())
	}
	return h, h.verify()
}

// Evidence returns the evidence against a catalog, nil if there is none.
func (m *Memory) Evidence(key core.Key) (*core.Evidence, error) {
	b, err := os.ReadFile(m.path(key, ".evidence"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return core.DecodeEvidence(b)
}

// SetEvidence keeps e, which must verify. The first evidence stays.
func (m *Memory) SetEvidence(e *core.Evidence) error {
	path := m.path(e.Key, ".evidence")
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	return durable.WriteFile(path, e.Encode(), 0o600)
}

// EvidencePath returns where the evidence against a catalog is kept.
func (m *Memory) EvidencePath(key core.Key) string { return m.path(key, ".evidence") }

// Next returns the successor of a catalog that was accepted; ok is false if
// there is none.
func (m *Memory) Next(key core.Key) (next core.Key, ok bool, err error) {
	b, err := os.ReadFile(m.path(key, ".next"))
	if errors.Is(err, fs.ErrNotExist) {
		return next, false, nil
	}
	if err != nil {
		return next, false, err
	}
	next, err = core.ParseKey(string(b))
	if err != nil {
		return next, false, fmt.Errorf("%w: %s: %w", ErrMemory, m.path(key, ".next"), err)
	}
	return next, true, nil
}

// SetNext remembers that key was followed to next.
func (m *Memory) SetNext(key, next core.Key) error {
	return durable.WriteFile(m.path(key, ".next"), []byte(next.String()), 0o600)
}
