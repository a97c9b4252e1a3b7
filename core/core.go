package core

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2"

	"github.com/pkgswarm/pkgswarm/core/merkle"
)

// MaxBlock is the largest block that may be appended, in bytes: what fits in one
// message of the replication protocol. Peers may be stricter.
const MaxBlock = 15 << 20

var (
	// ErrMissing means that a block of the core is not here.
	ErrMissing = errors.New("core: block is not stored here")
	// ErrRange means that there is no such block, or byte, in the core.
	ErrRange = errors.New("core: out of range")
	// ErrReadOnly means that the key pairs to sign with are not here.
	ErrReadOnly = errors.New("core: not writable")
	// ErrTooLarge means that a block is larger than MaxBlock.
	ErrTooLarge = errors.New("core: block too large")
)

// A DamageError says that what the disk returned for a core is not what was
// stored. It concerns the one block or tree page that it names; a block is
// forgotten when that is noticed, so that a replica can fetch it again.
type DamageError struct {
	Core  Key
	What  string // "block", "tree page", "head", "record" or "file"
	Index uint64 // of the block, from 0, or the first block of the page
	Err   error
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("core %s: %s %d is damaged: %v", e.Core.Short(), e.What, e.Index, e.Err)
}

func (e *DamageError) Unwrap() error { return e.Err }

var errChecksum = errors.New("checksum mismatch")

// An Event tells of a change to a core. Blocks are [Start, End).
type Event struct {
	Kind       EventKind
	Start, End uint64
}

// EventKind is what has happened.
type EventKind int

const (
	Appended  EventKind = iota + 1 // the tree has grown over the blocks
	Truncated                      // the blocks are gone, the fork number has risen
	Arrived                        // the data of the blocks is here now, appended or from a peer
	Cleared                        // the data of the blocks is not here any more
)

// A Core is one append-only log: blocks, and a signed Merkle tree over them. It
// may be a replica of which some blocks are here, and some not.
//
// Slices that are passed in are not kept; those returned are the caller's. All
// methods may be called concurrently.
type Core struct {
	store     *Store
	id        uint32
	discovery DiscoveryKey
	refs      int // guarded by store.mu

	queueMu sync.Mutex
	queue   []*appendCall // waiting to be appended together
	leading bool          // somebody is appending

	mu    sync.Mutex // guards what follows
	rec   record
	pairs []KeyPair
	head  head
	known bool              // the database has a head; where it has none, it has no pages either
	have  map[uint64]uint32 // data masks of pages beyond head.contiguous; nil: not read yet
	file  *os.File          // of a static core
	dead  bool
	acked ack // when the core was opened
	spare *page

	watchMu  sync.Mutex // held while events are delivered, so that they stay in order
	watchers map[int]func(Event)
	nextID   int
	events   []Event // guarded by mu
}

// A head is the state of a core.
type head struct {
	tree       merkle.Tree
	signature  []byte
	contiguous uint64 // blocks [0, contiguous) are all here
}

// loadHead reads the head; a core without one is empty.
func (c *Core) loadHead() error {
	b, err := c.store.get(c.key(prefixHead, nil))
	if err != nil {
		return c.damage("head", 0, err)
	}
	if b == nil {
		return nil
	}
	c.known = true
	c.head, err = decodeHead(b)
	if err != nil {
		return &DamageError{c.rec.key, "head", 0, err}
	}
	return nil
}

// headAck returns what is noted when h is durable.
func (c *Core) headAck(h head) ack { return ack{c.id, c.discovery, h.tree.Fork, h.tree.Length} }

// loss returns a [*LossError] if the core has less than was acknowledged. c.mu is
// held.
func (c *Core) loss() error {
	if !c.acked.above(c.headAck(c.head)) {
		return nil
	}
	return &LossError{c.rec.key, c.acked.length, c.acked.fork, c.head.tree.Length}
}

// encode returns the head as it is stored:
//
//	uvarint fork, length, contiguous, number of roots
//	for each root: uvarint size, hash; the signature is the rest
func (h *head) encode() []byte {
	b := make([]byte, 0, 128+40*len(h.tree.Roots))
	b = binary.AppendUvarint(b, h.tree.Fork)
	b = binary.AppendUvarint(b, h.tree.Length)
	b = binary.AppendUvarint(b, h.contiguous)
	for _, r := range h.tree.Roots {
		b = append(binary.AppendUvarint(b, r.Size), r.Hash[:]...)
	}
	return append(b, h.signature...)
}

