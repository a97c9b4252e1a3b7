package signed

import (
	"context"
	"errors"
	"testing"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/core/merkle"
	"github.com/pkgswarm/pkgswarm/registry/catalog"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
	"github.com/pkgswarm/pkgswarm/swarm/replicate"
)

// TestAbsurdReplica: a replica that has taken up a signed head of 2^50 blocks is
// begun again, and follows the operator to a successor. SEC-15
func TestAbsurdReplica(t *testing.T) {
	o := newOperator(t, 1)
	memory := o.memory()
	o.use(o.keys, memory)
	o.publish("serde", v1)
	c := newClient(t, t.TempDir(), 0, []core.Key{o.w.Key()}, o.store)
	takeUpAbsurd(t, c.peers.own, o)
	c.turn()
	if s := c.Status()[0]; s.Ready {
		t.Errorf("a catalog of 2^50 blocks is read: %+v", s)
	}
	cores := &Cores{Store: c.peers.own, Open: func(replicate.Core, replicate.SessionOptions) (*replicate.Session, error) {
		return nil, ErrNotReady
	}}
	c.followers[0].leave()
	if _, err := cores.Replica(o.w.Key()); err == nil {
		t.Fatal("no session, but a replica")
	}
	o.rotate(2, memory)
	o.publish("serde", v1, v2)
	c.turn()
	c.want("serde", v1, v2)
}

// takeUpAbsurd gives a store a head of 2^50 blocks that the operator has signed.
func takeUpAbsurd(t *testing.T, store *core.Store, o *testOperator) {
	t.Helper()
	root := merkle.Node{Index: 1<<50 - 1, Size: 1 << 50, Hash: merkle.Hash{1}}
	tree := merkle.Tree{Length: 1 << 50, Roots: []merkle.Node{root}}
	m, pairs := o.keys.Catalog()
	sig, err := m.SignTree(m.Key(), tree, pairs...)
	if err != nil {
		t.Fatal(err)
	}
	k, err := store.Open(m.Key())
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	_, err = k.Apply(&merkle.Proof{
		Upgrade:  &merkle.UpgradeProof{Length: tree.Length, Nodes: tree.Roots, Signature: sig},
		Manifest: m.Encode(),
	})
	if err != nil || k.Length() != tree.Length {
		t.Fatalf("core of %d blocks, %v", k.Length(), err)
	}
}

// A hugeLog has a signed head that announces more bytes than a log may have.
type hugeLog struct {
	Replica
	size uint64
	t    *testing.T
}

func (l hugeLog) Tree() merkle.Tree {
	return merkle.Tree{Length: 1, Roots: []merkle.Node{{Size: l.size}}}
}
func (l hugeLog) Expect(uint64) {}

func (l hugeLog) Download(context.Context, uint64, uint64) error {
	if l.size > pkglog.MaxLog {
		l.t.Errorf("a log of %d bytes is fetched", l.size)
	}
	return nil
}

// TestHugeLog: a mirror fetches whatever an operator has signed, but no log that
// could not be folded anyway: it would fill the disk. SEC-20
func TestHugeLog(t *testing.T) {
	r := New(Config{})
	h := pkglog.Header{Ecosystem: pkglog.Cargo, Package: "serde"}
	for size, want := range map[uint64]error{pkglog.MaxLog: nil, pkglog.MaxLog + 1: ErrOperator, 1 << 50: pkglog.ErrTooLarge} {
		if err := r.bring(t.Context(), hugeLog{size: size, t: t}, catalog.Entry{Length: 1}, h, 0); !errors.Is(err, want) {
			t.Errorf("%d bytes: %v, want %v", size, err, want)
		}
	}
}
