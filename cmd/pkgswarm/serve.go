package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/internal/node"
	"github.com/spf13/cobra"
)

// A serveFlags holds what serve, and other commands that run a node, take.
type serveFlags struct {
	dirs
	node    node.Config
	diskCap string
	minFree string
	rates   rateFlags
	noLAN   bool

	registries []string
	mirror     string
	logLevel   string
	logFormat  string
}

func (f *serveFlags) add(cmd *cobra.Command) {
	f.addFlags(cmd)
	fs := cmd.Flags()
	fs.StringVar(&f.node.Listen, "listen", "127.0.0.1:7070", "`ADDRESS` for cargo, go and browsers")
	fs.StringVar(&f.node.CargoUpstream, "cargo-upstream", "", "cargo registry, as `sparse+URL` (default: what cargo is configured to use)")
	fs.StringSliceVar(&f.node.CargoPrivate, "cargo-private-registry", nil, "further cargo registry, `NAME[=sparse+URL]`, kept from peers; may be repeated")
	fs.StringVar(&f.node.GoUpstream, "go-upstream", "", "GOPROXY `LIST` (default: what go is configured to use)")
	fs.StringVar(&f.node.SumDB, "sumdb", "", "checksum database, as `\"VKEY [URL]\"`, or off (default: what go is configured to use)")
	fs.StringSliceVar(&f.node.Private, "private", nil, "`PATTERNS` of private names, as in GOPRIVATE")
	fs.StringSliceVar(&f.node.GoPrivate, "go-private-upstream", nil, "GOPROXY for private modules, as `[PATTERN=]URL`, or direct; may be repeated")
	fs.DurationVar(&f.node.IndexTTL, "index-ttl", 10*time.Minute, "`TIME` until an index answer is asked for again")
	fs.BoolVar(&f.node.Offline, "offline", false, "never ask an upstream")
	fs.StringVar(&f.diskCap, "disk-cap", "", "most `BYTES` of artifacts to keep, such as 500GB")
	fs.StringVar(&f.minFree, "min-free", "256MiB", "`BYTES` of free disk space to leave alone")
	fs.StringSliceVar(&f.registries, "registry", nil, "registry `KEY`; with KEY,KEY,agree=2 two must agree")
	fs.StringVar(&f.mirror, "mirror", "", "mirror the registries: all, index or lock:`FILE`")
	fs.Lookup("mirror").NoOptDefVal = "all"
	complete(cmd, "mirror", "all", "index", "lock:")
	fs.StringVar(&f.node.SwarmListen, "swarm-listen", "", "`ADDRESS` for peers (default: any port)")
	fs.StringSliceVar(&f.node.Peers, "peer", nil, "`ADDRESS` of a peer or of many; may be repeated")
	fs.BoolVar(&f.node.LAN, "lan", true, "find peers on the local network")
	fs.BoolVar(&f.node.PeerExchange, "peer-exchange", true, "learn of peers from peers, and tell them of each other")
	fs.BoolVar(&f.noLAN, "no-lan", false, "the same as --lan=false")
	f.rates.add(fs)
	fs.StringVar(&f.node.FleetTokenFile, "fleet-token-file", "", "`FILE` with the join token of a fleet")
	fs.StringVar(&f.node.PublicURL, "public-url", "", "`URL` at which other machines reach this node")
	fs.StringSliceVar(&f.node.Hosts, "host", nil, "further `HOST[:PORT]` that the node answers to; may be repeated")
	fs.StringVar(&f.node.TLSCert, "tls-cert", "", "certificate `FILE`: serve HTTPS, with HTTP/2")
	fs.StringVar(&f.node.TLSKey, "tls-key", "", "key `FILE` of the certificate")
	fs.StringVar(&f.node.TokenFile, "client-token-file", "", "`FILE` with a token that clients must give")
	fs.BoolVar(&f.node.Insecure, "insecure", false, "let other machines in without TLS and token")
	fs.StringVar(&f.logLevel, "log-level", "warn", "`LEVEL` of messages on stderr: debug, info, warn or error")
	fs.StringVar(&f.logFormat, "log-format", "text", "`FORMAT` of messages: text or json")
	complete(cmd, "log-level", "debug", "info", "warn", "error")
	complete(cmd, "log-format", "text", "json")
}

// complete names the values of a flag to shells.
func complete(cmd *cobra.Command, flag string, values ...string) {
	if err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // no such flag, or twice
	}
}

// config returns the node's configuration.
func (f *serveFlags) config(s *streams) (node.Config, error) {
	c := f.node
	c.Data, c.State = f.data, f.state
	c.LAN = c.LAN && !f.noLAN
	c.Version = programVersion()
	var err error
	if c.DiskCap, err = parseSize("disk-cap", f.diskCap); err != nil {
		return c, err
	}
	if c.MinFree, err = parseSize("min-free", f.minFree); err != nil {
		return c, err
	}
	if c.Limits, err = f.rates.limits(); err != nil {
		return c, err
	}
	if c.MinFree == 0 {
		c.MinFree = -1 // none, where 0 would be the default
	}
	if err := f.addRegistries(&c); err != nil {
		return c, err
	}
	if c.Mirror, err = f.mirrored(); err != nil {
		return c, err
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(f.logLevel)); err != nil {
		return c, &exitError{exitUsage, fmt.Errorf("--log-level: %q is not a level", f.logLevel), "use debug, info, warn or error"}
	}
	o := &slog.HandlerOptions{Level: level, ReplaceAttr: plainError}
	switch f.logFormat {
	case "text":
		c.Logger = slog.New(slog.NewTextHandler(s.err, o))
	case "json":
		c.Logger = slog.New(slog.NewJSONHandler(s.err, o))
	default:
		return c, &exitError{exitUsage, fmt.Errorf("--log-format: %q is not a format", f.logFormat), "use text or json"}
	}
	return c, nil
}

