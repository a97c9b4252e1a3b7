package importer

import (
	"context"
	"errors"
	"fmt"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/registry/catalog"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
)

// Rotate replaces a catalog by one of next's keys: each package log is copied,
// block for block, under its new key, and the new catalog names the copies. It
// can be interrupted at any time and run again.
// SEC-17
//
// The new catalog begins with the head that the old one ends with, so the old
// one is retired first; readers go on with it until the new one can be read.
func Rotate(ctx context.Context, store *core.Store, old, next *catalog.Operator, memory *catalog.Memory) error {
	oldCore, err := openCatalog(store, old)
	if err != nil {
		return err
	}
	defer oldCore.Close()
	end, err := retire(ctx, oldCore, next, memory)
	if err != nil {
		return err
	}
	newCore, err := openCatalog(store, next)
	if err != nil {
		return err
	}
	defer newCore.Close()
	w, err := catalog.OpenWriter(ctx, newCore, memory)
	if err != nil {
		return err
	}
	if w.Length() == 0 {
		if err := w.Succeed(ctx, end); err != nil {
			return err
		}
	}
	return copyLogs(ctx, store, oldCore, memory, next, w)
}

func openCatalog(store *core.Store, op *catalog.Operator) (*core.Core, error) {
	m, pairs := op.Catalog()
	return store.Create(m, pairs...)
}

// retire appends the successor entry unless it is there already.
func retire(ctx context.Context, c *core.Core, next *catalog.Operator, memory *catalog.Memory) (catalog.Predecessor, error) {
	w, err := catalog.OpenWriter(ctx, c, memory)
	if errors.Is(err, catalog.ErrRetired) {
		s, err := catalog.OpenReader(c, memory, 0).Update(ctx)
		if err != nil {
			return catalog.Predecessor{}, err
		}
		key, _, err := s.Successor(ctx)
		if err == nil && key != next.RegistryKey() {
			err = fmt.Errorf("catalog %s has been replaced by %s", s.Key.Short(), key.Short())
		}
		return catalog.PredecessorOf(c), err
	}
	if err != nil {
		return catalog.Predecessor{}, err
	}
	return w.Retire(ctx, next)
}

func copyLogs(ctx context.Context, store *core.Store, old *core.Core, memory *catalog.Memory, next *catalog.Operator, w *catalog.Writer) error {
	s, err := catalog.OpenReader(old, memory, 0).Update(ctx)
	if err != nil {
		return err
	}
	var changes []catalog.Change
	flush := func() error {
		if err := store.Sync(); err != nil {
			return err
		}
		err := w.Flush(ctx, changes, s.Head.Time)
		changes = changes[:0]
		return err
	}
	for c, err := range s.Entries(ctx, "") {
		if err != nil {
			return err
		}
		if _, known, err := w.Entry(ctx, c.Key); err != nil || known {
			if err != nil {
				return err
			}
			continue
		}
		e, err := copyLog(ctx, store, c, next)
		if err != nil {
			return fmt.Errorf("%s: %w", c.Key, err)
		}
		if changes = append(changes, catalog.Change{Key: c.Key, Entry: e}); len(changes) == FlushEvery {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	if len(changes) == 0 {
		return nil
	}
	return flush()
}

// copyLog copies the blocks that the old catalog names into the log of the new
// key, as far as they are not there yet.
func copyLog(ctx context.Context, store *core.Store, c catalog.Change, next *catalog.Operator) (catalog.Entry, error) {
	h, ok := catalog.ParsePackageKey(c.Key)
	if !ok {
		return catalog.Entry{}, fmt.Errorf("names no package")
	}
	from, err := store.OpenExisting(c.Entry.Log)
	if err != nil {
		return catalog.Entry{}, err
	}
	defer from.Close()
	if _, err := catalog.ReadLog(ctx, from, c.Entry, h); err != nil {
		return catalog.Entry{}, err
	}
	to, err := openLog(store, next, h)
	if err != nil {
		return catalog.Entry{}, err
	}
	defer to.Close()
	var bs [][]byte
	for b, err := range from.Blocks(ctx, to.Length(), c.Entry.Length) {
		if err != nil {
			return catalog.Entry{}, err
		}
		bs = append(bs, b)
	}
	if len(bs) > 0 {
		if _, err := to.AppendLazy(bs...); err != nil {
			return catalog.Entry{}, err
		}
	}
	t := to.Tree()
	if t.Hash() != c.Entry.TreeHash {
		return catalog.Entry{}, fmt.Errorf("copy differs from the log")
	}
	return catalog.Entry{Log: to.Key(), Length: t.Length, TreeHash: t.Hash(), Time: c.Entry.Time}, nil
}

func openLog(store *core.Store, op *catalog.Operator, h pkglog.Header) (*core.Core, error) {
	m, pair, err := op.Log(h)
	if err != nil {
		return nil, err
	}
	return store.Create(m, pair)
}
