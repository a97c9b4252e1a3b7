package catalog

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/pkgswarm/pkgswarm/bee"
	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
)

// A WritableCore is the catalog's core on the operator's side. *core.Core is one.
type WritableCore interface {
	Core
	bee.Log
	Prover
}

// A Change is the new entry of a key.
type Change struct {
	Key   string
	Entry Entry
	Seq   uint64 // block of the catalog that says so; of no interest in a Flush
}

// A Writer writes an operator's catalog. There must be only one at a time: its
// owner holds a lock. Its methods may be called concurrently.
type Writer struct {
	core   WritableCore
	memory *Memory
	tree   *bee.Tree

	writing sync.Mutex // held while the catalog is written; reading goes on

	mu   sync.RWMutex // guards head, which only those change who hold writing
	head Head
}

// writerCache is how many decoded blocks a writer keeps, of some 400 bytes each.
// Changes come sorted for the most part, so that few are needed.
const writerCache = 8192

// OpenWriter opens a catalog to write it. It refuses one that is behind what
// memory says was signed, as a restored backup is. SEC-16
func OpenWriter(ctx context.Context, c WritableCore, memory *Memory) (*Writer, error) {
	w := &Writer{core: c, memory: memory, tree: bee.Open(c, bee.Options{CacheBlocks: writerCache})}
	if err := w.checkEvidence(); err != nil {
		return nil, err
	}
	last, err := memory.Head(c.Key())
	if err != nil {
		return nil, err
	}
	if last != nil {
		if err := CheckExtends(c, last.Tree.Length, last.Tree.Hash()); err != nil {
			return nil, fmt.Errorf("catalog %s: writing to it would fork it: %w", c.Key().Short(), err)
		}
	}
	if w.head, err = readHead(ctx, w.tree); err != nil {
		return nil, err
	}
	_, err = w.tree.Get(ctx, []byte(successorKey))
	if err == nil {
		return nil, fmt.Errorf("catalog %s: %w", c.Key().Short(), ErrRetired)
	}
	if !errors.Is(err, bee.ErrNotFound) {
		return nil, err
	}
	return w, w.remember()
}

// ErrRetired means that a catalog has a successor and is not written any more.
var ErrRetired = errors.New("replaced by a successor")

// readHead returns the heartbeat of a tree, which is zero if it has none.
func readHead(ctx context.Context, t *bee.Tree) (Head, error) {
	e, err := t.Get(ctx, []byte(headKey))
	if errors.Is(err, bee.ErrNotFound) {
		return Head{}, nil
	}
	if err != nil {
		return Head{}, err
	}
	return DecodeHead(e.Value)
}

// Key returns the registry key.
func (w *Writer) Key() core.Key { return w.core.Key() }

// Length returns the number of blocks of the catalog.
func (w *Writer) Length() uint64 { return w.core.Length() }

// Head returns the heartbeat flushed last.
func (w *Writer) Head() Head {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return w.head
}

// Entry returns the entry of a key as it was flushed last.
func (w *Writer) Entry(ctx context.Context, key string) (e Entry, ok bool, err error) {
	return getEntry(ctx, w.tree, key)
}

func getEntry(ctx context.Context, t *bee.Tree, key string) (Entry, bool, error) {
	got, err := t.Get(ctx, []byte(key))
	if errors.Is(err, bee.ErrNotFound) {
		return Entry{}, false, nil
	}
	if err != nil {
		return Entry{}, false, err
	}
	e, err := DecodeEntry(got.Value)
	return e, err == nil, err
}

// Packages yields the packages of an ecosystem in the order of their keys.
func (w *Writer) Packages(ctx context.Context, e pkglog.Ecosystem) iter.Seq2[pkglog.Header, error] {
	return func(yield func(pkglog.Header, error) bool) {
		for c, err := range entries(ctx, w.tree, e) {
			h, _ := ParsePackageKey(c.Key)
			if !yield(h, err) || err != nil {
				return
			}
		}
	}
}

// changes yields the entries written from length since on, in that order.
func changes(ctx context.Context, t *bee.Tree, since uint64) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		for e, err := range t.History(ctx, bee.HistoryRange{From: since}) {
			if err != nil {
				yield(Change{}, err)
				return
			}
			if _, ok := ParsePackageKey(string(e.Key)); !ok || e.Deleted {
				continue
			}
			entry, err := DecodeEntry(e.Value)
			if !yield(Change{Key: string(e.Key), Entry: entry, Seq: e.Seq}, err) || err != nil {
				return
			}
		}
	}
}

