package upstream

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// A Request asks for one file.
type Request struct {
	URL  string
	Kind Kind
	// Validators of the copy at hand; with any set the answer may be "not modified".
	Validators Validators
	// Header is sent as well. It must hold neither credentials nor anything that
	// comes from a client unchecked.
	Header http.Header
	// Fresh asks the upstream even if it just failed to answer this.
	Fresh bool
	// Once keeps a failed request from being repeated: there is somebody else to ask.
	Once bool
}

// Validators identify a version of a file at its upstream.
type Validators struct {
	ETag         string
	LastModified string
}

// An Answer is a whole file.
type Answer struct {
	Body        []byte // owned by the caller
	NotModified bool   // the copy that the request's validators name is current; no Body
	Validators  Validators
	// MaxAge is how long the upstream allows to keep the answer; 0 if it does not say.
	MaxAge time.Duration
	Via    Via
}

// A Stream is a file on its way. Its reader fails, and does not end, when the
// file is cut short, stalls, or exceeds its kind's limits. Close it.
type Stream struct {
	io.ReadCloser
	Size        int64 // in bytes; -1 if unknown
	NotModified bool  // as in Answer; the reader is empty
	Validators  Validators
	MaxAge      time.Duration
	Via         Via
}

// A Via says what brought an answer in place of the upstream itself. The zero Via
// is the upstream.
type Via struct {
	Name string    // for people, such as "bundle 3f9a…"; empty: the upstream
	Time time.Time // when the upstream gave it; zero if that is not known
}

// Get returns the file that r asks for. It repeats the request while that may
// help and time is left, and remembers failures. It returns within r.Kind.Timeout.
func (c *Client) Get(ctx context.Context, r Request) (*Answer, error) {
	bounded, cancel := context.WithTimeoutCause(ctx, r.Kind.timeout(), errNoHeaders)
	defer cancel()
	a, err := repeat(bounded, r.attempts(), func() (*Answer, error) { return c.getOnce(bounded, r) })
	if err != nil {
		err = c.settle(ctx, r, err)
	}
	return a, err
}

func (c *Client) getOnce(ctx context.Context, r Request) (*Answer, error) {
	s, err := c.openOnce(ctx, r)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	body, err := readAll(s, s.Size)
	if err != nil {
		return nil, err
	}
	return &Answer{Body: body, NotModified: s.NotModified, Validators: s.Validators, MaxAge: s.MaxAge}, nil
}

// readAll reads r to its end. It takes memory for what has arrived, not for the size
// that is announced, and for a large file in pieces, so that one that turns out to be
// too large leaves no more behind than it had bytes (SEC-8, SEC-44).
func readAll(r io.Reader, size int64) ([]byte, error) {
	const piece = 1 << 20
	var pieces [][]byte
	for {
		var b bytes.Buffer
		if len(pieces) > 0 || size > 0 {
			b.Grow(int(min(uint64(size), piece)) + bytes.MinRead) // piece if size is -1
		}
		if _, err := b.ReadFrom(io.LimitReader(r, piece)); err != nil {
			return nil, err
		}
		switch {
		case b.Len() == piece:
			pieces = append(pieces, b.Bytes())
		case len(pieces) == 0:
			return b.Bytes(), nil
		default:
			return bytes.Join(append(pieces, b.Bytes()), nil), nil
		}
	}
}

// Open returns the file that r asks for as it arrives. It repeats the request
// until an answer begins. ctx governs the whole transfer.
func (c *Client) Open(ctx context.Context, r Request) (*Stream, error) {
	s, err := repeat(ctx, r.attempts(), func() (*Stream, error) { return c.openOnce(ctx, r) })
	if err != nil {
		err = c.settle(ctx, r, err)
	}
	return s, err
}

// settle gives the error of a request its final form and remembers it.
func (c *Client) settle(ctx context.Context, r Request, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var e *Error
	if !errors.As(err, &e) { // our own limit on the whole ran out
		e = &Error{URL: redact(r.URL), Class: ErrUnreachable, Err: errNoHeaders}
	}
	if !e.local {
		c.failures.note(r.key(), e)
	}
	return e
}

// key names what r asks for, so that equal requests share their failures.
func (r Request) key() string {
	if len(r.Header) == 0 {
		return r.URL
	}
	var b strings.Builder
	http.Header(r.Header).Write(&b)
	return r.URL + "\n" + b.String()
}

