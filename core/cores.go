package core

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"iter"

	"github.com/cockroachdb/pebble/v2"
)

// lookup returns the record of a core. The error matches [fs.ErrNotExist] when
// the store does not have it.
func (s *Store) lookup(dk DiscoveryKey) (record, error) {
	b, err := s.find(append([]byte{prefixRecord}, dk[:]...))
	if pebble.IsCorruptionError(err) {
		return record{}, fmt.Errorf("record of the core with discovery key %s is damaged: %w", dk, firstLine{err})
	}
	if err != nil {
		return record{}, err
	}
	if b == nil {
		return record{}, fmt.Errorf("core with discovery key %s: %w", dk.String()[:8], fs.ErrNotExist)
	}
	return decodeRecord(b)
}

// Named opens the core of that name in the root namespace; see
// [Store.NamedIn].
func (s *Store) Named(name string) (*Core, error) { return s.NamedIn(Namespace{}, name) }

// NamedIn opens the writable core of that name, which is made if it is not
// there. Its key pair derives from the store's primary key as in the reference's
// corestore, so that stores with one primary key give equal names equal keys.
func (s *Store) NamedIn(ns Namespace, name string) (*Core, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	alias := aliasKey(ns, name)
	b, err := s.get(alias)
	if err != nil {
		return nil, fmt.Errorf("open core %q: %w", name, err)
	}
	var dk DiscoveryKey
	if len(b) == len(dk) {
		dk = DiscoveryKey(b)
	} else {
		m := SingleSigner(DeriveKeyPair(s.primary, ns, name).Public())
		key := m.Key()
		dk = key.Discovery()
		r := record{key: key, manifest: &m, named: true, namespace: ns, name: name}
		if _, err := s.lookup(dk); errors.Is(err, fs.ErrNotExist) {
			if err := s.create(dk, &r, alias); err != nil {
				return nil, fmt.Errorf("create core %q: %w", name, err)
			}
		} else if err := s.rename(dk, r, alias); err != nil {
			return nil, fmt.Errorf("name core %q: %w", name, err)
		}
	}
	return s.openLocked(dk)
}

// NamedExisting opens the core of that name. The error matches [fs.ErrNotExist] if
// the store does not have it.
func (s *Store) NamedExisting(ns Namespace, name string) (*Core, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := s.get(aliasKey(ns, name))
	if err != nil {
		return nil, err
	}
	if len(b) != 32 {
		return nil, fmt.Errorf("core %q: %w", name, fs.ErrNotExist)
	}
	return s.openLocked(DiscoveryKey(b))
}

// rename makes a core that was opened by its key before known by its name.
func (s *Store) rename(dk DiscoveryKey, r record, alias []byte) error {
	old, err := s.lookup(dk)
	if err != nil {
		return err
	}
	r.id = old.id
	b := s.db.NewBatch()
	defer b.Close()
	b.Set(append([]byte{prefixRecord}, dk[:]...), r.encode(), nil)
	b.Set(alias, dk[:], nil)
	if err := s.commit(b, false); err != nil {
		return err
	}
	if c := s.cores[dk]; c != nil {
		c.setRecord(r)
	}
	return nil
}

// create stores a new core under r, which gets the next number, or that which it
// had before its record was lost.
func (s *Store) create(dk DiscoveryKey, r *record, alias []byte) error {
	b := s.db.NewBatch()
	defer b.Close()
	id, old := s.lost[dk]
	if r.id = id; old {
		b.Delete(append([]byte{prefixLost}, dk[:]...), nil)
	} else {
		r.id = s.nextID
		b.Set([]byte{prefixCounter}, binary.BigEndian.AppendUint32(nil, r.id+1), nil)
	}
	b.Set(append([]byte{prefixRecord}, dk[:]...), r.encode(), nil)
	if alias != nil {
		b.Set(alias, dk[:], nil)
	}
	if err := s.commit(b, false); err != nil {
		return err
	}
	if delete(s.lost, dk); !old {
		s.nextID++
	}
	return nil
}

// Open opens the core key, an empty replica if the store does not have it.
func (s *Store) Open(key Key) (*Core, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	dk := key.Discovery()
	if _, err := s.lookup(dk); errors.Is(err, fs.ErrNotExist) {
		if err := s.create(dk, &record{key: key}, nil); err != nil {
			return nil, fmt.Errorf("create core %s: %w", key.Short(), err)
		}
	}
	return s.openLocked(dk)
}

// OpenExisting opens the core key. The error matches [fs.ErrNotExist] if the
// store does not have it.
func (s *Store) OpenExisting(key Key) (*Core, error) { return s.ByDiscovery(key.Discovery()) }

// ByDiscovery opens the core with that discovery key. The error matches
// [fs.ErrNotExist] if the store does not have it.
func (s *Store) ByDiscovery(dk DiscoveryKey) (*Core, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.openLocked(dk)
}

