package catalog

import (
	"context"
	"errors"
	"fmt"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/core/merkle"
)

// A Core is a signed log as far as it is read here. *core.Core is one; so is
// one whose blocks come from peers when they are asked for. Methods may be
// called concurrently.
type Core interface {
	Key() core.Key
	// Tree returns the newest head: fork, length and roots.
	Tree() merkle.Tree
	// TreeAt returns the tree that the core had at a shorter length. The error
	// matches merkle.ErrNotStored where a replica lacks its roots.
	TreeAt(length uint64) (merkle.Tree, error)
	// Get returns a block, from a peer if need be.
	Get(ctx context.Context, index uint64) ([]byte, error)
}

var (
	// ErrRollback means that a core is shorter than it was before.
	ErrRollback = errors.New("older than what was seen before")
	// ErrFork means that a core differs from what it was before.
	ErrFork = errors.New("history differs from what was seen before")
)

// CheckExtends checks that c begins with the tree of that length and hash, and
// has never been rewritten. SEC-10, SEC-13, SEC-14
func CheckExtends(c Core, length uint64, hash merkle.Hash) error {
	t := c.Tree()
	switch {
	case t.Fork != 0:
		return fmt.Errorf("core %s: %w: fork %d", c.Key().Short(), ErrFork, t.Fork)
	case t.Length < length:
		return fmt.Errorf("core %s: %w: %d of %d blocks", c.Key().Short(), ErrRollback, t.Length, length)
	case length == 0:
		return nil
	}
	then, err := c.TreeAt(length)
	if err != nil {
		return fmt.Errorf("core %s: tree at length %d: %w", c.Key().Short(), length, err)
	}
	if then.Hash() != hash {
		return fmt.Errorf("core %s: %w at length %d", c.Key().Short(), ErrFork, length)
	}
	return nil
}
