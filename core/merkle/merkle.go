// Package merkle holds the Merkle trees of Hypercore: hashes, growing a tree,
// and proofs that a block, a node, a byte position or a longer tree belongs to
// it. Everything here is a function of its arguments; storage comes in as a
// [NodeReader], and signatures are the business of the caller.
//
// # Trees
//
// Nodes are numbered as package flattree describes: block i is node 2i. All
// hashes are BLAKE2b-256:
//
//	leaf    H(00 || LE64(length) || block)
//	parent  H(01 || LE64(left size + right size) || left hash || right hash)
//	tree    H(02 || for each root: hash || LE64(index) || LE64(size))
//
// where the size of a node is the number of bytes in the blocks below it. A
// tree of a length that is not a power of two has several roots. A head is
// (fork, length, roots); its tree hash, length and fork are what gets signed.
//
// # Proofs
//
// A [Request] asks for up to four things at once, a [Proof] answers them:
//
//   - block or hash: the path of siblings from a node upwards, as many steps as
//     asked for; the reader knows the node at its end;
//   - seek: a path to the node that holds a byte position;
//   - upgrade: nodes that lead from the tree of the first Start blocks to that
//     of Start + Length, and, if the signed tree is longer still, additional
//     nodes that lead on to it;
//   - manifest: passed through.
//
// When the block or position lies in the new part of an upgrade, its path
// replaces the upgrade node it climbs to, so that nothing is sent twice.
//
// [Prove] and [Verify] follow lib/merkle-tree.js of hypercore 11, node by node:
// proofs are the same bytes, and what the one refuses the other does, too. A
// proof from a peer is only believed when Verify returns a batch and, if
// [Batch.Upgraded], the caller has verified the signature of its tree.
package merkle

import (
	"errors"
	"fmt"
)

var (
	// ErrRequest means that a request can be answered by nobody: it asks for
	// something outside the tree, or for a combination that has no proof.
	ErrRequest = errors.New("merkle: invalid request")

	// ErrNotStored means that a node is needed that is not stored here.
	ErrNotStored = errors.New("merkle: node not stored")

	// ErrMalformed means that a proof does not have the nodes it must have.
	ErrMalformed = errors.New("merkle: malformed proof")

	// ErrDetached means that a proof ends in a node that is not stored here, so
	// that nothing can be said about it. It need not be the sender's fault.
	ErrDetached = errors.New("merkle: proof does not reach a known node")

	// ErrChecksum means that a proof ends in a node that is known with another
	// hash: the sender lies, or the stored tree is damaged.
	ErrChecksum = errors.New("merkle: checksum mismatch")

	// ErrPrologue means that an upgrade contradicts the prologue.
	ErrPrologue = errors.New("merkle: upgrade does not satisfy the prologue")
)

// stored reads a node that must be there.
func stored(r NodeReader, index uint64) (Node, error) {
	n, ok, err := r.Node(index)
	if err != nil {
		return Node{}, fmt.Errorf("read tree node %d: %w", index, err)
	}
	if !ok {
		return Node{}, fmt.Errorf("%w: %d", ErrNotStored, index)
	}
	return n, nil
}
