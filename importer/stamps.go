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
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/internal/compact"
	"github.com/pkgswarm/pkgswarm/internal/durable"
)

// stamps remembers what a source last showed of each package that it listed, in
// a file that grows by one batch with every flush of the catalog:
//
//	header: string "pkgswarm/stamps", uint 2, fixed32 registry key, string source
//	batch:  buffer body, uint32 CRC-32 of the body
//	body:   uint catalog length, then {string package, string stamp} to its end
//
// A stamp is empty if the package is to be looked at again. The stamp of the
// empty name is, in decimal, the catalog's length when a run over a complete
// source last ended: each package that the catalog had then was listed in it,
// or was removed.
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
	whole  uint64 // the stamp of the empty name, 0 if there is none
	gone   bool   // the file has packages that are known no more

	mu    sync.Mutex // guards what follows: the list is read while stamps are set
	known *stampTable
}

// openStamps reads the stamps of a source. Those of a catalog of another key, or
// a damaged tail, are dropped.
func openStamps(dir string, src Source, key core.Key, catalogLength uint64) (*stamps, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	h := compact.AppendString(nil, "pkgswarm/stamps")
	h = compact.AppendUint(h, 2)
	h = append(h, key[:]...)
	h = compact.AppendString(h, string(src.Ecosystem())+" "+src.ID())
	s := &stamps{path: filepath.Join(dir, sourceFile(src)+".stamps"), header: h, known: newStampTable()}
	b, err := os.ReadFile(s.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	s.known.reserve(len(b) / recordBytes)
	good := s.read(b, catalogLength)
	if good < len(b) || good == 0 {
		return s, s.rewrite(catalogLength)
	}
	s.file, err = os.OpenFile(s.path, os.O_WRONLY|os.O_APPEND, 0)
	return s, err
}

// recordBytes is about the size of a record, by which their number is guessed.
const recordBytes = 45

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
	text := string(body) // of which names and stamps are parts: one allocation
	next := func() string {
		n := len(d.Bytes())
		end := len(text) - d.Len()
		return text[end-n : end]
	}
	for d.Len() > 0 {
		name, stamp := next(), next()
		if d.Err() != nil {
			return false
		}
		if s.inFile++; name == "" {
			s.whole, _ = strconv.ParseUint(stamp, 10, 64)
		} else {
			s.known.put(name, stamp)
		}
	}
	return true
}

// list notes that a package was listed, and returns its stamp and whether that is
// still so now.
func (s *stamps) list(name string, now Stamp) (last Stamp, same bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.known.get(name)
	if r == nil {
		return "", now == ""
	}
	r.listed = true
	st := s.known.stamp(r)
	if string(st) == string(now) {
		return now, true
	}
	return Stamp(st), false
}

// wasListed reports whether this run has listed a package. It counts once the
// package's stamp was set.
func (s *stamps) wasListed(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.known.get(name)
	return r != nil && r.listed
}

// unlisted returns the packages known that this run has not listed, sorted.
func (s *stamps) unlisted() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for i := range s.known.records {
		if r := &s.known.records[i]; !r.gone && !r.listed {
			names = append(names, string(s.known.name(r)))
		}
	}
	slices.Sort(names)
	return names
}

// forget removes a package that is gone.
func (s *stamps) forget(name string) {
	s.mu.Lock()
	s.known.remove(name)
	s.gone = true
	s.mu.Unlock()
}

// set changes the stamp of a package that was listed.
func (s *stamps) set(name string, st Stamp) {
	s.mu.Lock()
	old := s.known.get(name)
	same := old != nil && string(s.known.stamp(old)) == string(st)
	s.known.put(name, string(st)).listed = true
	s.mu.Unlock()
	if !same {
		s.record(name, string(st))
	}
}

// setWhole notes that each package of the catalog, which has that length, was
// listed or removed.
func (s *stamps) setWhole(catalogLength uint64) {
	if s.whole != catalogLength {
		s.whole = catalogLength
		s.record("", strconv.FormatUint(catalogLength, 10))
	}
}

func (s *stamps) record(name, stamp string) {
	s.dirty = compact.AppendString(s.dirty, name)
	s.dirty = compact.AppendString(s.dirty, stamp)
	s.inFile++
}

// save writes what was set since, which belongs to a catalog of that length.
func (s *stamps) save(catalogLength uint64) error {
	if len(s.dirty) == 0 {
		return nil
	}
	if s.gone || s.inFile > 2*s.known.live+1000 {
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
	for i := range s.known.records {
		if r := &s.known.records[i]; !r.gone {
			records = compact.AppendBytes(records, s.known.name(r))
			records = compact.AppendBytes(records, s.known.stamp(r))
		}
	}
	if s.whole != 0 {
		records = compact.AppendString(records, "")
		records = compact.AppendString(records, strconv.FormatUint(s.whole, 10))
	}
	b := bytes.Clone(s.header)
	if len(records) > 0 {
		b = appendBatch(b, catalogLength, records)
	}
	s.dirty, s.inFile, s.gone = s.dirty[:0], s.known.live, false
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
