package main

import (
	"bytes"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

// visible calls f with each command that help lists, the root included.
func visible(cmd *cobra.Command, f func(*cobra.Command)) {
	if cmd.Hidden || cmd.Deprecated != "" || cmd.IsAdditionalHelpTopicCommand() {
		return
	}
	f(cmd)
	for _, sub := range cmd.Commands() {
		visible(sub, f)
	}
}

// TestHelp holds that the help of every command fits a screen, tells the exit codes,
// and has an example.
func TestHelp(t *testing.T) {
	var b bytes.Buffer
	root := newRoot(&streams{strings.NewReader(""), &b, &b})
	root.InitDefaultCompletionCmd()
	root.InitDefaultHelpCmd()
	visible(root, func(cmd *cobra.Command) {
		t.Run(cmd.CommandPath(), func(t *testing.T) {
			b.Reset()
			if err := cmd.Help(); err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(strings.TrimRight(b.String(), "\n"), "\n")
			if len(lines) > 40 {
				t.Errorf("%d lines, more than a screen:\n%s", len(lines), b.String())
			}
			if strings.HasPrefix(cmd.CommandPath(), "pkgswarm completion") || cmd.Name() == "help" {
				return // cobra's own
			}
			for _, l := range lines {
				if n := utf8.RuneCountInString(l); n > 80 {
					t.Errorf("%d columns: %s", n, l)
				}
			}
			if !cmd.HasSubCommands() && !strings.Contains(cmd.Long, "Exit code") {
				t.Error("the exit codes are not told")
			}
			if !strings.HasPrefix(cmd.Example, "  ") || !strings.Contains(cmd.Example, "pkgswarm ") {
				t.Errorf("example %q", cmd.Example)
			}
		})
	})
}