var errHead = errors.New("malformed head")

func decodeHead(b []byte) (h head, err error) {
	for _, f := range []*uint64{&h.tree.Fork, &h.tree.Length, &h.contiguous} {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			return head{}, errHead
		}
		*f, b = v, b[n:]
	}
	if h.tree.Length > merkle.MaxLength || h.contiguous > h.tree.Length {
		return head{}, errHead
	}
	for _, index := range rootIndexes(h.tree.Length) {
		size, n := binary.Uvarint(b)
		if n <= 0 || len(b) < n+32 {
			return head{}, errHead
		}
		h.tree.Roots = append(h.tree.Roots, merkle.Node{Index: index, Size: size, Hash: merkle.Hash(b[n : n+32])})
		b = b[n+32:]
	}
	if len(b) > 0 {
		h.signature = append([]byte{}, b...)
	}
	return h, nil
}

// key returns a key of the database that belongs to c.
func (c *Core) key(prefix byte, rest []byte) []byte {
	b := binary.BigEndian.AppendUint32(append(make([]byte, 0, 16), prefix), c.id)
	return append(b, rest...)
}

func (c *Core) pageKey(level uint8, number uint64) []byte {
	b := append(c.key(prefixPage, nil), level)
	return binary.BigEndian.AppendUint64(b, number)
}

func (c *Core) chunkKey(block uint64) []byte {
	return binary.BigEndian.AppendUint64(c.key(prefixChunk, nil), block)
}

// Close says that the caller does not use c any more. Memory goes when nobody
// does.
func (c *Core) Close() error {
	c.store.release(c)
	return nil
}

// shut frees what an open core holds.
func (c *Core) shut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dead = true
	if c.file != nil {
		c.file.Close()
		c.file = nil
	}
}

func (c *Core) setRecord(r record) {
	c.mu.Lock()
	c.rec = r
	c.mu.Unlock()
}

// Key returns the core's key.
func (c *Core) Key() Key { return c.rec.key } // never changes

// DiscoveryKey returns the hash by which peers ask for the core.
func (c *Core) DiscoveryKey() DiscoveryKey { return c.discovery }

// Manifest returns the core's manifest; false if it is not known yet, as in a
// replica that has heard from nobody.
func (c *Core) Manifest() (Manifest, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rec.manifest == nil {
		return Manifest{}, false
	}
	return *c.rec.manifest, true
}

// Writable reports whether c can be appended to.
func (c *Core) Writable() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.writable()
}

func (c *Core) writable() bool {
	m := c.rec.manifest
	return m != nil && !m.IsStatic() && (c.rec.named || len(c.pairs) > 0 && uint64(len(c.pairs)) >= m.Quorum)
}

// signers returns the key pairs to sign with. c.mu is held.
func (c *Core) signers() []KeyPair {
	if len(c.pairs) == 0 && c.rec.named {
		c.pairs = []KeyPair{DeriveKeyPair(c.store.primary, c.rec.namespace, c.rec.name)}
	}
	return c.pairs
}

// Info is what there is to say about a core at one moment.
type Info struct {
	Key        Key
	Length     uint64 // in blocks
	ByteLength uint64 // of all blocks, here or not
	Fork       uint64
	TreeHash   merkle.Hash
	Contiguous uint64 // blocks [0, Contiguous) are here
	Writable   bool
}

// Info returns a consistent view of the core's state.
func (c *Core) Info() Info {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.head.tree
	return Info{c.rec.key, t.Length, t.ByteLength(), t.Fork, t.Hash(), c.head.contiguous, c.writable()}
}

// Length returns the number of blocks.
func (c *Core) Length() uint64 { return c.Tree().Length }

// ByteLength returns the number of bytes in all blocks.
func (c *Core) ByteLength() uint64 { return c.Tree().ByteLength() }

// Fork returns how often the core was truncated.
func (c *Core) Fork() uint64 { return c.Tree().Fork }

// TreeHash returns the hash over the roots of the tree.
func (c *Core) TreeHash() merkle.Hash { return c.Tree().Hash() }

// ContiguousLength returns the number of blocks before the first missing one.
func (c *Core) ContiguousLength() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.head.contiguous
}

// Tree returns the head of the tree. Its roots must not be modified.
func (c *Core) Tree() merkle.Tree {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.head.tree
}

