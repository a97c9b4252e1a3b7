package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/pkgswarm/pkgswarm/internal/clients"
	"github.com/pkgswarm/pkgswarm/internal/node"
	"github.com/spf13/cobra"
)

// A finding is one thing that doctor has looked at.
type finding struct {
	What string `json:"what"`
	OK   bool   `json:"ok"`
	Text string `json:"text"`           // what was found
	Do   string `json:"do,omitempty"`   // what to do about it
	Note bool   `json:"note,omitempty"` // worth knowing, no problem
}

// A doctor looks for what keeps builds from using the node.
type doctor struct {
	dirs
	url      string
	node     *node.Status // nil if none answers
	findings []finding
}

func (d *doctor) ok(what, format string, args ...any) {
	d.findings = append(d.findings, finding{What: what, OK: true, Text: fmt.Sprintf(format, args...)})
}

func (d *doctor) note(what, text, do string) {
	d.findings = append(d.findings, finding{What: what, OK: true, Note: true, Text: text, Do: do})
}

func (d *doctor) bad(what, do, format string, args ...any) {
	d.findings = append(d.findings, finding{What: what, Text: fmt.Sprintf(format, args...), Do: do})
}

func newDoctorCommand(s *streams) *cobra.Command {
	d := &doctor{}
	asJSON := false
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look for what keeps builds from using the node",
		Long: `Looks at the running node, its directories, its operators' catalogs, its peers,
and at how cargo and go are set up; each line is a finding and what to do.
Nothing is changed. Exit code 1 means that something is wrong.`,
		Example: "  pkgswarm doctor",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d.examine(cmd.Context())
			return d.report(s, asJSON)
		},
	}
	d.addFlags(cmd)
	cmd.Flags().StringVar(&d.url, "url", defaultNode, "the node's `URL`")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object a line")
	return cmd
}

func (d *doctor) examine(ctx context.Context) {
	d.examineNode(ctx)
	d.examineDir("data", d.data)
	d.examineDir("state", d.state)
	d.examineEvidence()
	d.examineCargo()
	d.examineGo(ctx)
	d.examineProxy()
}

func (d *doctor) examineDir(what, dir string) {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		d.note(what, dir+" is not there yet", "a node makes it")
	case err != nil:
		d.bad(what, "give this user the right to it", "%v", err)
	case os.PathSeparator == '/' && info.Mode().Perm()&0o077 != 0:
		d.bad(what, "chmod 700 "+dir, "%s is open to other users", dir)
	default:
		d.ok(what, "%s", dir)
	}
}

// examineEvidence looks for proof that an operator has signed two histories.
func (d *doctor) examineEvidence() {
	found, err := filepath.Glob(filepath.Join(headsDir(d.state), "*.evidence"))
	if err != nil {
		return // of the pattern alone, which is right
	}
	for _, f := range found {
		d.bad("operator", "do not use this registry; pkgswarm verify --evidence "+f+" convinces others", "an operator has signed two histories of one core")
	}
}

func (d *doctor) examineCargo() {
	if _, err := exec.LookPath("cargo"); err != nil {
		d.note("cargo", "not installed", "")
		return
	}
	path, err := cargoConfigPath()
	if err != nil {
		d.bad("cargo", "set HOME or CARGO_HOME", "%v", err)
		return
	}
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.bad("cargo", "make it readable", "%v", err)
		return
	}
	_, addErr := clients.AddCargo(b, d.url)
	replaced, isReplaced := errors.AsType[*clients.ReplacedError](addErr)
	switch {
	case strings.Contains(string(b), clients.IndexURL(d.url)) && d.node == nil:
		d.bad("cargo", "start the node, or run pkgswarm setup --undo", "%s points at a node that does not run: cargo fails", path)
	case strings.Contains(string(b), clients.IndexURL(d.url)):
		d.ok("cargo", "%s points at the node", path)
	case isReplaced:
		d.note("cargo", fmt.Sprintf("%s replaces crates.io with %q", path, replaced.With), "remove that, and give its URL to the node with --cargo-upstream")
	default:
		d.note("cargo", path+" does not point at the node", "pkgswarm setup, or pkgswarm run -- cargo build")
	}
}

func (d *doctor) examineGo(ctx context.Context) {
	if _, err := exec.LookPath("go"); err != nil {
		d.note("go", "not installed", "")
		return
	}
	list, err := goEnv(ctx, "GOPROXY")
	switch {
	case err != nil:
		d.bad("go", "run go env, and mend what it says", "%v", err)
	case strings.HasPrefix(list, clients.ProxyURL(d.url)+"|") && d.node != nil && d.node.Policy:
		d.bad("go", "pkgswarm setup --strict", "GOPROXY=%s goes around the node's policy: after '|' any refusal leads to the next one", list)
	case strings.HasPrefix(list, clients.ProxyURL(d.url)+",") && d.node == nil:
		d.bad("go", "start the node, or run pkgswarm setup --undo", "GOPROXY=%s begins with a node that does not run: go fails", list)
	case clients.RemoveGo(list, d.url) != list:
		d.ok("go", "GOPROXY=%s", list)
	default:
		d.note("go", "GOPROXY="+list+" does not begin with the node", "pkgswarm setup, or pkgswarm run -- go build")
	}
}

// examineProxy looks for a proxy that would stand between clients and the node.
func (d *doctor) examineProxy() {
	for _, name := range []string{"http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"} {
		if os.Getenv(name) == "" {
			continue
		}
		for _, no := range []string{os.Getenv("no_proxy"), os.Getenv("NO_PROXY")} {
			if no == "*" || strings.Contains(no, "127.0.0.1") || strings.Contains(no, "localhost") {
				d.ok("proxy", "%s is set, and does not hold for this machine", name)
				return
			}
		}
		d.bad("proxy", "export NO_PROXY=127.0.0.1,localhost", "%s would also be used for the node", name)
		return
	}
}

func (d *doctor) report(s *streams, asJSON bool) error {
	wrong := 0
	for _, f := range d.findings {
		if !f.OK {
			wrong++
		}
		if asJSON {
			if err := json.NewEncoder(s.out).Encode(f); err != nil {
				return err
			}
			continue
		}
		mark := "ok"
		switch {
		case !f.OK:
			mark = "WRONG"
		case f.Note:
			mark = "note"
		}
		fmt.Fprintf(s.out, "%-5s  %-8s  %s\n", mark, f.What, wrap(printable(f.Text), 17))
		if f.Do != "" {
			fmt.Fprintf(s.out, "%17s-> %s\n", "", wrap(printable(f.Do), 20))
		}
	}
	if wrong > 0 {
		return &exitError{exitFailed, errors.New(count(wrong, "thing is", "things are") + " wrong"), ""}
	}
	return nil
}
