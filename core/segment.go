package core

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// segmentSize is the size from which on a new segment file is begun, in bytes.
const segmentSize = 128 << 20

// segments are the files that hold the data of large appends, blocks of all
// cores one after another with nothing between them. Files are only appended
// to, and removed when nothing in them is used any more.
type segments struct {
	fs  vfs.FS
	dir string

	mu      sync.Mutex
	files   map[uint32]vfs.File
	current uint32 // segment being written, 0 if none yet
	end     uint64 // its size
	dirty   map[uint32]bool
	pages   map[pageKey]bool // pages whose data is in dirty segments
	live    map[uint32]int64 // used bytes of each segment
	found   []uint32         // files that were there at the start

	syncMu sync.Mutex // held while dirty segments are synced
}

type pageKey struct {
	core   uint32
	number uint64
}

func openSegments(fsys vfs.FS, dir string) (*segments, error) {
	s := &segments{
		fs: fsys, dir: dir,
		files: map[uint32]vfs.File{}, dirty: map[uint32]bool{}, pages: map[pageKey]bool{}, live: map[uint32]int64{},
	}
	names, err := fsys.List(dir)
	if err != nil {
		return nil, fmt.Errorf("list segments: %w", err)
	}
	for _, name := range names {
		if n, err := strconv.ParseUint(name, 10, 32); err == nil && n > 0 {
			s.current = max(s.current, uint32(n))
			s.found = append(s.found, uint32(n))
		}
	}
	if s.current > 0 {
		info, err := fsys.Stat(s.path(s.current))
		if err != nil {
			return nil, fmt.Errorf("open segment %d: %w", s.current, err)
		}
		s.end = uint64(info.Size())
	}
	return s, nil
}

func (s *segments) path(n uint32) string {
	return s.fs.PathJoin(s.dir, fmt.Sprintf("%08d", n))
}

// file returns the open file of a segment. s.mu is held.
func (s *segments) file(n uint32) (vfs.File, error) {
	if f := s.files[n]; f != nil {
		return f, nil
	}
	f, err := s.fs.OpenReadWrite(s.path(n), vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, err
	}
	s.files[n] = f
	return f, nil
}

// append writes blocks one after another and returns where the first one is.
// The data is durable only after sync.
func (s *segments) append(blocks [][]byte) (segment uint32, offset uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == 0 || s.end >= segmentSize {
		if err := s.begin(); err != nil {
			return 0, 0, fmt.Errorf("begin segment: %w", err)
		}
	}
	f, err := s.file(s.current)
	if err != nil {
		return 0, 0, fmt.Errorf("open segment %d: %w", s.current, err)
	}
	s.dirty[s.current] = true
	segment, offset = s.current, s.end
	for _, part := range join(blocks) {
		if _, err := f.WriteAt(part, int64(s.end)); err != nil {
			// What was written is not referred to and is written over.
			s.end = offset
			return 0, 0, fmt.Errorf("write segment %d: %w", segment, err)
		}
		s.end += uint64(len(part))
	}
	return segment, offset, nil
}

// join puts small blocks together, so that each write is worth its call.
func join(blocks [][]byte) [][]byte {
	const large = 16 << 10
	var out [][]byte
	var small []byte
	for _, b := range blocks {
		if len(b) < large {
			small = append(small, b...)
			continue
		}
		if len(small) > 0 {
			out, small = append(out, small), nil
		}
		out = append(out, b)
	}
	if len(small) > 0 {
		out = append(out, small)
	}
	return out
}

// begin starts a new segment. s.mu is held.
func (s *segments) begin() error {
	n := s.current + 1
	f, err := s.fs.Create(s.path(n), vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := syncDir(s.fs, s.dir); err != nil {
		return err
	}
	s.current, s.end = n, 0
	return nil
}

// makeDir makes a directory and those above it, so that they survive a crash.
func makeDir(fsys vfs.FS, dir string) error {
	if _, err := fsys.Stat(dir); err == nil {
		return nil
	}
	parent := fsys.PathDir(dir)
	if parent != dir {
		if err := makeDir(fsys, parent); err != nil {
			return err
		}
	}
	if err := fsys.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return syncDir(fsys, parent)
}

func syncDir(fsys vfs.FS, dir string) error {
	d, err := fsys.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// read fills b from a segment.
func (s *segments) read(segment uint32, offset uint64, b []byte) error {
	s.mu.Lock()
	f, err := s.file(segment)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	_, err = f.ReadAt(b, int64(offset))
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// noteUnsynced remembers that the data of a page is in dirty segments.
func (s *segments) noteUnsynced(k pageKey) {
	s.mu.Lock()
	s.pages[k] = true
	s.mu.Unlock()
}

// noteDirty makes the next sync include a segment.
func (s *segments) noteDirty(segment uint32) {
	s.mu.Lock()
	s.dirty[segment] = true
	s.mu.Unlock()
}

// sync makes all data written before the call durable and returns the pages
// that were noted before it.
func (s *segments) sync() ([]pageKey, error) {
	s.syncMu.Lock() // waits for a sync that may cover our data
	defer s.syncMu.Unlock()
	s.mu.Lock()
	var files []vfs.File
	var numbers []uint32
	for n := range s.dirty {
		f, err := s.file(n)
		if err != nil {
			s.mu.Unlock()
			return nil, fmt.Errorf("sync segment %d: %w", n, err)
		}
		files, numbers = append(files, f), append(numbers, n)
	}
	var pages []pageKey
	for k := range s.pages {
		pages = append(pages, k)
	}
	clear(s.dirty)
	clear(s.pages)
	s.mu.Unlock()
	for i, f := range files {
		if err := f.SyncData(); err != nil {
			s.mu.Lock()
			for _, n := range numbers {
				s.dirty[n] = true
			}
			for _, k := range pages {
				s.pages[k] = true
			}
			s.mu.Unlock()
			return nil, fmt.Errorf("sync segment %d: %w", numbers[i], err)
		}
	}
	return pages, nil
}

// addLive notes that n bytes more of a segment are used, or less if negative.
// It returns whether the segment can be removed.
func (s *segments) addLive(segment uint32, n int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live[segment] += n
	return s.live[segment] == 0 && segment != s.current
}

// remove deletes a segment that nothing refers to.
func (s *segments) remove(segment uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.files[segment]; f != nil {
		f.Close()
		delete(s.files, segment)
	}
	delete(s.live, segment)
	delete(s.dirty, segment)
	if err := s.fs.Remove(s.path(segment)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove segment %d: %w", segment, err)
	}
	return nil
}

// removeUnknown deletes the files that were there at the start and of which the
// database knows nothing.
func (s *segments) removeUnknown() error {
	for _, n := range s.found {
		s.mu.Lock()
		_, known := s.live[n]
		s.mu.Unlock()
		if known || n == s.current {
			continue
		}
		if err := s.remove(n); err != nil {
			return err
		}
	}
	s.found = nil
	return nil
}

func (s *segments) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for n, f := range s.files {
		errs = append(errs, f.Close())
		delete(s.files, n)
	}
	return errors.Join(errs...)
}
