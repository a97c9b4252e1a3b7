package importer

import (
	"context"
	"fmt"
	"iter"

	"github.com/pkgswarm/pkgswarm/registry/catalog"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
)

// A logWriter appends events to one package's log.
type logWriter struct {
	key     string // in the catalog
	log     Log
	state   *pkglog.State
	entry   catalog.Entry // in the catalog; Length is 0 if there is none
	durable bool          // each append; see [Config.Served]
}

// openLog opens and folds the log of h. A log that has fewer blocks than the
// catalog says, or others, is one of a restored backup: appending to it would
// fork it. SEC-16
func (r *run) openLog(ctx context.Context, h pkglog.Header) (*logWriter, error) {
	key, err := catalog.PackageKey(h)
	if err != nil {
		return nil, err
	}
	log, err := r.c.Logs.Log(h)
	if err != nil {
		return nil, err
	}
	// The key of a log that has no block yet follows from the seed alone: nobody
	// can ask for it before the catalog names it, and it is synced by then.
	w := &logWriter{key: key, log: log, durable: r.c.Served && log.Tree().Length > 0}
	if err := r.fold(ctx, w, h); err != nil {
		log.Close()
		return nil, err
	}
	return w, nil
}

func (r *run) fold(ctx context.Context, w *logWriter, h pkglog.Header) error {
	length := w.log.Tree().Length
	var err error
	if w.entry, _, err = r.c.Catalog.Entry(ctx, w.key); err != nil {
		return err
	}
	if err := catalog.CheckExtends(w.log, w.entry.Length, w.entry.TreeHash); err != nil {
		return err
	}
	if length == 0 {
		w.state = pkglog.NewState(h)
		return nil
	}
	w.state, err = pkglog.Fold(h, blocks(ctx, w.log, length))
	return err
}

// blocks yields the first n blocks of a log.
func blocks(ctx context.Context, log catalog.Core, n uint64) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for i := range n {
			b, err := log.Get(ctx, i)
			if !yield(b, err) || err != nil {
				return
			}
		}
	}
}

// append appends events in one step, after the header if the log is new.
func (w *logWriter) append(events []pkglog.Event, res *result) error {
	if len(events) == 0 {
		return nil
	}
	var bs [][]byte
	if w.log.Tree().Length == 0 {
		bs = append(bs, w.state.Header().Encode())
	}
	for _, e := range events {
		b, err := w.state.Append(e)
		if err != nil {
			return err
		}
		bs = append(bs, b)
	}
	add := w.log.AppendLazy
	if w.durable {
		add = w.log.Append
	}
	n, err := add(bs...)
	if err != nil {
		return err
	}
	if n != w.state.Length() {
		return fmt.Errorf("log has %d blocks, folded %d", n, w.state.Length())
	}
	res.events += len(bs)
	return nil
}

func (w *logWriter) close() { w.log.Close() }
