package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/pkgswarm/pkgswarm/internal/clients"
	"github.com/spf13/cobra"
)

// backupSuffix is appended to the name of a file that setup changes.
const backupSuffix = ".pkgswarm-backup"

type setupOptions struct {
	url    string
	undo   bool
	print  bool
	strict bool
	json   bool
}

// A setupStep is what setup did, or with --print would do, for one client.
type setupStep struct {
	Client string `json:"client"`
	File   string `json:"file,omitempty"`
	Action string `json:"action"` // "changed", "unchanged", "would change", "skipped", "not running"
	Detail string `json:"detail"`
	Note   string `json:"note,omitempty"` // what to know about it
}

func newSetupCommand(s *streams) *cobra.Command {
	var o setupOptions
	cmd := &cobra.Command{
		Use:   "setup",
		Short: "Point cargo and go at the node on this machine",
		Long: `Setup makes cargo and go ask the node on this machine first: it adds a registry
to cargo's config.toml and puts the node in front of go's GOPROXY. Files that
it changes are kept beside themselves as *` + backupSuffix + `; --undo takes the
changes back. Doing it twice changes nothing more.

Without the node, go asks its other proxies as before (after '|'; with --strict,
or where the node has a policy, ',' so that the node's refusals bind). cargo has
no such second choice: while the node is not running, cargo fails. Run the node
as a service, or use 'pkgswarm run -- cargo build' instead. cargo search and
cargo info want to hear '--registry pkgswarm'.`,
		Example: `  pkgswarm setup --print
  pkgswarm setup
  pkgswarm setup --undo`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := readPolicy(cmd)
			if err != nil {
				return err
			}
			u, err := url.Parse(o.url)
			if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
				return &exitError{exitUsage, fmt.Errorf("--url: %q is not a node's address", o.url), "write it as " + defaultNode}
			}
			st, nodeErr := askStatus(cmd.Context(), o.url)
			o.strict = o.strict || p.Binds() || nodeErr == nil && st.Policy
			steps, err := setup(cmd.Context(), o)
			if nodeErr != nil && !o.undo {
				steps = append(steps, setupStep{Client: "node", Action: "not running", Detail: "none answers at " + o.url, Note: "start it with pkgswarm serve, or as a service"})
			}
			for _, step := range steps {
				if o.json {
					if err := json.NewEncoder(s.out).Encode(step); err != nil {
						return err
					}
					continue
				}
				fmt.Fprintf(s.out, "%-6s %s: %s\n", step.Client, step.Action, step.Detail)
				if step.Note != "" {
					fmt.Fprintf(s.out, "%6s %s\n", "", step.Note)
				}
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.url, "url", defaultNode, "the node's `URL`")
	f.BoolVar(&o.undo, "undo", false, "take the changes back")
	f.BoolVar(&o.print, "print", false, "only show what would change")
	f.BoolVar(&o.strict, "strict", false, "let the node's refusals bind: ',' instead of '|' in GOPROXY")
	f.BoolVar(&o.json, "json", false, "print one JSON object a line")
	return cmd
}

// setup does each client and goes on with the next where one fails.
func setup(ctx context.Context, o setupOptions) ([]setupStep, error) {
	var steps []setupStep
	var errs []error
	for _, client := range []struct {
		name string
		do   func(context.Context, setupOptions) (setupStep, error)
	}{{"cargo", setupCargo}, {"go", setupGo}} {
		step := setupStep{Client: client.name, Action: "skipped", Detail: "not installed"}
		if _, err := exec.LookPath(client.name); err == nil {
			if step, err = client.do(ctx, o); err != nil {
				errs = append(errs, fmt.Errorf("set up %s: %w", client.name, err))
				continue
			}
		}
		step.Client = client.name
		steps = append(steps, step)
	}
	err := errors.Join(errs...)
	if _, ok := errors.AsType[*clients.ReplacedError](err); ok {
		return steps, &exitError{exitFailed, err, "remove that replacement, and start the node with --cargo-upstream and its URL"}
	}
	return steps, err
}

func setupCargo(_ context.Context, o setupOptions) (setupStep, error) {
	path, err := cargoConfigPath()
	if err != nil {
		return setupStep{}, err
	}
	old, err := os.ReadFile(path)
	existed := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return setupStep{}, err
	}
	want := clients.RemoveCargo(old)
	if !o.undo {
		if want, err = clients.AddCargo(old, o.url); err != nil {
			return setupStep{}, err
		}
	}
	step := setupStep{File: path, Action: "unchanged", Detail: path}
	if bytes.Equal(old, want) {
		return step, nil
	}
	if o.print {
		step.Action, step.Detail = "would change", path+" to\n"+string(want)
		return step, nil
	}
	step.Action = "changed"
	if o.undo {
		return step, undoFile(path, want)
	}
	step.Note = "while the node is not running, cargo fails: it has no second choice"
	if existed {
		if err := backup(path, old); err != nil {
			return setupStep{}, err
		}
	}
	return step, replaceFile(path, want)
}

