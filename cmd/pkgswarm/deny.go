package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/pkgswarm/pkgswarm/internal/node"
	"github.com/spf13/cobra"
)

// change has the node at url change something. It takes the token in the node's
// state directory.
func change(ctx context.Context, url, state, path string, body, answer any) error {
	token, err := os.ReadFile(filepath.Join(state, "token"))
	if err != nil {
		return &exitError{exitFailed, fmt.Errorf("read the node's token: %w", err), "name the node's state directory with --state"}
	}
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimRight(url, "/")+path, bytes.NewReader(b))
	if err != nil {
		return &exitError{exitUsage, err, "write the URL as " + defaultNode}
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Pkgswarm-Token", strings.TrimSpace(string(token)))
	return send(req, url, answer)
}

func newDenyCommand(s *streams) *cobra.Command {
	var d dirs
	var url, reason string
	var undo, list, asJSON bool
	cmd := &cobra.Command{
		Use:   "deny PACKAGE@VERSION | --list",
		Short: "Stop handing out a version, to clients and to peers",
		Long: `Has the running node refuse a version from now on, whatever its registry says:
clients get 403 with the reason, the index does not list it, and peers do not
get its file, though it may be on the disk. --undo takes that back. cargo: or
go: before the name says which ecosystem is meant.

Exit codes: 0 done, 1 failed, 2 wrong usage, 12 no node answers.`,
		Example: `  pkgswarm deny evil@1.0.3 --reason "steals credentials"
  pkgswarm deny --undo example.com/m@v1.2.0
  pkgswarm deny --list`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if list != (len(args) == 0) {
				return &exitError{exitUsage, fmt.Errorf("name one PACKAGE@VERSION, or --list"), "see pkgswarm deny --help"}
			}
			if list {
				return listDenied(cmd.Context(), s.out, url, d.state, asJSON)
			}
			pkg, ok, err := parsePackage(args[0])
			if err == nil && !ok {
				err = fmt.Errorf("%q is not PACKAGE@VERSION", args[0])
			}
			if err != nil {
				return &exitError{exitUsage, err, "write it as serde@1.0.0 or golang.org/x/mod@v0.37.0"}
			}
			path, done := "/api/v1/deny", "denied"
			if undo {
				path, done = "/api/v1/allow", "not denied any more"
			}
			denial := node.Denial{Ecosystem: pkg.Ecosystem, Name: pkg.Name, Version: pkg.Version, Reason: reason}
			if err := change(cmd.Context(), url, d.state, path, denial, &denial); err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(s.out).Encode(denial)
			}
			_, err = fmt.Fprintf(s.out, "%s@%s is %s\n", denial.Name, denial.Version, done)
			return err
		},
	}
	d.addState(cmd)
	cmd.Flags().StringVar(&url, "url", defaultNode, "the node's `URL`")
	cmd.Flags().StringVar(&reason, "reason", "denied by the operator of this node", "`TEXT` that clients are shown")
	cmd.Flags().BoolVar(&undo, "undo", false, "hand it out again")
	cmd.Flags().BoolVar(&list, "list", false, "print what is denied")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object a line")
	return cmd
}

func listDenied(ctx context.Context, w io.Writer, url, state string, asJSON bool) error {
	var all []node.Denial
	if err := change(ctx, url, state, "/api/v1/denied", struct{}{}, &all); err != nil {
		return err
	}
	enc := json.NewEncoder(w)
	for _, d := range all {
		var err error
		if asJSON {
			err = enc.Encode(d)
		} else {
			_, err = fmt.Fprintf(w, "%s:%s@%s  %s\n", d.Ecosystem, d.Name, d.Version, printable(d.Reason))
		}
		if err != nil {
			return err
		}
	}
	return nil
}
