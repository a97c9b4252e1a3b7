package node

import (
	"net/http"
	"path/filepath"
	"time"
)

// Status is what /api/v1/status answers. Fields are only ever added.
type Status struct {
	Version    string           `json:"version"`
	Started    time.Time        `json:"started"`
	Listen     string           `json:"listen"`
	Ready      bool             `json:"ready"`
	Offline    bool             `json:"offline"`
	Policy     bool             `json:"policy"` // some versions are refused
	Upstreams  []string         `json:"upstreams"`
	SumTree    int64            `json:"sumdb_tree,omitempty"` // records of its newest tree known
	SumDB      string           `json:"sumdb,omitempty"`      // verifier key of the checksum database; empty: none
	Registries []RegistryStatus `json:"registries"`
	Swarm      SwarmStatus      `json:"swarm"`
	Store      StoreStatus      `json:"store"`
	Usage      Usage            `json:"usage"`    // since the start
	Fetching   int              `json:"fetching"` // artifacts on their way; with 0, what was answered is stored
}

// StoreStatus describes the artifact store.
type StoreStatus struct {
	Dir     string `json:"dir"`
	Files   int64  `json:"files"`
	Bytes   int64  `json:"bytes"`
	Cap     int64  `json:"cap"`  // 0: none
	Free    int64  `json:"free"` // of the disk; -1: unknown
	Damaged uint64 `json:"damaged"`
	Evicted uint64 `json:"evicted"`
	Trouble string `json:"trouble,omitempty"` // what is wrong, and what helps
}

// SwarmStatus describes the node's peers.
type SwarmStatus struct {
	Key    string       `json:"key"` // this node's identity
	Listen []string     `json:"listen,omitempty"`
	LAN    bool         `json:"lan"`
	Fleet  bool         `json:"fleet"`
	Peers  []PeerStatus `json:"peers"`
}

// PeerStatus describes a connected peer.
type PeerStatus struct {
	Key     string    `json:"key"`
	Addr    string    `json:"addr"`
	Dialled bool      `json:"dialled"` // by us
	Since   time.Time `json:"since"`
}

// Status returns the node's figures.
func (n *Node) Status() Status {
	st := n.artifacts.Stats()
	dir, err := filepath.Abs(n.c.Data)
	if err != nil {
		dir = n.c.Data
	}
	var tree int64
	if n.sums != nil {
		tree = n.sums.TreeSize()
	}
	return Status{
		SumTree:    tree,
		Version:    n.c.Version,
		Started:    n.started.UTC().Truncate(time.Second),
		Listen:     n.Addr().String(),
		Ready:      !n.stopping.Load() && n.loops.broken() == "",
		Offline:    n.c.Offline,
		Policy:     n.c.Policy.Binds(),
		Upstreams:  n.upstreams(),
		SumDB:      n.sumKey,
		Registries: n.registryStatus(),
		Swarm:      n.swarmStatus(),
		Store: StoreStatus{
			Dir: dir, Files: st.Files, Bytes: st.Bytes, Cap: st.Cap, Free: st.Free,
			Damaged: st.Damaged, Evicted: st.Evicted, Trouble: n.storeTrouble(),
		},
		Usage:    n.usage.sum(),
		Fetching: n.fetcher.Flights(),
	}
}

func (n *Node) serveStatus(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, n.Status())
}
