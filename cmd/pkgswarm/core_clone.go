package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/swarm"
	"github.com/pkgswarm/pkgswarm/swarm/replicate"
	"github.com/pkgswarm/pkgswarm/swarm/transport"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

// A cloneFlags holds what clone takes.
type cloneFlags struct {
	peers   []string
	out     string
	rng     string
	live    bool
	lan     bool
	timeout time.Duration
	rates   rateFlags

	blocks blockRange   // what rng says
	limits swarm.Limits // what rates say
}

// noEnd is the end of a range that has none.
const noEnd = math.MaxUint64

func (f *coreFlags) cloneCommand() *cobra.Command {
	var o cloneFlags
	cmd := &cobra.Command{
		Use:   "clone KEY --peer ADDR...",
		Short: "Fetch a core from peers into the store",
		Long: `Fetches the blocks of a core, each proven by its key, into the store, and writes
them to --out if that is given. What is there already is not fetched again. With
--live it goes on with what is appended later until it is interrupted.

Exit code 12 means that no peer had the core in time.`,
		Example: "  pkgswarm core clone KEY --peer 127.0.0.1:7071 --out notes.txt",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			key, err := core.ParseKey(args[0])
			if err != nil {
				return &exitError{exitUsage, err, "a key has 52 characters of z-base-32 or 64 hexadecimal digits"}
			}
			if o.limits, err = o.rates.limits(); err != nil {
				return err
			}
			if len(o.peers) == 0 && !o.lan {
				return &exitError{exitUsage, errors.New("no peer to clone from"), "name one with --peer ADDR, or look for them with --lan"}
			}
			if o.blocks, err = parseRange(cmp.Or(o.rng, ".."), noEnd); err != nil {
				return err
			}
			store, err := f.open(true)
			if err != nil {
				return err
			}
			err = f.clone(cmd.Context(), store, key, o)
			return errors.Join(err, store.Close())
		},
	}
	fs := cmd.Flags()
	fs.StringSliceVar(&o.peers, "peer", nil, "`ADDR` of a peer: HOST:PORT, ws://... or wss://...; may be repeated")
	fs.StringVar(&o.out, "out", "", "write the blocks, one after another, to `FILE`; - is standard output")
	fs.StringVar(&o.rng, "range", "", "only the blocks `A..B`, without B (default: all)")
	fs.BoolVar(&o.live, "live", false, "go on with what is appended later")
	fs.BoolVar(&o.lan, "lan", false, "find peers on the local network")
	o.rates.add(fs)
	fs.DurationVar(&o.timeout, "timeout", 30*time.Second, "`TIME` within which a peer must tell of the core")
	return cmd
}

func (f *coreFlags) clone(ctx context.Context, store *core.Store, key core.Key, o cloneFlags) error {
	c, err := store.Open(key)
	if err != nil {
		return err
	}
	defer c.Close()
	config := swarm.Config{
		Key: newIdentity(), Peers: o.peers, LAN: o.lan, PeerExchange: true, Limits: o.limits,
		Open: only(store, map[core.DiscoveryKey]bool{c.DiscoveryKey(): true}),
	}
	var dialErr atomic.Pointer[error]
	config.Dial = func(ctx context.Context, a transport.Address) (net.Conn, error) {
		conn, err := transport.Dial(ctx, a)
		if err != nil {
			dialErr.Store(&err)
		}
		return conn, err
	}
	if o.lan {
		config.Topics = append(config.Topics, swarm.Topic(c.DiscoveryKey()))
	}
	s, err := swarm.New(config)
	if err != nil {
		return &exitError{exitUsage, err, "an address is HOST:PORT, ws://HOST/swarm or wss://HOST/swarm"}
	}
	g, ctx := errgroup.WithContext(ctx)
	running, stop := context.WithCancel(ctx)
	g.Go(func() error { return s.Run(running) })
	g.Go(func() error {
		defer stop()
		err := f.download(ctx, s, c, o)
		if err != nil && ctx.Err() != nil {
			return ctx.Err() // whatever of the swarm has ended first
		}
		if why := dialErr.Load(); errors.Is(err, errNobody) && why != nil && len(s.Peers()) == 0 {
			err = fmt.Errorf("%w: %w", err, *why)
		}
		if errors.Is(err, errNobody) {
			err = &exitError{exitUnreachable, err, "check the address and the key; a peer serves only cores that it has"}
		}
		return err
	})
	return g.Wait()
}

