package signed

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/pkgswarm/pkgswarm/internal/compact"
	"github.com/pkgswarm/pkgswarm/registry/catalog"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
)

// Mirror says what a Registry holds without having been asked for it.
//
// A catalog's history is the list of what there is to do. A keeper goes through it
// once, from the first change to the newest, several packages at a time, and then
// through what is added to it. Where it is, it keeps in the store of the logs
// itself, so that it says no more than what survives: after a restart it goes on
// there, and what lies behind is looked at again but not fetched again.
type Mirror struct {
	// Logs has the logs of all packages held, of all catalogs.
	Logs bool
	// Skip says of which packages nothing is held. May be nil.
	Skip func(h pkglog.Header) bool
	// Files, if not nil, gets the files of a package whose log is held. It may take
	// its time, and is called concurrently. [ErrLeftOut] says that there is no place
	// for some of them.
	Files func(ctx context.Context, h pkglog.Header, s *pkglog.State) error
	// FilesOf tells what Files gets from what it got before: what has been gone
	// through is gone through again when it changes.
	FilesOf string
}

var (
	// ErrLeftOut says that files were not fetched for want of room that they may take.
	ErrLeftOut = errors.New("no room for all files")
	// ErrFull says that the disk is full.
	ErrFull = errors.New("disk is full")
)

// MirrorStatus says how far a mirror of a catalog is.
type MirrorStatus struct {
	State string `json:"state"` // what it does, in a few words

	Known uint64 `json:"known"`     // packages that the catalog names
	Held  uint64 `json:"held"`      // of them, those whose logs are here
	Bytes uint64 `json:"log_bytes"` // of blocks that mirroring brought
	Late  int    `json:"late"`      // logs that no peer had; they are asked for again
	Wrong int    `json:"wrong"`     // logs that are not as the operator signed them
	Err   string `json:"error,omitempty"`

	Files *FilesStatus `json:"files,omitempty"` // nil if only logs are mirrored
}

// FilesStatus says the same of the packages' files.
type FilesStatus struct {
	State   string `json:"state"`
	Done    uint64 `json:"done"`     // packages that were gone through
	Late    int    `json:"late"`     // packages with files that no peer had
	LeftOut int    `json:"left_out"` // packages with files for which there was no room
	Err     string `json:"error,omitempty"`
}

// mirrored returns the state of the mirror, nil if there is none.
func (f *follower) mirrored() *MirrorStatus {
	if !f.r.c.Mirror.Logs {
		return nil
	}
	var st MirrorStatus
	for _, k := range f.keepers {
		p := k.progress()
		if k.files {
			st.Files = &FilesStatus{State: p.state, Done: p.done, Late: p.late, LeftOut: p.leftOut, Err: p.err}
			continue
		}
		st.State, st.Known, st.Held, st.Bytes = p.state, p.known, p.done, p.bytes
		st.Late, st.Wrong, st.Err = p.late, p.wrong, p.err
	}
	return &st
}

// newKeepers returns what keeps logs and files of f's catalog.
func newKeepers(f *follower) []*keeper {
	c := &f.r.c
	logs := &keeper{f: f, r: f.r, name: "refreshed", workers: logWorkers, work: f.r.keepLog, goal: f.current, news: make(chan struct{}, 1)}
	if !c.Mirror.Logs {
		return []*keeper{logs}
	}
	logs.name = "mirrored"
	if c.Mirror.Files == nil {
		return []*keeper{logs}
	}
	// Files wait until all logs are here: those are small, and what can be looked up.
	files := &keeper{f: f, r: f.r, name: "files " + c.Mirror.FilesOf, files: true, workers: fileWorkers,
		work: f.r.keepFiles, goal: logs.reached, news: make(chan struct{}, 1)}
	logs.then = files
	return []*keeper{logs, files}
}

