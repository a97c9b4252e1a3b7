package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/importer"
	"github.com/pkgswarm/pkgswarm/registry/catalog"
)

// importFlags are those that both ecosystems have.
type importFlags struct {
	dirs
	json         bool
	watch        bool
	every        time.Duration
	revalidate   time.Duration
	artifacts    string
	workers      int
	allowRemoval bool
	listen       []string
	peers        []string
	lan          bool
	rates        rateFlags
	private      []string
	cosigners    []string
	quorum       int
}

func (f *importFlags) add(cmd *cobra.Command) {
	f.addFlags(cmd)
	fl := cmd.Flags()
	fl.BoolVar(&f.json, "json", false, "print one JSON object a line: each problem, then a summary")
	fl.BoolVar(&f.watch, "watch", false, "go on for ever: import what changes, say every ten minutes that nothing did, and seed")
	fl.DurationVar(&f.every, "every", time.Minute, "how often to look for changes with --watch")
	fl.StringVar(&f.artifacts, "artifacts", "", "fetch, verify and seed the files as well: those of what is named; `WHAT` may be all, or lock:FILE")
	fl.Lookup("artifacts").NoOptDefVal = "named"
	fl.IntVar(&f.workers, "workers", 0, "packages in work at a time (default: two for each processor)")
	fl.BoolVar(&f.allowRemoval, "allow-removal", false, "let an index that lacks more than a tenth of the packages remove them")
	fl.StringSliceVar(&f.listen, "swarm-listen", nil, "accept peers at `ADDR` while watching; may be repeated")
	fl.StringSliceVar(&f.peers, "peer", nil, "connect to the peer at `ADDR` while watching; may be repeated")
	fl.BoolVar(&f.lan, "lan", false, "announce the registry on the local network while watching")
	f.rates.add(fl)
	fl.StringSliceVar(&f.private, "private", nil, "`PATTERNS` of names to leave out, as in GOPRIVATE")
	fl.StringArrayVar(&f.cosigners, "cosigner", nil, "seed `FILE` of a further signer of the catalog, on this machine; may be repeated. Signers on several machines are operators of their own, of whom clients believe what agree=N say")
	fl.IntVar(&f.quorum, "quorum", 0, "how many of the signers must sign (default: the majority)")
}

func newImportCommand(s *streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "import",
		Short: "Sign what an upstream registry says, as its operator",
		Long: `Turns the packages of an upstream registry into signed cores: a log for each
package, and a catalog that names them. Needs a seed: see pkgswarm key new.

An import can be stopped at any time and goes on where it was. Run again over
unchanged input it signs nothing. A source that cannot be read is reported, and
the others go on.

Exit codes: 0 done, 3 done but for entries that were reported and not signed,
1 failed, 2 wrong usage, 11 the store is in use, 130 interrupted.`,
		Example: `  pkgswarm import cargo Cargo.lock
  pkgswarm import go go.sum --watch --swarm-listen :7071`,
		Args: cobra.NoArgs,
	}
	cmd.AddCommand(newImportCargoCommand(s), newImportGoCommand(s))
	return cmd
}

// An importJob is an import as a command runs it.
type importJob struct {
	s   *streams
	f   *importFlags
	op  *operator
	bar *progressbar.ProgressBar

	sum      importer.Summary
	problems int

	wholeAt time.Time // when the last whole round of a watch began that succeeded
	feedAt  time.Time // when the feed was read
}

// run imports all sources once, then goes on watching if asked to.
func (f *importFlags) run(ctx context.Context, s *streams, open func(*operator) (*sources, error)) error {
	if os.Getenv("GOGC") == "" {
		// Little of what an import makes lasts: less room for the rest costs
		// some hundredths of the time.
		debug.SetGCPercent(40)
	}
	op, err := openOperator(ctx, f)
	if err != nil {
		return err
	}
	defer op.close()
	srcs, err := open(op)
	if err != nil {
		return err
	}
	defer srcs.close()
	if srcs.artifacts != nil {
		if err := op.openArtifacts(f.data); err != nil {
			return operatorError(err)
		}
		srcs.artifacts.Store = op.artifacts
	}
	j := &importJob{s: s, f: f, op: op}
	for _, p := range srcs.problems {
		j.report(p)
	}
	if f.watch {
		return j.seed(ctx, func(ctx context.Context) error { return j.watch(ctx, srcs) })
	}
	start := time.Now()
	err = j.importAll(ctx, srcs, srcs.list)
	j.sum.Elapsed = time.Since(start)
	j.summary()
	if errors.Is(err, importer.ErrSource) && len(srcs.list) > 1 && j.sum.Packages > 0 {
		err = nil // some could be read, and the others were reported
	}
	if err == nil && j.problems > 0 {
		err = &exitError{exitPartly, fmt.Errorf("%s not signed", count(j.problems, "entry", "entries")), ""}
	}
	return err
}

// importAll imports the sources of a list. One that cannot be read does not stop the
// others; the error matches [importer.ErrSource] then.
func (j *importJob) importAll(ctx context.Context, srcs *sources, list []importer.Source) error {
	im := importer.New(j.config(srcs))
	var unread []error
	for _, src := range list {
		j.startBar(src)
		sum, err := im.Run(ctx, src)
		j.stopBar()
		j.sum.Add(sum)
		if err != nil && (!errors.Is(err, importer.ErrSource) || ctx.Err() != nil) {
			return err
		}
		if err != nil {
			unread = append(unread, err)
			if len(list) > 1 {
				j.report(importer.Problem{Ecosystem: src.Ecosystem(), Package: src.ID(), Reason: strings.TrimPrefix(err.Error(), "import "+src.ID()+": ")})
			}
		}
	}
	return errors.Join(unread...)
}

