package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/dustin/go-humanize"
	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/registry/artifact"
	"github.com/spf13/cobra"
)

// openArtifacts opens the artifact store of a data directory that no node uses.
func (d *dirs) openArtifacts() (*artifact.Store, *core.Store, error) {
	dir := filepath.Join(d.data, "artifacts")
	if _, err := os.Stat(storeDir(d.data)); err != nil {
		return nil, nil, &exitError{exitNoStore, fmt.Errorf("no store in %s", d.data), "name its directory with --data"}
	}
	cores, err := core.OpenStore(storeDir(d.data), core.Options{})
	if _, ok := errors.AsType[*core.InUseError](err); ok {
		return nil, nil, &exitError{exitInUse, err, "stop the node first"}
	}
	if err != nil {
		return nil, nil, err
	}
	s, err := artifact.Open(dir, filepath.Join(d.data, "store", "artifacts"), artifact.Options{Cores: artifact.InCoreStore(cores)})
	if err != nil {
		return nil, nil, errors.Join(err, cores.Close())
	}
	return s, cores, nil
}

func newGCCommand(s *streams) *cobra.Command {
	var d dirs
	asJSON := false
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Remove what is left over or withdrawn, and what is above the disk cap",
		Long: `Removes artifacts that were withdrawn, and files that belong to nothing. What is
pinned stays. The node must not be running; a running node does this by itself.`,
		Example: "  pkgswarm gc",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) (err error) {
			files, cores, err := d.openArtifacts()
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, files.Close(), cores.Close()) }()
			freed, err := files.Collect()
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(s.out).Encode(map[string]int64{"freed_bytes": freed})
			}
			_, err = fmt.Fprintf(s.out, "freed %s\n", humanize.Bytes(uint64(freed)))
			return err
		},
	}
	d.addFlags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}
