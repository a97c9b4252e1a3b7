package core

import (
	"context"
	"errors"
	"fmt"

	"github.com/pkgswarm/pkgswarm/core/merkle"
	"github.com/pkgswarm/pkgswarm/internal/flattree"
)

// Check reads everything of the core that is here: the head's signature, the
// tree below its roots, every block. It changes nothing. Each damage is passed to
// report, which stops the check by returning false; progress is called, if it is
// not nil, after each block that was looked at. The error is of the context or
// report's doing, nil when all was read, damaged or not.
func (c *Core) Check(ctx context.Context, report func(error) bool, progress func(blocks uint64)) error {
	stopped := errors.New("stopped")
	tell := func(err error) error {
		if err != nil && !report(err) {
			return stopped
		}
		return nil
	}
	c.mu.Lock()
	h, rec, loss := c.head, c.rec, c.loss()
	c.mu.Unlock()
	err := tell(loss)
	if err == nil {
		err = tell(checkHead(rec, h))
	}
	pages := true // none is damaged
	for i := uint64(0); i < h.tree.Length && err == nil; {
		if err = ctx.Err(); err != nil {
			break
		}
		found, next := c.checkBlock(i), i+1
		if d, ok := errors.AsType[*DamageError](found); ok && d.What == "tree page" {
			pages = false
			next = min((i/pageBlocks+1)*pageBlocks, h.tree.Length) // said once
		}
		err = tell(found)
		if progress != nil {
			progress(next - i)
		}
		i = next
	}
	if err == nil && pages {
		err = tell(c.checkTree(h.tree))
	}
	if errors.Is(err, stopped) {
		return nil
	}
	return err
}

func checkHead(rec record, h head) error {
	if rec.manifest == nil || h.tree.Length == 0 {
		return nil
	}
	if err := rec.manifest.VerifyTree(rec.key, h.tree, h.signature); err != nil {
		return &DamageError{rec.key, "head", h.tree.Length, err}
	}
	return nil
}

// checkBlock reads one block, if it is here, without dropping it if it is
// damaged.
func (c *Core) checkBlock(index uint64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	at, err := c.locate(index)
	if errors.Is(err, ErrMissing) {
		return nil
	}
	if err == nil {
		var b []byte
		if b, err = c.fetch(index, at); err == nil && merkle.LeafHash(b) != at.node.hash {
			err = errChecksum
		}
	}
	if _, ok := errors.AsType[*DamageError](err); ok || err == nil {
		return err
	}
	return &DamageError{c.rec.key, "block", index, err}
}

// checkTree computes each stored parent from its children and the roots.
func (c *Core) checkTree(t merkle.Tree) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, want := range t.Roots {
		got, ok, err := (*lockedNodes)(c).Node(want.Index)
		if err == nil && ok && got.Hash == want.Hash {
			err = c.checkBelow(want)
		} else if err == nil {
			err = fmt.Errorf("root %d: %w", want.Index, errChecksum)
		}
		if err != nil {
			return &DamageError{c.rec.key, "tree page", want.Index / 2, err}
		}
	}
	return nil
}

// checkBelow checks the nodes below n as far as they are known.
func (c *Core) checkBelow(n merkle.Node) error {
	if n.Index&1 == 0 {
		return nil
	}
	r := (*lockedNodes)(c)
	left, ok, err := r.Node(flattree.LeftChild(n.Index))
	if err != nil || !ok {
		return err
	}
	right, ok, err := r.Node(flattree.RightChild(n.Index))
	if err != nil || !ok {
		return err
	}
	if merkle.Parent(left, right).Hash != n.Hash {
		return fmt.Errorf("node %d: %w", n.Index, errChecksum)
	}
	return errors.Join(c.checkBelow(left), c.checkBelow(right))
}
