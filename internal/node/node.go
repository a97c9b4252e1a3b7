// Package node is the mirror as a running process: stores, swarm, fetch policy,
// front ends and one HTTP listener, wired together from a [Config].
//
// Everything a node keeps is in two directories, both open to nobody else. The
// data directory may be deleted or replaced by a CI cache at any time while no
// node runs:
//
//	store/cores, store/artifacts   databases
//	store/crash                    why the last process ended, if with a panic
//	artifacts/                     the files
//	cargo/, registries/, go/       cached answers of upstreams
//
// The state directory holds what must not be lost or rolled back: the identity
// among peers (identity), the token for changes over HTTP (token), the newest
// heads of catalogs and of the checksum database seen (heads/ and others).
//
// # Paths
//
//	/cargo/...            cargo's sparse registry; its crates under /cargo/dl/
//	/registries/NAME/...  the same for a private registry
//	/go/..., and at the root all of /…/@v/…, /…/@latest, /sumdb/…   the GOPROXY
//	/feeds/...            Atom feeds of the catalogs; see package feed
//	/swarm                peers over WebSocket
//	/api/v1/status        figures as JSON
//	/api/v1/deny and others   changes; see Node.changes
//	/api/v1/why/...       what proves a version that is here, as JSON; see [Why]
//	/metrics              for Prometheus
//	/healthz /readyz      alive; able to serve
//	/                     the dashboard
package node

import (
	"context"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/goproxy"
	"github.com/pkgswarm/pkgswarm/internal/httpguard"
	"github.com/pkgswarm/pkgswarm/registry/artifact"
	"github.com/pkgswarm/pkgswarm/registry/crates"
	"github.com/pkgswarm/pkgswarm/registry/exchange"
	"github.com/pkgswarm/pkgswarm/registry/feed"
	"github.com/pkgswarm/pkgswarm/registry/fetch"
	"github.com/pkgswarm/pkgswarm/registry/modules"
	"github.com/pkgswarm/pkgswarm/registry/policy"
	"github.com/pkgswarm/pkgswarm/registry/signed"
	"github.com/pkgswarm/pkgswarm/registry/sumdb"
	"github.com/pkgswarm/pkgswarm/registry/upstream"
	"github.com/pkgswarm/pkgswarm/swarm"
)

const (
	stopTimeout = 8 * time.Second // for answers in flight; the whole stop takes at most 10 s
	scrubEvery  = 24 * time.Hour
)

// Config configures a node. See the flags of pkgswarm serve.
type Config struct {
	Listen string // address of the HTTP listener
	Data   string // directory
	State  string // directory

	CargoUpstream string        // sparse+URL; empty: what the machine's cargo uses
	CargoPrivate  []string      // further registries: NAME=sparse+URL, or a NAME that the machine's cargo knows
	GoUpstream    string        // as GOPROXY; empty: what the machine's go uses
	SumDB         string        // as GOSUMDB; empty: what the machine's go uses
	Private       []string      // patterns as in GOPRIVATE, beside those of the machine's go
	GoPrivate     []string      // where private modules come from: [PATTERN=]URL, or direct
	IndexTTL      time.Duration // until an index answer is revalidated; 0: 10 minutes
	Offline       bool          // never ask an upstream
	// Source stands in for all public upstreams, offline or not; nil: none does.
	Source Source `json:"-"`

	Policy policy.Config // which versions are handed out

	DiskCap int64 // bytes of artifacts; 0: no bound
	MinFree int64 // bytes of disk to leave alone; 0: 256 MiB

	Registries []core.Key // operators' catalogs, in the order of preference
	Agree      int        // how many operators must agree; 0 or 1: any will do
	Mirror     Mirror     // what of their registries is held without being asked for

	SwarmListen    string   // address for peers; empty: any port with LAN, else none
	Peers          []string // addresses of peers
	LAN            bool     // discover peers on the local network
	PeerExchange   bool     // learn of peers from peers, and tell them of each other
	FleetTokenFile string   // the join token of a fleet
	PeerBudget     time.Duration
	Limits         swarm.Limits // what is exchanged with peers

	PublicURL string   // how clients off this machine reach the node, perhaps through a proxy
	Hosts     []string // further values of the Host header that are accepted
	TLSCert   string   // certificate and key files: HTTPS, with HTTP/2
	TLSKey    string
	TokenFile string // clients must give this token
	Insecure  bool   // listen off loopback without TLS and token

	Version string
	Summary func(Usage)  `json:"-"` // called after each burst of artifacts; may be nil
	Logger  *slog.Logger `json:"-"` // nil discards
}

