// Package filecache keeps small files that can be had again: answers of
// upstreams, checksum records, tiles.
//
// Each entry is one file, named by the BLAKE3 hash of its key in hex, in a
// directory of the first two digits:
//
//	"pkgswarm cache 1\n"
//	length of the key, u32be; key
//	length of the data, u32be; data
//	BLAKE3 of all of the above, 32 bytes
//
// A file that is damaged, cut, misplaced, or stands for another key is removed
// and reported as missing (REL-4). Writing is atomic but not forced to disk: after
// a crash an entry may be gone, which its reader copes with anyway.
//
// The hash finds damage, not forgery: whoever can write the directory can
// replace an entry. What an entry proves must be checked by its reader.
package filecache

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/zeebo/blake3"
)

const (
	magic = "pkgswarm cache 1\n"

	// MaxEntry is the largest size of an entry's data, in bytes.
	MaxEntry = 64 << 20

	// maxListedKey is the length of the longest key that Keys finds, in bytes.
	maxListedKey = 512

	// touchAfter is the age of a file's time of use at which a read renews it.
	touchAfter = time.Hour

	// leftoverAge is the age at which a half-written file is nobody's any more.
	leftoverAge = time.Minute
)

// ErrMissing says that there is no entry. It matches [fs.ErrNotExist].
var ErrMissing = fmt.Errorf("not in the cache: %w", fs.ErrNotExist)

// A Cache is a directory of entries. It is safe for concurrent use, also by
// several processes.
type Cache struct {
	root *os.Root
	max  int64 // bytes

	size     atomic.Int64 // of all entries, in bytes; grows by writing, exact after trimming
	trimming sync.Mutex
	started  time.Time
	seq      atomic.Uint64

	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup // trimming in the background
}

// Open opens the cache in dir, creating it if need be, and begins to remove what a
// crash left half-written. Beyond max bytes the entries used least recently go; 0 stands
// for no bound. Close it after use.
func Open(dir string, max int64) (*Cache, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open cache: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open cache: %w", err)
	}
	c := &Cache{root: root, max: max, started: time.Now()}
	c.trimSoon() // looking at all files may take a while
	return c, nil
}

// Close releases the directory.
func (c *Cache) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.wg.Wait()
	return c.root.Close()
}

// trimSoon trims in the background, unless that is being done.
func (c *Cache) trimSoon() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || !c.trimming.TryLock() {
		return
	}
	c.wg.Go(func() {
		defer c.trimming.Unlock()
		c.trim()
	})
}

// Get returns the data of an entry, owned by the caller. The error is
// [ErrMissing] where there is none or it is damaged.
func (c *Cache) Get(key string) ([]byte, error) {
	name := fileName(key)
	f, err := c.root.Open(name)
	if err != nil {
		return nil, ErrMissing
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() > MaxEntry+1<<20 {
		return nil, ErrMissing
	}
	b := make([]byte, info.Size())
	if _, err := f.ReadAt(b, 0); err != nil {
		return nil, ErrMissing
	}
	data, ok := decode(key, b)
	if !ok {
		c.root.Remove(name)
		return nil, ErrMissing
	}
	if now := time.Now(); now.Sub(info.ModTime()) > touchAfter {
		c.root.Chtimes(name, now, now)
	}
	return data, nil
}

// Put makes data the entry of key. It may be called with a key that has one.
func (c *Cache) Put(key string, data []byte) error {
	if len(data) > MaxEntry {
		return fmt.Errorf("cache entry of %d bytes is too large", len(data))
	}
	b, name := encode(key, data), fileName(key)
	temp := "tmp-" + strconv.Itoa(os.Getpid()) + "-" + strconv.FormatUint(c.seq.Add(1), 36)
	if err := c.write(temp, name, b); err != nil {
		c.root.Remove(temp)
		return fmt.Errorf("write cache entry: %w", err)
	}
	if n := c.size.Add(int64(len(b))); c.max > 0 && n > c.max {
		c.trimSoon()
	}
	return nil
}

func (c *Cache) write(temp, name string, b []byte) error {
	if err := c.root.WriteFile(temp, b, 0o600); err != nil {
		return err
	}
	if err := c.root.Mkdir(filepath.Dir(name), 0o700); err != nil && !os.IsExist(err) {
		return err
	}
	return c.root.Rename(temp, name)
}

// Keys calls yield with the keys that begin with prefix, in no useful order, until it
// returns false. It reads the beginning of every file; whether the entries are whole
// shows when they are read.
func (c *Cache) Keys(prefix string, yield func(key string) bool) {
	head := make([]byte, len(magic)+4+maxListedKey)
	fs.WalkDir(c.root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil
		}
		key, ok := c.keyOf(name, head)
		if ok && strings.HasPrefix(key, prefix) && !yield(key) {
			return fs.SkipAll
		}
		return nil
	})
}