// Create opens the core whose manifest is m, making it if it is not there. It is
// writable with as many of the signers' key pairs as m's quorum needs; the pairs
// are not stored. The error matches [ErrManifest] for a manifest that nobody
// could ever satisfy.
func (s *Store) Create(m Manifest, pairs ...KeyPair) (*Core, error) {
	return s.createWith(m.Key(), m, pairs...)
}

// CreateCompat opens the core whose key is the public key of its only signer, as
// old cores are.
func (s *Store) CreateCompat(pair KeyPair) (*Core, error) {
	m := compatManifest(Key(pair.Public()))
	return s.createWith(Key(pair.Public()), m, pair)
}

// compatManifest is the manifest of a core whose key is a public key.
func compatManifest(key Key) Manifest {
	m := SingleSigner(PublicKey(key))
	m.Version = 0
	return m
}

func (s *Store) createWith(key Key, m Manifest, pairs ...KeyPair) (*Core, error) {
	if err := m.Validate(); err != nil {
		return nil, fmt.Errorf("create core: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	dk := key.Discovery()
	fresh := false
	r, err := s.lookup(dk)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		fresh, r = true, record{key: key, manifest: &m}
		err = s.create(dk, &r, nil)
	case err == nil && r.manifest == nil:
		r.manifest = &m
		err = s.set(append([]byte{prefixRecord}, dk[:]...), r.encode(), false)
		if c := s.cores[dk]; c != nil {
			c.setRecord(r)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("create core %s: %w", key.Short(), err)
	}
	c, err := s.openRecord(dk, r, fresh)
	if err != nil {
		return nil, err
	}
	if len(pairs) > 0 {
		c.mu.Lock()
		c.pairs = pairs
		c.mu.Unlock()
	}
	return c, nil
}

// openLocked returns the open core, or opens it. s.mu is held.
func (s *Store) openLocked(dk DiscoveryKey) (*Core, error) {
	if c := s.cores[dk]; c != nil {
		c.refs++
		return c, nil
	}
	if s.closed {
		return nil, ErrClosed
	}
	r, err := s.lookup(dk)
	if err != nil {
		return nil, err
	}
	return s.openRecord(dk, r, false)
}

// openRecord returns the open core, or opens the one that r is about, which has
// just been made if it is fresh. s.mu is held.
func (s *Store) openRecord(dk DiscoveryKey, r record, fresh bool) (*Core, error) {
	if s.closed {
		return nil, ErrClosed
	}
	if c := s.cores[dk]; c != nil {
		c.refs++
		return c, nil
	}
	c := &Core{store: s, id: r.id, rec: r, discovery: dk, refs: 1}
	if !fresh {
		if err := c.loadHead(); err != nil {
			return nil, fmt.Errorf("open core %s: %w", r.key.Short(), err)
		}
	}
	if a, ok := s.acks.get(c.id); ok && a.dk == dk {
		c.acked = a
	}
	if s.unread[c.id] {
		if err := s.readAgain(c); err != nil {
			return nil, fmt.Errorf("open core %s: %w", r.key.Short(), err)
		}
	}
	if err := c.loss(); err != nil {
		s.log.Error("core is shorter than it was", "core", r.key.Short(), "err", err)
	}
	s.cores[dk] = c
	return c, nil
}

// release is Core.Close.
func (s *Store) release(c *Core) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.refs--; c.refs == 0 && s.cores[c.discovery] == c {
		delete(s.cores, c.discovery)
		c.shut()
	}
}

// Cores yields the keys of all cores, in the order of their discovery keys.
func (s *Store) Cores() iter.Seq2[Key, error] {
	return func(yield func(Key, error) bool) {
		stop := errors.New("stop")
		err := s.scan([]byte{prefixRecord}, func(_, v []byte) error {
			r, err := decodeRecord(v)
			if !yield(r.key, err) {
				return stop
			}
			return nil
		})
		if err != nil && !errors.Is(err, stop) {
			yield(Key{}, err)
		}
	}
}

// Delete removes the core key and all it has here; the file of a static core
// stays. It must not be open.
func (s *Store) Delete(key Key) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	dk := key.Discovery()
	if s.cores[dk] != nil {
		return fmt.Errorf("delete core %s: it is open", key.Short())
	}
	r, err := s.lookup(dk)
	if err != nil {
		return err
	}
	c, err := s.openLocked(dk)
	if err != nil {
		return err
	}
	delete(s.cores, dk)
	ch := c.begin()
	if err := ch.clear(0, c.head.tree.Length); err != nil {
		ch.abort()
		return err
	}
	for _, p := range []byte{prefixHead, prefixPage, prefixChunk, prefixUser, prefixUnsynced} {
		lo := binary.BigEndian.AppendUint32([]byte{p}, r.id)
		ch.b.DeleteRange(lo, binary.BigEndian.AppendUint32([]byte{p}, r.id+1), nil)
	}
	ch.b.Delete(append([]byte{prefixRecord}, dk[:]...), nil)
	if r.named {
		ch.b.Delete(aliasKey(r.namespace, r.name), nil)
	}
	ch.deleted = true
	if err := ch.commit(true); err != nil {
		return err
	}
	s.acks.forget(r.id)
	return nil
}
