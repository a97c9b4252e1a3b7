package upstream

import (
	"errors"
	"fmt"
	"io/fs"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// The classes of errors. ErrNotFound matches [fs.ErrNotExist].
var (
	ErrNotFound    error = notFound{}
	ErrRefused           = errors.New("refused by the upstream")
	ErrUnreachable       = errors.New("upstream unreachable")
	ErrBadAnswer         = errors.New("bad answer from the upstream")
)

type notFound struct{}

func (notFound) Error() string        { return "not found" }
func (notFound) Is(target error) bool { return target == fs.ErrNotExist }

// An Error says why a request to an upstream failed.
type Error struct {
	URL    string // without credentials
	Class  error  // ErrNotFound, ErrRefused, ErrUnreachable or ErrBadAnswer
	Status int    // of the HTTP answer; 0 without one
	// RetryAfter is how long the upstream asked to be left alone; 0 if it did not.
	RetryAfter time.Duration
	// Detail is what a text/plain error answer said, made printable and cut to a
	// few lines. It is the upstream's word and proves nothing.
	Detail string
	Err    error // the cause below; may be nil

	local bool // made without asking: neither to be repeated nor remembered
}

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %v", e.URL, e.Class)
	if e.Status != 0 {
		fmt.Fprintf(&b, " (%d %s)", e.Status, http.StatusText(e.Status))
	}
	if e.Err != nil {
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	if e.Detail != "" {
		fmt.Fprintf(&b, ": %s", e.Detail)
	}
	return b.String()
}

// Unwrap gives the class and the cause.
func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Class}
	}
	return []error{e.Class, e.Err}
}

// temporary reports whether asking again soon may help.
func (e *Error) temporary() bool {
	return !e.local && (e.Class == ErrUnreachable || e.Class == ErrBadAnswer && e.Status == 0)
}

// siteDown reports whether e speaks against the whole site. A 500 may be about
// one file, and a 429 has its own pause.
func (e *Error) siteDown() bool {
	return e.Class == ErrUnreachable && (e.Status == 0 || e.Status > http.StatusInternalServerError)
}

// statusError returns the error for an answer that is not a success.
func statusError(url string, resp *http.Response, now time.Time) *Error {
	e := &Error{URL: url, Status: resp.StatusCode}
	switch s := resp.StatusCode; {
	case s == http.StatusNotFound || s == http.StatusGone:
		e.Class = ErrNotFound
	case s == http.StatusRequestTimeout || s == http.StatusTooManyRequests || s >= 500:
		e.Class = ErrUnreachable
		e.RetryAfter = retryAfter(resp, now)
	case s >= 400:
		e.Class = ErrRefused
	default:
		e.Class = ErrBadAnswer
	}
	return e
}

// retryAfter returns the pause that a 429 or 503 answer asks for, in seconds or
// as a date, capped by cause.
func retryAfter(resp *http.Response, now time.Time) time.Duration {
	limit := maxBusyPause
	if resp.StatusCode == http.StatusTooManyRequests {
		limit = maxThrottledPause
	}
	v := resp.Header.Get("Retry-After")
	var d time.Duration
	if n, err := strconv.ParseUint(v, 10, 31); err == nil {
		d = time.Duration(n) * time.Second
	} else if t, err := http.ParseTime(v); err == nil {
		d = t.Sub(now)
	}
	return min(max(d, 0), limit)
}

// detail returns the first lines of a plain-text error, made safe to print.
func detail(contentType string, body []byte) string {
	mt, _, _ := mime.ParseMediaType(contentType)
	if mt != "text/plain" || !utf8.Valid(body) {
		return ""
	}
	s, _, _ := strings.Cut(string(body), "\n\n")
	s = strings.Join(strings.Fields(s), " ")
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1 // also direction marks and other format characters
		}
		return r
	}, s)
}
