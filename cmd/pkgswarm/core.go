package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"text/tabwriter"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/spf13/cobra"
)

// A coreFlags holds what all commands on cores take.
type coreFlags struct {
	s    *streams
	data string
	seed string
	json bool
}

func (f *coreFlags) add(cmd *cobra.Command) {
	fs := cmd.PersistentFlags()
	fs.StringVar(&f.data, "data", defaultDataDir(), "data `DIR` of the store")
	fs.StringVar(&f.seed, "seed", "", "primary key of named cores, as 64 `HEX` digits (default: that of the store)")
	fs.BoolVar(&f.json, "json", false, "print JSON, one object a line")
}

// open opens the store. Without create it must be there.
func (f *coreFlags) open(create bool) (*core.Store, error) {
	var o core.Options
	if f.seed != "" {
		b, err := hex.DecodeString(f.seed)
		if err != nil || len(b) != 32 {
			return nil, &exitError{exitUsage, errors.New("--seed: want 64 hexadecimal digits"), ""}
		}
		o.PrimaryKey = (*[32]byte)(b)
	}
	dir := storeDir(f.data)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) && !create {
		return nil, &exitError{exitNoStore, fmt.Errorf("no store in %s", f.data), "name its directory with --data, or make a core with pkgswarm core new"}
	}
	store, err := core.OpenStore(dir, o)
	if _, ok := errors.AsType[*core.InUseError](err); ok {
		return nil, &exitError{exitInUse, err, "stop that process, or use another --data directory"}
	}
	if errors.Is(err, core.ErrPrimaryKey) {
		return nil, &exitError{exitFailed, err, "leave out --seed, or use another --data directory for this one"}
	}
	if errors.Is(err, core.ErrKeyLost) {
		return nil, &exitError{exitFailed, err, "give the key from your backup with --seed, or delete " + dir + " to begin anew"}
	}
	if errors.Is(err, core.ErrVersion) {
		return nil, &exitError{exitFailed, err, "use the newer pkgswarm that has written it, or another --data directory"}
	}
	return store, err
}

// find opens the core that arg names: a key, or the name of one of ours.
func find(store *core.Store, arg string, create bool) (*core.Core, error) {
	if key, err := core.ParseKey(arg); err == nil {
		c, err := store.OpenExisting(key)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, &exitError{exitFailed, fmt.Errorf("no core %s in this store", arg), "pkgswarm core clone fetches one from a peer"}
		}
		return c, err
	}
	if create {
		return store.Named(arg)
	}
	c, err := store.NamedExisting(core.Namespace{}, arg)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &exitError{exitFailed, fmt.Errorf("no core %q in this store", arg), "pkgswarm core new --name makes one"}
	}
	return c, err
}

// with runs do on the core that arg names.
func (f *coreFlags) with(arg string, create bool, do func(*core.Core) error) error {
	store, err := f.open(create)
	if err != nil {
		return err
	}
	c, err := find(store, arg, create)
	if err == nil {
		err = do(c)
		c.Close()
	}
	return errors.Join(err, store.Close())
}

// A coreInfo is what commands print about a core.
type coreInfo struct {
	Key              string `json:"key"` // z-base-32
	KeyHex           string `json:"keyHex"`
	DiscoveryKeyHex  string `json:"discoveryKeyHex"`
	Length           uint64 `json:"length"`
	ByteLength       uint64 `json:"byteLength"`
	Fork             uint64 `json:"fork"`
	TreeHashHex      string `json:"treeHashHex"`
	ContiguousLength uint64 `json:"contiguousLength"`
	Writable         bool   `json:"writable"`
}

func infoOf(c *core.Core) coreInfo {
	i := c.Info()
	return coreInfo{
		Key: i.Key.String(), KeyHex: i.Key.Hex(), DiscoveryKeyHex: c.DiscoveryKey().String(),
		Length: i.Length, ByteLength: i.ByteLength, Fork: i.Fork,
		TreeHashHex: hex.EncodeToString(i.TreeHash[:]), ContiguousLength: i.Contiguous, Writable: i.Writable,
	}
}

// print prints v as JSON, or calls text.
func (f *coreFlags) print(v any, text func(w io.Writer)) error {
	if f.json {
		return json.NewEncoder(f.s.out).Encode(v)
	}
	w := tabwriter.NewWriter(f.s.out, 0, 0, 2, ' ', 0)
	text(w)
	return w.Flush()
}

func newCoreCommand(s *streams) *cobra.Command {
	f := &coreFlags{s: s}
	cmd := &cobra.Command{
		Use:   "core",
		Short: "Work with Hypercore logs",
		Long: `Work with Hypercore 11 logs in the store of the data directory. A CORE is named
by its name in this store, or by its key in z-base-32 or hexadecimal digits.

Exit codes: 0 done, 1 failed, 2 wrong usage, 10 no store, 11 the store is in
use, 12 no peer answers, 130 interrupted.`,
		Example: `  pkgswarm core new --name notes
  pkgswarm core append notes today.txt`,
		Args: cobra.NoArgs,
	}
	f.add(cmd)
	cmd.AddCommand(f.newCommand(), f.appendCommand(), f.catCommand(), f.infoCommand(),
		f.verifyCommand(), f.truncateCommand(), f.staticCommand(), f.serveCommand(), f.cloneCommand())
	return cmd
}

