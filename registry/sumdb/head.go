package sumdb

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/pkgswarm/pkgswarm/internal/durable"
)

// A headFile keeps the newest verified tree. It never goes backwards.
type headFile struct {
	dir      string
	verifier note.Verifier

	mu     sync.Mutex // held while writing, so that what is relied on is on disk
	tree   tlog.Tree
	signed []byte // the note of tree; empty for the empty tree
}

func openHead(dir string, v note.Verifier) (*headFile, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	h := &headFile{dir: dir, verifier: v}
	signed, err := os.ReadFile(h.path())
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(signed) == 0 {
		return h, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the last tree: %w", err)
	}
	if h.tree, err = openTree(signed, v); err != nil {
		return nil, fmt.Errorf("the last tree in %s is damaged: %w; restore it, or remove it to trust the database's next answer", h.path(), err)
	}
	h.signed = signed
	return h, nil
}

func (h *headFile) path() string { return filepath.Join(h.dir, "latest") }

// load returns the kept tree and its note, which is not to be changed.
func (h *headFile) load() (tlog.Tree, []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.tree, h.signed
}

// set keeps tree, of the note signed, which was verified to extend the kept one.
func (h *headFile) set(tree tlog.Tree, signed []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if tree.N < h.tree.N {
		return fmt.Errorf("tree %d would replace tree %d", tree.N, h.tree.N) // SEC-6
	}
	if err := durable.WriteFile(h.path(), signed, 0o600); err != nil {
		return fmt.Errorf("keep tree %d: %w", tree.N, err)
	}
	h.tree, h.signed = tree, bytes.Clone(signed)
	return nil
}

// openTree returns the tree of a note that v has signed.
func openTree(signed []byte, v note.Verifier) (tlog.Tree, error) {
	n, err := note.Open(signed, note.VerifierList(v))
	if err != nil {
		return tlog.Tree{}, err
	}
	return tlog.ParseTree([]byte(n.Text))
}
