package bee

import (
	"context"
	"errors"
	"fmt"
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

// A Batch is a number of changes that are appended together: all or none. Its
// methods must not be called concurrently. Its reads see its changes. From the first change until Flush or
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
