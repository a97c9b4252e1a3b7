package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"
	"golang.org/x/net/http/httpproxy"
)

// A Config says whom a Client may ask.
type Config struct {
	// Origins are URLs of upstreams as the user configured them: http, https or
	// file. Of http and https only scheme, host and port count; of file URLs the
	// directory that is served.
	Origins []string
	// PublicOrigins are upstreams that must be at public addresses, such as the
	// built-in defaults.
	PublicOrigins []string
	// Scopes are the credentials of the upstreams.
	Scopes []Scope
	// Proxy is through which HTTP proxy to ask; nil takes it from HTTP_PROXY,
	// HTTPS_PROXY and NO_PROXY.
	Proxy *httpproxy.Config
	// RootCAs are the trusted certificate authorities; nil stands for the system's.
	RootCAs *x509.CertPool
	// UserAgent identifies this program and a contact; empty stands for "pkgswarm".
	UserAgent string
	// Logger hears of upstreams that fail and recover; nil discards.
	Logger *slog.Logger
}

// A Client asks upstreams. It is safe for concurrent use.
type Client struct {
	http      *http.Client
	userAgent string
	log       *slog.Logger
	proxy     func(*url.URL) (*url.URL, error)
	failures  *memory

	mu      sync.Mutex
	origins map[origin]*site
	scopes  []scope
	public  map[string]bool // hosts that must be at public addresses
	proxies map[string]bool // host:port of the HTTP proxies
	dirs    map[string]*os.Root
}

// A site is what is known of an origin.
type site struct {
	breaker *gobreaker.TwoStepCircuitBreaker[struct{}]
	outage  *outage

	mu    sync.Mutex
	until time.Time // asked to be left alone until then
}

// UserAgent identifies a version of this program and whom to turn to.
func UserAgent(version string) string {
	return "pkgswarm/" + version + " (+https://github.com/pkgswarm/pkgswarm)"
}

// New returns a client for the upstreams of c. Close it after use.
func New(c Config) (*Client, error) {
	proxy := c.Proxy
	if proxy == nil {
		proxy = httpproxy.FromEnvironment()
	}
	cl := &Client{
		userAgent: c.UserAgent,
		log:       c.Logger,
		proxy:     proxy.ProxyFunc(),
		failures:  newMemory(),
		origins:   map[origin]*site{},
		public:    map[string]bool{},
		proxies:   map[string]bool{},
		dirs:      map[string]*os.Root{},
	}
	if cl.userAgent == "" {
		cl.userAgent = "pkgswarm"
	}
	if cl.log == nil {
		cl.log = slog.New(slog.DiscardHandler)
	}
	cl.http = &http.Client{Transport: cl.transport(c.RootCAs), CheckRedirect: cl.checkRedirect}
	if err := cl.configure(c); err != nil {
		cl.Close()
		return nil, err
	}
	return cl, nil
}

func (c *Client) configure(conf Config) error {
	for _, s := range conf.Scopes {
		if err := c.AddScope(s); err != nil {
			return err
		}
	}
	for _, o := range conf.Origins {
		if err := c.AddOrigin(o); err != nil {
			return err
		}
	}
	for _, o := range conf.PublicOrigins {
		if err := c.addPublic(o); err != nil {
			return err
		}
	}
	return nil
}

func (c *Client) transport(roots *x509.CertPool) *http.Transport {
	t := &http.Transport{
		Proxy:                  func(r *http.Request) (*url.URL, error) { return c.proxy(r.URL) },
		DialContext:            c.dialer(),
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
		TLSHandshakeTimeout:    handshakeTimeout,
		ForceAttemptHTTP2:      true,
		DisableCompression:     true, // decompressed here, under a limit
		MaxIdleConnsPerHost:    maxIdlePerHost,
		MaxConnsPerHost:        maxConnsPerHost,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxHeaderBytes,
		ReadBufferSize:         32 << 10,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
	}
	t.RegisterProtocol("file", fileTransport{c})
	return t
}

// Close ends idle connections. Requests under way are ended by their contexts.
func (c *Client) Close() {
	c.http.CloseIdleConnections()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range c.dirs {
		d.Close()
	}
	clear(c.dirs)
}