// errNobody means that no peer was there that has the core.
var errNobody = errors.New("no peer has told of it in time")

// download fetches what o asks for.
func (f *coreFlags) download(ctx context.Context, s *swarm.Swarm, c *core.Core, o cloneFlags) error {
	sess, err := s.Open(c, replicate.SessionOptions{})
	if err != nil {
		return err
	}
	defer sess.Close()
	first, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	if _, err := sess.Update(first); err != nil {
		if ctx.Err() == nil && first.Err() != nil {
			return fmt.Errorf("core %s: %w", c.Key(), errNobody)
		}
		return err
	}
	r, length := o.blocks, sess.Length()
	if !o.live && (r.from > length || r.to > length && r.to != noEnd) {
		return fmt.Errorf("range %s: the core has %d blocks", o.rng, length)
	}
	from, to := min(r.from, length), min(r.to, length)
	p := f.progress(c, blockRange{from, to})
	defer p.end()
	if err := sess.Download(ctx, from, to); err != nil {
		return err
	}
	p.end()
	w, done, err := openOut(f.s.out, o.out)
	if err != nil {
		return err
	}
	err = writeBlocks(ctx, w, sess, from, to)
	if err == nil && o.live {
		err = follow(ctx, w, sess, max(r.from, to), r.to)
	}
	if err := errors.Join(err, done(err == nil)); err != nil {
		return err
	}
	return f.print(infoOf(c), func(w io.Writer) {
		switch n := min(r.to, c.Length()) - from; {
		case o.out == "-":
		case n == c.Length():
			fmt.Fprintf(w, "%d blocks, %d bytes\n", n, c.ByteLength())
		default:
			fmt.Fprintf(w, "%d of %d blocks\n", n, c.Length())
		}
	})
}

// writeBlocks writes blocks that are here, unless w is nil.
func writeBlocks(ctx context.Context, w *bufio.Writer, sess *replicate.Session, from, to uint64) error {
	if w == nil {
		return nil
	}
	for i := from; i < to; i++ {
		b, err := sess.Get(ctx, i)
		if err != nil {
			return err
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	return nil
}

// follow fetches what is appended, from block next on, until ctx ends or it has come
// to block to.
func follow(ctx context.Context, w *bufio.Writer, sess *replicate.Session, next, to uint64) error {
	if w != nil {
		if err := w.Flush(); err != nil { // what is there already
			return err
		}
	}
	for ; next < to; next++ {
		b, err := sess.Get(ctx, next)
		if err != nil {
			if ctx.Err() != nil {
				return nil // interrupted: that is how it ends
			}
			return err
		}
		if w == nil {
			continue
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// openOut opens the file that the blocks go to: none if name is empty. done gives
// it its name if all went well.
func openOut(stdout io.Writer, name string) (w *bufio.Writer, done func(ok bool) error, err error) {
	switch name {
	case "":
		return nil, func(bool) error { return nil }, nil
	case "-":
		w := bufio.NewWriter(stdout)
		return w, func(bool) error { return w.Flush() }, nil
	}
	tmp, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+"-*")
	if err != nil {
		return nil, nil, err
	}
	w = bufio.NewWriterSize(tmp, 1<<20)
	return w, func(ok bool) error {
		err := errors.Join(w.Flush(), tmp.Chmod(0o644), tmp.Close())
		if err == nil && ok {
			return os.Rename(tmp.Name(), name)
		}
		return errors.Join(err, os.Remove(tmp.Name()))
	}, nil
}
