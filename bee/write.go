package bee

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
)

// Sizes of nodes, as the reference's.
const (
	minKeys = 4
	maxFull = 2*minKeys + 1 // keys at which a node is split
)

var (
	// ErrReadOnly means that a tree cannot be written: it is a checkout, or its
	// log cannot be appended to.
	ErrReadOnly = errors.New("bee: not writable")
	// ErrBatch is returned by a batch after an error, or after Flush.
	ErrBatch = errors.New("bee: batch is over")
)

// A CAS decides about a change of a key that exists: prev is what is there, next
// what is to come, with a nil value for a deletion.
type CAS func(prev, next Entry) bool

// A node is a tree node in memory that may be changed. What a node holds of
// other blocks is loaded when it is needed.
type node struct {
	keys     []keyRef
	children []*child
	changed  bool // has to go into the next block
}

type keyRef struct {
	seq uint64
	key []byte // nil: not loaded
}

// A child is one edge. It is shared by its parent, which may change, and the
// pending blocks, which look up where the node went.
type child struct {
	seq, offset uint64
	node        *node // nil: not loaded
}

// A pending is a block of a batch that is not appended yet.
type pending struct {
	seq        uint64
	key, value []byte
	index      []*child // by offset; nil where a node has moved on
}

// A Batch is a number of changes that are appended together: all or none. Its
// methods must not be called concurrently. From the first change until Flush or
// Close, nobody else can write to the tree.
type Batch struct {
	t       *Tree
	single  bool // a batch of one operation, flushed at once
	locked  bool
	done    bool
	start   uint64 // the log's length
	root    *node
	blocks  []pending
	loaded  int
	touched []*node // nodes marked by the operation under way
}

// Batch begins a batch.
func (t *Tree) Batch() *Batch { return &Batch{t: t} }

// Put stores value, which may be nil, under key.
func (t *Tree) Put(ctx context.Context, key, value []byte) error {
	_, err := t.PutIf(ctx, key, value, nil)
	return err
}

// PutIf is Put, unless the key exists and cas returns false; it reports whether
// something was stored.
func (t *Tree) PutIf(ctx context.Context, key, value []byte, cas CAS) (bool, error) {
	b := &Batch{t: t, single: true}
	defer b.Close()
	return b.PutIf(ctx, key, value, cas)
}

// Delete removes key; it is no error if it does not exist.
func (t *Tree) Delete(ctx context.Context, key []byte) error {
	_, err := t.DeleteIf(ctx, key, nil)
	return err
}

// DeleteIf removes key if it exists and cas, if not nil, returns true; it
// reports whether something was removed.
func (t *Tree) DeleteIf(ctx context.Context, key []byte, cas CAS) (bool, error) {
	b := &Batch{t: t, single: true}
	defer b.Close()
	return b.DeleteIf(ctx, key, cas)
}

// Put stores value, which may be nil, under key. Slices are kept until Flush.
func (b *Batch) Put(ctx context.Context, key, value []byte) error {
	_, err := b.PutIf(ctx, key, value, nil)
	return err
}

// PutIf is Put, unless the key exists and cas returns false.
func (b *Batch) PutIf(ctx context.Context, key, value []byte, cas CAS) (bool, error) {
	return b.change(ctx, func() (bool, error) { return b.put(ctx, b.t.stored(key), value, cas) })
}

// Delete removes key; it is no error if it does not exist.
func (b *Batch) Delete(ctx context.Context, key []byte) error {
	_, err := b.DeleteIf(ctx, key, nil)
	return err
}

// DeleteIf removes key if it exists and cas, if not nil, returns true.
func (b *Batch) DeleteIf(ctx context.Context, key []byte, cas CAS) (bool, error) {
	return b.change(ctx, func() (bool, error) { return b.del(ctx, b.t.stored(key), cas) })
}

// change runs one operation.
func (b *Batch) change(ctx context.Context, op func() (bool, error)) (bool, error) {
	if b.done {
		return false, ErrBatch
	}
	if err := b.begin(ctx); err != nil {
		return false, err
	}
	ok, err := op()
	if err == nil && b.single {
		if ok {
			err = b.flush()
		} else {
			for _, n := range b.touched {
				n.changed = false
			}
		}
	}
	b.touched = b.touched[:0]
	if err != nil {
		b.t.s.root = nil // it may be half changed
		b.unlock()
		return false, err
	}
	return ok, nil
}

