package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/dustin/go-humanize"
	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/internal/node"
	"github.com/pkgswarm/pkgswarm/registry/artifact"
	"github.com/spf13/cobra"
)

func newVerifyCommand(s *streams) *cobra.Command {
	v := &verifier{s: s}
	var repair bool
	var evidence string
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Read everything that is stored and name each damage",
		Long: `Reads every file and core of the data directory and checks it. Nothing is
changed, except with --repair: what is damaged is fetched anew, by its hash from
peers or from where it once came, and what cannot be had is dropped, so that a
build fetches it when it next asks for it. Interrupted, repair it again. The
node must not be running.

With --evidence, checks a file of evidence that an operator has signed two
histories of one core instead; no store is needed for that.

Exit codes: 0 no damage, or all repaired; 1 damage, or evidence that proves
nothing; 2 wrong usage; 3 not all could be fetched anew; 10 no store; 11 the
store is in use; 130 interrupted.`,
		Example: `  pkgswarm verify
  pkgswarm verify --repair
  pkgswarm verify --evidence heads/KEY.evidence`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case evidence != "":
				return v.verifyEvidence(evidence)
			case !repair:
				return v.verify(cmd.Context())
			}
			c, err := v.config(s)
			if err != nil {
				return err
			}
			c.Listen = "127.0.0.1:0"
			return v.repair(cmd.Context(), c)
		},
	}
	v.add(cmd)
	showOnly(cmd, "data", "state", "offline", "peer", "no-lan")
	cmd.Flags().BoolVar(&repair, "repair", false, "fetch what is damaged anew, or drop it")
	cmd.Flags().BoolVar(&v.json, "json", false, "print one JSON object a line")
	cmd.Flags().StringVar(&evidence, "evidence", "", "check the evidence in `FILE`")
	return cmd
}

// A verifier checks a data directory.
type verifier struct {
	serveFlags
	s    *streams
	json bool

	damages int
}

// report prints a damage, and what became of it unless that is empty.
func (v *verifier) report(what, outcome string) {
	if v.json {
		line := map[string]string{"damage": what}
		if outcome != "" {
			line["repair"] = outcome
		}
		json.NewEncoder(v.s.out).Encode(line)
		return
	}
	if outcome != "" {
		what += ": " + outcome
	}
	fmt.Fprintln(v.s.out, printable(what))
}

// verify checks everything and changes nothing.
func (v *verifier) verify(ctx context.Context) error {
	found, err := v.scrub(ctx)
	for _, d := range found {
		v.report(describe(d), "")
	}
	if err == nil {
		err = v.cores(ctx)
	}
	if err == nil && v.damages > 0 {
		err = &exitError{exitFailed, errors.New(count(v.damages, "damage", "damages")), "pkgswarm verify --repair fetches anew what is damaged"}
	}
	return err
}

func describe(d artifact.Damage) string { return fmt.Sprintf("artifact %s: %s", d.SHA256, d.What) }

// scrub reads all files.
func (v *verifier) scrub(ctx context.Context) ([]artifact.Damage, error) {
	files, cores, err := v.openArtifacts()
	if err != nil {
		return nil, err
	}
	found, err := files.Scrub(ctx, false)
	v.damages += len(found)
	return found, errors.Join(err, files.Close(), cores.Close())
}

// cores reads all cores, and says how much there is in all.
func (v *verifier) cores(ctx context.Context) (err error) {
	files, cores, err := v.openArtifacts()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, files.Close(), cores.Close()) }()
	f := &coreFlags{s: v.s, json: v.json}
	_, damaged, err := f.verify(ctx, cores, nil)
	v.damages += damaged
	if err != nil || v.json {
		return err
	}
	st := files.Stats()
	_, err = fmt.Fprintf(v.s.out, "%s, %s, and all cores read; %s\n", count(int(st.Files), "artifact", "artifacts"),
		humanize.Bytes(uint64(st.Bytes)), count(v.damages, "damage", "damages"))
	return err
}

// repair checks the files, gets those that are damaged anew, one after the other, and
// then checks the cores, which are partly made of files.
func (v *verifier) repair(ctx context.Context, c node.Config) error {
	found, err := v.scrub(ctx)
	if err != nil {
		return err
	}
	dropped := 0
	if len(found) > 0 {
		c.Logger = nil // what is found and done is said here
		err = withNode(ctx, c, func(ctx context.Context, n *node.Node) error {
			n.AwaitPeer(ctx)
			for _, d := range found {
				from, err := n.Refetch(ctx, d.Info)
				if ctx.Err() != nil {
					return ctx.Err()
				}
				outcome := "fetched anew, from " + string(from)
				if err != nil {
					dropped++
					outcome = "dropped, since it could not be fetched anew: " + err.Error()
				}
				v.report(describe(d), outcome)
			}
			return nil
		})
	}
	if err != nil {
		return err
	}
	v.damages = 0
	if err := v.cores(ctx); err != nil {
		return err
	}
	switch {
	case v.damages > 0:
		return &exitError{exitFailed, errors.New(count(v.damages, "damage", "damages") + " of cores"), "a replica fetches damaged blocks again; a core of your own needs a backup"}
	case dropped > 0:
		return &exitError{exitPartly, errors.New(count(dropped, "file was", "files were") + " dropped"), "builds fetch them when they ask for them"}
	}
	return nil
}

func (v *verifier) verifyEvidence(path string) error {
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
	if v.json {
		return json.NewEncoder(v.s.out).Encode(map[string]string{"proven": e.Key.String()})
	}
	_, err = fmt.Fprintf(v.s.out, "proven: whoever signs core %s has signed two histories of it\n", e.Key)
	return err
}