func (j *importJob) config(srcs *sources) importer.Config {
	c := importer.Config{
		Logs:         &importer.CoreLogs{Store: j.op.store, Operator: j.op.keys},
		Catalog:      j.op.catalog,
		Dir:          j.op.dir,
		Workers:      j.f.workers,
		AllowRemoval: j.f.allowRemoval,
		Private:      strings.Join(j.f.private, ","),
		Served:       j.f.watch,
		Report:       j.report,
		Status:       j.progress,
	}
	if srcs.artifacts != nil {
		c.Artifacts = srcs.artifacts
	}
	return c
}

// startBar shows progress on a terminal; the number of packages is known only of
// some sources.
func (j *importJob) startBar(src importer.Source) {
	f, ok := j.s.err.(*os.File)
	if j.f.json || !ok || !term.IsTerminal(int(f.Fd())) {
		return
	}
	j.bar = progressbar.NewOptions64(j.total(src),
		progressbar.OptionSetWriter(f),
		progressbar.OptionSetDescription("import "+string(src.Ecosystem())),
		progressbar.OptionSetWidth(20),
		progressbar.OptionShowCount(),
		progressbar.OptionShowIts(),
		progressbar.OptionSetItsString("packages"),
		progressbar.OptionSetPredictTime(true),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionClearOnFinish(),
	)
}

// total returns how many packages a source lists, about: as many as last time, for
// one that is a whole registry and takes a while to be listed. It is -1 if nobody
// knows.
func (j *importJob) total(src importer.Source) int64 {
	head := j.op.catalog.Head()
	if n := head.Packages(src.Ecosystem()); n > 0 && src.Complete() {
		return int64(n)
	}
	if c, ok := src.(interface{ Count() int }); ok {
		if n := c.Count(); n > 0 {
			return int64(n)
		}
	}
	return -1
}

func (j *importJob) stopBar() {
	if j.bar != nil {
		j.bar.Finish()
		j.bar = nil
	}
}

func (j *importJob) progress(p importer.Progress) {
	if j.bar != nil {
		j.bar.Set64(p.Packages)
	}
}

// report prints a problem: one line, whatever is in it.
func (j *importJob) report(p importer.Problem) {
	j.problems++
	if j.f.json {
		j.print(struct {
			Type string `json:"type"`
			importer.Problem
		}{"problem", p})
		return
	}
	if j.bar != nil {
		j.bar.Clear()
	}
	fmt.Fprintf(j.s.err, "not signed: %s\n", printable(p.String()))
}

func (j *importJob) print(v any) { json.NewEncoder(j.s.out).Encode(v) }

func (j *importJob) summary() {
	key := j.op.catalog.Key()
	if j.f.json {
		j.print(struct {
			Type        string   `json:"type"`
			RegistryKey core.Key `json:"registry_key"`
			Length      uint64   `json:"catalog_length"`
			importer.Summary
			NotSigned int `json:"not_signed"`
		}{"summary", key, j.op.catalog.Length(), j.sum, j.problems})
		return
	}
	s := j.sum
	fmt.Fprintf(j.s.out, "%s, %s: %d changed, %s signed, %d not signed, %v\n",
		count(int(s.Packages), "package", "packages"), count(int(s.Versions), "version", "versions"), s.Changed,
		count(int(s.Events), "block", "blocks"), j.problems, s.Elapsed.Round(time.Millisecond))
	if more := j.more(); more != "" {
		fmt.Fprintln(j.s.err, more)
	}
	fmt.Fprintf(j.s.err, "registry key %s\n", key)
}

// more tells of files and private packages, if there is anything to tell.
func (j *importJob) more() string {
	var parts []string
	if j.f.artifacts != "" {
		parts = append(parts, count(int(j.sum.Files), "file", "files")+" fetched")
	}
	if n := j.sum.NotCached; n > 0 {
		parts = append(parts, fmt.Sprintf("%d not in a cache", n))
	}
	if n := j.sum.Private; n > 0 {
		parts = append(parts, count(int(n), "private package", "private packages")+" left out")
	}
	return strings.Join(parts, ", ")
}

// printable replaces what could move a terminal's cursor. SEC-52
func printable(s string) string {
	out := []rune(s)
	for i, r := range out {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == 0xfffd || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			out[i] = '?'
		}
	}
	return string(out)
}

// operatorError adds what to do about an operator's store.
func operatorError(err error) error {
	if e, ok := errors.AsType[*core.InUseError](err); ok {
		return &exitError{exitInUse, e, "stop the other process, or use another --data"}
	}
	switch {
	case errors.Is(err, catalog.ErrRollback), errors.Is(err, catalog.ErrFork):
		return &exitError{exitFailed, err, "this store is older than what was signed: restore a newer one, or fetch the catalog and logs from your peers"}
	case errors.Is(err, catalog.ErrNotRecovered):
		return &exitError{exitFailed, err, "see pkgswarm key restore --help for how to get it"}
	case errors.Is(err, catalog.ErrEquivocated):
		return &exitError{exitFailed, err, "another process has signed with this seed: pkgswarm verify --evidence shows it; users need the key of a new registry"}
	case errors.Is(err, catalog.ErrRetired):
		return &exitError{exitFailed, err, "use the seed of the successor"}
	}
	return keyError(err)
}