// keepLog brings a log up to what e says, if it is to be held, and returns the bytes
// that were added to it.
func (r *Registry) keepLog(ctx context.Context, h pkglog.Header, e catalog.Entry) (bytes uint64, err error) {
	before := uint64(0)
	if log, err := r.c.Peers.Held(e.Log); err == nil {
		before = log.Tree().ByteLength()
		length := log.Tree().Length
		log.Close()
		if length == 0 && !r.c.Mirror.Logs {
			return 0, nil
		}
	} else if !r.c.Mirror.Logs {
		return 0, nil
	}
	s, err := r.foldHeld(ctx, e, h)
	if errors.Is(err, fs.ErrNotExist) {
		if err = r.hold(ctx, e, h); err == nil {
			s, err = r.foldHeld(ctx, e, h)
		}
	}
	if err != nil {
		return 0, err
	}
	if log, err := r.whole(e); err == nil {
		if after := log.Tree().ByteLength(); after > before {
			bytes = after - before
		}
		log.Close()
	}
	if r.c.Kept != nil {
		r.c.Kept(h, s)
	}
	return bytes, nil
}

// hold downloads a log that is not here, or not all of it.
func (r *Registry) hold(ctx context.Context, e catalog.Entry, h pkglog.Header) error {
	log, err := r.c.Peers.Replica(e.Log)
	if err != nil {
		return err
	}
	defer log.Close()
	ctx, cancel := context.WithTimeout(ctx, logDeadline)
	defer cancel()
	return operatorFault(r.bring(ctx, log, e, h, headDeadline))
}

// foldHeld is readHeld for keepers. What a log folds to may be large, so that few are
// folded at once.
func (r *Registry) foldHeld(ctx context.Context, e catalog.Entry, h pkglog.Header) (*pkglog.State, error) {
	select {
	case r.folding <- struct{}{}:
		defer func() { <-r.folding }()
		return r.readHeld(ctx, e, h)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// keepFiles gets the files of a package.
func (r *Registry) keepFiles(ctx context.Context, h pkglog.Header, e catalog.Entry) (uint64, error) {
	s, err := r.foldHeld(ctx, e, h)
	if err != nil {
		return 0, err
	}
	return 0, r.c.Mirror.Files(ctx, h, s)
}

// A place is where a keeper is: all changes of the catalog before seq are dealt
// with, which has brought that many bytes.
type place struct{ seq, bytes uint64 }

func (p place) encode() []byte {
	return compact.AppendUint(compact.AppendUint(compact.AppendUint(nil, 1), p.seq), p.bytes)
}

// decodePlace reads a place; ok is false if there is none, or none that is understood.
func decodePlace(b []byte) (p place, ok bool) {
	d := compact.NewDecoder(b)
	version := d.Uint()
	p.seq, p.bytes = d.Uint(), d.Uint()
	return p, d.Err() == nil && version == 1
}

// loadPlace returns where the keeper was, which may be nowhere yet.
func (k *keeper) loadPlace(s *catalog.Snapshot) (place, error) {
	c, err := k.r.c.Peers.Held(s.Key)
	if err != nil {
		return place{}, err
	}
	defer c.Close()
	b, err := c.UserData(k.name)
	if err != nil {
		return place{}, fmt.Errorf("where the mirror was: %w", err)
	}
	p, ok := decodePlace(b)
	if !ok && !k.r.c.Mirror.Logs {
		p.seq = s.Length // nothing was held before
	}
	return p, nil
}

// savePlace keeps p beside the catalog key. It need not be durable at once: it never
// is before what it stands for.
func (k *keeper) savePlace(p place) error {
	c, err := k.r.c.Peers.Held(k.key)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.SetUserData(k.name, p.encode())
}

// saidEvery is the interval between lines of progress in the log.
const saidEvery = 30 * time.Second

// say tells how far the keeper is, now and then while it works, and once it is done.
func (k *keeper) say(done bool) {
	now := time.Now()
	if !k.r.c.Mirror.Logs || !done && now.Sub(k.said) < saidEvery {
		return
	}
	p := k.progress()
	what := "logs"
	if k.files {
		what = "files"
	}
	elapsed := now.Sub(k.said).Seconds()
	k.r.c.Logger.Info("mirroring", "what", what, "core", k.key.Short(), "state", p.state, "held", p.done, "known", p.known,
		"bytes", p.bytes, "late", p.late, "wrong", p.wrong, "rate", fmt.Sprintf("%.0f/s", float64(p.done-min(k.saidDone, p.done))/max(elapsed, 1e-3)))
	k.said, k.saidDone = now, p.done
}