// Changed yields the packages of an ecosystem whose entries were written from
// length since on, some perhaps more than once.
func (w *Writer) Changed(ctx context.Context, e pkglog.Ecosystem, since uint64) iter.Seq2[pkglog.Header, error] {
	return func(yield func(pkglog.Header, error) bool) {
		for c, err := range changes(ctx, w.tree, since) {
			h, _ := ParsePackageKey(c.Key)
			if err == nil && h.Ecosystem != e {
				continue
			}
			if !yield(h, err) || err != nil {
				return
			}
		}
	}
}

// entries yields the entries of an ecosystem, all if it is empty.
func entries(ctx context.Context, t *bee.Tree, e pkglog.Ecosystem) iter.Seq2[Change, error] {
	r := bee.Range{}
	if e != "" {
		r = bee.Range{GT: []byte(e + "/"), LT: []byte(e + "0")} // '0' follows '/'
	}
	return func(yield func(Change, error) bool) {
		for got, err := range t.Range(ctx, r) {
			if err != nil {
				yield(Change{}, err)
				return
			}
			key := string(got.Key)
			if _, ok := ParsePackageKey(key); !ok {
				continue
			}
			entry, err := DecodeEntry(got.Value)
			if err != nil {
				err = fmt.Errorf("%s: %w", key, err)
			}
			if !yield(Change{Key: key, Entry: entry, Seq: got.Seq}, err) || err != nil {
				return
			}
		}
	}
}

// Flush writes changes in their order and a heartbeat of that time, or of the
// last one if that is later, as one batch, and remembers the new head. On
// return both are durable.
func (w *Writer) Flush(ctx context.Context, changes []Change, at time.Time) error {
	w.writing.Lock()
	defer w.writing.Unlock()
	if err := w.checkEvidence(); err != nil {
		return err
	}
	b := w.tree.Batch()
	head := w.head
	for _, c := range changes {
		h, ok := ParsePackageKey(c.Key)
		if !ok {
			return fmt.Errorf("catalog key %q names no package", c.Key)
		}
		_, known, err := getEntry(ctx, w.tree, c.Key)
		if err != nil {
			return err
		}
		if !known {
			head.count(h.Ecosystem, 1)
		}
		if err := b.Put(ctx, []byte(c.Key), c.Entry.Encode()); err != nil {
			return err
		}
	}
	if at = fromUnix(unix(at)); at.After(head.Time) {
		head.Time = at
	}
	if err := b.Put(ctx, []byte(headKey), head.Encode()); err != nil {
		return err
	}
	if err := b.Flush(ctx); err != nil {
		return err
	}
	w.mu.Lock()
	w.head = head
	w.mu.Unlock()
	return w.remember()
}

// checkEvidence fails if the swarm has come across another history that our key
// has signed: going on with ours would only make it worse. SEC-16
func (w *Writer) checkEvidence() error {
	e, err := w.memory.Evidence(w.Key())
	if err == nil && e != nil {
		err = fmt.Errorf("%w: evidence in %s", ErrEquivocated, w.memory.EvidencePath(w.Key()))
	}
	if err != nil {
		return fmt.Errorf("catalog %s: %w", w.Key().Short(), err)
	}
	return nil
}

// Heartbeat says that nothing has changed up to now.
func (w *Writer) Heartbeat(ctx context.Context, now time.Time) error {
	return w.Flush(ctx, nil, now)
}

// remember keeps the head that was just signed.
func (w *Writer) remember() error {
	n := w.core.Length()
	if n == 0 {
		return nil
	}
	h, err := signedHead(w.core, n)
	if err != nil {
		return err
	}
	return w.memory.SetHead(&Memorized{SignedHead: *h, Seen: time.Now()})
}

// Retire ends this catalog: next's takes its place. It returns what next's
// catalog must begin with. SEC-17
func (w *Writer) Retire(ctx context.Context, next *Operator) (Predecessor, error) {
	w.writing.Lock()
	defer w.writing.Unlock()
	b := w.tree.Batch()
	if err := b.Put(ctx, []byte(successorKey), newSuccessor(w.Key(), next).encode()); err != nil {
		return Predecessor{}, err
	}
	if err := b.Flush(ctx); err != nil {
		return Predecessor{}, err
	}
	return PredecessorOf(w.core), w.remember()
}

// PredecessorOf names the final head of a catalog.
func PredecessorOf(c Core) Predecessor {
	t := c.Tree()
	return Predecessor{c.Key(), t.Length, t.Hash()}
}

// Succeed makes this catalog, which must be empty, the successor of p.
func (w *Writer) Succeed(ctx context.Context, p Predecessor) error {
	w.writing.Lock()
	defer w.writing.Unlock()
	if w.Length() > 0 {
		return fmt.Errorf("catalog %s has begun already", w.Key().Short())
	}
	b := w.tree.Batch()
	if err := b.Put(ctx, []byte(predecessorKey), p.encode()); err != nil {
		return err
	}
	if err := b.Flush(ctx); err != nil {
		return err
	}
	return w.remember()
}