// A Node is one running mirror.
type Node struct {
	c       Config
	log     *slog.Logger
	started time.Time

	cores     *core.Store
	artifacts *artifact.Store
	exchange  *exchange.Exchange
	fetcher   *fetch.Fetcher
	signed    *signed.Registry // nil without an operator
	crates    *crates.Crates
	modules   *modules.Modules
	sums      *sumdb.DB // nil without a checksum database
	fronts    []front
	swarm     *swarm.Swarm
	fleet     bool // peers are members of our fleet
	metrics   *metrics
	usage     recorder
	loops     loops

	upstreamNames []string
	clients       []*upstream.Client
	mirrors       []*crates.Crates // of cargo registries, private ones included
	sumKey        string
	goPrivate     string // patterns of private modules
	token         string // for changes over HTTP
	deniedMu      sync.Mutex
	denied        []Denial         // guarded by deniedMu
	public        *url.URL         // Config.PublicURL; nil without
	cert          *tls.Certificate // nil: plain HTTP

	ln       net.Listener
	upgrades *httpguard.Upgrades // of ln; nil if it takes none
	handler  http.Handler
	stopping atomic.Bool
	closers  []func() error // in the order of opening
}

// A front is a front end on the node's router.
type front struct {
	name   string
	prefix string // of its paths
	h      http.Handler
	loops  map[string]func(context.Context) error
}

// An AddrInUseError says that the listener's address is taken.
type AddrInUseError struct {
	Addr string
	Err  error
}

func (e *AddrInUseError) Error() string { return fmt.Sprintf("listen on %s: address in use", e.Addr) }
func (e *AddrInUseError) Unwrap() error { return e.Err }

// Open opens the stores, wires the parts and begins to listen. Run serves; Close
// must be called in the end. The error is a [core.InUseError] if another process
// has the data directory, an [AddrInUseError] if another has the address, a
// [SettingError] if the configuration cannot be used.
func Open(c Config) (_ *Node, err error) {
	n := &Node{c: c, log: c.Logger, started: time.Now()}
	if n.log == nil {
		n.log = slog.New(slog.DiscardHandler)
	}
	n.loops.log = n.log
	n.usage.summary = c.Summary
	defer func() {
		if err != nil {
			n.Close()
		}
	}()
	if n.public, err = parsePublicURL(c.PublicURL); err != nil {
		return nil, setting("public-url", err)
	}
	if n.cert, err = loadCertificate(c.TLSCert, c.TLSKey); err != nil {
		return nil, err
	}
	for _, dir := range []string{c.Data, c.State} {
		if err := privateDir(dir); err != nil {
			return nil, err
		}
	}
	if err := n.openDenied(); err != nil {
		return nil, err
	}
	if n.token, err = loadToken(filepath.Join(c.State, "token")); err != nil {
		return nil, err
	}
	if err := n.openStores(); err != nil {
		return nil, err
	}
	n.metrics = newMetrics(n)
	if err := n.openSwarm(); err != nil {
		return nil, err
	}
	n.fetcher = fetch.New(fetch.Config{
		Store:      fetch.OnDisk(n.artifacts),
		Peers:      n.exchange,
		PeerBudget: c.PeerBudget,
		Observe: func(e fetch.Event) {
			n.usage.observe(e)
			n.metrics.observe(e)
			n.log.Debug("artifact", "artifact", e.Name, "source", e.Source, "bytes", e.Bytes, "elapsed", e.Elapsed, "err", e.Err)
		},
		Logger: n.log,
	})
	n.closers = append(n.closers, func() error { n.fetcher.Close(); return nil })
	if err := n.openFronts(); err != nil {
		return nil, err
	}
	n.withdrawDenied()
	if err := n.listen(); err != nil {
		return nil, err
	}
	return n, nil
}

