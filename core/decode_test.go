package core

import (
	"bytes"
	"testing"

	"github.com/pkgswarm/pkgswarm/core/merkle"
)

// samplePage is a page with all that a page can have.
func samplePage() *page {
	p := new(page)
	for i := range uint8(20) {
		p.set(2*int(i), pageNode{uint64(i) * 1000, merkle.LeafHash([]byte{i})})
	}
	p.set(47, pageNode{12345, merkle.LeafHash(nil)})
	p.addRun(run{first: 0, count: 3})
	p.addRun(run{first: 3, count: 2, chunk: 3, offset: 7})
	p.addRun(run{first: 6, count: 10, segment: 3, offset: 1 << 30})
	return p
}

// FuzzPage: what decodes encodes to something that decodes to the same. SEC-8
func FuzzPage(f *testing.F) {
	f.Add(samplePage().encode(nil))
	f.Add((&page{}).encode(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := decodePage(b)
		if err != nil {
			return
		}
		for i := range pageNodes {
			p.node(i)
		}
		for i := range uint8(pageBlocks) {
			p.location(i)
		}
		once := p.encode(nil)
		q, err := decodePage(once)
		if err != nil {
			t.Fatalf("page %x encodes to %x: %v", b, once, err)
		}
		if twice := q.encode(nil); !bytes.Equal(once, twice) {
			t.Fatalf("page %x encodes to %x, then to %x", b, once, twice)
		}
		q.drop(3, 17)
		if _, err := decodePage(q.encode(nil)); err != nil {
			t.Fatalf("page %x, blocks dropped: %v", b, err)
		}
	})
}

func FuzzHead(f *testing.F) { // SEC-8
	nb := merkle.NewBatch(merkle.Tree{Fork: 3})
	for range 11 {
		nb.Append([]byte("block"))
	}
	f.Add((&head{tree: nb.Tree, signature: []byte("signature"), contiguous: 5}).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := decodeHead(b)
		if err != nil {
			return
		}
		once := h.encode()
		if g, err := decodeHead(once); err != nil || !bytes.Equal(g.encode(), once) {
			t.Fatalf("head %x encodes to %x: %v", b, once, err)
		}
	})
}

func FuzzRecord(f *testing.F) { // SEC-8
	m := SingleSigner(DeriveKeyPair([32]byte{1}, Namespace{}, "x").Public())
	for _, r := range []record{
		{id: 1, key: m.Key()},
		{id: 1 << 31, key: m.Key(), manifest: &m, named: true, name: "x"},
		{id: 2, key: m.Key(), path: "/a/b"},
	} {
		f.Add(r.encode())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRecord(b)
		if err != nil {
			return
		}
		once := r.encode()
		if g, err := decodeRecord(once); err != nil || !bytes.Equal(g.encode(), once) {
			t.Fatalf("record %x encodes to %x: %v", b, once, err)
		}
	})
}

func FuzzEvidence(f *testing.F) { // SEC-8, SEC-13
	f.Add((&Evidence{Key: Key{1}, Manifest: []byte{1}, A: []byte{2}, B: []byte{3}}).Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := DecodeEvidence(b)
		if err != nil {
			return
		}
		e.Verify()
		once := e.Encode()
		if g, err := DecodeEvidence(once); err != nil || !bytes.Equal(g.Encode(), once) {
			t.Fatalf("evidence %x encodes to %x: %v", b, once, err)
		}
	})
}
