package signed

import (
	"context"
	"fmt"

	"github.com/pkgswarm/pkgswarm/registry/pkglog"
)

// LastEvent returns the block of the last event of a's log for which match is
// true, and what kind of event it is; 0 if there is none. It reads the log as far
// as a's catalog names it.
func (r *Registry) LastEvent(ctx context.Context, a *Answer, match func(*pkglog.Event) bool) (block uint64, kind pkglog.Kind, err error) {
	log, err := r.open(a.Entry)
	if err != nil {
		return 0, 0, err
	}
	defer log.Close()
	h := a.State.Header()
	s := pkglog.NewState(h)
	for i := uint64(1); i < a.Entry.Length; i++ {
		b, err := log.Get(ctx, i)
		if err != nil {
			return 0, 0, fmt.Errorf("log of %s: %w", h.Name(), err)
		}
		e, err := s.Apply(b)
		if err != nil {
			return 0, 0, fmt.Errorf("log of %s: block %d: %w", h.Name(), i, err)
		}
		if match(&e) {
			block, kind = i, e.Kind
		}
	}
	return block, kind, nil
}
