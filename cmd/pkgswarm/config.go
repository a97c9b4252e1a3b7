package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/pkgswarm/pkgswarm/internal/config"
	"github.com/pkgswarm/pkgswarm/registry/policy"
	"github.com/spf13/cobra"
)

func newConfigCommand(s *streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "config",
		Short:   "Look at the configuration",
		Example: "  pkgswarm config show",
		Args:    cobra.NoArgs,
	}
	asJSON := false
	show := &cobra.Command{
		Use:   "show [COMMAND...]",
		Short: "Print each setting of a command (serve, unless given) and where its value comes from",
		Example: `  pkgswarm config show
  PKGSWARM_LISTEN=:8080 pkgswarm config show --json`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				args = []string{"serve"}
			}
			target, rest, err := cmd.Root().Find(args)
			if err != nil || target == cmd.Root() || len(rest) > 0 {
				return &exitError{exitUsage, fmt.Errorf("no command %q", strings.Join(args, " ")), "see pkgswarm help"}
			}
			f, err := readConfig(cmd)
			if err != nil {
				return err
			}
			values, err := config.Apply(target.LocalFlags(), os.Getenv, f)
			if err != nil {
				return &exitError{exitUsage, err, "correct the value that the message names"}
			}
			if target.Flag("peer-exchange") != nil { // it runs a node
				p, err := readPolicy(cmd)
				if err != nil {
					return err
				}
				values = append(values, policyValues(p, f.Path)...)
			}
			return printConfig(s, values, asJSON)
		},
	}
	show.Flags().BoolVar(&asJSON, "json", false, "print one JSON object a line")
	cmd.AddCommand(show)
	return cmd
}

func printConfig(s *streams, values []config.Value, asJSON bool) error {
	if asJSON {
		enc := json.NewEncoder(s.out)
		for _, v := range values {
			if err := enc.Encode(v); err != nil {
				return err
			}
		}
		return nil
	}
	w := tabwriter.NewWriter(s.out, 0, 0, 2, ' ', 0)
	for _, v := range values {
		fmt.Fprintf(w, "%s\t%s\t%s\n", v.Name, v.Value, v.Source)
	}
	return w.Flush()
}

// policyValues returns the rules of a policy, which only the file at path can set.
func policyValues(p policy.Config, path string) []config.Value {
	var values []config.Value
	add := func(name, value string) {
		if value != "" {
			values = append(values, config.Value{Name: "policy." + name, Value: value, Source: "file " + path})
		}
	}
	if p.DryRun {
		add("dry-run", "true")
	}
	for _, e := range []struct {
		name  string
		rules policy.Rules
	}{{"cargo", p.Cargo}, {"go", p.Go}} {
		add(e.name+".allow", strings.Join(e.rules.Allow, ","))
		add(e.name+".block", strings.Join(e.rules.Block, ","))
		if d := e.rules.Cooldown; d != 0 {
			add(e.name+".cooldown", time.Duration(d).String())
		}
		add(e.name+".except", strings.Join(e.rules.Except, ","))
	}
	return values
}
