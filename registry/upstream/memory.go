package upstream

import (
	"errors"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
)

// A memory holds recent failures by request, so that what just failed is not
// asked again at once. It is bounded, and brief by cause. Safe for concurrent use.
type memory struct {
	entries *lru.Cache[string, failure]
}

type failure struct {
	err   *Error
	until time.Time
}

func newMemory() *memory {
	c, err := lru.New[string, failure](maxRemembered)
	if err != nil {
		panic("upstream: " + err.Error()) // the size is a positive constant
	}
	return &memory{c}
}

// recall returns the failure remembered for key, or nil.
func (m *memory) recall(key string) *Error {
	f, ok := m.entries.Get(key)
	if !ok {
		return nil
	}
	if !time.Now().Before(f.until) {
		m.entries.Remove(key)
		return nil
	}
	return f.err
}

// note remembers err for key if it is a failure worth remembering.
func (m *memory) note(key string, err error) {
	var e *Error
	if !errors.As(err, &e) {
		return
	}
	m.entries.Add(key, failure{e, time.Now().Add(rememberFor(e))})
}

func rememberFor(e *Error) time.Duration {
	switch {
	case e.Class == ErrNotFound:
		return rememberAbsent
	case e.Class == ErrUnreachable:
		return rememberFailure
	default:
		return rememberBad
	}
}
