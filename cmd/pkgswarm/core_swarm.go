package main

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/swarm"
	"github.com/pkgswarm/pkgswarm/swarm/replicate"
	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

// newIdentity returns an identity for the length of one command.
func newIdentity() ed25519.PrivateKey {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic("no randomness: " + err.Error())
	}
	return key
}

func (f *coreFlags) serveCommand() *cobra.Command {
	var listen, ws, peers []string
	var rates rateFlags
	lan := false
	cmd := &cobra.Command{
		Use:   "serve CORE...",
		Short: "Serve cores to peers until interrupted",
		Long: `Serves the cores, and what of them peers have that is not here, to peers that
know their keys: over TCP, and over WebSocket at ws://ADDR/swarm.`,
		Example: "  pkgswarm core serve notes --listen :7071",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(listen)+len(ws)+len(peers) == 0 {
				listen = []string{"127.0.0.1:0"}
			}
			limits, err := rates.limits()
			if err != nil {
				return err
			}
			store, err := f.open(false)
			if err != nil {
				return err
			}
			err = f.serveCores(cmd.Context(), store, args, ws, swarm.Config{
				Key: newIdentity(), Listen: listen, Peers: peers, LAN: lan, PeerExchange: true, Limits: limits,
			})
			return errors.Join(err, store.Close())
		},
	}
	fs := cmd.Flags()
	fs.StringSliceVar(&listen, "listen", nil, "TCP `ADDR` to listen on (default 127.0.0.1 and any port)")
	fs.StringSliceVar(&ws, "ws", nil, "`ADDR` to listen on for WebSockets")
	fs.BoolVar(&lan, "lan", false, "announce the cores on the local network, and find peers there")
	fs.StringSliceVar(&peers, "peer", nil, "`ADDR` of a peer to connect to; may be repeated")
	rates.add(fs)
	return cmd
}

