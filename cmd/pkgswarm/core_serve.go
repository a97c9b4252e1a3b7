package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/swarm"
	"github.com/pkgswarm/pkgswarm/swarm/replicate"
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
			switch {
			case len(listen) > 0:
			case lan:
				listen = []string{":0"} // or nobody there could connect
			case len(ws)+len(peers) == 0:
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
	fs.StringSliceVar(&listen, "listen", nil, "TCP `ADDR` to listen on (default: any port of 127.0.0.1, or of all addresses with --lan)")
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
