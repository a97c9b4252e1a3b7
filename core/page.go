package core

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/bits"

	"github.com/pkgswarm/pkgswarm/core/merkle"
	"github.com/pkgswarm/pkgswarm/internal/flattree"
)

// Tree nodes are stored in pages. A page of level L and number n holds the
// complete subtree of 32 nodes of depth 6L, its leaves here, and what joins
// them: 63 nodes of six depths, numbered from 0 as a flat tree of their own. A
// node above two known ones is computed, not stored, so that a page of a writer
// holds 32 hashes.
//
// The pages of level 0 also say where the data of their blocks is.
const (
	pageBlocks = 32
	pageDepths = 6
	pageNodes  = 2*pageBlocks - 1
)

// pageOf returns where node index is stored.
func pageOf(index uint64) (level uint8, number uint64, local int) {
	d, o := flattree.Depth(index), flattree.Offset(index)
	level = uint8(d / pageDepths)
	ld := d % pageDepths
	shift := pageDepths - 1 - ld
	return level, o >> shift, int(flattree.Index(ld, o&(1<<shift-1)))
}

// globalIndex is the inverse of pageOf.
func globalIndex(level uint8, number uint64, local int) uint64 {
	ld := flattree.Depth(uint64(local))
	o := number<<(pageDepths-1-ld) + flattree.Offset(uint64(local))
	return flattree.Index(int(level)*pageDepths+ld, o)
}

// A run says where the data of consecutive blocks of a page is.
type run struct {
	first, count uint8  // blocks of the page, from 0
	chunk        uint8  // segment 0: the block after which the database's chunk is named
	segment      uint32 // 0: a chunk in the database; else the number of a segment file
	offset       uint64 // of the first block's first byte in the chunk or file
}

func (r run) end() uint8 { return r.first + r.count }

// A pageNode is a node of a page; its index follows from its place.
type pageNode struct {
	size uint64
	hash merkle.Hash
}

// A page in memory. Changes are made to a copy; what is computed is remembered
// in place, under the lock of the core that the page belongs to.
type page struct {
	known uint64 // bit i: nodes[i] is valid
	data  uint32 // bit i: the data of block i is here
	nodes [pageNodes]pageNode
	runs  []run

	// What is not stored: checksums of blocks whose data was written or verified
	// against the tree since the store was opened. They take a tenth of the time.
	summed uint32 // bit i: sums[i] is valid
	sums   [pageBlocks]uint32
}

// summedBytes is the size from which on blocks get checksums, in bytes.
const summedBytes = 4 << 10

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sum remembers the checksum of the data of block i, which is known to be right.
func (p *page) sum(i uint8, data []byte) {
	if len(data) >= summedBytes {
		p.sums[i] = crc32.Checksum(data, castagnoli)
		p.summed |= 1 << i
	}
}

// node returns node i if it is known or follows from known ones.
func (p *page) node(i int) (pageNode, bool) {
	if p.known>>i&1 != 0 {
		return p.nodes[i], true
	}
	if i&1 == 0 {
		return pageNode{}, false
	}
	li, ri := flattree.LeftChild(uint64(i)), flattree.RightChild(uint64(i))
	l, ok := p.node(int(li))
	if !ok {
		return pageNode{}, false
	}
	r, ok := p.node(int(ri))
	if !ok {
		return pageNode{}, false
	}
	// The numbers of siblings matter for their order only.
	n := merkle.Parent(merkle.Node{Index: li, Size: l.size, Hash: l.hash}, merkle.Node{Index: ri, Size: r.size, Hash: r.hash})
	p.set(i, pageNode{n.Size, n.Hash})
	return p.nodes[i], true
}

func (p *page) set(i int, n pageNode) {
	if i&1 == 0 && p.nodes[i].hash != n.hash {
		p.summed &^= 1 << (i / 2)
	}
	p.nodes[i] = n
	p.known |= 1 << i
}

// stored returns the known nodes that do not follow from others.
func (p *page) stored() uint64 {
	mask := p.known
	for rest := p.known & oddNodes; rest != 0; rest &= rest - 1 {
		i := bits.TrailingZeros64(rest)
		l, r := flattree.LeftChild(uint64(i)), flattree.RightChild(uint64(i))
		if p.known>>l&1 != 0 && p.known>>r&1 != 0 {
			mask &^= 1 << i
		}
	}
	return mask
}

const oddNodes = 0x2aaaaaaaaaaaaaaa

// empty reports whether p says nothing.
func (p *page) empty() bool { return p.known == 0 && p.data == 0 }

// location returns the run that has block i and the position of the block in
// its chunk or file. The block's data must be here.
func (p *page) location(i uint8) (r run, offset uint64, ok bool) {
	for _, r := range p.runs {
		if r.first <= i && i < r.end() {
			offset = r.offset
			for b := r.first; b < i; b++ {
				offset += p.nodes[2*b].size
			}
			return r, offset, true
		}
	}
	return run{}, 0, false
}

