package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"slices"
	"syscall"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/internal/config"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Exit codes. They are an interface: scripts branch on them.
const (
	exitFailed      = 1   // the work failed
	exitUsage       = 2   // the command line is wrong
	exitPartly      = 3   // some of the work was done, the rest was reported
	exitNoStore     = 10  // no store where one was expected
	exitInUse       = 11  // the store is in use by another process
	exitUnreachable = 12  // an upstream or every peer is unreachable
	exitInterrupted = 130 // stopped by a signal
)

// An exitError carries the exit code and a hint for an error.
type exitError struct {
	code int
	err  error
	hint string // what to do next; may be empty
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}
func (e *exitError) Unwrap() error { return e.err }

// A streams holds what a command reads from and writes to.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

// run executes the command line args and returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRoot(&streams{stdin, stdout, stderr})
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	code, hint := exitFailed, ""
	if e, ok := errors.AsType[*exitError](err); ok {
		code, hint = e.code, e.hint
	} else if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		code, err = exitInterrupted, errors.New("interrupted")
	} else {
		code, hint = common(err)
	}
	if e, ok := errors.AsType[*exitError](err); ok && e.err == nil {
		return code // a command that was run has said itself what went wrong
	}
	fmt.Fprintf(stderr, "pkgswarm: %v\n", err)
	if hint != "" {
		fmt.Fprintf(stderr, "hint: %s\n", hint)
	}
	return code
}

// findNode has commands that ask the node look for it where the configuration has it
// listen, unless they are told its address.
func findNode(cmd *cobra.Command, f config.File) error {
	url := cmd.Flags().Lookup("url")
	if url == nil || url.Changed || url.DefValue != defaultNode {
		return nil
	}
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	listen := fs.String("listen", "", "")
	cert := fs.String("tls-cert", "", "")
	if _, err := config.Apply(fs, os.Getenv, f); err != nil {
		return &exitError{exitUsage, err, "see pkgswarm config show"}
	}
	host, port, err := net.SplitHostPort(*listen)
	if err != nil || port == "0" {
		return nil // not set, or for serve to complain about
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	scheme := "http"
	if *cert != "" {
		scheme = "https"
	}
	return url.Value.Set(scheme + "://" + net.JoinHostPort(host, port))
}

// common returns the exit code and what to do for errors that any command may meet.
func common(err error) (code int, hint string) {
	if _, ok := errors.AsType[*core.InUseError](err); ok {
		return exitInUse, "stop that process, or use another --data directory"
	}
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return exitInUse, "another process listens there: choose another address"
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return exitFailed, "name directories that this user may write to with --data and --state"
	}
	return exitFailed, ""
}

func newRoot(s *streams) *cobra.Command {
	root := &cobra.Command{
		Use:           "pkgswarm",
		Short:         "A peer-to-peer mirror of crates.io and of the Go module ecosystem",
		Example:       "  pkgswarm serve\n  pkgswarm run -- cargo build",
		Annotations:   map[string]string{moreFlags: "Settings of a node, policies: pkgswarm help settings."},
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetIn(s.in)
	root.SetOut(s.out)
	root.SetErr(s.err)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &exitError{exitUsage, err, "see " + cmd.CommandPath() + " --help"}
	})
	root.PersistentFlags().String("config", "", "configuration `FILE` (see pkgswarm help settings)")
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		f, err := readConfig(cmd)
		if err != nil {
			return err
		}
		if _, err := config.Apply(cmd.Flags(), os.Getenv, f); err != nil {
			return &exitError{exitUsage, err, "see pkgswarm config show"}
		}
		return findNode(cmd, f)
	}
	for _, add := range commands {
		root.AddCommand(add(s))
	}
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	checkUsage(root)
	explain(root, usualExits)
	return root
}

// checkUsage makes wrong arguments of cmd, and of the commands below it, end with
// exitUsage; those that only group others show their help.
func checkUsage(cmd *cobra.Command) {
	if cmd.HasSubCommands() && !cmd.Runnable() {
		cmd.SuggestionsMinimumDistance = 2
		cmd.Args = cobra.ArbitraryArgs
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			hint := "see " + cmd.CommandPath() + " --help"
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				hint = "did you mean " + cmd.CommandPath() + " " + near[0] + "?"
			}
			return &exitError{exitUsage, fmt.Errorf("no command %q", args[0]), hint}
		}
	}
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return &exitError{exitUsage, err, "see " + cmd.CommandPath() + " --help"}
			}
			return nil
		}
	}
	for _, sub := range cmd.Commands() {
		checkUsage(sub)
	}
}

// readConfig reads the configuration file that cmd is to use.
func readConfig(cmd *cobra.Command) (config.File, error) {
	path, _ := cmd.Flags().GetString("config")
	must := path != "" || os.Getenv("PKGSWARM_CONFIG") != ""
	if path == "" {
		var err error
		if path, err = config.DefaultPath(os.Getenv); err != nil {
			return config.File{}, nil // no home: no file
		}
	}
	f, err := config.Read(path, must)
	if err == nil {
		err = f.Unknown(func(name string) bool { return isSetting(cmd.Root(), name) })
	}
	if err != nil {
		return f, &exitError{exitUsage, err, "correct the file, or name another one with --config"}
	}
	return f, nil
}

// isSetting reports whether cmd or a command below it has a flag of that name.
func isSetting(cmd *cobra.Command, name string) bool {
	if cmd.LocalFlags().Lookup(name) != nil {
		return true
	}
	return slices.ContainsFunc(cmd.Commands(), func(c *cobra.Command) bool { return isSetting(c, name) })
}

// commands makes the subcommands, each in a file of its own.
var commands = []func(*streams) *cobra.Command{
	newBeeCommand,
	newBundleCommand,
	newConfigCommand,
	newCoreCommand,
	newServeCommand,
	newSettingsTopic,
	newImportCommand,
	newKeyCommand,
	newStatusCommand,
	newPeersCommand,
	newRunCommand,
	newPrefetchCommand,
	newVerifyCommand,
	newGCCommand,
	newDenyCommand,
	newDoctorCommand,
	newSetupCommand,
	newVersionCommand,
	newWhyCommand,
}
