package core

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// loadLive reads how much of each segment is used and removes those of which
// nothing is, among them files that a crash has left behind.
func (s *Store) loadLive() error {
	err := s.scan([]byte{prefixSegment}, func(k, v []byte) error {
		if len(k) != 5 || len(v) != 8 {
			return fmt.Errorf("segment counter: %w", errMalformed)
		}
		n := binary.BigEndian.Uint32(k[1:])
		if s.seg.addLive(n, int64(binary.BigEndian.Uint64(v))) {
			return s.removeSegment(n)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return s.seg.removeUnknown()
}

// removeSegment removes a segment that nothing uses. That nothing does must be
// durable before the file goes, and with it whatever was committed till now.
func (s *Store) removeSegment(n uint32) error {
	if s.snapshots.Load() > 0 {
		return nil // the next open will
	}
	b := s.db.NewBatch()
	defer b.Close()
	if err := b.Delete(segmentKey(n), nil); err != nil {
		return err
	}
	if err := s.commit(b, true); err != nil {
		return err
	}
	return s.seg.remove(n)
}

// recover looks at the pages whose data was not synced when the store was last
// used. Blocks that did not make it are forgotten; they were never acknowledged
// as durable. The tree stays: another history of this length must not be signed.
func (s *Store) recover() error {
	var todo []pageKey
	err := s.scan([]byte{prefixUnsynced}, func(k, _ []byte) error {
		if len(k) != 13 {
			return fmt.Errorf("recovery record: %w", errMalformed)
		}
		todo = append(todo, pageKey{binary.BigEndian.Uint32(k[1:]), binary.BigEndian.Uint64(k[5:])})
		return nil
	})
	if err != nil || len(todo) == 0 {
		return err
	}
	for _, k := range todo {
		err := s.recoverPage(k)
		if _, ok := errors.AsType[*DamageError](err); ok {
			s.log.Error("page of a core is damaged", "number", k.core, "err", err) // so says whoever reads it
			continue
		}
		if err != nil {
			return fmt.Errorf("recover page %d of core number %d: %w", k.number, k.core, err)
		}
	}
	// What was found may be in the operating system's memory only, as after a
	// kill of the process.
	if _, err := s.seg.sync(); err != nil {
		return err
	}
	b := s.db.NewBatch()
	defer b.Close()
	if err := b.DeleteRange([]byte{prefixUnsynced}, []byte{prefixUnsynced + 1}, nil); err != nil {
		return err
	}
	return s.commit(b, true)
}

func (s *Store) recoverPage(k pageKey) error {
	c := &Core{store: s, id: k.core}
	if err := c.loadHead(); err != nil {
		return err
	}
	p, err := c.page(0, k.number)
	if err != nil {
		return err
	}
	ch := c.begin()
	for i := range uint64(pageBlocks) {
		if p.data>>i&1 == 0 {
			continue
		}
		block := k.number*pageBlocks + i
		at, err := c.locate(block)
		if err == nil && at.run.segment == 0 {
			continue // in the database, which is as old as the page
		}
		if err == nil {
			var data []byte
			if data, err = c.fetch(block, at); err == nil && at.holds(data) {
				s.seg.noteDirty(at.run.segment)
				continue
			}
		}
		s.log.Warn("block lost in a crash", "core", k.core, "index", block)
		if err := ch.clear(block, block+1); err != nil {
			return err
		}
	}
	return ch.commit(true)
}