// Signature returns the encoded signature of the head; empty for an empty or a
// static core. It must not be modified.
func (c *Core) Signature() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.head.signature
}

// TreeAt returns the tree of the first length blocks. The error matches
// [merkle.ErrNotStored] where a replica does not have its roots.
func (c *Core) TreeAt(length uint64) (merkle.Tree, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return treeAt(c.head.tree, (*lockedNodes)(c), length)
}

func treeAt(t merkle.Tree, r merkle.NodeReader, length uint64) (merkle.Tree, error) {
	if length == t.Length {
		return t, nil
	}
	if length > t.Length {
		return merkle.Tree{}, fmt.Errorf("%w: length %d of %d", ErrRange, length, t.Length)
	}
	roots, err := merkle.RootsAt(nil, r, length)
	return merkle.Tree{Fork: t.Fork, Length: length, Roots: roots}, err
}

// damage names what could not be read of c because the database is damaged. Other
// errors it returns as they are.
func (c *Core) damage(what string, index uint64, err error) error {
	if !pebble.IsCorruptionError(err) {
		return err
	}
	return &DamageError{c.rec.key, what, index, firstLine{err}}
}

// firstLine is an error without the further lines that Pebble adds.
type firstLine struct{ error }

func (e firstLine) Error() string {
	line, _, _ := strings.Cut(e.error.Error(), "\n")
	return line
}

func (e firstLine) Unwrap() error { return e.error }

// page returns a page, an empty one if nothing is stored. c.mu is held. It must
// not be modified but for what it remembers.
func (c *Core) page(level uint8, number uint64) (*page, error) {
	if !c.known {
		return &page{}, nil
	}
	k := cacheKey{c.id, level, number}
	if p := c.store.pages.get(k); p != nil {
		return p, nil
	}
	p, err := c.readPage(c.store.db, level, number)
	if err == nil {
		c.store.pages.put(k, p)
	}
	return p, err
}

func (c *Core) readPage(r pebble.Reader, level uint8, number uint64) (*page, error) {
	v, closer, err := r.Get(c.pageKey(level, number))
	if errors.Is(err, pebble.ErrNotFound) {
		return &page{}, nil
	}
	if err != nil {
		return nil, c.damage("tree page", number*pageBlocks, err)
	}
	defer closer.Close()
	p, err := decodePage(v)
	if err != nil {
		return nil, &DamageError{c.rec.key, "tree page", number * pageBlocks, err}
	}
	return p, nil
}

// lockedNodes reads the nodes of a core whose lock is held.
type lockedNodes Core

func (c *lockedNodes) Node(index uint64) (merkle.Node, bool, error) {
	level, number, local := pageOf(index)
	p, err := (*Core)(c).page(level, number)
	if err != nil {
		return merkle.Node{}, false, err
	}
	n, ok := p.node(local)
	return merkle.Node{Index: index, Size: n.size, Hash: n.hash}, ok, nil
}

// SetUserData stores a value under a name that only this store knows of. It is
// durable with the next Sync, or durable append to any core.
func (c *Core) SetUserData(name string, value []byte) error {
	return c.store.set(c.key(prefixUser, []byte(name)), value, false)
}

// UserData returns what SetUserData stored, nil if nothing.
func (c *Core) UserData(name string) ([]byte, error) {
	return c.store.get(c.key(prefixUser, []byte(name)))
}

// Watch calls f with every change from now on, one at a time and in order, after
// the change is made. f must not block for long and must not change the core.
// Stop ends it; a call may still be under way when it returns.
func (c *Core) Watch(f func(Event)) (stop func()) {
	c.watchMu.Lock()
	defer c.watchMu.Unlock()
	if c.watchers == nil {
		c.watchers = map[int]func(Event){}
	}
	id := c.nextID
	c.nextID++
	c.watchers[id] = f
	return func() {
		c.watchMu.Lock()
		delete(c.watchers, id)
		c.watchMu.Unlock()
	}
}

// deliver hands out the events that commits have noted. c.mu is not held.
func (c *Core) deliver() {
	c.watchMu.Lock()
	defer c.watchMu.Unlock()
	c.mu.Lock()
	events := c.events
	c.events = nil
	c.mu.Unlock()
	for _, e := range events {
		for _, f := range c.watchers {
			f(e)
		}
	}
}
