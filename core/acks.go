package core

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A LossError says that a core has less than what was acknowledged as durable:
// the database was damaged, or an old copy of it was put back. Until the blocks
// are here again nothing is appended, because that would be another history of
// the same length, signed by the same key: peers take it for a fork and for fraud.
//
// To get on, fetch the blocks from a peer that has them; or put back a backup of
// the whole store; or give them up with [Core.Truncate], which makes a new fork.
type LossError struct {
	Core         Key
	Length, Fork uint64 // acknowledged
	Have         uint64 // blocks that the core has now
}

func (e *LossError) Error() string {
	return fmt.Sprintf("core %s: %d blocks of fork %d were acknowledged, %d are here: fetch them from a peer, put back a backup of the store, or give them up with truncate",
		e.Core.Short(), e.Length, e.Fork, e.Have)
}

// Unwrap makes the blocks that are lost count as missing.
func (e *LossError) Unwrap() error { return ErrMissing }

// An ack is a head that was acknowledged as durable.
type ack struct {
	id           uint32
	dk           DiscoveryKey
	fork, length uint64
}

func (a ack) above(b ack) bool {
	return a.fork > b.fork || a.fork == b.fork && a.length > b.length
}

// acks is the file "heads": the acknowledged heads of the cores that are signed
// here, apart from the database, so that it can be told when the database has
// lost some. It is written after the database is durable and never waited for, so
// that after a power loss it may be behind, never ahead.
//
// The core of number n has the 64 bytes at 64n, integers little endian:
//
//	discovery key, fork u64, length u64, zeros, CRC-32C of those before u32
type acks struct {
	fs   vfs.FS
	path string

	mu      sync.Mutex
	file    vfs.File // nil: not opened yet
	pending map[uint32]ack
}

const ackSize = 64

// later notes a head that the next durable commit makes durable.
func (h *acks) later(list []ack) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, a := range list {
		h.pending[a.id] = a
	}
}

// take returns what was noted.
func (h *acks) take() []ack {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := make([]ack, 0, len(h.pending))
	for _, a := range h.pending {
		list = append(list, a)
	}
	clear(h.pending)
	return list
}

// open opens the file, if it is there or to be made. h.mu is held.
func (h *acks) open(create bool) (err error) {
	if h.file != nil {
		return nil
	}
	_, err = h.fs.Stat(h.path)
	if errors.Is(err, fs.ErrNotExist) && create {
		var f vfs.File
		if f, err = h.fs.Create(h.path, vfs.WriteCategoryUnspecified); err == nil {
			err = errors.Join(f.Close(), syncDir(h.fs, h.fs.PathDir(h.path)))
		}
	}
	if err == nil {
		h.file, err = h.fs.OpenReadWrite(h.path, vfs.WriteCategoryUnspecified)
	}
	return err
}

// write stores heads that are durable now.
func (h *acks) write(list []ack) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(list) == 0 {
		return nil
	}
	if err := h.open(true); err != nil {
		return err
	}
	for _, a := range list {
		if old, ok := h.read(a.id); ok && old.dk == a.dk && !a.above(old) {
			continue // another commit was faster
		}
		b := make([]byte, ackSize)
		copy(b, a.dk[:])
		binary.LittleEndian.PutUint64(b[32:], a.fork)
		binary.LittleEndian.PutUint64(b[40:], a.length)
		binary.LittleEndian.PutUint32(b[60:], crc32.Checksum(b[:60], castagnoli))
		if _, err := h.file.WriteAt(b, int64(a.id)*ackSize); err != nil {
			return err
		}
	}
	return nil
}

// forget removes the head of a core that was deleted.
func (h *acks) forget(id uint32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.pending, id)
	if _, ok := h.read(id); ok {
		h.file.WriteAt(make([]byte, ackSize), int64(id)*ackSize)
	}
}

// get returns the head of core number id, if there is one.
func (h *acks) get(id uint32) (ack, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.read(id)
}

func (h *acks) read(id uint32) (ack, bool) {
	if h.open(false) != nil {
		return ack{}, false
	}
	b := make([]byte, ackSize)
	if n, _ := h.file.ReadAt(b, int64(id)*ackSize); n < ackSize {
		return ack{}, false
	}
	return decodeAck(id, b)
}

func decodeAck(id uint32, b []byte) (ack, bool) {
	if crc32.Checksum(b[:60], castagnoli) != binary.LittleEndian.Uint32(b[60:]) {
		return ack{}, false
	}
	a := ack{id, DiscoveryKey(b[:32]), binary.LittleEndian.Uint64(b[32:]), binary.LittleEndian.Uint64(b[40:])}
	return a, a.dk != DiscoveryKey{}
}

// from calls f with every head of the cores from number id on, in that order.
func (h *acks) from(id uint32, f func(ack)) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.open(false); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	b := make([]byte, ackSize*1024)
	for at := int64(id) * ackSize; ; {
		n, err := h.file.ReadAt(b, at)
		for i := 0; i+ackSize <= n; i += ackSize {
			if a, ok := decodeAck(uint32((at+int64(i))/ackSize), b[i:i+ackSize]); ok {
				f(a)
			}
		}
		if at += int64(n); err == io.EOF || n == 0 {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// close closes the file; with sync, what is in it survives a power loss.
func (h *acks) close(sync bool) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.file == nil {
		return nil
	}
	var err error
	if sync {
		err = h.file.SyncData()
	}
	err = errors.Join(err, h.file.Close())
	h.file = nil
	return err
}
