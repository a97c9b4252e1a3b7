package merkle

import (
	"fmt"

	"github.com/pkgswarm/pkgswarm/internal/flattree"
)

// A Reorg replaces a tree by one of a higher fork. It starts with a proof of
// the new head and then finds, by asking for one path after another, the number
// of blocks that both trees share:
//
//	for want, ok := g.Want(); ok; want, ok = g.Want() {
//		// ask for HashRequest{2 * i, want.Nodes}, for some want.Start <= i < want.End
//		err := g.Update(r, proof)
//	}
//	// store g.Batch()
//
// The stored tree must not change meanwhile.
type Reorg struct {
	batch *Batch
	diff  Node // highest node on the path to the first block that differs
	want  Want
	open  bool // whether want is still to be asked for
}

// A Want names the blocks [Start, End), of which one must be chosen, and the
// number of steps above its leaf, that the next proof of a [Reorg] must have.
type Want struct {
	Start, End uint64
	Nodes      uint64
}

// NewReorg begins to replace the tree t, whose nodes r has, by the one that p
// proves: an upgrade from 0. The caller must verify the signature of
// Batch().Tree before it does anything else with the result, and that its fork
// is higher than t's.
func NewReorg(t Tree, prologue *Prologue, r NodeReader, p *Proof) (*Reorg, error) {
	b, err := VerifyHead(prologue, p)
	if err != nil {
		return nil, err
	}
	b.base = t
	b.Upgraded = true
	b.Ancestors = b.Tree.Length
	g := &Reorg{batch: b}
	for _, root := range b.Tree.Roots {
		same, err := g.same(r, root)
		if err != nil {
			return nil, err
		}
		if !same {
			g.narrow(root)
			return g, g.walk(r, b.Nodes)
		}
	}
	return g, nil
}

// same says whether r has n.
func (g *Reorg) same(r NodeReader, n Node) (bool, error) {
	known, ok, err := r.Node(n.Index)
	if err != nil {
		return false, fmt.Errorf("read tree node %d: %w", n.Index, err)
	}
	return ok && known.Hash == n.Hash, nil
}

// narrow notes that the first different block is below diff.
func (g *Reorg) narrow(diff Node) {
	g.diff = diff
	start, end := flattree.LeftSpan(diff.Index)/2, flattree.RightSpan(diff.Index)/2+1
	end = min(end, g.batch.base.Length)
	g.batch.Ancestors = min(start, g.batch.base.Length)
	g.open = flattree.Depth(diff.Index) > 0 && start < end
	g.want = Want{Start: start, End: end, Nodes: uint64(flattree.Depth(diff.Index))}
}

// walk follows the difference down as far as nodes, which are proven, reach.
func (g *Reorg) walk(r NodeReader, nodes []Node) error {
	byIndex := make(map[uint64]Node, len(nodes))
	for _, n := range nodes {
		byIndex[n.Index] = n
	}
	for g.open {
		left, ok := byIndex[flattree.LeftChild(g.diff.Index)]
		right, ok2 := byIndex[flattree.RightChild(g.diff.Index)]
		if !ok || !ok2 {
			return nil
		}
		same, err := g.same(r, left)
		if err != nil {
			return err
		}
		if same {
			g.narrow(right)
		} else {
			g.narrow(left)
		}
	}
	return nil
}

// Want returns what to ask for next; false means that the batch is complete.
func (g *Reorg) Want() (Want, bool) { return g.want, g.open }

// Update takes the answer to what Want said. An answer that does not fit
// changes nothing; the error then matches [ErrMalformed] or [ErrChecksum].
func (g *Reorg) Update(r NodeReader, p *Proof) error {
	if !g.open {
		return nil
	}
	var path Batch
	root, _, err := path.climbParts(p)
	if err != nil {
		return err
	}
	if root == nil || root.Index != g.diff.Index {
		return fmt.Errorf("%w: path does not lead to node %d", ErrMalformed, g.diff.Index)
	}
	if root.Hash != g.diff.Hash {
		return fmt.Errorf("%w at node %d", ErrChecksum, g.diff.Index)
	}
	before := g.diff
	if err := g.walk(r, path.Nodes); err != nil {
		return err
	}
	if g.open && g.diff == before {
		return fmt.Errorf("%w: path is too short", ErrMalformed)
	}
	g.batch.Nodes = append(g.batch.Nodes, path.Nodes...)
	return nil
}

// Batch returns the change. It is complete only when Want says so.
func (g *Reorg) Batch() *Batch { return g.batch }
