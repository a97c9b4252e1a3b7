package artifact

import (
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/internal/durable"
)

// InCoreStore returns the Cores that keeps trees in s and leaves the blocks in
// their files.
func InCoreStore(s *core.Store) Cores { return coreStore{s} }

type coreStore struct{ s *core.Store }

// Add implements Cores. An empty file has no static core; its key is zero.
func (c coreStore) Add(path string, r io.ReaderAt, size int64) (Key, error) {
	t, err := core.HashStatic(r, size)
	if errors.Is(err, core.ErrEmpty) {
		return Key{}, nil
	}
	if err != nil {
		return Key{}, err
	}
	opened, err := c.s.AddStatic(path, t)
	if err != nil && !errors.Is(err, core.ErrNoSpace) && !durable.MachineFault(err) {
		return Key(t.Key()), fmt.Errorf("%w: %w", ErrUnshared, err)
	}
	if err != nil {
		return Key{}, err
	}
	return Key(t.Key()), opened.Close()
}

func (c coreStore) Has(k Key) bool {
	opened, err := c.s.OpenExisting(core.Key(k))
	if err != nil {
		return false
	}
	defer opened.Close()
	return opened.Length() > 0 && opened.ContiguousLength() == opened.Length()
}

func (c coreStore) Remove(k Key) error {
	err := c.s.Delete(core.Key(k))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
