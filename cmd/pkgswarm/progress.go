package main

import (
	"encoding/json"
	"sync/atomic"
	"time"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/schollz/progressbar/v3"
)

// A progress shows how many blocks have arrived: a bar on a terminal, or JSON.
type progress struct{ end func() }

func (f *coreFlags) progress(c *core.Core, r blockRange) *progress {
	total := int64(0)
	for i := r.from; i < min(r.to, c.Length()); {
		absent, err := c.NextAbsent(i, min(r.to, c.Length()))
		if err != nil {
			break
		}
		present, err := c.NextPresent(absent, min(r.to, c.Length()))
		if err != nil {
			break
		}
		total += int64(present - absent)
		i = present
	}
	var got atomic.Int64
	stop := c.Watch(func(e core.Event) {
		if e.Kind == core.Arrived {
			got.Add(int64(e.End - e.Start))
		}
	})
	show, finish := func() {}, func() {}
	switch {
	case f.json:
		show = func() {
			json.NewEncoder(f.s.out).Encode(map[string]int64{"blocks": min(got.Load(), total), "of": total})
		}
	case isTerminal(f.s.err) && total > 0:
		bar := progressbar.NewOptions64(total, progressbar.OptionSetWriter(f.s.err), progressbar.OptionShowIts(),
			progressbar.OptionSetItsString("blocks"), progressbar.OptionClearOnFinish(), progressbar.OptionSetPredictTime(true))
		show = func() { bar.Set64(min(got.Load(), total)) }
		finish = func() { bar.Finish() }
	}
	ended, gone := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ended:
				show()
				finish()
				return
			case <-tick.C:
				show()
			}
		}
	}()
	var once atomic.Bool
	return &progress{func() {
		if once.Swap(true) {
			return
		}
		stop()
		close(ended)
		<-gone
	}}
}