func (f *coreFlags) newCommand() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:     "new --name NAME",
		Short:   "Make a core, or find the one of that name, and print its key",
		Example: "  pkgswarm core new --name notes",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if name == "" {
				return &exitError{exitUsage, errors.New("a core needs a name"), "pkgswarm core new --name notes"}
			}
			store, err := f.open(true)
			if err != nil {
				return err
			}
			c, err := store.Named(name)
			if err == nil {
				err = f.print(infoOf(c), func(w io.Writer) { fmt.Fprintln(w, c.Key()) })
				c.Close()
			}
			return errors.Join(err, store.Close())
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "`NAME` of the core in this store")
	return cmd
}

func (f *coreFlags) appendCommand() *cobra.Command {
	lines := false
	cmd := &cobra.Command{
		Use:   "append CORE [FILE...]",
		Short: "Append each file, or each line of standard input, as a block",
		Example: `  pkgswarm core append notes today.txt
  seq 1000 | pkgswarm core append notes --lines`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if lines && len(args) > 1 {
				return &exitError{exitUsage, errors.New("--lines reads standard input, not files"), ""}
			}
			return f.with(args[0], false, func(c *core.Core) error {
				var err error
				if lines {
					err = appendLines(c, f.s.in)
				} else {
					err = appendFiles(c, f.s.in, args[1:])
				}
				if err != nil {
					return err
				}
				return f.print(infoOf(c), func(w io.Writer) { fmt.Fprintln(w, c.Length()) })
			})
		},
	}
	cmd.Flags().BoolVar(&lines, "lines", false, "append each line of standard input, without its end, as a block")
	return cmd
}

// appendFiles appends each file as one block, standard input if there are none.
func appendFiles(c *core.Core, stdin io.Reader, files []string) error {
	var blocks [][]byte
	if len(files) == 0 {
		b, err := io.ReadAll(io.LimitReader(stdin, core.MaxBlock+1))
		if err != nil {
			return err
		}
		blocks = append(blocks, b)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		blocks = append(blocks, b)
	}
	_, err := c.Append(blocks...)
	return err
}

// appendLines appends the lines of r, many at a time.
func appendLines(c *core.Core, r io.Reader) error {
	const group = 1000
	in := bufio.NewReaderSize(r, 1<<20)
	var blocks [][]byte
	for {
		line, err := in.ReadBytes('\n')
		if err != nil && err != io.EOF {
			return err
		}
		end := err == io.EOF
		if !end || len(line) > 0 {
			line = bytes.TrimSuffix(line, []byte("\n"))
			blocks = append(blocks, bytes.TrimSuffix(line, []byte("\r")))
		}
		if len(blocks) >= group || end && len(blocks) > 0 {
			if _, err := c.Append(blocks...); err != nil {
				return err
			}
			blocks = blocks[:0]
		}
		if end {
			return nil
		}
	}
}

func (f *coreFlags) catCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cat CORE [INDEX|FROM..TO]...",
		Short: "Print blocks: all, or those of the given numbers or ranges [FROM, TO)",
		Long: `Prints the bytes of the blocks, one after another and nothing between them. With
--json, one object a block: index, and the value in base64.`,
		Example: "  pkgswarm core cat notes 0..10",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.with(args[0], false, func(c *core.Core) error {
				ranges, err := parseRanges(args[1:], c.Length())
				if err != nil {
					return err
				}
				out := bufio.NewWriterSize(f.s.out, 1<<16)
				for _, r := range ranges {
					if err := f.cat(cmd.Context(), out, c, r); err != nil {
						return errors.Join(out.Flush(), err)
					}
				}
				return out.Flush()
			})
		},
	}
	return cmd
}

func (f *coreFlags) cat(ctx context.Context, out io.Writer, c *core.Core, r blockRange) error {
	for i := r.from; i < r.to; i++ {
		b, err := c.Get(ctx, i)
		if err != nil {
			return err
		}
		if f.json {
			err = json.NewEncoder(out).Encode(struct {
				Index uint64 `json:"index"`
				Value []byte `json:"value"`
			}{i, b})
		} else {
			_, err = out.Write(b)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (f *coreFlags) infoCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "info CORE",
		Short:   "Print what there is to say about a core",
		Example: "  pkgswarm core info notes --json",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			return f.with(args[0], false, func(c *core.Core) error {
				i := infoOf(c)
				return f.print(i, func(w io.Writer) {
					fmt.Fprintf(w, "key\t%s\nkeyHex\t%s\ndiscoveryKeyHex\t%s\nlength\t%d\nbyteLength\t%d\nfork\t%d\ntreeHashHex\t%s\ncontiguousLength\t%d\nwritable\t%v\n",
						i.Key, i.KeyHex, i.DiscoveryKeyHex, i.Length, i.ByteLength, i.Fork, i.TreeHashHex, i.ContiguousLength, i.Writable)
				})
			})
		},
	}
}

