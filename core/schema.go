package core

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/cockroachdb/pebble/v2"
)

// Keys of the database. id is the core's number in this store, 4 bytes big
// endian, so that what belongs to a core stands together.
//
//	v                        format version, one byte
//	m                        primary key, 32 bytes
//	c                        the number of the next core, u32be
//	d <discovery key>        record of a core
//	a <H(namespace, name)>   discovery key of a named core
//	h <id>                   head
//	t <id> <level> <number>  tree page; number u64be
//	k <id> <block>           chunk: data of consecutive blocks of one page; u64be
//	u <id> <key>             user data
//	s <segment>              used bytes, i64be, u32be; merged by addition
//	y <id> <page>            the page's data may not be durable yet
//
// After a rebuild (rebuild.go), as long as it is not dealt with:
//
//	l <discovery key>        number of a core whose record was lost
//	f <id>                   the file of a static core is to be read
const (
	prefixVersion  = 'v'
	prefixPrimary  = 'm'
	prefixCounter  = 'c'
	prefixRecord   = 'd'
	prefixAlias    = 'a'
	prefixHead     = 'h'
	prefixPage     = 't'
	prefixChunk    = 'k'
	prefixUser     = 'u'
	prefixSegment  = 's'
	prefixUnsynced = 'y'
	prefixLost     = 'l'
	prefixFile     = 'f'
)

func aliasKey(ns Namespace, name string) []byte {
	h := keyedHash(ns[:], []byte(name))
	return append([]byte{prefixAlias}, h[:]...)
}

func segmentKey(n uint32) []byte { return binary.BigEndian.AppendUint32([]byte{prefixSegment}, n) }

func unsyncedKey(k pageKey) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32([]byte{prefixUnsynced}, k.core), k.number)
}

// addMerger adds 64-bit integers, big endian.
var addMerger = &pebble.Merger{
	Name: "pkgswarm.add",
	Merge: func(_, value []byte) (pebble.ValueMerger, error) {
		m := new(sum)
		return m, m.MergeNewer(value)
	},
}

type sum int64

func (m *sum) MergeNewer(v []byte) error {
	if len(v) != 8 {
		return fmt.Errorf("counter of %d bytes", len(v))
	}
	*m += sum(binary.BigEndian.Uint64(v))
	return nil
}

func (m *sum) MergeOlder(v []byte) error { return m.MergeNewer(v) }

func (m *sum) Finish(bool) ([]byte, io.Closer, error) {
	return binary.BigEndian.AppendUint64(nil, uint64(*m)), nil, nil
}

// get returns a copy of a value, nil if there is none.
func (s *Store) get(key []byte) ([]byte, error) { return getFrom(s.db, key) }

func getFrom(r pebble.Reader, key []byte) ([]byte, error) {
	v, closer, err := r.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer closer.Close()
	return append([]byte{}, v...), nil
}

// find is get for a key that may well not be there: that is told by the filters of
// tables alone. Pebble's Get does not look at those of the lowest level, which has
// nine of ten keys.
func (s *Store) find(key []byte) ([]byte, error) {
	it, err := s.db.NewIter(&pebble.IterOptions{UseL6Filters: true})
	if err != nil {
		return nil, err
	}
	var v []byte
	if it.SeekPrefixGE(key) { // all of a key is its prefix
		v = append([]byte{}, it.Value()...)
	}
	return v, errors.Join(it.Error(), it.Close())
}

// scan calls f with each key that begins with prefix.
func (s *Store) scan(prefix []byte, f func(k, v []byte) error) error {
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: prefixEnd(prefix)})
	if err != nil {
		return err
	}
	for ok := it.First(); ok; ok = it.Next() {
		if err := f(it.Key(), it.Value()); err != nil {
			return errors.Join(err, it.Close())
		}
	}
	return errors.Join(it.Error(), it.Close())
}

func prefixEnd(p []byte) []byte {
	end := append([]byte{}, p...)
	for i := len(end) - 1; ; i-- {
		if end[i]++; end[i] != 0 { // the first byte is a letter
			return end[:i+1]
		}
	}
}