// plainError keeps an error to what it says: the text handler asks for the details,
// which of a database's error are pages of stack.
func plainError(_ []string, a slog.Attr) slog.Attr {
	if err, ok := a.Value.Any().(error); ok {
		a.Value = slog.StringValue(err.Error())
	}
	return a
}

// parseSize parses the value of a flag such as 500GB; 0 if it is empty.
func parseSize(flag, value string) (int64, error) {
	if value == "" {
		return 0, nil
	}
	n, err := humanize.ParseBytes(value)
	if err != nil || n > 1<<62 {
		return 0, &exitError{exitUsage, fmt.Errorf("--%s: %q is not a size", flag, value), "write it as 500GB or 20GiB"}
	}
	return int64(n), nil
}

// addRegistries reads --registry.
func (f *serveFlags) addRegistries(c *node.Config) error {
	for _, v := range f.registries {
		if n, ok := strings.CutPrefix(v, "agree="); ok {
			agree, err := strconv.Atoi(n)
			if err != nil || agree < 1 {
				return &exitError{exitUsage, fmt.Errorf("--registry: agree=%s is not a number of operators", n), "write it as KEY,KEY,agree=2"}
			}
			c.Agree = agree
			continue
		}
		if v == "any" {
			continue
		}
		k, err := core.ParseKey(v)
		if err != nil {
			return &exitError{exitUsage, fmt.Errorf("--registry: %w", err), "a registry key has 52 characters; the operator's pkgswarm key show prints it"}
		}
		c.Registries = append(c.Registries, k)
	}
	if c.Agree > len(c.Registries) {
		return &exitError{exitUsage, fmt.Errorf("--registry: agree=%d of %d operators", c.Agree, len(c.Registries)), "name at least as many registry keys"}
	}
	return nil
}

// mirrored reads --mirror.
func (f *serveFlags) mirrored() (m node.Mirror, err error) {
	if f.mirror == "" {
		return m, nil
	}
	if len(f.registries) == 0 {
		return m, &exitError{exitUsage, errors.New("--mirror: of which registry?"), "name it with --registry KEY"}
	}
	m.Logs = true
	switch lock, ok := strings.CutPrefix(f.mirror, "lock:"); {
	case ok:
		want, err := lockedVersions(lock)
		if err != nil {
			return m, err
		}
		m.Want = want.has
		m.Files = fmt.Sprintf("lock:%x", sha256.Sum256([]byte(strings.Join(slices.Sorted(maps.Keys(want.versions)), "\n"))))
	case f.mirror == "all":
		m.Files = "all"
	case f.mirror != "index":
		return m, &exitError{exitUsage, fmt.Errorf("--mirror=%s", f.mirror), "use --mirror, --mirror=index or --mirror=lock:FILE"}
	}
	return m, nil
}

func newServeCommand(s *streams) *cobra.Command {
	f := &serveFlags{}
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run a node: the mirror that cargo and go talk to",
		Long: `Run a node: the mirror that cargo and go talk to. It fetches packages from
peers or from the upstream registries, verifies them, keeps them, and gives
them to peers. Point cargo and go at it with pkgswarm setup.

Exit codes: 0 stopped by a signal, 1 failed, 2 wrong usage, 11 the store or the
address is in use.`,
		Example: `  pkgswarm serve
  pkgswarm serve --disk-cap 500GB --swarm-listen :7071 --peer seed.example.org`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.config(s)
			if err != nil {
				return err
			}
			if c.Policy, err = readPolicy(cmd); err != nil {
				return err
			}
			c.Summary = func(u node.Usage) { fmt.Fprintln(s.err, u.String()) }
			n, err := openNode(c)
			if err != nil {
				return err
			}
			if err := node.RecordCrashes(c.Data); err != nil {
				c.Logger.Warn("a crash would leave no report", "err", err)
			}
			fmt.Fprint(s.err, n.Banner())
			err = n.Run(cmd.Context())
			return errors.Join(err, n.Close())
		},
	}
	f.add(cmd)
	showOnly(cmd, "listen", "data", "state", "offline", "disk-cap", "registry", "mirror", "peer", "swarm-listen",
		"fleet-token-file", "no-lan", "private", "upload-rate", "public-url", "log-level")
	return cmd
}

// openNode opens a node and explains what keeps it from opening.
func openNode(c node.Config) (*node.Node, error) {
	n, err := node.Open(c)
	if err == nil {
		return n, nil
	}
	if _, ok := errors.AsType[*core.InUseError](err); ok {
		return nil, &exitError{exitInUse, err, "stop that process, or give this one another --data directory"}
	}
	if _, ok := errors.AsType[*node.AddrInUseError](err); ok {
		return nil, &exitError{exitInUse, err, "pkgswarm status says whether a node runs there; or give another --listen"}
	}
	if e, ok := errors.AsType[*node.PermError](err); ok {
		return nil, &exitError{exitFailed, err, fmt.Sprintf("chmod go= %s", e.Path)}
	}
	if _, ok := errors.AsType[*node.ExposureError](err); ok {
		return nil, &exitError{exitUsage, err, "give --tls-cert, --tls-key and --client-token-file, or --insecure on a network that you trust"}
	}
	if _, ok := errors.AsType[*node.SettingError](err); ok {
		return nil, &exitError{exitUsage, err, "see pkgswarm help settings; pkgswarm config show says where each setting comes from"}
	}
	if errors.Is(err, os.ErrPermission) {
		return nil, &exitError{exitFailed, err, "give directories that this user may write with --data and --state"}
	}
	return nil, err
}
