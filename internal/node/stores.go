package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/pkgswarm/pkgswarm/core"
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

// openCores opens the core store. It makes a damaged database anew by itself; what a
// node has in it comes from files and from peers (REL-5).
func (n *Node) openCores() (*core.Store, error) {
	return core.OpenStore(n.coresDir(), core.Options{Logger: n.log, LogBytes: 2 << 20})
}

// setAside moves the database in dir away, for people to look at.
func (n *Node) setAside(dir, why string) error {
	aside := fmt.Sprintf("%s.damaged-%d", dir, time.Now().UnixNano())
	n.log.Error("database is damaged, making a new one", "err", why, "aside", aside)
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
			if err := core.Rebuild(n.coresDir()); err != nil {
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