// AddScope adds credentials. Of scopes that hold a URL the one with the longest path
// counts; of equal ones the first.
func (c *Client) AddScope(s Scope) error {
	p, err := parseScope(s)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, have := range c.scopes {
		if have.origin == p.origin && slices.Equal(have.segments, p.segments) {
			return nil
		}
	}
	c.scopes = append(c.scopes, p)
	return nil
}

// AddNamed adds an upstream that the configured one at by names, such as the host
// that its downloads are on. It may not lead the node to where only the operator of
// this machine may: to files, loopback or link-local addresses, and, if by is a
// public registry, private ones, unless by is there as well (SEC-30).
func (c *Client) AddNamed(rawURL, by string) error {
	u, err := url.Parse(rawURL)
	if err != nil {
		return fmt.Errorf("upstream: %w", errBadURL)
	}
	from, err := url.Parse(by)
	if err != nil {
		return fmt.Errorf("upstream: %w", errBadURL)
	}
	public := c.mustBePublic(from.Hostname())
	switch near := nearness(u); {
	case near >= linkLocal && near > nearness(from), near == private && public:
		return fmt.Errorf("upstream %s: named by %s, which is not there itself", u.Redacted(), from.Redacted())
	case public:
		return c.addPublic(rawURL)
	}
	return c.AddOrigin(rawURL)
}

// AddOrigin adds an upstream that may be asked and redirected to. See
// Config.Origins.
func (c *Client) AddOrigin(rawURL string) error {
	u, err := url.Parse(rawURL)
	if err != nil {
		return fmt.Errorf("upstream: %w", errBadURL)
	}
	o, err := originOf(u)
	if err != nil {
		return fmt.Errorf("upstream %s: %w", u.Redacted(), err)
	}
	if u.User != nil {
		return fmt.Errorf("upstream %s: credentials in the URL", u.Redacted())
	}
	if o.scheme == "file" {
		return c.addDir(u.Path)
	}
	through, err := c.proxy(u)
	if err != nil {
		return fmt.Errorf("proxy for upstream %s: %w", u.Redacted(), err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if through != nil {
		c.proxies[hostPort(through)] = true
	}
	if c.origins[o] == nil {
		c.origins[o] = newSite(o, c.log)
	}
	return nil
}

func (c *Client) addPublic(rawURL string) error {
	if err := c.AddOrigin(rawURL); err != nil {
		return err
	}
	u, _ := url.Parse(rawURL) // AddOrigin has parsed it
	c.mu.Lock()
	defer c.mu.Unlock()
	c.public[strings.ToLower(u.Hostname())] = true
	return nil
}

func (c *Client) addDir(dir string) error {
	dir = filepath.Clean(dir)
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("upstream file://%s: %w", dir, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.dirs[dir]; old != nil {
		old.Close()
	}
	c.dirs[dir] = root
	return nil
}

func newSite(o origin, log *slog.Logger) *site {
	out := &outage{log: log}
	return &site{outage: out, breaker: gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		Name:        o.scheme + "://" + o.host + ":" + o.port,
		MaxRequests: breakerProbes,
		Timeout:     breakerPause,
		ReadyToTrip: func(n gobreaker.Counts) bool { return n.ConsecutiveFailures >= breakerFailures },
		IsSuccessful: func(err error) bool {
			var e *Error
			return !errors.As(err, &e) || !e.siteDown()
		},
		IsExcluded: func(err error) bool {
			return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
		},
		OnStateChange: out.changed,
	})}
}

func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"https": "443", "socks5": "1080", "socks5h": "1080"}[u.Scheme]
		if port == "" {
			port = "80"
		}
	}
	return u.Hostname() + ":" + port
}

func (c *Client) isProxy(addr string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.proxies[addr]
}

func (c *Client) mustBePublic(host string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.public[strings.ToLower(host)]
}

// site returns what is known of u's origin, or an error if it is not configured.
func (c *Client) site(u *url.URL) (*site, error) {
	o, err := originOf(u)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.origins[o]; s != nil {
		return s, nil
	}
	return nil, fmt.Errorf("%s://%s is not a configured upstream", u.Scheme, u.Host)
}