// keyOf returns the key in the file name, if it is a short one, using head for what it
// reads.
func (c *Cache) keyOf(name string, head []byte) (string, bool) {
	f, err := c.root.Open(name)
	if err != nil {
		return "", false
	}
	defer f.Close()
	n, _ := f.ReadAt(head, 0) // an entry may be shorter
	b, ok := strings.CutPrefix(string(head[:n]), magic)
	if !ok || len(b) < 4 {
		return "", false
	}
	size := int(binary.BigEndian.Uint32([]byte(b)))
	if size > len(b)-4 || fileName(b[4:4+size]) != name {
		return "", false
	}
	return b[4 : 4+size], true
}

// Remove removes the entry of key, if there is one.
func (c *Cache) Remove(key string) { c.root.Remove(fileName(key)) }

// Trim removes leftovers and, where the entries exceed the bound, the least
// recently used down to nine tenths of it.
func (c *Cache) Trim() {
	c.trimming.Lock()
	defer c.trimming.Unlock()
	c.trim()
}

// trim does the work of Trim. The caller holds trimming.
func (c *Cache) trim() {
	type entry struct {
		name string
		size int64
		used time.Time
	}
	var entries []entry
	var total int64
	before := c.size.Load()
	fs.WalkDir(c.root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		if strings.HasPrefix(name, "tmp-") {
			if info.ModTime().Before(c.started.Add(-leftoverAge)) {
				c.root.Remove(name)
			}
			return nil
		}
		entries = append(entries, entry{name, info.Size(), info.ModTime()})
		total += info.Size()
		return nil
	})
	if c.max > 0 && total > c.max {
		slices.SortFunc(entries, func(a, b entry) int { return a.used.Compare(b.used) })
		for _, e := range entries {
			if total <= c.max/10*9 {
				break
			}
			if c.root.Remove(e.name) == nil {
				total -= e.size
			}
		}
	}
	c.size.Add(total - before) // what was written meanwhile may count twice, until the next time
}

func fileName(key string) string {
	sum := blake3.Sum256([]byte(key))
	h := hex.EncodeToString(sum[:])
	return filepath.Join(h[:2], h)
}

func encode(key string, data []byte) []byte {
	b := make([]byte, 0, len(magic)+8+len(key)+len(data)+32)
	b = append(b, magic...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(key)))
	b = append(b, key...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	b = append(b, data...)
	sum := blake3.Sum256(b)
	return append(b, sum[:]...)
}

// decode returns the data of the encoded entry b if it is whole and for key.
// The data is a part of b.
func decode(key string, b []byte) ([]byte, bool) {
	n := len(magic) + 8 + len(key) + 32 // without data
	if len(b) < n || string(b[:len(magic)]) != magic {
		return nil, false
	}
	body, sum := b[:len(b)-32], b[len(b)-32:]
	if blake3.Sum256(body) != [32]byte(sum) {
		return nil, false
	}
	body = body[len(magic):]
	if binary.BigEndian.Uint32(body) != uint32(len(key)) || string(body[4:4+len(key)]) != key {
		return nil, false
	}
	body = body[4+len(key):]
	data := body[4:]
	return data[:len(data):len(data)], binary.BigEndian.Uint32(body) == uint32(len(data))
}