func (r Request) attempts() uint {
	if r.Once {
		return 1
	}
	return attempts
}

// repeat calls f until it succeeds, fails for good, or has failed most times.
func repeat[T any](ctx context.Context, most uint, f func() (T, error)) (T, error) {
	pauses := backoff.NewExponentialBackOff()
	pauses.InitialInterval, pauses.MaxInterval = firstPause, mostPause
	var last error
	v, err := backoff.Retry(ctx, func() (T, error) {
		v, err := f()
		var e *Error
		last = err
		if err != nil && (!errors.As(err, &e) || !e.temporary() || e.RetryAfter > mostPause) {
			err = backoff.Permanent(err)
		} else if err != nil && e.RetryAfter > 0 {
			err = &pauseError{backoff.RetryAfterError{Duration: e.RetryAfter}, err}
		}
		return v, err
	}, backoff.WithBackOff(pauses), backoff.WithMaxTries(most), backoff.WithMaxElapsedTime(0))
	if err != nil {
		return v, last // says more than that the time ran out while pausing
	}
	return v, nil
}

// A pauseError is an error after which the upstream wants a pause.
type pauseError struct {
	pause backoff.RetryAfterError
	err   error
}

func (e *pauseError) Error() string   { return e.err.Error() }
func (e *pauseError) Unwrap() []error { return []error{e.err, &e.pause} }

func (c *Client) openOnce(ctx context.Context, r Request) (*Stream, error) {
	u, err := url.Parse(r.URL)
	if err != nil {
		return nil, &Error{URL: "upstream", Class: ErrRefused, Err: errBadURL}
	}
	if !r.Fresh {
		if e := c.failures.recall(r.key()); e != nil {
			again := *e
			again.local = true
			return nil, &again
		}
	}
	done := func(error) {}
	if u.Scheme != "file" {
		if done, err = c.admit(u); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var once sync.Once
	release := func(err error) { once.Do(func() { cancel(nil); done(err) }) }
	s, err := c.exchange(ctx, cancel, u, r)
	if err != nil {
		release(err)
		return nil, err
	}
	s.ReadCloser.(*body).release = release
	return s, nil
}

// admit asks the breaker of u's origin for a place and returns how to report the outcome.
func (c *Client) admit(u *url.URL) (func(error), error) {
	s, err := c.site(u)
	if err != nil {
		return nil, &Error{URL: redact(u.String()), Class: ErrRefused, Err: err}
	}
	s.mu.Lock()
	pause := time.Until(s.until)
	s.mu.Unlock()
	if pause > 0 {
		return nil, &Error{URL: redact(u.String()), Class: ErrUnreachable, RetryAfter: pause, Err: errors.New("upstream asked for a pause"), local: true}
	}
	done, err := s.breaker.Allow()
	if err != nil {
		return nil, &Error{URL: redact(u.String()), Class: ErrUnreachable, RetryAfter: breakerPause, Err: errors.New("failed repeatedly, left alone for a moment"), local: true}
	}
	return func(err error) {
		var e *Error
		if errors.As(err, &e) && e.RetryAfter > 0 {
			s.mu.Lock()
			s.until = time.Now().Add(e.RetryAfter)
			s.mu.Unlock()
		}
		s.outage.failed(err)
		done(err)
	}, nil
}

// exchange sends the request and reads the head of the answer.
func (c *Client) exchange(ctx context.Context, cancel context.CancelCauseFunc, u *url.URL, r Request) (*Stream, error) {
	fail := func(class, err error) error { return &Error{URL: redact(r.URL), Class: class, Err: err} }
	req, err := http.NewRequestWithContext(limitInterim(ctx), http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, fail(ErrRefused, errBadURL)
	}
	c.setHeader(req, r)
	timer := time.AfterFunc(r.Kind.firstByte(), func() { cancel(errNoHeaders) })
	defer timer.Stop()
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.doError(ctx, err, fail)
	}
	conditional := r.Validators != Validators{}
	switch {
	case resp.StatusCode == http.StatusOK:
	case resp.StatusCode == http.StatusNotModified && conditional:
		resp.Body.Close()
		return &Stream{ReadCloser: &body{r: bytes.NewReader(nil), kind: Kind{Empty: true}}, NotModified: true, Validators: r.Validators, MaxAge: maxAge(resp)}, nil
	default:
		return nil, readError(r.URL, resp)
	}
	b, err := newBody(resp, r.Kind, redact(r.URL), cancel)
	if err != nil {
		resp.Body.Close()
		return nil, fail(ErrBadAnswer, err)
	}
	size := resp.ContentLength
	if gzipped(resp) {
		size = -1
	}
	return &Stream{ReadCloser: b, Size: size, Validators: validators(resp), MaxAge: maxAge(resp)}, nil
}

