package bee

import "google.golang.org/protobuf/encoding/protowire"

// compact drops the root, which later blocks of the batch replace, and the nodes
// that have moved on to them. The reference's order is kept.
func (p *pending) compact() {
	list := p.index
	list[0] = nil
	for j := 0; j < len(list); {
		c := list[j]
		if c != nil && c.seq == p.seq {
			c.offset = uint64(j)
			j++
			continue
		}
		last := len(list) - 1
		if j < last {
			list[j] = list[last]
		}
		list = list[:last]
	}
	p.index = list
}

// encode appends the block.
func (p *pending) encode(b []byte) []byte {
	size := 0
	for _, c := range p.index {
		size += 1 + protowire.SizeBytes(c.node.size())
	}
	b = protowire.AppendVarint(append(b, 0x0a), uint64(size))
	for _, c := range p.index {
		b = protowire.AppendVarint(append(b, 0x0a), uint64(c.node.size()))
		b = c.node.encode(b)
	}
	b = appendBytes(b, 2, p.key)
	if p.value != nil {
		b = appendBytes(b, 3, p.value)
	}
	return b
}

func (n *node) sizes() (keys, children int) {
	for i := range n.keys {
		keys += protowire.SizeVarint(n.keys[i].seq)
	}
	for _, c := range n.children {
		children += protowire.SizeVarint(c.seq) + protowire.SizeVarint(c.offset)
	}
	return keys, children
}

// size returns the length of the node's encoding, in bytes.
func (n *node) size() (size int) {
	keys, children := n.sizes()
	if keys > 0 {
		size += 1 + protowire.SizeBytes(keys)
	}
	if children > 0 {
		size += 1 + protowire.SizeBytes(children)
	}
	return size
}

func (n *node) encode(b []byte) []byte {
	keys, children := n.sizes()
	if keys > 0 {
		b = protowire.AppendVarint(append(b, 0x0a), uint64(keys))
		for i := range n.keys {
			b = protowire.AppendVarint(b, n.keys[i].seq)
		}
	}
	if children > 0 {
		b = protowire.AppendVarint(append(b, 0x12), uint64(children))
		for _, c := range n.children {
			b = protowire.AppendVarint(protowire.AppendVarint(b, c.seq), c.offset)
		}
	}
	return b
}
