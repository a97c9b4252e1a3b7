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
	if _, err := os.Stat(dir); err != nil {
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

func newVerifyCommand(s *streams) *cobra.Command {
	var d dirs
	var repair, asJSON bool
	var evidence string
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Read everything that is stored and name each damage",
		Long: `Reads every file and core of the data directory and checks it. Nothing is
changed, except with --repair: then what is damaged is dropped, so that it is
fetched anew when it is next asked for. The node must not be running.

With --evidence, checks a file of evidence that an operator has signed two
histories of one core instead; no store is needed for that.

Exit code 1 means that damage was found, or that evidence proves nothing.`,
		Example: `  pkgswarm verify
  pkgswarm verify --repair
  pkgswarm verify --evidence heads/KEY.evidence`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if evidence != "" {
				return verifyEvidence(s, evidence)
			}
			files, cores, err := d.openArtifacts()
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, files.Close(), cores.Close()) }()
			n := 0
			report := func(what string) error {
				n++
				if asJSON {
					return json.NewEncoder(s.out).Encode(map[string]string{"damage": what})
				}
				_, err := fmt.Fprintln(s.out, what)
				return err
			}
			damages, err := files.Scrub(cmd.Context(), repair)
			for _, x := range damages {
				err = errors.Join(err, report(fmt.Sprintf("artifact %s: %s", x.Sum, x.What)))
			}
			if err != nil {
				return err
			}
			f := &coreFlags{s: s, json: asJSON}
			_, damaged, err := f.verify(cmd.Context(), cores, nil)
			n += damaged
			if err != nil {
				return err
			}
			st := files.Stats()
			if !asJSON {
				fmt.Fprintf(s.out, "%d artifacts, %s, and all cores read; %d damages\n", st.Files, humanize.Bytes(uint64(st.Bytes)), n)
			}
			if n > 0 && !repair {
				return &exitError{exitFailed, fmt.Errorf("%d damages", n), "pkgswarm verify --repair drops what is damaged, so that it is fetched again"}
			}
			return nil
		},
	}
	d.addFlags(cmd)
	cmd.Flags().BoolVar(&repair, "repair", false, "drop what is damaged")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object a line")
	cmd.Flags().StringVar(&evidence, "evidence", "", "check the evidence in `FILE`")
	return cmd
}

func verifyEvidence(s *streams, path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	e, err := core.DecodeEvidence(b)
	if err == nil {
		err = e.Verify()
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	_, err = fmt.Fprintf(s.out, "proven: whoever signs core %s has signed two histories of it\n", e.Key)
	return err
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