// cargoConfigPath returns the file that cargo itself would read: config.toml in
// CARGO_HOME, or the older name config where only that exists.
func cargoConfigPath() (string, error) {
	home := os.Getenv("CARGO_HOME")
	if home == "" {
		user, err := os.UserHomeDir()
		if err != nil {
			return "", err
		}
		home = filepath.Join(user, ".cargo")
	}
	path, older := filepath.Join(home, "config.toml"), filepath.Join(home, "config")
	if _, err := os.Stat(older); err == nil {
		path = older // cargo prefers it where both exist
	}
	return path, nil
}

func setupGo(ctx context.Context, o setupOptions) (setupStep, error) {
	current, err := goEnv(ctx, "GOPROXY")
	if err != nil {
		return setupStep{}, err
	}
	file, err := goEnv(ctx, "GOENV")
	if err != nil {
		return setupStep{}, err
	}
	if file == "off" || file == "" {
		return setupStep{Action: "skipped", Detail: "GOENV=off: go keeps no configuration; set GOPROXY yourself"}, nil
	}
	if v := os.Getenv("GOPROXY"); v != "" && !o.print {
		return setupStep{}, fmt.Errorf("GOPROXY is set in the environment, which go prefers to its configuration: unset it, or set it to %s", clients.AddGo(v, o.url, o.strict))
	}
	want := clients.RemoveGo(current, o.url)
	if !o.undo {
		want = clients.AddGo(current, o.url, o.strict)
	}
	step := setupStep{File: file, Action: "unchanged", Detail: "GOPROXY=" + current}
	if want == current {
		return step, nil
	}
	step.Detail = "GOPROXY=" + want
	if o.print {
		step.Action = "would change"
		return step, nil
	}
	step.Action = "changed"
	if o.undo {
		return step, undoGo(ctx, file, want)
	}
	old, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return setupStep{}, err
	}
	if err := backup(file, old); err != nil {
		return setupStep{}, err
	}
	step.Note = "while the node is not running, go asks the next one of the list"
	if o.strict {
		step.Note = "while the node is not running, go fails: what the node refuses binds"
	}
	return step, goEnvSet(ctx, "-w", "GOPROXY="+want)
}

// undoGo sets GOPROXY back to want, or to go's own default where the file of
// go's settings did not have it before.
func undoGo(ctx context.Context, file, want string) error {
	old, err := os.ReadFile(file + backupSuffix)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil && !bytes.HasPrefix(old, []byte("GOPROXY=")) && !bytes.Contains(old, []byte("\nGOPROXY=")) {
		err = goEnvSet(ctx, "-u", "GOPROXY")
	} else {
		err = goEnvSet(ctx, "-w", "GOPROXY="+want)
	}
	if err != nil {
		return err
	}
	return removeIfThere(file + backupSuffix)
}

// goEnv returns go's value of a setting, outside of any module.
func goEnv(ctx context.Context, name string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "env", name)
	cmd.Dir = os.TempDir()
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go env %s: %w", name, err)
	}
	return strings.TrimSpace(string(out)), nil
}

func goEnvSet(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", append([]string{"env"}, args...)...)
	cmd.Dir = os.TempDir()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go env %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// backup keeps content beside path, unless an earlier setup did so: the oldest
// is the one from before us.
func backup(path string, content []byte) error {
	if _, err := os.Stat(path + backupSuffix); err == nil {
		return nil
	}
	return replaceFile(path+backupSuffix, content)
}

// undoFile leaves want at path, or no file where setup had made it.
func undoFile(path string, want []byte) error {
	_, err := os.Stat(path + backupSuffix)
	if errors.Is(err, fs.ErrNotExist) && len(want) == 0 {
		return os.Remove(path)
	}
	if err := replaceFile(path, want); err != nil {
		return err
	}
	return removeIfThere(path + backupSuffix)
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// replaceFile writes path as a whole or not at all, keeping its permissions. A
// link is followed, so that a configuration kept elsewhere stays there.
func replaceFile(path string, b []byte) error {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	mode := fs.FileMode(0o644)
	if info, err := os.Stat(path); err == nil {
		mode = info.Mode().Perm()
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".pkgswarm-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(b)
	err = errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close())
	if err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}
