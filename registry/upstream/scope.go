package upstream

import (
	"encoding/base64"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"strings"

	"github.com/jdx/go-netrc"
)

// A Scope is a part of a site and the credentials that it is to be sent.
type Scope struct {
	// URL is the scope's root: its scheme, host and port must be those of the
	// request, and its path's segments the first of the request's path, so that
	// https://h/registry covers /registry/a but neither /registry.git nor
	// /registry/../b.
	URL string
	// Authorization is the value of the header of that name. It is a secret.
	Authorization string
}

// String keeps the secret out of logs.
func (s Scope) String() string { return s.URL }

// GoString keeps the secret out of logs.
func (s Scope) GoString() string { return "upstream.Scope{URL: " + s.URL + "}" }

// Basic returns the Authorization of a user name and a password.
func Basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// Netrc reads the credentials in a netrc file, as the go command does: each is
// for all of its machine, over https. The default entry is not used, because it
// would send a password to whatever host is asked.
func Netrc(path string) (scopes []Scope, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read netrc: %w", err)
	}
	defer func() {
		if recover() != nil { // go-netrc panics on a file that ends after "machine"
			scopes, err = nil, fmt.Errorf("read netrc %s: malformed", path)
		}
	}()
	n, err := netrc.ParseString(string(b))
	if err != nil {
		return nil, fmt.Errorf("read netrc %s: %w", path, err)
	}
	for _, m := range n.Machines() {
		login, password := m.Get("login"), m.Get("password")
		if m.IsDefault || m.Name == "" || m.Name == "default" || password == "" {
			continue
		}
		s := Scope{URL: "https://" + m.Name, Authorization: Basic(login, password)}
		if _, err := parseScope(s); err == nil { // other programs take other names
			scopes = append(scopes, s)
		}
	}
	return scopes, nil
}

// SplitUserinfo takes a user name and password out of a URL: what is left names
// the upstream, and the Scope, zero without a password, is its credentials.
func SplitUserinfo(raw string) (string, Scope, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return "", Scope{}, errBadURL // url.Error would print the password
	}
	if u.User == nil {
		return raw, Scope{}, nil
	}
	password, _ := u.User.Password()
	s := Scope{Authorization: Basic(u.User.Username(), password)}
	u.User = nil
	s.URL = u.String()
	return s.URL, s, nil
}

var errBadURL = fmt.Errorf("malformed URL")

type scope struct {
	origin        origin
	segments      []string
	authorization string
}

func parseScope(s Scope) (scope, error) {
	u, err := url.Parse(s.URL)
	if err != nil {
		return scope{}, errBadURL
	}
	o, err := originOf(u)
	if err != nil {
		return scope{}, err
	}
	if !o.confidential() {
		return scope{}, fmt.Errorf("credentials for %s: not over plain http", u.Redacted())
	}
	segs, ok := segments(u)
	if !ok {
		return scope{}, fmt.Errorf("credentials for %s: ambiguous path", u.Redacted())
	}
	return scope{o, segs, s.Authorization}, nil
}

// authorization returns the credentials of the narrowest scope that holds u.
func authorization(scopes []scope, u *url.URL) string {
	o, err := originOf(u)
	if err != nil {
		return ""
	}
	segs, ok := segments(u)
	if !ok {
		return ""
	}
	best, auth := -1, ""
	for _, s := range scopes {
		if s.origin == o && len(s.segments) > best && hasPrefix(segs, s.segments) {
			best, auth = len(s.segments), s.authorization
		}
	}
	return auth
}

func hasPrefix(segs, prefix []string) bool {
	if len(segs) < len(prefix) {
		return false
	}
	for i, p := range prefix {
		if segs[i] != p {
			return false
		}
	}
	return true
}

// segments splits u's path. It reports false for paths whose meaning depends on
// who reads them: with empty, "." or ".." segments, encoded slashes, backslashes.
func segments(u *url.URL) ([]string, bool) {
	p := strings.Trim(u.EscapedPath(), "/")
	if p == "" {
		return nil, true
	}
	segs := strings.Split(p, "/")
	for i, s := range segs {
		d, err := url.PathUnescape(s)
		if err != nil || d == "" || d == "." || d == ".." || strings.ContainsAny(d, "/\\\x00") {
			return nil, false
		}
		segs[i] = d
	}
	return segs, true
}

// An origin is a scheme, a host in lower case, and a port.
type origin struct{ scheme, host, port string }

func originOf(u *url.URL) (origin, error) {
	o := origin{strings.ToLower(u.Scheme), strings.ToLower(u.Hostname()), u.Port()}
	switch {
	case o.scheme == "file" && o.host == "":
		return o, nil
	case o.scheme != "http" && o.scheme != "https":
		return o, fmt.Errorf("scheme %q is neither http nor https", u.Scheme)
	case o.host == "":
		return o, fmt.Errorf("URL without a host")
	case o.port == "" && o.scheme == "https":
		o.port = "443"
	case o.port == "":
		o.port = "80"
	}
	return o, nil
}

// confidential reports whether what is sent to o stays off the network or is
// encrypted.
func (o origin) confidential() bool { return o.scheme == "https" || o.loopback() }

func (o origin) loopback() bool {
	if o.host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(o.host)
	return err == nil && ip.Unmap().IsLoopback()
}

// Redact returns a URL for messages: without user name and password.
func Redact(s string) string {
	clean, _, err := SplitUserinfo(s)
	if err != nil {
		return "with a malformed URL"
	}
	return clean
}
