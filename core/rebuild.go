package core

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/batchrepr"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/atomicfs"
	"github.com/cockroachdb/pebble/v2/wal"
)

// A database that cannot be opened is set aside, with the segments it refers to,
// in a directory damaged-N of the store, and a new one is made: REL-5. It gets
// what can still be read of the old one of the records of cores, names and user
// data. Trees and blocks are had again from elsewhere: those of static cores from
// their files, when they are opened, the others from peers. What was acknowledged
// of the cores that are signed here stands in the file "heads"; nothing is
// appended to them before it is here again. See [LossError].
//
// All this can be interrupted: the file "rebuild" names the directory until it is
// done.

// errMalformed means that the database has something that is not ours.
var errMalformed = errors.New("malformed entry")

// ErrKeyLost is matched by the error of a store with cores that are signed here whose
// primary key is lost: its file and the database were damaged. Open it with the key from a backup in
// [Options.PrimaryKey].
var ErrKeyLost = errors.New("core: the primary key of the store is lost; open it with the key from a backup")

// errOpen is matched by the errors of Pebble's Open that say that something is
// wrong with its files.
var errOpen = errors.New("database cannot be opened")

// isDamage reports whether the database is to be set aside because of err.
func isDamage(err error) bool {
	return pebble.IsCorruptionError(err) || errors.Is(err, errMalformed) || errors.Is(err, errOpen)
}

// isBroken reports whether err is about what was found in a file, or in its place,
// and not about the disk or the process.
func isBroken(err error) bool {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return slices.Contains([]syscall.Errno{syscall.ENOENT, syscall.EISDIR, syscall.ENOTDIR, syscall.EINVAL}, errno)
	}
	return err != nil && !errors.Is(err, fs.ErrPermission) && !errors.Is(err, os.ErrClosed)
}

// incomplete returns why the database of a store that had one cannot be opened,
// where Pebble would open it as it was earlier, or as a new one.
func (s *Store) incomplete() error {
	dir := s.fs.PathJoin(s.dir, "db")
	names, err := s.fs.List(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err != nil {
		return nil // Pebble will say why
	}
	if !slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(n, "marker.manifest.") }) {
		return fmt.Errorf("database without a list of its files: %w", fs.ErrNotExist)
	}
	name, err := atomicfs.ReadMarker(s.fs, dir, "manifest")
	if err != nil {
		return nil
	}
	return checkManifest(s.fs, s.fs.PathJoin(dir, name))
}

// checkManifest reads the list of the database's files. Pebble takes a record that
// is damaged for the end, as after a crash, and removes the files that are named
// behind it. But each record is synced before the next one is written, so that
// only the last may be damaged by a crash.
func checkManifest(fsys vfs.FS, path string) error {
	f, err := fsys.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		return nil
	}
	at, ok := 0, true
	for at < len(b) && ok {
		at, ok = nextChunk(b, at)
	}
	if ok {
		return nil
	}
	for i := at + 1; i < len(b); i++ {
		if b[min(i+6, len(b)-1)] == 0 {
			continue // no kind of chunk
		}
		if _, ok := nextChunk(b, i); ok {
			return fmt.Errorf("list of the database's files, %s: %w at byte %d", path, errMalformed, at)
		}
	}
	return nil
}

// nextChunk checks the chunk of a list at byte at and returns where the next one
// is. A chunk is the masked CRC-32C of all but itself and the length, u32, the
// length of its data, u16, a kind, u8, and the data; none crosses a multiple of 32
// KiB, before which there may be zeros.
func nextChunk(b []byte, at int) (next int, ok bool) {
	const header, block = 7, 32 << 10
	end := (at/block + 1) * block
	if at+header > end {
		return end, true
	}
	if at+header > len(b) {
		return at, false
	}
	sum, size, kind := binary.LittleEndian.Uint32(b[at:]), int(binary.LittleEndian.Uint16(b[at+4:])), b[at+6]
	next = at + header + size
	if kind == 0 || next > min(end, len(b)) {
		return at, false
	}
	c := crc32.Checksum(b[at+6:next], castagnoli)
	if (c>>15|c<<17)+0xa282ead8 != sum {
		return at, false
	}
	return next, true
}

// keptAside is how many damaged databases are kept.
const keptAside = 2

func (s *Store) rebuildPath() string { return s.fs.PathJoin(s.dir, "rebuild") }

// Rebuild makes the next opening of the store in dir, which must not be open, or be
// about to be closed, set the database aside and make a new one. It is for damage
// that was found while the store was used; see [Store.Err].
func Rebuild(dir string) error {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return writeSmall(vfs.Default, filepath.Join(dir, "rebuild"), []byte("\n"))
}

