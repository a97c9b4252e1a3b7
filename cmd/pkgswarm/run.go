package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/pkgswarm/pkgswarm/internal/clients"
	"github.com/pkgswarm/pkgswarm/internal/node"
	"github.com/spf13/cobra"
)

// realCargo is the variable that tells the stand-in for cargo where cargo is.
const realCargo = "PKGSWARM_REAL_CARGO"

func newRunCommand(s *streams) *cobra.Command {
	f := &serveFlags{}
	cmd := &cobra.Command{
		Use:   "run [flags] -- COMMAND [ARG...]",
		Short: "Run a node for the length of one command",
		Long: `Runs COMMAND with a node of its own: go finds it by GOPROXY, and cargo, also
when COMMAND calls it, by a stand-in in PATH that adds the replacement of
crates.io. Nothing is installed or configured. The exit code is that of COMMAND.`,
		Example: `  pkgswarm run -- cargo build --locked
  pkgswarm run --peer cache.example.org:7071 -- make`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.config(s)
			if err != nil {
				return err
			}
			if c.Policy, err = readPolicy(cmd); err != nil {
				return err
			}
			if !cmd.Flags().Changed("listen") {
				c.Listen = "127.0.0.1:0"
			}
			return runWith(cmd.Context(), s, c, args)
		},
	}
	f.add(cmd)
	showOnly(cmd, "data", "state", "offline", "peer", "registry", "no-lan", "fleet-token-file")
	return cmd
}

// withNode runs do while a node runs.
func withNode(ctx context.Context, c node.Config, do func(ctx context.Context, n *node.Node) error) error {
	n, err := openNode(c)
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan error, 1)
	go func() { done <- n.Run(running) }()
	err = do(ctx, n)
	stop()
	return errors.Join(err, <-done, n.Close())
}

func runWith(ctx context.Context, s *streams, c node.Config, args []string) error {
	return withNode(ctx, c, func(ctx context.Context, n *node.Node) error {
		defer summarize(s, n)
		env, cleanUp, err := commandEnv(n.URL(), c.Policy.Binds())
		if err != nil {
			return err
		}
		defer cleanUp()
		return runCommand(ctx, s, env, args)
	})
}

// summarize says what a node has served, if anything: once, when the command that it
// was for has ended.
func summarize(s *streams, n *node.Node) {
	if u := n.Status().Usage; u.Artifacts+u.Failed > 0 {
		fmt.Fprintln(s.err, u.String())
	}
}

// commandEnv returns the environment in which cargo and go use the node at url.
func commandEnv(url string, strict bool) (env []string, cleanUp func(), err error) {
	list := os.Getenv("GOPROXY")
	if list == "" {
		list = "direct"
		if out, err := exec.Command("go", "env", "GOPROXY").Output(); err == nil {
			list = strings.TrimSpace(string(out))
		}
	}
	env = append(os.Environ(), clients.Env(url, list, strict)...)
	cargo, err := exec.LookPath("cargo")
	if err != nil {
		return env, func() {}, nil // no cargo: nothing to stand in for
	}
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	dir, err := os.MkdirTemp("", "pkgswarm-run-*")
	if err != nil {
		return nil, nil, err
	}
	name := "cargo"
	if runtime.GOOS == "windows" {
		name = "cargo.exe"
	}
	if err := link(self, filepath.Join(dir, name)); err != nil {
		os.RemoveAll(dir)
		return nil, nil, fmt.Errorf("stand in for cargo: %w", err)
	}
	env = append(env, realCargo+"="+cargo, "PATH="+dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	return env, func() { os.RemoveAll(dir) }, nil
}

// link makes a second name for a program, or a copy where links need a privilege.
func link(from, to string) error {
	if err := os.Symlink(from, to); err == nil {
		return nil
	}
	if err := os.Link(from, to); err == nil {
		return nil
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// runCommand runs a command; its exit code becomes ours.
func runCommand(ctx context.Context, s *streams, env, args []string) error {
	path, err := lookPath(args[0], env)
	if err != nil {
		return &exitError{exitUsage, fmt.Errorf("run %s: %w", args[0], err), "the command comes after --"}
	}
	// Interrupts reach the command by the terminal; it decides what to do.
	cmd := exec.Command(path, args[1:]...)
	cmd.Args[0] = args[0]
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = env, s.in, s.out, s.err
	if err := cmd.Start(); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { cmd.Process.Signal(os.Interrupt) })
	defer stop()
	err = cmd.Wait()
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return &exitError{exitCode(e), nil, ""}
	}
	return err
}

// exitCode returns the exit code of a command as shells give it: 128 and the number
// of the signal, if that has ended it.
func exitCode(e *exec.ExitError) int {
	if s, ok := e.Sys().(syscall.WaitStatus); ok && s.Signaled() {
		return 128 + int(s.Signal())
	}
	return e.ExitCode()
}

// lookPath finds a program as a process with that environment would.
func lookPath(name string, env []string) (string, error) {
	if strings.ContainsRune(name, os.PathSeparator) {
		return name, nil
	}
	path := os.Getenv("PATH")
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			path = v // the last one counts
		}
	}
	for _, dir := range filepath.SplitList(path) {
		for _, ext := range []string{"", ".exe"} {
			p := filepath.Join(dir, name+ext)
			if info, err := os.Stat(p); err == nil && info.Mode().IsRegular() && (runtime.GOOS == "windows" || info.Mode()&0o111 != 0) {
				return p, nil
			}
		}
	}
	return "", exec.ErrNotFound
}

// standIn reports whether this process was started in place of cargo by run, and if
// so, does what cargo does, with crates.io replaced.
func standIn(args []string) (code int, ok bool) {
	cargo := os.Getenv(realCargo)
	name := strings.TrimSuffix(filepath.Base(args[0]), ".exe")
	if name != "cargo" || cargo == "" {
		return 0, false
	}
	cmd := exec.Command(cargo, clients.CargoArgs(args[1:])...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return exitCode(e), true
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "pkgswarm:", err)
		return exitFailed, true
	}
	return 0, true
}
