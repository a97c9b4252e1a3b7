package signed

import (
	"context"
	"encoding/hex"
	"errors"
	"io/fs"
	"slices"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/registry/catalog"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
)

// A Held is what is here of a core. *core.Core is one. Its methods may be called
// concurrently; none of them asks a peer.
type Held interface {
	catalog.Core
	// NextAbsent returns the first block in [from, end) that is not here, or end.
	NextAbsent(from, end uint64) (uint64, error)
	// SetUserData keeps a value beside the core, not before what was stored before.
	SetUserData(name string, value []byte) error
	UserData(name string) ([]byte, error)
	Close() error
}

var _ Held = (*core.Core)(nil)

// whole opens the log that e names if all of it is here, as far as e says. The error
// matches fs.ErrNotExist if not.
func (r *Registry) whole(e catalog.Entry) (Held, error) {
	log, err := r.c.Peers.Held(e.Log)
	if err != nil {
		return nil, err
	}
	if log.Tree().Length < e.Length {
		err = fs.ErrNotExist
	} else if absent, absentErr := log.NextAbsent(0, e.Length); absentErr != nil || absent < e.Length {
		err = errors.Join(fs.ErrNotExist, absentErr)
	}
	if err != nil {
		log.Close()
		return nil, err
	}
	return log, nil
}

// readHeld folds the log that e names from what is here. The error matches
// fs.ErrNotExist if that is not all of it.
func (r *Registry) readHeld(ctx context.Context, e catalog.Entry, h pkglog.Header) (*pkglog.State, error) {
	log, err := r.whole(e)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	s, err := catalog.ReadLog(ctx, log, e, h)
	if _, damaged := errors.AsType[*core.DamageError](err); damaged {
		return nil, errors.Join(fs.ErrNotExist, err) // peers may have what was lost
	}
	return s, operatorFault(err)
}

// open opens the log that e names: what is here, or all that peers have where
// something of it is missing.
func (r *Registry) open(e catalog.Entry) (interface {
	Get(ctx context.Context, i uint64) ([]byte, error)
	Close() error
}, error) {
	if log, err := r.whole(e); err == nil {
		return log, nil
	}
	return r.c.Peers.Replica(e.Log)
}

// operatorFault makes an error match ErrOperator if only who signed a log can have
// caused it.
func operatorFault(err error) error {
	for _, fault := range []error{catalog.ErrFork, ErrConflict, pkglog.ErrMalformed, pkglog.ErrTooLarge} {
		if errors.Is(err, fault) {
			return errors.Join(ErrOperator, err)
		}
	}
	return err
}

// A File is the file of a version as a log names it.
type File struct {
	Version  string
	Artifact pkglog.Artifact
}

// Files returns the files of the versions that a package has now, of those that
// somebody had when they were signed.
func Files(s *pkglog.State) []File {
	var all []File
	add := func(version string, digest []byte) {
		for _, a := range s.Artifacts(version) {
			if string(a.Digest[:]) == string(digest) {
				all = append(all, File{version, a})
			}
		}
	}
	for _, b := range s.Lines() {
		l := parseLine(b)
		if sum, err := hex.DecodeString(l.Cksum); err == nil {
			add(l.Vers, sum)
		}
	}
	for _, v := range s.Versions() {
		add(v, s.Module(v).ZipHash[:])
	}
	slices.Reverse(all) // the newest are asked for most
	return all
}
