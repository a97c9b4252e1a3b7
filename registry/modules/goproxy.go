package modules

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

// A List is where to ask for modules, in order: the value of GOPROXY.
type List []Entry

// An Entry is one element of a List.
type Entry struct {
	// URL is a proxy's root, without a slash at its end, or "direct" or "off".
	URL string
	// AnyError says that the next element is tried on any error ("|" follows), not
	// only if this one does not have the module (",").
	AnyError bool
}

const (
	direct = "direct"
	off    = "off"
)

// impatience is how long a proxy may take to answer if there is another to ask on
// any error.
const impatience = 4 * time.Second

// ParseList parses a value of GOPROXY as the go command does, and separates the
// credentials that its URLs hold. "direct" and "off" end a list.
func ParseList(goproxy string) (List, []upstream.Scope, error) {
	var list List
	var scopes []upstream.Scope
	for rest := goproxy; rest != ""; {
		var e Entry
		i := strings.IndexAny(rest, ",|")
		raw := rest
		if i >= 0 {
			raw, e.AnyError, rest = rest[:i], rest[i] == '|', rest[i+1:]
		} else {
			rest = ""
		}
		raw = strings.TrimSpace(raw)
		switch {
		case raw == "":
			continue
		case raw == direct || raw == off:
			return append(list, Entry{URL: raw}), scopes, nil
		case raw == "noproxy":
			return nil, nil, errors.New("GOPROXY: noproxy is not an upstream")
		case !strings.ContainsAny(raw, ".:/"):
			return nil, nil, fmt.Errorf("GOPROXY: %q is no URL", raw)
		case !strings.Contains(raw, "://"):
			raw = "https://" + raw
		}
		clean, scope, err := upstream.SplitUserinfo(raw)
		if err != nil {
			return nil, nil, fmt.Errorf("GOPROXY: %w", err)
		}
		if scope.Authorization != "" {
			scopes = append(scopes, scope)
		}
		e.URL = strings.TrimSuffix(clean, "/")
		list = append(list, e)
	}
	return list, scopes, nil
}

// Proxies returns the URLs of the list.
func (l List) Proxies() []string {
	var urls []string
	for _, e := range l {
		if e.URL != direct && e.URL != off {
			urls = append(urls, e.URL)
		}
	}
	return urls
}

// A sourceError says why a list has no (more) proxies to ask.
type sourceError struct {
	why   string
	class error
	last  error // of the proxy asked last; may be nil
}

func (e *sourceError) Error() string {
	if e.last != nil {
		return fmt.Sprintf("%v; %s", e.last, e.why)
	}
	return e.why
}

func (e *sourceError) Unwrap() []error {
	if e.last != nil {
		return []error{e.class, e.last}
	}
	return []error{e.class}
}

// Try calls ask for one proxy after the other, as GOPROXY says: until one has what is
// asked for, or its error is not one after which the next may be asked. hurry is set
// where ask should not wait long, because another proxy could be asked. The error
// says that there is no such thing only if all proxies do.
func (l List) Try(ctx context.Context, ask func(base string, hurry bool) error) error {
	var last error
	for i, e := range l {
		switch e.URL {
		case off:
			return &sourceError{"module lookup is disabled by off in the list of upstreams", upstream.ErrRefused, last}
		case direct:
			class := upstream.ErrNotFound // so that a client with ",direct" goes there itself
			if last != nil {
				class = classOf(last)
			}
			return &sourceError{"a pkgswarm node does not fetch from version control itself (direct); go does if its GOPROXY has ,direct after the node", class, last}
		}
		err := ask(e.URL, e.AnyError && i+1 < len(l) && l[i+1].URL != direct && l[i+1].URL != off)
		if err == nil || ctx.Err() != nil {
			return err
		}
		last = worse(last, err)
		if !errors.Is(err, upstream.ErrNotFound) && !e.AnyError {
			return last
		}
	}
	if last == nil {
		return &sourceError{"no upstream is configured", upstream.ErrUnreachable, nil}
	}
	return last
}

// worse returns which of two errors counts for the whole list: an absence only
// if every proxy says so.
func worse(last, err error) error {
	if last == nil || errors.Is(last, upstream.ErrNotFound) {
		return err
	}
	if errors.Is(err, upstream.ErrNotFound) {
		return last
	}
	return err
}

func classOf(err error) error {
	for _, c := range []error{upstream.ErrNotFound, upstream.ErrRefused, upstream.ErrBadAnswer} {
		if errors.Is(err, c) {
			return c
		}
	}
	return upstream.ErrUnreachable
}