// serveCores runs a swarm for cores until ctx ends.
func (f *coreFlags) serveCores(ctx context.Context, store *core.Store, names, ws []string, c swarm.Config) error {
	var sessions []func()
	defer func() {
		for _, end := range sessions {
			end()
		}
	}()
	served := map[core.DiscoveryKey]bool{}
	c.Open = only(store, served)
	var cores []*core.Core
	for _, name := range names {
		co, err := find(store, name, false)
		if err != nil {
			return err
		}
		defer co.Close()
		served[co.DiscoveryKey()] = true
		cores = append(cores, co)
		if c.LAN {
			c.Topics = append(c.Topics, swarm.Topic(co.DiscoveryKey()))
		}
	}
	s, err := swarm.New(c)
	if err != nil {
		return err
	}
	var addrs []string
	for _, a := range s.Addrs() {
		addrs = append(addrs, a.String())
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, a := range ws {
		ln, err := net.Listen("tcp", a)
		if err != nil {
			s.Close()
			return fmt.Errorf("listen for peers: %w", err)
		}
		addrs = append(addrs, "ws://"+ln.Addr().String()+"/swarm")
		g.Go(func() error { return serveSwarmHTTP(ctx, ln, s.Handler()) })
	}
	for _, co := range cores {
		// A session follows what peers have that we have not.
		sess, err := s.Open(co, replicate.SessionOptions{})
		if err != nil {
			return err
		}
		sessions = append(sessions, func() { sess.Close() })
	}
	for _, co := range cores {
		v := struct {
			Key    string   `json:"key"`
			Listen []string `json:"listen"`
		}{co.Key().String(), addrs}
		if err := f.print(v, func(w io.Writer) {
			fmt.Fprintf(w, "serving %s on %s\n", co.Key(), join(addrs))
		}); err != nil {
			return err
		}
	}
	g.Go(func() error { return s.Run(ctx) })
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

func join(addrs []string) string {
	if len(addrs) == 0 {
		return "connections we make"
	}
	out := addrs[0]
	for _, a := range addrs[1:] {
		out += ", " + a
	}
	return out
}

// only opens the cores of store that are in served.
func only(store *core.Store, served map[core.DiscoveryKey]bool) func(context.Context, core.DiscoveryKey) (replicate.Core, func(), error) {
	open := swarm.FromStore(store)
	return func(ctx context.Context, dk core.DiscoveryKey) (replicate.Core, func(), error) {
		if !served[dk] {
			return nil, nil, os.ErrNotExist
		}
		return open(ctx, dk)
	}
}

// serveSwarmHTTP serves the WebSocket transport until ctx ends.
func serveSwarmHTTP(ctx context.Context, ln net.Listener, h http.Handler) error {
	mux := http.NewServeMux()
	mux.Handle("/swarm", h)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 64 << 10}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// A cloneFlags holds what clone takes.
type cloneFlags struct {
	peers   []string
	out     string
	rng     string
	live    bool
	lan     bool
	timeout time.Duration
	rates   rateFlags
	limits  swarm.Limits // what rates say
}

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
			if _, err := parseRange(o.rangeOr(), 0); o.rng != "" && err != nil {
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

// rangeOr returns the range, in a form that does not depend on the length.
func (o cloneFlags) rangeOr() string {
	if o.rng == "" {
		return "0.."
	}
	return o.rng
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
		return f.download(ctx, s, c, o)
	})
	return g.Wait()
}

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
			return &exitError{exitUnreachable, fmt.Errorf("no peer has told of core %s within %s", c.Key(), o.timeout), "check the address and the key; a peer serves only cores that it has"}
		}
		return err
	}
	r := blockRange{0, sess.Length()}
	if o.rng != "" {
		if r, err = parseRange(o.rng, sess.Length()); err != nil {
			return err
		}
		if r.to > sess.Length() && !o.live {
			return fmt.Errorf("range %s: the core has %d blocks", o.rng, sess.Length())
		}
	}
	p := f.progress(c, r)
	defer p.end()
	if err := sess.Download(ctx, r.from, min(r.to, sess.Length())); err != nil {
		return err
	}
	p.end()
	w, done, err := openOut(f.s.out, o.out)
	if err != nil {
		return err
	}
	err = writeBlocks(ctx, w, sess, r.from, min(r.to, sess.Length()))
	if err == nil && o.live {
		err = follow(ctx, w, sess, max(r.from, min(r.to, sess.Length())), o.rng, r)
	}
	if err := errors.Join(err, done(err == nil)); err != nil {
		return err
	}
	return f.print(infoOf(c), func(w io.Writer) {
		if o.out != "-" {
			fmt.Fprintf(w, "%d blocks, %d bytes\n", r.to-r.from, c.ByteLength())
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

// follow fetches what is appended, until ctx ends or a given range does.
func follow(ctx context.Context, w *bufio.Writer, sess *replicate.Session, next uint64, given string, r blockRange) error {
	for ; given == "" || next < r.to; next++ {
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

// A progress shows how many blocks have arrived: a bar on a terminal, or JSON.
type progress struct{ end func() }

func (f *coreFlags) progress(c *core.Core, r blockRange) *progress {
	total := int64(0)
	for i := r.from; i < min(r.to, c.Length()); {
		absent, err := c.NextAbsent(i, min(r.to, c.Length()))
		if err != nil {
			break
		}
		present, err := c.NextPresent(absent, min(r.to, c.Length()))
		if err != nil {
			break
		}
		total += int64(present - absent)
		i = present
	}
	var got atomic.Int64
	stop := c.Watch(func(e core.Event) {
		if e.Kind == core.Arrived {
			got.Add(int64(e.End - e.Start))
		}
	})
	show, finish := func() {}, func() {}
	switch {
	case f.json:
		show = func() {
			json.NewEncoder(f.s.out).Encode(map[string]int64{"blocks": min(got.Load(), total), "of": total})
		}
	case isTerminal(f.s.err) && total > 0:
		bar := progressbar.NewOptions64(total, progressbar.OptionSetWriter(f.s.err), progressbar.OptionShowIts(),
			progressbar.OptionSetItsString("blocks"), progressbar.OptionClearOnFinish(), progressbar.OptionSetPredictTime(true))
		show = func() { bar.Set64(min(got.Load(), total)) }
		finish = func() { bar.Finish() }
	}
	ended, gone := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ended:
				show()
				finish()
				return
			case <-tick.C:
				show()
			}
		}
	}()
	var once atomic.Bool
	return &progress{func() {
		if once.Swap(true) {
			return
		}
		stop()
		close(ended)
		<-gone
	}}
}
