package importer

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/internal/compact"
	"github.com/pkgswarm/pkgswarm/internal/durable"
)

// stamps remembers what a source last showed of each package, in a file that
// grows by one batch with every flush of the catalog:
//
//	header: string "pkgswarm/stamps", uint 1, fixed32 registry key, string source
//	batch:  buffer body, uint32 CRC-32 of the body
//	body:   uint catalog length, then {string package, string stamp} to its end
//
// A batch counts only when the catalog has at least that length: stamps never
// claim more than was signed. They only save work, so nothing here is synced,
// and what cannot be read is forgotten.
type stamps struct {
	path   string
	header []byte
	dirty  []byte // body of the next batch, without the length
	inFile int    // records in the file
	file   *os.File

	mu    sync.RWMutex // guards what follows: workers read it
	known map[string]Stamp
}

// openStamps reads the stamps of a source. Those of a complete catalog of
// another key, or a damaged tail, are dropped.
func openStamps(dir string, src Source, key core.Key, catalogLength uint64) (*stamps, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	h := compact.AppendString(nil, "pkgswarm/stamps")
	h = compact.AppendUint(h, 1)
	h = append(h, key[:]...)
	h = compact.AppendString(h, string(src.Ecosystem())+" "+src.ID())
	s := &stamps{path: filepath.Join(dir, sourceFile(src)+".stamps"), header: h, known: make(map[string]Stamp)}
	b, err := os.ReadFile(s.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	good := s.read(b, catalogLength)
	if good < len(b) || good == 0 {
		return s, s.rewrite(catalogLength)
	}
	s.file, err = os.OpenFile(s.path, os.O_WRONLY|os.O_APPEND, 0)
	return s, err
}

// sourceFile names the files about a source in the importer's directory.
func sourceFile(src Source) string {
	sum := sha256.Sum256([]byte(string(src.Ecosystem()) + " " + src.ID()))
	return hex.EncodeToString(sum[:8])
}

// read takes in the batches of b and returns how many of its bytes are good.
func (s *stamps) read(b []byte, catalogLength uint64) (good int) {
	rest, ok := bytes.CutPrefix(b, s.header)
	if !ok {
		return 0
	}
	d := compact.NewDecoder(rest)
	for d.Len() > 0 {
		body := d.Bytes()
		sum := d.Uint32()
		if d.Err() != nil || crc32.ChecksumIEEE(body) != sum || !s.readBatch(body, catalogLength) {
			break
		}
		good = len(b) - d.Len()
	}
	return max(good, len(s.header))
}

func (s *stamps) readBatch(body []byte, catalogLength uint64) bool {
	d := compact.NewDecoder(body)
	if d.Uint() > catalogLength {
		return false
	}
	for d.Len() > 0 {
		name, stamp := d.String(), d.String()
		if d.Err() != nil {
			return false
		}
		s.put(name, Stamp(stamp))
		s.inFile++
	}
	return true
}

func (s *stamps) put(name string, st Stamp) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st == "" {
		delete(s.known, name)
		return
	}
	s.known[name] = st
}

func (s *stamps) get(name string) Stamp {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.known[name]
}

// set changes a stamp; an empty one is forgotten.
func (s *stamps) set(name string, st Stamp) {
	if s.get(name) == st {
		return
	}
	s.put(name, st)
	s.dirty = compact.AppendString(s.dirty, name)
	s.dirty = compact.AppendString(s.dirty, string(st))
	s.inFile++
}

// save writes what was set since, which belongs to a catalog of that length.
func (s *stamps) save(catalogLength uint64) error {
	if len(s.dirty) == 0 {
		return nil
	}
	if s.inFile > 2*len(s.known)+1000 {
		return s.rewrite(catalogLength)
	}
	b := appendBatch(nil, catalogLength, s.dirty)
	s.dirty = s.dirty[:0]
	if _, err := s.file.Write(b); err != nil {
		return fmt.Errorf("stamps: %w", err)
	}
	return nil
}

func appendBatch(b []byte, catalogLength uint64, records []byte) []byte {
	body := append(compact.AppendUint(nil, catalogLength), records...)
	b = compact.AppendBytes(b, body)
	sum := crc32.ChecksumIEEE(body)
	return append(b, byte(sum), byte(sum>>8), byte(sum>>16), byte(sum>>24))
}

// rewrite replaces the file by one that holds each stamp once.
func (s *stamps) rewrite(catalogLength uint64) error {
	var records []byte
	for name, st := range s.known {
		records = compact.AppendString(records, name)
		records = compact.AppendString(records, string(st))
	}
	b := bytes.Clone(s.header)
	if len(records) > 0 {
		b = appendBatch(b, catalogLength, records)
	}
	s.dirty, s.inFile = s.dirty[:0], len(s.known)
	s.close()
	if err := durable.WriteFile(s.path, b, 0o600); err != nil {
		return fmt.Errorf("stamps: %w", err)
	}
	f, err := os.OpenFile(s.path, os.O_WRONLY|os.O_APPEND, 0)
	s.file = f
	return err
}

func (s *stamps) close() {
	if s.file != nil {
		s.file.Close()
		s.file = nil
	}
}

// beginRecord returns the time of the run over src: that of one which did not
// end, else now, recorded so that a run that is killed goes on with it.
func (im *Importer) beginRecord(src Source) (time.Time, error) {
	if err := os.MkdirAll(im.c.Dir, 0o700); err != nil {
		return time.Time{}, err
	}
	path := im.runRecord(src)
	b, err := os.ReadFile(path)
	if err == nil {
		if at, err := time.Parse(time.RFC3339, string(bytes.TrimSpace(b))); err == nil {
			return at, nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return time.Time{}, err
	}
	at := im.c.Now().UTC().Truncate(time.Second)
	return at, durable.WriteFile(path, []byte(at.Format(time.RFC3339)+"\n"), 0o600)
}

// endRecord forgets the run over src: all of it is signed.
func (im *Importer) endRecord(src Source) error { return durable.Remove(im.runRecord(src)) }

func (im *Importer) runRecord(src Source) string {
	return filepath.Join(im.c.Dir, sourceFile(src)+".run")
}
