package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/pkgswarm/pkgswarm/bee"
	"github.com/pkgswarm/pkgswarm/core"
	"github.com/spf13/cobra"
)

// A beeEntry is what commands print about a key. Text is UTF-8; keys and values
// that are not come in base64 besides.
type beeEntry struct {
	Type  string  `json:"type,omitempty"` // of history: put or del
	Seq   uint64  `json:"seq"`
	Key   string  `json:"key"`
	Value *string `json:"value"` // null for a null value and for deletions
}

func entryOf(e bee.Entry) beeEntry {
	out := beeEntry{Seq: e.Seq, Key: string(e.Key)}
	if e.Value != nil {
		v := string(e.Value)
		out.Value = &v
	}
	return out
}

func (e beeEntry) text(w io.Writer) {
	value := ""
	if e.Value != nil {
		value = *e.Value
	}
	if e.Type != "" {
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\n", e.Seq, e.Type, printable(e.Key), printable(value))
		return
	}
	fmt.Fprintf(w, "%s\t%s\n", printable(e.Key), printable(value))
}

func newBeeCommand(s *streams) *cobra.Command {
	f := &coreFlags{s: s}
	cmd := &cobra.Command{
		Use:   "bee",
		Short: "Work with Hyperbee maps",
		Long: `Work with Hyperbee 2 maps on the cores of the data directory's store. A CORE is
named by its name in this store, or by its key in z-base-32 or hexadecimal.

Exit codes: 0 done, 1 failed or no such key, 2 wrong usage, 10 no store, 11 the
store is in use.`,
		Example: `  pkgswarm bee put colours apple red
  pkgswarm bee list colours`,
		Args: cobra.NoArgs,
	}
	f.add(cmd)
	cmd.AddCommand(f.beePut(), f.beeGet(), f.beeDel(), f.beeList(), f.beeHistory())
	return cmd
}

func (f *coreFlags) beePut() *cobra.Command {
	return &cobra.Command{
		Use:     "put CORE KEY VALUE [KEY VALUE]...",
		Short:   "Store values, all of them or none",
		Example: "  pkgswarm bee put colours apple red banana yellow",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) < 3 || len(args)%2 == 0 {
				return errors.New("want CORE and pairs of KEY and VALUE")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.with(args[0], true, func(c *core.Core) error {
				b := bee.Open(c, bee.Options{}).Batch()
				defer b.Close()
				for i := 1; i < len(args); i += 2 {
					if err := b.Put(cmd.Context(), []byte(args[i]), []byte(args[i+1])); err != nil {
						return err
					}
				}
				if err := b.Flush(cmd.Context()); err != nil {
					return err
				}
				return f.print(infoOf(c), func(w io.Writer) { fmt.Fprintln(w, c.Length()) })
			})
		},
	}
}

func (f *coreFlags) beeGet() *cobra.Command {
	var version uint64
	cmd := &cobra.Command{
		Use:     "get CORE KEY",
		Short:   "Print the value of a key",
		Example: "  pkgswarm bee get colours apple",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.with(args[0], false, func(c *core.Core) error {
				e, err := view(c, version).Get(cmd.Context(), []byte(args[1]))
				if errors.Is(err, bee.ErrNotFound) {
					return fmt.Errorf("no key %q", args[1])
				}
				if err != nil {
					return err
				}
				return f.print(entryOf(e), func(w io.Writer) { fmt.Fprintln(w, string(e.Value)) })
			})
		},
	}
	cmd.Flags().Uint64Var(&version, "version", 0, "read this `VERSION` of the map (default: the newest)")
	return cmd
}

// view returns the map on c at a version, 0 being the newest.
func view(c *core.Core, version uint64) *bee.Tree {
	t := bee.Open(c, bee.Options{})
	if version > 0 {
		return t.Checkout(version)
	}
	return t
}

func (f *coreFlags) beeDel() *cobra.Command {
	return &cobra.Command{
		Use:     "del CORE KEY...",
		Short:   "Remove keys, all of them or none; those that do not exist are skipped",
		Example: "  pkgswarm bee del colours apple",
		Args:    cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.with(args[0], false, func(c *core.Core) error {
				b := bee.Open(c, bee.Options{}).Batch()
				defer b.Close()
				for _, k := range args[1:] {
					if err := b.Delete(cmd.Context(), []byte(k)); err != nil {
						return err
					}
				}
				if err := b.Flush(cmd.Context()); err != nil {
					return err
				}
				return f.print(infoOf(c), func(w io.Writer) { fmt.Fprintln(w, c.Length()) })
			})
		},
	}
}

func (f *coreFlags) beeList() *cobra.Command {
	var version uint64
	var r struct{ gt, gte, lt, lte string }
	var reverse bool
	var limit int
	cmd := &cobra.Command{
		Use:     "list CORE",
		Short:   "Print keys and values in order",
		Example: "  pkgswarm bee list colours --gte a --lt c --limit 10",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			bound := func(name, value string) []byte {
				if cmd.Flags().Changed(name) {
					return []byte(value)
				}
				return nil
			}
			rg := bee.Range{GT: bound("gt", r.gt), GTE: bound("gte", r.gte), LT: bound("lt", r.lt), LTE: bound("lte", r.lte), Reverse: reverse, Limit: limit}
			return f.with(args[0], false, func(c *core.Core) error {
				for e, err := range view(c, version).Range(cmd.Context(), rg) {
					if err == nil {
						err = f.print(entryOf(e), entryOf(e).text)
					}
					if err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
	fs := cmd.Flags()
	fs.Uint64Var(&version, "version", 0, "read this `VERSION` of the map (default: the newest)")
	fs.StringVar(&r.gt, "gt", "", "only keys above `KEY`")
	fs.StringVar(&r.gte, "gte", "", "only `KEY` and those above")
	fs.StringVar(&r.lt, "lt", "", "only keys below `KEY`")
	fs.StringVar(&r.lte, "lte", "", "only `KEY` and those below")
	fs.BoolVar(&reverse, "reverse", false, "from the highest key down")
	fs.IntVar(&limit, "limit", 0, "at most so many `ENTRIES` (default: all)")
	return cmd
}

func (f *coreFlags) beeHistory() *cobra.Command {
	var h bee.HistoryRange
	cmd := &cobra.Command{
		Use:     "history CORE",
		Short:   "Print the operations that made the map",
		Example: "  pkgswarm bee history colours --reverse --limit 5",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.with(args[0], false, func(c *core.Core) error {
				for ch, err := range view(c, 0).History(cmd.Context(), h) {
					if err != nil {
						return err
					}
					e := entryOf(ch.Entry)
					if e.Type = "put"; ch.Deleted {
						e.Type = "del"
					}
					if err := f.print(e, e.text); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
	fs := cmd.Flags()
	fs.Uint64Var(&h.From, "from", 0, "begin at block `SEQ`")
	fs.Uint64Var(&h.To, "to", 0, "end before block `SEQ`")
	fs.BoolVar(&h.Reverse, "reverse", false, "the newest first")
	fs.IntVar(&h.Limit, "limit", 0, "at most so many `OPERATIONS` (default: all)")
	return cmd
}
