package main

import (
	"context"
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
	var url string
	asJSON := false
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Remove what is left over or withdrawn, and what is above the disk cap",
		Long: `Removes artifacts that were withdrawn, and files that belong to nothing. What is
pinned stays. A node that runs on the store does it itself, and is asked to.`,
		Example: "  pkgswarm gc",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			freed, err := d.collect(cmd.Context(), url)
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
	cmd.Flags().StringVar(&url, "url", defaultNode, "the `URL` of the node, if one runs")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// collect evicts from the store, or has the node at url do it that uses the store,
// and returns the bytes freed.
func (d *dirs) collect(ctx context.Context, url string) (freed int64, err error) {
	files, cores, err := d.openArtifacts()
	if e, ok := errors.AsType[*exitError](err); ok && e.code == exitInUse {
		var answer struct {
			Freed int64 `json:"freed_bytes"`
		}
		asked := change(ctx, url, d.state, "/api/v1/gc", struct{}{}, &answer)
		if u, ok := errors.AsType[*exitError](asked); ok && u.code == exitUnreachable {
			e.hint = "stop the process, or name the node's address with --url"
			return 0, e
		}
		return answer.Freed, asked
	}
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, files.Close(), cores.Close()) }()
	return files.Collect()
}