// drop forgets the data of the blocks [lo, hi) and returns the runs, or parts of
// runs, that are not used any more. Chunks that no run names are returned by
// their blocks.
func (p *page) drop(lo, hi uint8) (gone []run, chunks []uint8) {
	before := p.runs
	p.runs = nil
	for _, r := range before {
		for part, keep := range p.split(r, lo, hi) {
			if keep {
				p.runs = append(p.runs, part)
			} else {
				gone = append(gone, part)
			}
		}
	}
	for _, r := range gone {
		if r.segment == 0 && !p.namesChunk(r.chunk) {
			chunks = append(chunks, r.chunk)
		}
	}
	for i := lo; i < hi; i++ {
		p.data &^= 1 << i
		p.summed &^= 1 << i
	}
	return gone, chunks
}

// split cuts r into its parts before, inside and after [lo, hi); only the middle
// one is not to be kept.
func (p *page) split(r run, lo, hi uint8) func(yield func(run, bool) bool) {
	return func(yield func(run, bool) bool) {
		for _, cut := range []struct {
			lo, hi uint8
			keep   bool
		}{{0, lo, true}, {lo, hi, false}, {hi, pageBlocks, true}} {
			first, end := max(r.first, cut.lo), min(r.end(), cut.hi)
			if first >= end {
				continue
			}
			part := r
			part.first, part.count = first, end-first
			for b := r.first; b < first; b++ {
				part.offset += p.nodes[2*b].size
			}
			if !yield(part, cut.keep) {
				return
			}
		}
	}
}

func (p *page) namesChunk(chunk uint8) bool {
	for _, r := range p.runs {
		if r.segment == 0 && r.chunk == chunk {
			return true
		}
	}
	return false
}

// size returns the number of data bytes of r.
func (p *page) size(r run) (n uint64) {
	for b := r.first; b < r.end(); b++ {
		n += p.nodes[2*b].size
	}
	return n
}

// encode returns the page as it is stored:
//
//	known u64, data u32                  masks, little endian
//	for each known node: uvarint size, hash
//	for each run: first u8, count u8, uvarint segment, [chunk u8], uvarint offset
//
// where the known nodes are those that do not follow from others.
func (p *page) encode(b []byte) []byte {
	known := p.stored()
	b = binary.LittleEndian.AppendUint64(b, known)
	b = binary.LittleEndian.AppendUint32(b, p.data)
	for ; known != 0; known &= known - 1 {
		n := &p.nodes[bits.TrailingZeros64(known)]
		b = append(binary.AppendUvarint(b, n.size), n.hash[:]...)
	}
	for _, r := range p.runs {
		b = binary.AppendUvarint(append(b, r.first, r.count), uint64(r.segment))
		if r.segment == 0 {
			b = append(b, r.chunk)
		}
		b = binary.AppendUvarint(b, r.offset)
	}
	return b
}

var errPage = errors.New("malformed tree page")

// decodePage reads what encode wrote.
func decodePage(b []byte) (*page, error) {
	if len(b) < 12 {
		return nil, errPage
	}
	p := &page{known: binary.LittleEndian.Uint64(b), data: binary.LittleEndian.Uint32(b[8:])}
	b = b[12:]
	if p.known>>pageNodes != 0 {
		return nil, errPage
	}
	for rest := p.known; rest != 0; rest &= rest - 1 {
		size, n := binary.Uvarint(b)
		if n <= 0 || len(b) < n+32 || size > 1<<53 {
			return nil, errPage
		}
		p.nodes[bits.TrailingZeros64(rest)] = pageNode{size, merkle.Hash(b[n : n+32])}
		b = b[n+32:]
	}
	for len(b) > 0 {
		r, rest, err := decodeRun(b)
		if err != nil {
			return nil, err
		}
		p.runs = append(p.runs, r)
		b = rest
	}
	return p, p.check()
}

func decodeRun(b []byte) (r run, rest []byte, err error) {
	if len(b) < 3 {
		return run{}, nil, errPage
	}
	r.first, r.count = b[0], b[1]
	segment, n := binary.Uvarint(b[2:])
	if n <= 0 || segment > 1<<32-1 {
		return run{}, nil, errPage
	}
	r.segment = uint32(segment)
	b = b[2+n:]
	if r.segment == 0 {
		if len(b) == 0 {
			return run{}, nil, errPage
		}
		r.chunk, b = b[0], b[1:]
	}
	if r.offset, n = binary.Uvarint(b); n <= 0 {
		return run{}, nil, errPage
	}
	return r, b[n:], nil
}

// check holds what the rest of the package relies on.
func (p *page) check() error {
	var covered uint32
	for _, r := range p.runs {
		if r.count == 0 || int(r.first)+int(r.count) > pageBlocks || r.chunk >= pageBlocks || r.offset > 1<<53 {
			return fmt.Errorf("%w: run out of range", errPage)
		}
		for b := r.first; b < r.end(); b++ {
			if covered>>b&1 != 0 || p.data>>b&1 == 0 || p.known>>(2*b)&1 == 0 {
				return fmt.Errorf("%w: run does not fit the blocks", errPage)
			}
			covered |= 1 << b
		}
	}
	return nil
}