// begin locks the tree, makes the header and loads the root, the first time.
func (b *Batch) begin(ctx context.Context) error {
	if b.locked {
		return nil
	}
	s := b.t.s
	if b.t.checkout != 0 {
		return ErrReadOnly
	}
	w, ok := s.log.(Appender)
	if !ok {
		return ErrReadOnly
	}
	select {
	case s.writing <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	b.locked = true
	s.refresh()
	err := func() (err error) {
		if s.log.Length() == 0 {
			if _, err := w.Append(encodeHeader(s.meta)); err != nil {
				return err
			}
		}
		b.start = s.log.Length()
		if s.root != nil && s.rootVersion == b.start {
			b.root, b.loaded = s.root, s.loaded
			return nil
		}
		if b.start >= 2 {
			b.root, err = b.load(ctx, address{b.start - 1, 0})
		}
		return err
	}()
	if err != nil {
		b.unlock()
	}
	return err
}

func (b *Batch) unlock() {
	if b.locked {
		b.locked = false
		<-b.t.s.writing
	}
	b.done = true
}

// Close gives a batch up. It does nothing after Flush.
func (b *Batch) Close() error {
	if b.locked {
		b.t.s.root = nil
	}
	b.unlock()
	return nil
}

// Flush appends the batch.
func (b *Batch) Flush(context.Context) error {
	if b.done {
		return ErrBatch
	}
	if !b.locked {
		b.done = true
		return nil
	}
	return b.flush()
}

// seq returns the block that the operation under way will get.
func (b *Batch) seq() uint64 { return b.start + uint64(len(b.blocks)) }

// load reads a node.
func (b *Batch) load(ctx context.Context, a address) (*node, error) {
	blk, err := b.t.s.block(ctx, a.seq)
	if err != nil {
		return nil, err
	}
	if a.offset >= uint64(len(blk.levels)) {
		return nil, fmt.Errorf("block %d has no node %d: %w", a.seq, a.offset, ErrFormat)
	}
	l := blk.levels[a.offset]
	n := &node{keys: make([]keyRef, len(l.keys), maxFull), children: make([]*child, len(l.children), len(l.children)+1)}
	for i, seq := range l.keys {
		n.keys[i].seq = seq
		if seq == a.seq {
			n.keys[i].key = blk.key
		}
	}
	for i, c := range l.children {
		n.children[i] = &child{seq: c.seq, offset: c.offset}
	}
	b.loaded++
	return n, nil
}

func (b *Batch) child(ctx context.Context, n *node, i int) (*node, error) {
	c := n.children[i]
	if c.node == nil {
		var err error
		if c.node, err = b.load(ctx, address{c.seq, c.offset}); err != nil {
			return nil, err
		}
	}
	return c.node, nil
}

// key returns the bytes of a key of n.
func (b *Batch) key(ctx context.Context, n *node, i int) ([]byte, error) {
	k := &n.keys[i]
	if k.key == nil {
		blk, err := b.t.s.block(ctx, k.seq)
		if err != nil {
			return nil, err
		}
		if k.key = blk.key; k.key == nil {
			k.key = []byte{}
		}
	}
	return k.key, nil
}

// entry returns key and value of a block, which may be pending.
func (b *Batch) entry(ctx context.Context, seq uint64) (Entry, error) {
	if seq >= b.start {
		p := b.blocks[seq-b.start]
		return b.t.entry(p.seq, p.key, p.value), nil
	}
	blk, err := b.t.s.block(ctx, seq)
	if err != nil {
		return Entry{}, err
	}
	return b.t.entry(blk.seq, blk.key, blk.value), nil
}

// search returns the place of key in n, and whether it is there.
func (b *Batch) search(ctx context.Context, n *node, key []byte) (int, bool, error) {
	lo, hi := 0, len(n.keys)
	for lo < hi {
		mid := (lo + hi) / 2
		k, err := b.key(ctx, n, mid)
		if err != nil {
			return 0, false, err
		}
		switch c := bytes.Compare(key, k); {
		case c == 0:
			return mid, true, nil
		case c < 0:
			hi = mid
		default:
			lo = mid + 1
		}
	}
	return lo, false, nil
}

// mark notes that n has to be written.
func (b *Batch) mark(n *node) {
	if !n.changed {
		n.changed = true
		b.touched = append(b.touched, n)
	}
}

// refused reports whether a key that exists is to stay as it is.
func (b *Batch) refused(ctx context.Context, seq uint64, key, value []byte, put bool, cas CAS) (bool, error) {
	same := put && b.t.s.noDuplicates
	if cas == nil && !same {
		return false, nil
	}
	prev, err := b.entry(ctx, seq)
	if err != nil {
		return false, err
	}
	if cas != nil && !cas(prev, b.t.entry(b.seq(), key, value)) {
		return true, nil
	}
	return same && (prev.Value == nil) == (value == nil) && bytes.Equal(prev.Value, value), nil
}

func (b *Batch) put(ctx context.Context, key, value []byte, cas CAS) (bool, error) {
	if b.root == nil {
		b.root = &node{}
		b.mark(b.root)
	}
	target := keyRef{b.seq(), key}
	var path []*node
	n := b.root
	for {
		i, found, err := b.search(ctx, n, key)
		if err != nil {
			return false, err
		}
		leaf := len(n.children) == 0
		if !leaf {
			b.mark(n) // even if cas refuses: so does the reference
		}
		if found {
			no, err := b.refused(ctx, n.keys[i].seq, key, value, true, cas)
			if err != nil || no {
				return false, err
			}
			n.keys[i] = target
			b.mark(n)
			break
		}
		if leaf {
			n.keys = slices.Insert(n.keys, i, target)
			b.mark(n)
			if err := b.split(ctx, n, path); err != nil {
				return false, err
			}
			break
		}
		path = append(path, n)
		if n, err = b.child(ctx, n, i); err != nil {
			return false, err
		}
	}
	b.commit(key, value)
	return true, nil
}

// split divides n, and the nodes above it, while they are too large.
func (b *Batch) split(ctx context.Context, n *node, path []*node) error {
	for len(n.keys) >= maxFull {
		right := &node{}
		b.mark(right)
		at := len(n.keys) - len(n.keys)/2
		right.keys = append(make([]keyRef, 0, maxFull), n.keys[at:]...)
		if _, err := b.key(ctx, n, at-1); err != nil {
			return err
		}
		median := n.keys[at-1]
		n.keys = n.keys[:at-1]
		if len(n.children) > 0 {
			right.children = slices.Clone(n.children[at:])
			n.children = n.children[:at]
		}
		b.mark(n)
		if len(path) == 0 {
			root := &node{keys: []keyRef{median}, children: []*child{{node: n}, {node: right}}}
			b.mark(root)
			b.root = root
			return nil
		}
		parent := path[len(path)-1]
		path = path[:len(path)-1]
		i, _, err := b.search(ctx, parent, median.key)
		if err != nil {
			return err
		}
		parent.keys = slices.Insert(parent.keys, i, median)
		parent.children = slices.Insert(parent.children, i+1, &child{node: right})
		b.mark(parent)
		n = parent
	}
	return nil
}

func (b *Batch) del(ctx context.Context, key []byte, cas CAS) (bool, error) {
	if b.root == nil {
		return false, nil
	}
	var path []*node
	n := b.root
	for {
		path = append(path, n)
		i, found, err := b.search(ctx, n, key)
		if err != nil {
			return false, err
		}
		if found {
			no, err := b.refused(ctx, n.keys[i].seq, key, nil, false, cas)
			if err != nil || no {
				return false, err
			}
			if path, err = b.remove(ctx, n, i, path); err != nil {
				return false, err
			}
			break
		}
		if len(n.children) == 0 {
			return false, nil
		}
		if n, err = b.child(ctx, n, i); err != nil {
			return false, err
		}
	}
	for _, n := range path {
		b.mark(n)
	}
	if err := b.rebalance(ctx, path); err != nil {
		return false, err
	}
	b.commit(key, nil)
	return true, nil
}

// remove takes key i out of n: directly from a leaf, else by putting the next
// lower or higher key in its place. It returns path, down to the leaf.
func (b *Batch) remove(ctx context.Context, n *node, i int, path []*node) ([]*node, error) {
	if len(n.children) == 0 {
		n.keys = slices.Delete(n.keys, i, i+1)
		return path, nil
	}
	down := func(from int, last bool) ([]*node, error) {
		at, err := b.child(ctx, n, from)
		nodes := []*node{at}
		for err == nil && len(at.children) > 0 {
			next := 0
			if last {
				next = len(at.children) - 1
			}
			if at, err = b.child(ctx, at, next); err == nil {
				nodes = append(nodes, at)
			}
		}
		return nodes, err
	}
	lower, err := down(i, true)
	if err != nil {
		return nil, err
	}
	higher, err := down(i+1, false)
	if err != nil {
		return nil, err
	}
	low, high := lower[len(lower)-1], higher[len(higher)-1]
	if len(low.keys) < len(high.keys) {
		n.keys[i] = high.keys[0]
		high.keys = slices.Delete(high.keys, 0, 1)
		return append(path, higher...), nil
	}
	last := len(low.keys) - 1
	n.keys[i] = low.keys[last]
	low.keys = low.keys[:last]
	return append(path, lower...), nil
}

// rebalance fills nodes of the path that have become too small, from the leaf
// upwards.
func (b *Batch) rebalance(ctx context.Context, path []*node) error {
	for len(path) > 1 {
		n, parent := path[len(path)-1], path[len(path)-2]
		path = path[:len(path)-1]
		if len(n.keys) >= minKeys {
			return nil
		}
		done, err := b.refill(ctx, n, parent)
		if err != nil || done {
			return err
		}
	}
	if len(b.root.keys) == 0 && len(b.root.children) > 0 {
		root, err := b.child(ctx, b.root, 0)
		if err != nil {
			return err
		}
		b.root = root
	}
	return nil
}

// refill takes a key from a sibling of n, and reports that all is well then, or
// merges n with a sibling.
func (b *Batch) refill(ctx context.Context, n, parent *node) (done bool, err error) {
	i := slices.IndexFunc(parent.children, func(c *child) bool { return c.node == n })
	var left, right *node
	if i > 0 {
		if left, err = b.child(ctx, parent, i-1); err != nil {
			return false, err
		}
	}
	if i < len(parent.children)-1 {
		if right, err = b.child(ctx, parent, i+1); err != nil {
			return false, err
		}
	}
	if left != nil && len(left.keys) > minKeys {
		b.mark(left)
		n.keys = slices.Insert(n.keys, 0, parent.keys[i-1])
		last := len(left.keys) - 1
		parent.keys[i-1] = left.keys[last]
		left.keys = left.keys[:last]
		if k := len(left.children); k > 0 {
			n.children = slices.Insert(n.children, 0, left.children[k-1])
			left.children = left.children[:k-1]
		}
		return true, nil
	}
	if right != nil && len(right.keys) > minKeys {
		b.mark(right)
		n.keys = append(n.keys, parent.keys[i])
		parent.keys[i] = right.keys[0]
		right.keys = slices.Delete(right.keys, 0, 1)
		if len(right.children) > 0 {
			n.children = append(n.children, right.children[0])
			right.children = slices.Delete(right.children, 0, 1)
		}
		return true, nil
	}
	if left != nil {
		i--
		right = n
	} else {
		left = n
	}
	b.mark(left)
	left.keys = append(append(left.keys, parent.keys[i]), right.keys...)
	left.children = append(left.children, right.children...)
	parent.keys = slices.Delete(parent.keys, i, i+1)
	parent.children[i+1].seq = 0 // freed: no block needs it any more
	parent.children = slices.Delete(parent.children, i+1, i+2)
	b.mark(parent)
	return false, nil
}

// commit makes the operation's block of the nodes that have changed.
func (b *Batch) commit(key, value []byte) {
	p := pending{seq: b.seq(), key: key, value: value}
	number(b.root, &p)
	p.index[0] = &child{seq: p.seq, node: b.root}
	b.blocks = append(b.blocks, p)
}

// number gives n, and changed nodes below it, the next places in p's index.
func number(n *node, p *pending) uint64 {
	offset := uint64(len(p.index))
	p.index = append(p.index, nil)
	n.changed = false
	for _, c := range n.children {
		if c.node == nil || !c.node.changed {
			continue
		}
		c.seq = p.seq
		c.offset = number(c.node, p)
		p.index[c.offset] = c
	}
	return offset
}

// flush appends the blocks.
func (b *Batch) flush() error {
	defer b.unlock()
	s := b.t.s
	if len(b.blocks) == 0 {
		s.root = nil // nodes may be marked as changed
		return nil
	}
	var buf []byte
	ends := make([]int, len(b.blocks))
	for i := range b.blocks {
		// One after the other, as the reference does: nodes that nothing refers
		// to any more name their children's places before these move.
		if i < len(b.blocks)-1 {
			b.blocks[i].compact()
		}
		buf = b.blocks[i].encode(buf)
		ends[i] = len(buf)
	}
	raw := make([][]byte, len(b.blocks))
	at := 0
	for i, end := range ends {
		raw[i] = buf[at:end:end]
		at = end
	}
	n, err := s.log.(Appender).Append(raw...)
	if err != nil {
		s.root = nil
		return fmt.Errorf("append to tree: %w", err)
	}
	if want := b.start + uint64(len(raw)); n != want {
		s.root = nil
		return fmt.Errorf("append to tree: log has %d blocks, want %d: somebody else appends", n, want)
	}
	s.root, s.rootVersion, s.loaded = b.root, n, b.loaded+len(b.blocks)
	if s.loaded > maxLoaded {
		s.root = nil
	}
	return nil
}

// maxLoaded bounds the nodes that are kept in memory for the next write: about
// 400 bytes each.
const maxLoaded = 1 << 16

// compact drops the root, which later blocks of the batch replace, and the nodes
// that have moved on to them. The reference's order is kept.
func (p *pending) compact() {
	list := p.index
	list[0] = nil
	for j := 0; j < len(list); {
		c := list[j]
		if c != nil && c.seq == p.seq {
			c.offset = uint64(j)
			j++
			continue
		}
		last := len(list) - 1
		if j < last {
			list[j] = list[last]
		}
		list = list[:last]
	}
	p.index = list
}

// encode appends the block.
func (p *pending) encode(b []byte) []byte {
	size := 0
	for _, c := range p.index {
		size += 1 + protowire.SizeBytes(c.node.size())
	}
	b = protowire.AppendVarint(append(b, 0x0a), uint64(size))
	for _, c := range p.index {
		b = protowire.AppendVarint(append(b, 0x0a), uint64(c.node.size()))
		b = c.node.encode(b)
	}
	b = appendBytes(b, 2, p.key)
	if p.value != nil {
		b = appendBytes(b, 3, p.value)
	}
	return b
}

func (n *node) sizes() (keys, children int) {
	for i := range n.keys {
		keys += protowire.SizeVarint(n.keys[i].seq)
	}
	for _, c := range n.children {
		children += protowire.SizeVarint(c.seq) + protowire.SizeVarint(c.offset)
	}
	return keys, children
}

// size returns the length of the node's encoding, in bytes.
func (n *node) size() (size int) {
	keys, children := n.sizes()
	if keys > 0 {
		size += 1 + protowire.SizeBytes(keys)
	}
	if children > 0 {
		size += 1 + protowire.SizeBytes(children)
	}
	return size
}

func (n *node) encode(b []byte) []byte {
	keys, children := n.sizes()
	if keys > 0 {
		b = protowire.AppendVarint(append(b, 0x0a), uint64(keys))
		for i := range n.keys {
			b = protowire.AppendVarint(b, n.keys[i].seq)
		}
	}
	if children > 0 {
		b = protowire.AppendVarint(append(b, 0x12), uint64(children))
		for _, c := range n.children {
			b = protowire.AppendVarint(protowire.AppendVarint(b, c.seq), c.offset)
		}
	}
	return b
}
