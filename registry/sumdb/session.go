package sumdb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

// A session is one look-up by a client of x/mod/sumdb of its own. The state that
// must last is the DB's, under the session: the kept tree, records and tiles. A
// client that lasted would remember every failure, and every tile, for ever.
//
// It implements [sumdb.ClientOps], which has neither contexts nor error types:
// the session carries them around it.
type session struct {
	db    *DB
	ctx   context.Context // of this look-up
	fresh bool            // use only what is fetched now

	cached atomic.Bool // something was not fetched for this look-up
	forked atomic.Bool

	mu     sync.Mutex
	answer []byte               // the record asked for, as it was verified
	loaded map[tlog.Tile][]byte // tiles from disk, proven if the look-up succeeds
	err    error                // of the first request that failed
}

func (s *session) lookup(m module.Version, key string) (Record, error) {
	_, err := sumdb.NewClient(s).Lookup(m.Path, m.Version)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.forked.Load():
		return Record{}, ErrFork
	case err != nil && s.ctx.Err() != nil:
		return Record{}, &upstream.Error{URL: s.db.name, Class: upstream.ErrUnreachable, Err: s.ctx.Err()}
	case err != nil && s.err != nil:
		return Record{}, s.err
	case err != nil:
		return Record{}, fmt.Errorf("%w: %s", ErrMismatch, firstLine(err.Error()))
	}
	id, text, _, err := tlog.ParseRecord(s.answer)
	if err != nil {
		return Record{}, fmt.Errorf("%w: %w", ErrMismatch, err)
	}
	r, err := newRecord(m, id, text)
	if err != nil {
		s.db.cache.Remove(s.db.cacheKey("lookup/" + key))
		return Record{}, err
	}
	for t, data := range s.loaded {
		s.db.remember(t, data)
	}
	return r, nil
}

// firstLine keeps a whole signed note out of an error message.
func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}

// ReadRemote implements [sumdb.ClientOps].
func (s *session) ReadRemote(path string) ([]byte, error) {
	var data []byte
	var err error
	if strings.HasPrefix(path, "/tile/") {
		data, err = s.db.remote.tile(s.ctx, path, s.fresh)
		s.cached.Store(true) // perhaps not fetched for this look-up
	} else {
		data, err = s.db.remote.get(s.ctx, path)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		// A partial tile that is gone is asked for in full next.
		if s.err == nil && !(strings.HasPrefix(path, "/tile/") && errors.Is(err, upstream.ErrNotFound)) {
			s.err = err
		}
		return nil, err
	}
	if t, err := tlog.ParseTilePath(path[1:]); err == nil && len(data) != t.W*tlog.HashSize {
		return nil, fmt.Errorf("tile %s has %d bytes", path, len(data))
	}
	if strings.HasPrefix(path, "/lookup/") {
		s.answer = data
	}
	return data, nil
}

// ReadConfig implements [sumdb.ClientOps].
func (s *session) ReadConfig(file string) ([]byte, error) {
	switch file {
	case "key":
		return []byte(s.db.key), nil
	case s.db.name + "/latest":
		_, signed := s.db.head.load()
		return signed, nil
	}
	return nil, fmt.Errorf("unknown configuration %q", file)
}

// WriteConfig implements [sumdb.ClientOps].
func (s *session) WriteConfig(file string, old, new []byte) error {
	if file != s.db.name+"/latest" {
		return fmt.Errorf("unknown configuration %q", file)
	}
	err := s.db.head.swap(old, new)
	if err != nil && err != sumdb.ErrWriteConflict {
		s.mu.Lock()
		s.err = err
		s.mu.Unlock()
	}
	return err
}

// ReadCache implements [sumdb.ClientOps]. A record comes with the kept tree, to
// which it is then proven.
func (s *session) ReadCache(file string) ([]byte, error) {
	name := strings.TrimPrefix(file, s.db.name+"/")
	if t, err := tlog.ParseTilePath(name); err == nil {
		return s.readTile(t)
	}
	if s.fresh {
		return nil, fs.ErrNotExist
	}
	data, err := s.db.cache.Get(s.db.cacheKey(name))
	if err != nil {
		return nil, err
	}
	id, text, _, err := tlog.ParseRecord(data)
	if err != nil {
		return nil, err
	}
	if tree, signed := s.db.head.load(); id < tree.N {
		if data, err = tlog.FormatRecord(id, text); err != nil {
			return nil, err
		}
		data = append(data, signed...)
	}
	s.cached.Store(true)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = data
	return data, nil
}

func (s *session) readTile(t tlog.Tile) ([]byte, error) {
	if s.fresh {
		return nil, fs.ErrNotExist
	}
	if data, ok := s.db.recall(t); ok {
		s.cached.Store(true)
		return data, nil
	}
	wide, err := s.db.load(t)
	if err != nil {
		return nil, err
	}
	s.cached.Store(true)
	data := wide[:t.W*tlog.HashSize]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.loaded == nil {
		s.loaded = map[tlog.Tile][]byte{}
	}
	s.loaded[t] = data
	return data, nil
}

// WriteCache implements [sumdb.ClientOps]. It is called with what was verified.
func (s *session) WriteCache(file string, data []byte) {
	name := strings.TrimPrefix(file, s.db.name+"/")
	if t, err := tlog.ParseTilePath(name); err == nil {
		s.db.save(t, data)
		return
	}
	if err := s.db.cache.Put(s.db.cacheKey(name), bytes.Clone(data)); err != nil {
		s.db.log.Warn("checksum record not kept", "err", err)
	}
}

// Log implements [sumdb.ClientOps].
func (s *session) Log(msg string) { s.db.log.Debug("checksum database client", "msg", msg) }

// SecurityError implements [sumdb.ClientOps].
func (s *session) SecurityError(msg string) {
	s.forked.Store(true)
	s.db.reportFork(msg)
}
