package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// usualExits is told of commands that say nothing else about exit codes.
const usualExits = "Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."

// explain makes the help of cmd, and of the commands below it, fit a screen of 80
// columns and tell the exit codes: those of the group where the group tells them.
func explain(cmd *cobra.Command, exits string) {
	cmd.SetUsageFunc(usage)
	if i := strings.Index(cmd.Long, "Exit code"); i >= 0 {
		exits = cmd.Long[i:]
	} else if cmd.Runnable() && !cmd.HasSubCommands() {
		if cmd.Long == "" {
			cmd.Long = wrap(cmd.Short+".", 0)
		}
		cmd.Long += "\n\n" + exits
	}
	for _, sub := range cmd.Commands() {
		explain(sub, exits)
	}
}

// usage prints how a command is called.
func usage(cmd *cobra.Command) error {
	var b strings.Builder
	b.WriteString("Usage:\n")
	if cmd.Runnable() && !cmd.HasAvailableSubCommands() {
		fmt.Fprintf(&b, "  %s\n", cmd.UseLine())
	} else {
		fmt.Fprintf(&b, "  %s COMMAND\n", cmd.CommandPath())
	}
	if cmd.HasExample() {
		fmt.Fprintf(&b, "\nExamples:\n%s\n", cmd.Example)
	}
	if cmd.HasAvailableSubCommands() {
		b.WriteString("\nCommands:\n")
		for _, sub := range cmd.Commands() {
			if sub.IsAvailableCommand() || sub.Name() == "help" {
				fmt.Fprintf(&b, "  %-11s %s\n", sub.Name(), wrap(sub.Short, 14))
			}
		}
	}
	if flags := flagLines(cmd); flags != "" {
		fmt.Fprintf(&b, "\nFlags:\n%s", flags)
	}
	if more := cmd.Annotations[moreFlags]; more != "" {
		fmt.Fprintf(&b, "\n%s\n", more)
	}
	_, err := io.WriteString(cmd.OutOrStderr(), b.String())
	return err
}

// flagLines describes the flags of cmd, its own first.
func flagLines(cmd *cobra.Command) string {
	var b strings.Builder
	for _, fs := range []*pflag.FlagSet{cmd.NonInheritedFlags(), cmd.InheritedFlags()} {
		fs.VisitAll(func(f *pflag.Flag) {
			if !f.Hidden && f.Name != "help" {
				b.WriteString(flagLine(f))
			}
		})
	}
	return b.String()
}

// flagLine describes a flag, as --name VALUE and what it is, in 80 columns.
func flagLine(f *pflag.Flag) string {
	const indent = 24
	value, text := pflag.UnquoteUsage(f)
	switch {
	case f.Value.Type() == "bool":
		value = ""
	case f.NoOptDefVal != "":
		value = "[=" + value + "]"
	default:
		value = " " + value
	}
	if d := flagDefault(f); d != "" && !strings.Contains(text, "(default") {
		text += " (default " + d + ")"
	}
	head := "  --" + f.Name + value
	if len(head) > indent-2 {
		return head + "\n" + strings.Repeat(" ", indent) + wrap(text, indent) + "\n"
	}
	return fmt.Sprintf("%-*s", indent, head) + wrap(text, indent) + "\n"
}

// flagDefault returns the default of a flag as people would write it, or nothing where
// it says no more than the flag's absence does.
func flagDefault(f *pflag.Flag) string {
	if slices.Contains([]string{"", "0", "[]", "false", "0s"}, f.DefValue) {
		return ""
	}
	if home, err := os.UserHomeDir(); err == nil && len(home) > 1 {
		if rest, ok := strings.CutPrefix(f.DefValue, home+string(os.PathSeparator)); ok {
			return "~" + string(os.PathSeparator) + rest
		}
	}
	return f.DefValue
}

// moreFlags is the annotation that tells of the flags that help leaves out.
const (
	moreFlags    = "more flags"
	nodeSettings = "It takes all settings of a node: see pkgswarm help settings."
)

// showOnly leaves all flags of a node out of cmd's help but these. It is called
// before cmd's own flags are added.
func showOnly(cmd *cobra.Command, names ...string) {
	cmd.Flags().VisitAll(func(f *pflag.Flag) { f.Hidden = !slices.Contains(names, f.Name) })
	cmd.Annotations = map[string]string{moreFlags: nodeSettings}
}

// leaveOut leaves flags that few need out of cmd's help, but for their names.
func leaveOut(cmd *cobra.Command, names ...string) {
	for _, name := range names {
		cmd.Flags().Lookup(name).Hidden = true
	}
	cmd.Annotations = map[string]string{moreFlags: wrap("More, in the man page: --"+strings.Join(names, ", --")+".", 0)}
}

// newSettingsTopic is a page of help about all settings of a node.
func newSettingsTopic(*streams) *cobra.Command {
	var f serveFlags
	flags := &cobra.Command{Use: "serve"}
	f.add(flags)
	return &cobra.Command{
		Use:   "settings",
		Short: "All settings of a node",
		Long: `The settings of a node are flags of serve, run, prefetch, why and bundle. Each
is also a variable and a key of the configuration file: --disk-cap is
PKGSWARM_DISK_CAP, and disk-cap = "500GB" in the file. Flags win over variables,
and these over the file, which is pkgswarm/config.toml in the user's directory
for configurations. pkgswarm config show tells what is in force, and why.

The file also has the policy: which versions may be used.

  [policy]
  dry-run = false                    # only log what would be refused
  [policy.cargo]                     # and the same in [policy.go]
  cooldown = "3d"                    # least age of a version
  block = ["evil-*", "left@1.0.3"]   # never these
  allow = ["serde*"]                 # if there are any, these only
  except = ["serde@1.0.228"]         # in spite of all rules

` + strings.TrimRight(flagLines(flags), "\n"),
	}
}