// privateDir makes dir, or checks that nobody else may look into it (SEC-57).
func privateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	fi, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if runtime.GOOS != "windows" && fi.Mode().Perm()&0o077 != 0 {
		return &PermError{dir, fi.Mode().Perm()}
	}
	return nil
}

// A PermError says that a directory or file is open to other users.
type PermError struct {
	Path string
	Perm fs.FileMode
}

func (e *PermError) Error() string {
	return fmt.Sprintf("%s is open to other users (mode %04o)", e.Path, e.Perm)
}

// Close ends what Open began. It is called after Run has returned.
func (n *Node) Close() error {
	var errs []error
	for i := len(n.closers) - 1; i >= 0; i-- {
		errs = append(errs, n.closers[i]())
	}
	n.closers = nil
	return errors.Join(errs...)
}

// listen begins to listen and guards the handlers.
func (n *Node) listen() error {
	ln, err := net.Listen("tcp", n.c.Listen)
	if err != nil {
		if isAddrInUse(err) {
			return &AddrInUseError{n.c.Listen, err}
		}
		return setting("listen", err)
	}
	n.ln = ln
	n.closers = append(n.closers, func() error {
		if err := ln.Close(); !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	})
	if err := n.checkExposure(); err != nil {
		return err
	}
	h, err := n.guarded(n.router())
	n.handler = h
	return err
}

// checkExposure refuses to serve other machines in the clear (SEC-53).
func (n *Node) checkExposure() error {
	if n.c.Insecure || httpguard.IsLoopback(n.ln) || n.c.TLSCert != "" && n.c.TokenFile != "" {
		return nil
	}
	return &ExposureError{n.c.Listen}
}

// An ExposureError says that a listener that other machines reach has neither
// TLS nor a token.
type ExposureError struct{ Addr string }

func (e *ExposureError) Error() string {
	return fmt.Sprintf("listen on %s: other machines could reach the node without TLS and token", e.Addr)
}

func (n *Node) guarded(h http.Handler) (http.Handler, error) {
	if n.c.TokenFile != "" {
		token, err := readSecret(n.c.TokenFile)
		if err != nil {
			return nil, setting("client-token-file", err)
		}
		h = requireToken(token, h)
	}
	hosts := n.c.Hosts
	var ports []uint16
	if a, ok := n.ln.Addr().(*net.TCPAddr); ok {
		ports = []uint16{uint16(a.Port)}
		hosts = append(httpguard.LoopbackHosts(uint16(a.Port)), hosts...)
	}
	if n.public != nil {
		hosts = append(hosts, n.public.Host)
	}
	if n.c.TLSCert == "" && httpguard.IsLoopback(n.ln) {
		n.upgrades = httpguard.NewUpgrades(n.ln.Addr())
	}
	return httpguard.New(httpguard.Config{
		Hosts:      hosts,
		AnyAddress: !httpguard.IsLoopback(n.ln),
		Ports:      ports,
		Pages:      []string{"/"},
		Upgrades:   n.upgrades,
		Panicked:   n.metrics.panics.Inc,
		Logger:     n.log,
	}, h), nil
}

