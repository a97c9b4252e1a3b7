package goproxy

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode"

	"github.com/pkgswarm/pkgswarm/registry/artifact"
	"github.com/pkgswarm/pkgswarm/registry/fetch"
	"github.com/pkgswarm/pkgswarm/registry/modules"
	"github.com/pkgswarm/pkgswarm/registry/policy"
	"github.com/pkgswarm/pkgswarm/registry/sumdb"
	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

// A requestError is the fault of who asked.
type requestError struct {
	status int
	text   string
}

func (e *requestError) Error() string { return e.text }

func notFound(format string, args ...any) error {
	return &requestError{http.StatusNotFound, fmt.Sprintf(format, args...)}
}

func badRequest(format string, args ...any) error {
	return &requestError{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

// statusOf is the one place where errors become statuses. The order matters: an
// error may have several causes, and only certainty is a 404.
func statusOf(err error) int {
	var request *requestError
	var withdrawn *artifact.WithdrawnError
	var bytes *fetch.BadBytesError
	var blocked *policy.Refusal
	switch {
	case errors.As(err, &request):
		return request.status
	case errors.As(err, &withdrawn), errors.As(err, &blocked), errors.Is(err, modules.ErrPrivate), errors.Is(err, modules.ErrUnproven), errors.Is(err, modules.ErrWithdrawn):
		return http.StatusForbidden
	case errors.As(err, &bytes), errors.Is(err, sumdb.ErrMismatch), errors.Is(err, sumdb.ErrFork), errors.Is(err, upstream.ErrBadAnswer):
		return http.StatusBadGateway
	case errors.Is(err, upstream.ErrUnreachable), errors.Is(err, fetch.ErrUnavailable), errors.Is(err, fetch.ErrStalled), errors.Is(err, context.DeadlineExceeded):
		return http.StatusGatewayTimeout
	case errors.Is(err, upstream.ErrRefused):
		return http.StatusForbidden
	case errors.Is(err, upstream.ErrNotFound):
		return http.StatusNotFound
	}
	return http.StatusInternalServerError
}

// retryAfter returns after how many seconds asking again may help; 0 if unknown.
func retryAfter(err error) int {
	var e *upstream.Error
	if errors.As(err, &e) {
		return int((e.RetryAfter + time.Second - 1) / time.Second)
	}
	return 0
}

// message returns the body of an error answer. go prints up to 8 lines of it.
func message(status int, err error) string {
	s := printable(err.Error())
	if status == http.StatusNotFound && !strings.HasPrefix(s, "not found") {
		s = "not found: " + s
	}
	if status == http.StatusInternalServerError {
		s = "internal error; see the node's log"
	}
	return s + "\n"
}

// printable makes text from outside fit for a terminal (SEC-52).
func printable(s string) string {
	const most = 600 // bytes; go shows 648
	s = strings.Map(func(r rune) rune {
		switch {
		case r == unicode.ReplacementChar || unicode.IsPrint(r):
			return r
		case unicode.IsSpace(r):
			return ' '
		}
		return -1
	}, strings.ToValidUTF8(s, "\ufffd"))
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
