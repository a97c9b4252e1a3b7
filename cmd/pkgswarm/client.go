package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/pkgswarm/pkgswarm/internal/node"
	"github.com/pkgswarm/pkgswarm/registry/signed"
	"github.com/spf13/cobra"
)

const (
	askTimeout  = 5 * time.Second
	maxStatus   = 8 << 20 // bytes of a node's answer
	defaultNode = "http://127.0.0.1:7070"
)

// A statusError is an answer of a node that is not 200.
type statusError struct {
	code int
	text string // what the node says
}

func (e *statusError) Error() string { return e.text }

// ask asks a running node for path, which answers with JSON.
func ask(ctx context.Context, url, path string, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimRight(url, "/")+path, nil)
	if err != nil {
		return &exitError{exitUsage, err, "write the URL as " + defaultNode}
	}
	return send(req, url, answer)
}

// send sends req to the node at url, which answers with JSON.
func send(req *http.Request, url string, answer any) error {
	// The node is ours: no proxy stands between.
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return &exitError{exitUnreachable, fmt.Errorf("no node answers at %s: %w", url, errors.Unwrap(err)), "start one with pkgswarm serve, or name its address with --url"}
	}
	defer resp.Body.Close()
	body := io.LimitReader(resp.Body, maxStatus)
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(body)
		if len(text) == 0 {
			text = []byte("the node answers " + resp.Status)
		}
		return &statusError{resp.StatusCode, printable(strings.TrimSpace(string(text)))}
	}
	if err := json.NewDecoder(body).Decode(answer); err != nil {
		return fmt.Errorf("what answers at %s is no node: %w", url, err)
	}
	return nil
}

// askStatus asks a running node how it is.
func askStatus(ctx context.Context, url string) (st node.Status, err error) {
	return st, ask(ctx, url, "/api/v1/status", &st)
}

func newStatusCommand(s *streams) *cobra.Command {
	var url string
	var asJSON, quiet bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Say how the node on this machine is doing",
		Long: `Asks the running node. Exit code 0 means that it is ready, 1 that it is not, 12
that none answers.`,
		Example: "  pkgswarm status",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			st, err := askStatus(cmd.Context(), url)
			if err != nil {
				return err
			}
			switch {
			case asJSON:
				err = json.NewEncoder(s.out).Encode(st)
			case !quiet:
				err = printStatus(s.out, st)
			}
			if err == nil && !st.Ready {
				err = &exitError{exitFailed, errors.New("the node is not ready"), "its log says why"}
			}
			return err
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&url, "url", defaultNode, "the node's `URL`")
	fs.BoolVar(&asJSON, "json", false, "print one JSON object")
	fs.BoolVar(&quiet, "quiet", false, "print nothing: only the exit code counts")
	return cmd
}

func printStatus(out io.Writer, st node.Status) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	state := "ready"
	if !st.Ready {
		state = "not ready"
	}
	fmt.Fprintf(w, "node\t%s, %s, up %s\n", st.Version, state, time.Since(st.Started).Round(time.Second))
	fmt.Fprintf(w, "listens\t%s\n", st.Listen)
	from := strings.Join(st.Upstreams, ", ")
	if st.Offline {
		from = "nobody (--offline)"
	}
	fmt.Fprintf(w, "upstreams\t%s\n", from)
	limit := "no limit"
	if st.Store.Cap > 0 {
		limit = "of " + humanize.Bytes(uint64(st.Store.Cap))
	}
	fmt.Fprintf(w, "store\t%s: %d artifacts, %s (%s)\n", st.Store.Dir, st.Store.Files, humanize.Bytes(uint64(st.Store.Bytes)), limit)
	if st.Store.Damaged > 0 {
		fmt.Fprintf(w, "\t%d damaged since the start: see pkgswarm verify\n", st.Store.Damaged)
	}
	fmt.Fprintf(w, "peers\t%d connected\n", len(st.Swarm.Peers))
	for _, r := range st.Registries {
		fmt.Fprintf(w, "registry\t%s\n", registryLine(r))
		if r.Mirror != nil {
			fmt.Fprintf(w, "\t%s\n", mirrorLine(r.Mirror))
		}
	}
	fmt.Fprintf(w, "served\t%s\n", st.Usage.String())
	return w.Flush()
}

func newPeersCommand(s *streams) *cobra.Command {
	var url string
	asJSON := false
	cmd := &cobra.Command{
		Use:     "peers",
		Short:   "List the peers that the node is connected to",
		Example: "  pkgswarm peers",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			st, err := askStatus(cmd.Context(), url)
			if err != nil {
				return err
			}
			if asJSON {
				enc := json.NewEncoder(s.out)
				for _, p := range st.Swarm.Peers {
					if err := enc.Encode(p); err != nil {
						return err
					}
				}
				return nil
			}
			w := tabwriter.NewWriter(s.out, 0, 0, 2, ' ', 0)
			for _, p := range st.Swarm.Peers {
				how := "it has dialled"
				if p.Dialled {
					how = "we have dialled"
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", p.Key, p.Addr, how, time.Since(p.Since).Round(time.Second))
			}
			return w.Flush()
		},
	}
	cmd.Flags().StringVar(&url, "url", defaultNode, "the node's `URL`")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object a line")
	return cmd
}

func registryLine(r node.RegistryStatus) string {
	switch {
	case r.Forked:
		return r.Key + ": not used, its operator has signed two histories"
	case r.Length == 0 && r.Error != "":
		return r.Key + ": not read yet: " + printable(r.Error)
	case r.Length == 0:
		return r.Key + ": not read yet"
	}
	line := fmt.Sprintf("%s: %d crates, %d modules, vouched for at %s", r.Key, r.Cargo, r.Go, r.Time)
	if r.Stale {
		line += " (stale)"
	}
	if r.Successor != "" {
		line += ", as " + r.Successor
	}
	if r.Error != "" {
		line += "; newer head refused: " + printable(r.Error)
	}
	return line
}

// mirrorLine says how far a mirror of a registry is.
func mirrorLine(m *signed.MirrorStatus) string {
	line := fmt.Sprintf("mirror: %s, %d of %d logs, %s", m.State, m.Held, m.Known, humanize.Bytes(m.Bytes))
	if m.Late > 0 {
		line += fmt.Sprintf(", %d with no peer", m.Late)
	}
	if m.Wrong > 0 {
		line += fmt.Sprintf(", %d wrong", m.Wrong)
	}
	if f := m.Files; f != nil {
		line += fmt.Sprintf("; files of %d packages, %s", f.Done, f.State)
		if f.Late > 0 {
			line += fmt.Sprintf(", %d with no peer", f.Late)
		}
		if f.LeftOut > 0 {
			line += fmt.Sprintf(", %d left out", f.LeftOut)
		}
	}
	return line
}
