package upstream

import (
	"errors"
	"net/http"
	"strconv"
)

// checkRedirect lets a redirect lead to configured origins only. What it
// refuses is an *Error in the url.Error of the request.
func (c *Client) checkRedirect(req *http.Request, via []*http.Request) error {
	refuse := func(why string) error {
		return &Error{URL: redact(via[0].URL.String()), Class: ErrRefused, Err: errors.New(why)}
	}
	from := via[len(via)-1].URL
	switch {
	case len(via) > maxRedirects:
		return refuse("too many redirects")
	case req.URL.User != nil:
		return refuse("redirected to a URL with credentials")
	case from.Scheme == "https" && req.URL.Scheme != "https":
		return refuse("redirected from https to " + strconv.Quote(req.URL.Scheme))
	}
	if _, err := c.site(req.URL); err != nil {
		return refuse("redirected elsewhere: " + err.Error())
	}
	req.Header.Del("Authorization") // each URL gets its own
	req.Header.Del("Referer")
	c.setCredentials(req)
	return nil
}