func (c *Client) setHeader(req *http.Request, r Request) {
	maps.Copy(req.Header, r.Header)
	req.Header.Del("Authorization")
	req.Header.Del("Cookie")
	req.Header.Set("User-Agent", c.userAgent)
	if r.Kind.Binary {
		req.Header.Set("Accept-Encoding", "identity")
	} else {
		req.Header.Set("Accept-Encoding", "gzip")
	}
	if r.Validators.ETag != "" {
		req.Header.Set("If-None-Match", r.Validators.ETag)
	}
	if r.Validators.LastModified != "" {
		req.Header.Set("If-Modified-Since", r.Validators.LastModified)
	}
	c.setCredentials(req)
}

func (c *Client) setCredentials(req *http.Request) {
	c.mu.Lock()
	auth := authorization(c.scopes, req.URL)
	c.mu.Unlock()
	if auth != "" {
		req.Header.Set("Authorization", auth)
	}
}

// limitInterim ends a request whose upstream sends 1xx answers without end.
func limitInterim(ctx context.Context) context.Context {
	n := 0
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		Got1xxResponse: func(int, textproto.MIMEHeader) error {
			if n++; n > maxInterim {
				return errors.New("too many interim answers")
			}
			return nil
		},
	})
}

// doError classifies an error of http.Client.Do.
func (c *Client) doError(ctx context.Context, err error, fail func(class, err error) error) error {
	var ours *Error
	var refused *refusedAddrError
	var ue *url.Error
	if errors.As(err, &ours) {
		return ours
	}
	if cause := context.Cause(ctx); cause != nil {
		if cause == errNoHeaders {
			return fail(ErrUnreachable, errNoHeaders)
		}
		return cause
	}
	if errors.As(err, &ue) {
		err = ue.Err // without the URL, which Error has
	}
	var certificate *tls.CertificateVerificationError
	switch {
	case errors.As(err, &refused):
		return fail(ErrRefused, err)
	case errors.As(err, &certificate), isProtocolError(err):
		return fail(ErrBadAnswer, err)
	}
	return fail(ErrUnreachable, err)
}

// isProtocolError tells an answer that is no HTTP from the lack of one. net/http
// has no types for its messages.
func isProtocolError(err error) bool {
	s := err.Error()
	for _, sign := range []string{"malformed", "bad Content-Length", "too many interim answers", "headers exceeded", "header list too large", "unsupported transfer encoding", "multiple Content-Length", "missing Location"} {
		if strings.Contains(s, sign) {
			return true
		}
	}
	return false
}

// readError returns the error of an answer that is not a success, and its text.
func readError(rawURL string, resp *http.Response) error {
	defer resp.Body.Close()
	e := statusError(redact(rawURL), resp, time.Now())
	if resp.Header.Get("Content-Encoding") == "" {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, maxDetail))
		io.CopyN(io.Discard, resp.Body, maxDrain)
		e.Detail = detail(resp.Header.Get("Content-Type"), text)
	}
	return e
}

// validators returns the validators of resp, if they are fit to be sent back.
func validators(resp *http.Response) Validators {
	clean := func(s string) string {
		if len(s) > maxValidator || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
			return ""
		}
		return s
	}
	return Validators{clean(resp.Header.Get("ETag")), clean(resp.Header.Get("Last-Modified"))}
}

// maxAge returns what Cache-Control says; 0 also for no-store and no-cache.
func maxAge(resp *http.Response) time.Duration {
	var age time.Duration
	for _, d := range strings.Split(resp.Header.Get("Cache-Control"), ",") {
		d = strings.ToLower(strings.TrimSpace(d))
		if d == "no-store" || d == "no-cache" {
			return 0
		}
		if n, err := strconv.ParseUint(strings.TrimPrefix(d, "max-age="), 10, 31); err == nil && strings.HasPrefix(d, "max-age=") {
			age = time.Duration(n) * time.Second
		}
	}
	return age
}

// redact returns a URL fit for messages.
func redact(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "upstream"
	}
	return u.Redacted()
}