// rebuilding returns the directory of a rebuild that is not done yet.
func (s *Store) rebuilding() (dir string, ok bool, err error) {
	b, err := readSmall(s.fs, s.rebuildPath())
	if errors.Is(err, fs.ErrNotExist) {
		return "", false, nil
	}
	return strings.TrimSpace(string(b)), err == nil, err
}

// setAside moves the database away and returns where to.
func (s *Store) setAside(cause error) (string, error) {
	name, ok, err := s.rebuilding()
	if err != nil {
		return "", err
	}
	if !ok || name == "" {
		if name, err = s.nextAside(); err != nil {
			return "", err
		}
		if err := writeSmall(s.fs, s.rebuildPath(), []byte(name+"\n")); err != nil {
			return "", err
		}
	}
	aside := s.fs.PathJoin(s.dir, name)
	s.log.Error("database is damaged, making a new one", "err", cause, "aside", aside)
	if err := makeDir(s.fs, aside); err != nil {
		return "", err
	}
	for _, part := range []string{"db", "blocks"} {
		from, to := s.fs.PathJoin(s.dir, part), s.fs.PathJoin(aside, part)
		if _, err := s.fs.Stat(to); err == nil {
			// Already there: what is in its place was made by an earlier try.
			if err := s.fs.RemoveAll(from); err != nil {
				return "", err
			}
			continue
		}
		if err := s.fs.Rename(from, to); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	if err := errors.Join(syncDir(s.fs, aside), syncDir(s.fs, s.dir)); err != nil {
		return "", err
	}
	return aside, makeDir(s.fs, s.fs.PathJoin(s.dir, "blocks"))
}

// nextAside returns a new directory's name, and removes the oldest ones.
func (s *Store) nextAside() (string, error) {
	names, err := s.fs.List(s.dir)
	if err != nil {
		return "", err
	}
	const prefix = "damaged-"
	var numbers []int
	for _, n := range names {
		if text, ok := strings.CutPrefix(n, prefix); ok {
			if i, err := strconv.Atoi(text); err == nil {
				numbers = append(numbers, i)
			}
		}
	}
	slices.Sort(numbers)
	next := 1
	if len(numbers) > 0 {
		next = numbers[len(numbers)-1] + 1
	}
	for len(numbers) >= keptAside {
		if err := s.fs.RemoveAll(s.fs.PathJoin(s.dir, prefix+strconv.Itoa(numbers[0]))); err != nil {
			return "", err
		}
		numbers = numbers[1:]
	}
	return prefix + strconv.Itoa(next), nil
}

// A salvage is what can be read of a damaged database: the newest values of keys
// that stand for themselves.
type salvage struct {
	s      *Store
	values map[string]salvaged
}

type salvaged struct {
	seq   uint64
	value []byte // nil: deleted
}

func (v *salvage) add(seq uint64, kind pebble.InternalKeyKind, key, value []byte) {
	if len(key) == 0 || !slices.Contains([]byte{prefixRecord, prefixPrimary, prefixUser}, key[0]) {
		return
	}
	if old, ok := v.values[string(key)]; ok && old.seq > seq {
		return
	}
	switch kind {
	case pebble.InternalKeyKindSet, pebble.InternalKeyKindSetWithDelete:
		v.values[string(key)] = salvaged{seq, append([]byte{}, value...)}
	case pebble.InternalKeyKindDelete, pebble.InternalKeyKindSingleDelete, pebble.InternalKeyKindDeleteSized:
		v.values[string(key)] = salvaged{seq, nil}
	}
}

// read reads the tables and logs in dir as far as that goes.
func (v *salvage) read(dir string) {
	names, err := v.s.fs.List(dir)
	if err != nil {
		v.s.log.Warn("damaged database cannot be read", "err", err)
		return
	}
	for _, n := range names {
		if !strings.HasSuffix(n, ".sst") {
			continue
		}
		if err := v.readTable(v.s.fs.PathJoin(dir, n)); err != nil {
			v.s.log.Warn("part of the damaged database cannot be read", "table", n, "err", err)
		}
	}
	logs, err := wal.Scan(wal.Dir{FS: v.s.fs, Dirname: dir})
	if err != nil {
		v.s.log.Warn("logs of the damaged database cannot be read", "err", err)
	}
	for _, l := range logs {
		v.readLog(l)
	}
}

// readTable reads a table from both ends up to what is damaged.
func (v *salvage) readTable(path string) (err error) {
	defer func() {
		if p := recover(); p != nil { // Pebble trusts what has a right checksum
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	f, err := v.s.fs.Open(path)
	if err != nil {
		return err
	}
	readable, err := sstable.NewSimpleReadable(f)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	r, err := sstable.NewReader(context.Background(), readable, sstable.ReaderOptions{Merger: addMerger})
	if err != nil {
		return err // closes readable
	}
	defer r.Close()
	it, err := r.NewIter(sstable.NoTransforms, nil, nil, sstable.AssertNoBlobHandles)
	if err != nil {
		return err
	}
	for kv := it.First(); kv != nil; kv = it.Next() {
		if value, _, err := kv.Value(nil); err == nil {
			v.add(uint64(kv.SeqNum()), kv.Kind(), kv.K.UserKey, value)
		}
	}
	if it.Error() != nil {
		for kv := it.Last(); kv != nil; kv = it.Prev() {
			if value, _, err := kv.Value(nil); err == nil {
				v.add(uint64(kv.SeqNum()), kv.Kind(), kv.K.UserKey, value)
			}
		}
	}
	return errors.Join(it.Error(), it.Close())
}

// readLog reads a log up to its end, or what is damaged: they look the same.
func (v *salvage) readLog(l wal.LogicalLog) {
	r := l.OpenForRead()
	defer r.Close()
	for {
		entry, _, err := r.NextRecord()
		var b []byte
		if err == nil {
			b, err = io.ReadAll(entry)
		}
		if err != nil {
			return
		}
		if len(b) < batchrepr.HeaderLen {
			continue
		}
		seq := uint64(batchrepr.ReadSeqNum(b))
		for batch := batchrepr.Read(b); ; seq++ {
			kind, key, value, ok, err := batch.Next()
			if err != nil || !ok {
				break
			}
			v.add(seq, kind, key, value)
		}
	}
}

// restore puts what was salvaged into the new database and ends the rebuild.
func (s *Store) restore(v *salvage) error {
	b := s.db.NewBatch()
	defer b.Close()
	known := map[uint32]bool{}
	for k, x := range v.values {
		if x.value == nil || k[0] != prefixRecord || len(k) != 33 {
			continue
		}
		r, err := decodeRecord(x.value)
		if dk := r.key.Discovery(); err != nil || !bytes.Equal(dk[:], []byte(k[1:])) || known[r.id] {
			continue
		}
		known[r.id] = true
		s.nextID = max(s.nextID, r.id+1)
		b.Set([]byte(k), x.value, nil)
		if r.named {
			s.keyed = true
			b.Set(aliasKey(r.namespace, r.name), []byte(k[1:]), nil)
		}
		if r.path != "" && r.manifest != nil {
			b.Set(restoredKey(prefixFile, r.id), nil, nil)
		}
	}
	for k, x := range v.values {
		switch {
		case x.value == nil:
		case k[0] == prefixUser && len(k) >= 5 && known[binary.BigEndian.Uint32([]byte(k[1:5]))],
			k == string([]byte{prefixPrimary}) && len(x.value) == 32:
			b.Set([]byte(k), x.value, nil)
		}
	}
	err := s.acks.from(0, func(a ack) {
		s.keyed = true
		s.nextID = max(s.nextID, a.id+1)
		if !known[a.id] {
			b.Set(append([]byte{prefixLost}, a.dk[:]...), binary.BigEndian.AppendUint32(nil, a.id), nil)
		}
	})
	if err != nil {
		return err
	}
	b.Set([]byte{prefixCounter}, binary.BigEndian.AppendUint32(nil, s.nextID), nil)
	s.log.Warn("database was made anew", "cores", len(known))
	return s.commit(b, true)
}

func restoredKey(prefix byte, id uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{prefix}, id)
}

// loadRestored reads what a rebuild has left to be done: cores whose numbers are
// known but not their records, and static cores whose files are to be read.
func (s *Store) loadRestored() error {
	s.lost, s.unread = map[DiscoveryKey]uint32{}, map[uint32]bool{}
	err := s.scan([]byte{prefixLost}, func(k, v []byte) error {
		if len(k) == 33 && len(v) == 4 {
			s.lost[DiscoveryKey(k[1:])] = binary.BigEndian.Uint32(v)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return s.scan([]byte{prefixFile}, func(k, _ []byte) error {
		if len(k) == 5 {
			s.unread[binary.BigEndian.Uint32(k[1:])] = true
		}
		return nil
	})
}

// readAgain makes the tree of a static core from its file after a rebuild. What is
// not the core's content counts as not here. s.mu is held.
func (s *Store) readAgain(c *Core) error {
	f, err := os.Open(c.rec.path)
	if err == nil {
		defer f.Close()
		var info fs.FileInfo
		if info, err = f.Stat(); err == nil {
			var t *StaticTree
			if t, err = HashStatic(f, info.Size()); err == nil && t.Key() == c.rec.key {
				if err := c.fillStatic(t); err != nil {
					return err
				}
			}
		}
	}
	if err != nil {
		s.log.Warn("file of a static core cannot be read", "core", c.rec.key.Short(), "path", c.rec.path, "err", err)
	}
	delete(s.unread, c.id)
	b := s.db.NewBatch()
	defer b.Close()
	b.Delete(restoredKey(prefixFile, c.id), nil)
	return s.commit(b, false)
}
