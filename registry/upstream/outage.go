package upstream

import (
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"
)

// An outage tells of an origin that fails, and of its end. The breaker lets
// requests through every [breakerPause], and each that fails opens it again; that
// is one fault and is told once in [tellEvery] (REL-17).
type outage struct {
	log *slog.Logger

	mu   sync.Mutex // taken while the breaker's own is held
	err  error      // the last failure
	told time.Time  // when the log last said that the origin fails
	open bool       // the log has said so, and not that it is over
}

// failed notes err if it speaks against the whole site.
func (o *outage) failed(err error) {
	if e, ok := errors.AsType[*Error](err); ok && e.siteDown() {
		o.mu.Lock()
		o.err = err
		o.mu.Unlock()
	}
}

func (o *outage) changed(name string, _, to gobreaker.State) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case to == gobreaker.StateOpen && (o.told.IsZero() || time.Since(o.told) >= tellEvery):
		o.log.Warn("upstream is down, trying it again every few seconds", "upstream", name, "err", o.err)
		o.told, o.open = time.Now(), true
	case to == gobreaker.StateClosed && o.open:
		o.log.Warn("upstream answers again", "upstream", name)
		o.open = false
	}
}