func (f *coreFlags) verifyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "verify [CORE]...",
		Short: "Read everything of the cores, all unless given, and name each damage",
		Long: `Reads the head, tree and blocks of each core, checks them, and changes nothing.
Exit code 1 means that damage was found.`,
		Example: "  pkgswarm core verify",
		RunE: func(cmd *cobra.Command, args []string) error {
			store, err := f.open(false)
			if err != nil {
				return err
			}
			cores, damages, err := f.verify(cmd.Context(), store, args)
			err = errors.Join(err, store.Close())
			if err == nil {
				err = f.print(map[string]int{"cores": cores, "damages": damages}, func(w io.Writer) {
					fmt.Fprintf(w, "%d cores read, %d damages\n", cores, damages)
				})
			}
			if err == nil && damages > 0 {
				err = &exitError{exitFailed, fmt.Errorf("%d damages", damages), "a replica fetches damaged blocks again; a core of your own needs a backup"}
			}
			return err
		},
	}
}

// verify checks cores and reports damages on the output.
func (f *coreFlags) verify(ctx context.Context, store *core.Store, args []string) (cores, damages int, err error) {
	var keys []core.Key
	for _, arg := range args {
		c, err := find(store, arg, false)
		if err != nil {
			return 0, 0, err
		}
		keys = append(keys, c.Key())
		c.Close()
	}
	if len(args) == 0 {
		for k, err := range store.Cores() {
			if err != nil {
				return 0, 0, err
			}
			keys = append(keys, k)
		}
	}
	report := func(err error) {
		damages++
		f.print(map[string]string{"damage": err.Error()}, func(w io.Writer) { fmt.Fprintln(w, err) })
	}
	for _, k := range keys {
		cores++
		c, err := store.OpenExisting(k)
		if err != nil {
			report(err)
			continue
		}
		err = c.Check(ctx, func(err error) bool { report(err); return true }, nil)
		c.Close()
		if err != nil {
			return cores, damages, err
		}
	}
	return cores, damages, nil
}

func (f *coreFlags) truncateCommand() *cobra.Command {
	var fork uint64
	cmd := &cobra.Command{
		Use:     "truncate CORE LENGTH",
		Short:   "Cut a core to its first LENGTH blocks, under a new fork number",
		Example: "  pkgswarm core truncate notes 10",
		Args:    cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			length, err := parseIndex(args[1])
			if err != nil {
				return err
			}
			return f.with(args[0], false, func(c *core.Core) error {
				if err := c.TruncateFork(length, fork); err != nil {
					return err
				}
				return f.print(infoOf(c), func(w io.Writer) { fmt.Fprintln(w, c.Length()) })
			})
		},
	}
	cmd.Flags().Uint64Var(&fork, "fork", 0, "the new fork number (default: one more than the present one)")
	return cmd
}

func (f *coreFlags) staticCommand() *cobra.Command {
	add := false
	cmd := &cobra.Command{
		Use:   "static FILE...",
		Short: "Print key, length and tree hash of each file as a static core",
		Long: `A static core's key is a function of its bytes: every holder of the file has the
same core. With --add, the core is added to the store, so that it can be served;
the file stays where it is and must not change.`,
		Example: "  pkgswarm core static serde-1.0.0.crate",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) (err error) {
			var store *core.Store
			if add {
				if store, err = f.open(true); err != nil {
					return err
				}
				defer func() { err = errors.Join(err, store.Close()) }()
			}
			for _, name := range args {
				if err := f.static(store, name); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&add, "add", false, "add the cores to the store")
	return cmd
}

// A staticInfo is what is printed about a static core.
type staticInfo struct {
	File        string `json:"file"`
	Key         string `json:"key"`
	KeyHex      string `json:"keyHex"`
	Length      uint64 `json:"length"`
	ByteLength  uint64 `json:"byteLength"`
	TreeHashHex string `json:"treeHashHex"`
}

// static prints a file's core, and adds it to store if that is not nil.
func (f *coreFlags) static(store *core.Store, name string) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	tree, err := core.HashStatic(file, info.Size())
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if store != nil {
		c, err := store.AddStatic(name, tree)
		if err != nil {
			return err
		}
		c.Close()
	}
	hash := tree.Tree.Hash()
	i := staticInfo{name, tree.Key().String(), tree.Key().Hex(), tree.Tree.Length, tree.Tree.ByteLength(), hex.EncodeToString(hash[:])}
	return f.print(i, func(w io.Writer) { fmt.Fprintf(w, "%s\t%d\t%s\t%s\n", i.Key, i.Length, i.TreeHashHex, name) })
}
