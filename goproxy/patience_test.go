package goproxy

import (
	"context"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/tlog"
)

// A hangingDB answers nothing.
type hangingDB struct{}

func (hangingDB) Name() string { return "sum.test" }
func (hangingDB) Answer(ctx context.Context, _ module.Version) ([]byte, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}
func (hangingDB) Latest(ctx context.Context) ([]byte, error) { <-ctx.Done(); return nil, ctx.Err() }
func (hangingDB) Tile(ctx context.Context, _ tlog.Tile) ([]byte, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// openModules has no secrets.
type openModules struct{ Modules }

func (openModules) Secret(string) bool { return false }

// REL-9: a hanging database costs a client less than 10 s, and is no absence.
func TestHangingDatabase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := New(Config{Modules: openModules{}, SumDB: hangingDB{}})
		for _, path := range []string{"lookup/example.com/a@v1.0.0", "latest", "tile/8/0/000"} {
			start := time.Now()
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest("GET", "/sumdb/sum.test/"+path, nil))
			if d := time.Since(start); w.Code != 504 || d > 10*time.Second {
				t.Errorf("%s: %d after %v, want 504", path, w.Code, d)
			}
		}
	})
}

// A context that nobody waits for has no timer; one that somebody waits for ends
// like any other. REL-9
func TestPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type key struct{}
		parent, stop := context.WithCancel(context.WithValue(t.Context(), key{}, 1))
		ctx := withPatience(parent, time.Second)
		defer ctx.cancel()
		if ctx.waited != nil || ctx.Value(key{}) != 1 {
			t.Error("a new context has a timer, or no values")
		}
		child, cancelChild := context.WithCancel(ctx)
		defer cancelChild()
		start := time.Now()
		<-child.Done()
		if d := time.Since(start); d != time.Second || child.Err() != context.DeadlineExceeded {
			t.Errorf("ended after %v: %v", d, child.Err())
		}

		ctx = withPatience(parent, time.Second)
		ctx.cancel()
		if ctx.Err() != context.Canceled {
			t.Errorf("canceled before somebody waited: %v", ctx.Err())
		}
		ctx = withPatience(parent, time.Second)
		defer ctx.cancel()
		if ctx.Err() != nil {
			t.Error(ctx.Err())
		}
		stop()
		if <-ctx.Done(); ctx.Err() != context.Canceled {
			t.Errorf("with its parent: %v", ctx.Err())
		}
		early, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		ctx = withPatience(early, time.Hour)
		defer ctx.cancel()
		if until, ok := ctx.Deadline(); !ok || time.Until(until) != time.Minute {
			t.Errorf("Deadline = %v, want the parent's", until)
		}
	})
}
