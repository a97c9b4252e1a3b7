package sparseindex

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode"

	"github.com/pkgswarm/pkgswarm/registry/artifact"
	"github.com/pkgswarm/pkgswarm/registry/crates"
	"github.com/pkgswarm/pkgswarm/registry/fetch"
	"github.com/pkgswarm/pkgswarm/registry/policy"
	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

// status is the one place where errors become statuses. An error may have several
// causes; only certainty is a 404.
func status(err error) int {
	_, withdrawn := errors.AsType[*artifact.WithdrawnError](err)
	_, blocked := errors.AsType[*policy.Refusal](err)
	_, wrong := errors.AsType[*fetch.BadBytesError](err)
	switch {
	case isAbsent(err):
		return http.StatusNotFound
	case withdrawn, blocked, errors.Is(err, crates.ErrPrivate), errors.Is(err, crates.ErrDisputed):
		return http.StatusForbidden
	case wrong, errors.Is(err, upstream.ErrBadAnswer):
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

// fail answers with an error.
func (h *handler) fail(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		return // the client left
	}
	code := status(err)
	text := printable(err.Error())
	if code == http.StatusInternalServerError {
		h.Logger.Error("request failed", "path", r.URL.Path, "err", err)
		text = "internal error; see the node's log"
	}
	if e, ok := errors.AsType[*upstream.Error](err); ok && e.RetryAfter > 0 && code == http.StatusGatewayTimeout {
		code = http.StatusServiceUnavailable // the one with which cargo heeds Retry-After
		w.Header().Set("Retry-After", fmt.Sprint(int((e.RetryAfter+time.Second-1)/time.Second)))
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	fmt.Fprintln(w, text)
}

// printable makes text from outside fit for a terminal (SEC-52).
func printable(s string) string {
	const most = 600 // bytes
	s = strings.Map(func(r rune) rune {
		switch {
		case unicode.IsPrint(r):
			return r
		case unicode.IsSpace(r):
			return ' '
		}
		return -1
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
