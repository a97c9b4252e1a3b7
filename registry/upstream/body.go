package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
)

var (
	errTooLarge  = errors.New("larger than allowed")
	errStalled   = fmt.Errorf("no byte for %v", stallTimeout)
	errTooSlow   = fmt.Errorf("slower than %d bytes a second", minRate)
	errNoHeaders = errors.New("no answer in time")
	errShort     = errors.New("cut short")
	errEmpty     = errors.New("empty body")
	errWebPage   = errors.New("a web page instead of a file")
)

// body is an answer's body as the caller reads it: decompressed, limited, and
// watched. Its errors are of type *Error, but io.EOF.
type body struct {
	r       io.Reader // expanded bytes
	closers []io.Closer
	release func(err error) // ends the request; reports to the breaker, once

	kind Kind
	url  string
	n    int64 // expanded bytes read
	err  error // sticky
}

func (b *body) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := b.r.Read(p)
	first := b.n == 0
	b.n += int64(n)
	switch {
	case b.n > b.kind.MaxExpanded:
		n, err = 0, errTooLarge
	case first && n > 0 && !b.kind.Binary && isMarkup(p[:n]):
		n, err = 0, errWebPage
	case err == io.EOF && b.n == 0 && !b.kind.Empty:
		err = errEmpty
	}
	if err != nil {
		b.fail(err)
	}
	return n, b.err
}

func (b *body) fail(err error) {
	b.err = err
	if err != io.EOF {
		b.err = b.classify(err)
	}
	b.release(b.err)
}

func (b *body) classify(err error) error {
	var e *Error
	switch {
	case errors.As(err, &e), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, errStalled), errors.Is(err, errTooSlow), errors.Is(err, errNoHeaders):
		return &Error{URL: b.url, Class: ErrUnreachable, Err: err}
	case errors.Is(err, io.ErrUnexpectedEOF):
		err = errShort
	}
	return &Error{URL: b.url, Class: ErrBadAnswer, Err: err}
}

// Close ends the request, whether or not the body was read to its end.
func (b *body) Close() error {
	if b.err == nil {
		b.err = http.ErrBodyReadAfterClose
	}
	b.release(nil)
	for _, c := range b.closers {
		c.Close()
	}
	return nil
}

// isMarkup reports whether a text file begins like HTML or XML, which none of
// the registries' text formats does.
func isMarkup(p []byte) bool {
	return strings.HasPrefix(strings.TrimLeft(string(p[:min(len(p), 64)]), " \t\r\n\ufeff"), "<")
}

// newBody checks how resp says it is framed and encoded, and returns its body.
// cancel ends the request with a cause.
func newBody(resp *http.Response, kind Kind, url string, cancel context.CancelCauseFunc) (*body, error) {
	if err := checkFraming(resp, kind); err != nil {
		return nil, err
	}
	if ct := strings.ToLower(resp.Header.Get("Content-Type")); strings.HasPrefix(ct, "text/html") || strings.HasPrefix(ct, "application/xhtml") {
		return nil, errWebPage
	}
	b := &body{kind: kind, url: url, closers: []io.Closer{resp.Body}}
	watched := &watch{r: resp.Body, cancel: cancel}
	b.r = &limit{r: watched, left: kind.maxPacked(), size: resp.ContentLength}
	if gzipped(resp) {
		z, err := gzip.NewReader(b.r)
		if err != nil {
			return nil, fmt.Errorf("gzip: %w", err)
		}
		b.r = z
	}
	return b, nil
}

func gzipped(resp *http.Response) bool { return resp.Header.Get("Content-Encoding") == "gzip" }

func checkFraming(resp *http.Response, kind Kind) error {
	encoding := resp.Header.Values("Content-Encoding")
	switch {
	case len(encoding) > 1, len(encoding) == 1 && encoding[0] != "identity" && (encoding[0] != "gzip" || kind.Binary):
		return fmt.Errorf("unexpected encoding %.40q", encoding)
	case resp.ContentLength > kind.maxPacked():
		return fmt.Errorf("%w: %d bytes", errTooLarge, resp.ContentLength)
	case resp.ContentLength < 0 && resp.ProtoMajor < 2 && len(resp.TransferEncoding) == 0 && !kind.Verified:
		return errors.New("no length: its end cannot be told from a cut")
	}
	return nil
}

// limit reads at most left bytes as sent, and fails on more or, where the size
// is known, on fewer.
type limit struct {
	r    io.Reader
	left int64
	size int64 // -1 unknown
	n    int64
}

func (l *limit) Read(p []byte) (int, error) {
	if l.left <= 0 {
		// The body may end exactly here.
		var one [1]byte
		if n, err := l.r.Read(one[:]); n == 0 {
			return 0, err
		}
		return 0, errTooLarge
	}
	n, err := l.r.Read(p[:min(int64(len(p)), l.left)])
	l.left -= int64(n)
	l.n += int64(n)
	if err == io.EOF && l.size >= 0 && l.n != l.size {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// watch ends a request whose body stops coming, or comes too slowly. Only time
// spent waiting counts: a slow reader is not the upstream's fault.
type watch struct {
	r      io.Reader
	cancel context.CancelCauseFunc
	timer  *time.Timer
	fired  chan error

	waited time.Duration // in this window
	got    int           // bytes in this window
}

func (w *watch) Read(p []byte) (int, error) {
	if w.timer == nil {
		w.fired = make(chan error, 1)
		w.timer = time.AfterFunc(stallTimeout, w.stall)
	} else {
		w.timer.Reset(stallTimeout)
	}
	start := time.Now()
	n, err := w.r.Read(p)
	w.timer.Stop()
	w.waited += time.Since(start)
	w.got += n
	select {
	case cause := <-w.fired:
		if err != nil && err != io.EOF {
			return n, cause
		}
	default:
	}
	if err == nil && w.waited >= rateWindow {
		if w.got < minRate*int(rateWindow/time.Second) {
			w.cancel(errTooSlow)
			return n, errTooSlow
		}
		w.waited, w.got = 0, 0
	}
	return n, err
}

func (w *watch) stall() {
	w.fired <- errStalled
	w.cancel(errStalled)
}