// requireToken lets requests through that carry the token: as cargo sends it, as
// a bearer token, or as the password of basic authentication, as go sends it.
func requireToken(token string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/healthz" && r.URL.Path != "/readyz" && !hasToken(clientToken(r), token) {
			w.Header().Set("WWW-Authenticate", `Basic realm="pkgswarm"`)
			http.Error(w, fmt.Sprintf("this node wants a token: for go, as the password of machine %s in netrc; for cargo, as that of its registry", r.Host), http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// clientToken returns the token that a request carries.
func clientToken(r *http.Request) string {
	if _, password, ok := r.BasicAuth(); ok {
		return password
	}
	return strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
}

func hasToken(given, token string) bool {
	return subtle.ConstantTimeCompare([]byte(given), []byte(token)) == 1
}

// router returns the node's paths. The front ends' come first: they are most of what
// is asked for.
func (n *Node) router() http.Handler {
	r := chi.NewRouter()
	r.Get("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	r.Get("/readyz", n.serveReady)
	r.Handle("/metrics", n.metrics.handler())
	r.Get("/api/v1/status", n.serveStatus)
	r.Get("/api/v1/why/{ecosystem}/*", n.serveWhy)
	for path, h := range n.changes() {
		r.Handle(path, h)
	}
	r.Handle("/swarm", n.swarm.Handler())
	n.mountDashboard(r)
	if n.signed != nil {
		r.Handle("/feeds/*", http.StripPrefix("/feeds", feed.Handler(signed.Feeds{Registry: n.signed})))
	}
	fronts := make([]front, len(n.fronts))
	var modules http.Handler
	for i, f := range n.fronts {
		f.h = n.metrics.count(f.name, f.h)
		if fronts[i] = f; f.name == "go" {
			modules = f.h
		}
	}
	r.NotFound(func(w http.ResponseWriter, req *http.Request) {
		if modules != nil && goproxy.Handles(req.URL.Path) {
			modules.ServeHTTP(w, req)
			return
		}
		http.Error(w, "not found: no such page", http.StatusNotFound)
	})
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		for i := range fronts {
			if strings.HasPrefix(req.URL.Path, fronts[i].prefix) {
				fronts[i].h.ServeHTTP(w, req)
				return
			}
		}
		r.ServeHTTP(w, req)
	})
}

func (n *Node) serveReady(w http.ResponseWriter, _ *http.Request) {
	switch broken := n.loops.broken(); {
	case n.stopping.Load():
		http.Error(w, "stopping", http.StatusServiceUnavailable)
	case broken != "":
		http.Error(w, "background work has ended: "+broken, http.StatusServiceUnavailable)
	default:
		fmt.Fprintln(w, "ok")
	}
}

// Addr returns the address of the HTTP listener.
func (n *Node) Addr() net.Addr { return n.ln.Addr() }

// URL returns the address at which clients of this machine reach the node.
func (n *Node) URL() string {
	scheme := n.scheme()
	ap, err := netip.ParseAddrPort(n.Addr().String())
	if err != nil {
		return scheme + "://" + n.Addr().String()
	}
	if ap.Addr().IsUnspecified() {
		return fmt.Sprintf("%s://localhost:%d", scheme, ap.Port())
	}
	return scheme + "://" + ap.String()
}

// Run serves until ctx ends, then lets answers in flight complete within a
// limit. It returns nil after an orderly stop.
func (n *Node) Run(ctx context.Context) error {
	// The work behind answers in flight goes on while they are being completed.
	work, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer n.loops.wg.Wait()
	defer stopWork()
	n.startLoops(work)
	srv := httpguard.Server(n.handler, n.log)
	served := make(chan error, 2)
	if n.upgrades != nil {
		srv.Protocols.SetUnencryptedHTTP2(true)
		go func() { served <- srv.Serve(n.upgrades) }()
	}
	go func() {
		ln := httpguard.Listen(n.ln)
		if n.cert != nil {
			srv.TLSConfig = &tls.Config{Certificates: []tls.Certificate{*n.cert}}
			served <- srv.ServeTLS(ln, "", "")
			return
		}
		served <- srv.Serve(ln)
	}()
	select {
	case err := <-served:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	n.stopping.Store(true)
	n.log.Info("stopping")
	limit, cancel := context.WithTimeout(work, stopTimeout)
	defer cancel()
	if err := srv.Shutdown(limit); err != nil {
		n.log.Warn("answers in flight were cut off", "err", err)
		srv.Close()
	}
	n.fetcher.Wait(limit) // what clients have been given is stored as well
	n.usage.end()
	return nil
}

func (n *Node) startLoops(ctx context.Context) {
	n.loops.start(ctx, "artifacts", func(ctx context.Context) error { return n.artifacts.Run(ctx, scrubEvery) })
	n.loops.start(ctx, "cores", n.watchCores)
	n.loops.start(ctx, "swarm", n.swarm.Run)
	if n.signed != nil {
		n.loops.start(ctx, "catalogs", n.signed.Run)
	}
	for _, f := range n.fronts {
		for name, loop := range f.loops {
			n.loops.start(ctx, f.name+" "+name, loop)
		}
	}
}
