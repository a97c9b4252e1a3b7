package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/internal/durable"
	"github.com/pkgswarm/pkgswarm/registry/artifact"
)

// coresEvery is how often the core store is asked how it is.
const coresEvery = 5 * time.Second

func (n *Node) openStores() (err error) {
	if err := n.afterCrash(); err != nil {
		return err
	}
	if n.cores, err = n.openCores(); err != nil {
		return err
	}
	n.closers = append(n.closers, n.cores.Close)
	n.artifacts, err = artifact.Open(
		filepath.Join(n.c.Data, "artifacts"),
		filepath.Join(n.c.Data, "store", "artifacts"),
		artifact.Options{Cores: artifact.InCoreStore(n.cores), Cap: n.c.DiskCap, MinFree: n.c.MinFree, Logger: n.log})
	if err != nil {
		return err
	}
	n.closers = append(n.closers, n.artifacts.Close)
	return nil
}

func (n *Node) coresDir() string { return filepath.Join(n.c.Data, "store", "cores") }

// damagedCores is the file that tells the next start that the core store is
// damaged.
func (n *Node) damagedCores() string { return n.coresDir() + ".damaged" }

// openCores opens the core store. A damaged one is set aside: what a node has in it
// comes from files and from peers, and is made anew when it is needed (REL-5).
func (n *Node) openCores() (*core.Store, error) {
	o := core.Options{Logger: n.log, LogBytes: 2 << 20}
	if why, err := os.ReadFile(n.damagedCores()); err == nil {
		if err := n.setAside(n.coresDir(), string(why)); err != nil {
			return nil, err
		}
		if err := durable.Remove(n.damagedCores()); err != nil {
			return nil, err
		}
	}
	s, err := core.OpenStore(n.coresDir(), o)
	_, inUse := errors.AsType[*core.InUseError](err)
	if err == nil || inUse || errors.Is(err, core.ErrVersion) || durable.MachineFault(err) {
		return s, err
	}
	if err := n.setAside(n.coresDir(), err.Error()); err != nil {
		return nil, err
	}
	return core.OpenStore(n.coresDir(), o)
}

// setAside moves the database in dir away, for people to look at.
func (n *Node) setAside(dir, why string) error {
	aside := fmt.Sprintf("%s.damaged-%d", dir, time.Now().UnixNano())
	n.log.Error("database is damaged, making a new one; the keys of cores that were made in this data directory with pkgswarm core are in the old one only", "err", why, "aside", aside)
	err := os.Rename(dir, aside)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// watchCores tells of a core store that is of no use any more. The node goes on:
// files are stored and served, but not given to peers. A damaged store is made
// anew at the next start.
func (n *Node) watchCores(ctx context.Context) error {
	tick := time.NewTicker(coresEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		err := n.cores.Err()
		if err == nil {
			continue
		}
		n.log.Error("core store has failed: peers get nothing until the node is restarted", "err", err)
		if errors.Is(err, core.ErrDamaged) {
			if err := durable.WriteFile(n.damagedCores(), []byte(err.Error()+"\n"), 0o600); err != nil {
				n.log.Error("mark the core store as damaged", "err", err)
			}
		}
		<-ctx.Done()
		return nil
	}
}

// storeTrouble returns what is wrong with the stores, and what helps; "" if nothing.
func (n *Node) storeTrouble() string {
	if t := n.artifacts.Stats().Trouble; t != "" {
		return t + " (it is being replaced; until then files are passed through)"
	}
	if err := n.cores.Err(); err != nil {
		return err.Error() + " (restart the node; until then peers get nothing from it)"
	}
	return ""
}
