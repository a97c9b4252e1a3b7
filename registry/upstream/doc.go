// Package upstream asks package registries over HTTP, trusting nothing of their
// answers.
//
// A [Client] talks to configured origins and to nobody else: redirects are
// followed only between them, at most [maxRedirects] times, never from https to
// http, and the address behind a name is checked when the connection is made, so
// that neither a redirect nor a DNS answer leads to another service of this
// machine or its network (SEC-30). What comes out of an answer is its body,
// limited in size before and after decompression, and the validators ETag and
// Last-Modified; no other header (SEC-31, SEC-32). Credentials belong to a part of
// a site, see [Scope] (SEC-33).
//
// Every wait has a bound: for the connection, for the first byte, for each
// further byte, and for the rate on the whole. A failed request is repeated with
// growing, jittered pauses; an origin that keeps failing is left alone for
// [breakerPause]; failures are remembered briefly by cause (SEC-35).
//
// # Errors
//
// Every error of a request is an [*Error] of one of four classes, which a front
// end turns into a status:
//
//	ErrNotFound     the upstream says that there is no such thing: 404 or 410
//	ErrRefused      the upstream, or we, will not give it: 401, 403, 451, a redirect elsewhere
//	ErrUnreachable  nobody answered in time, or with 408, 429 or 5xx
//	ErrBadAnswer    the answer is malformed, too large, cut short, or a web page
//
// or the error of the caller's context, as it is.
//
// # Known gap
//
// net/http drops the Content-Length of an answer that is chunked as well, as RFC
// 9112 §6.3 demands of a reader, so that this contradiction is resolved and not
// reported. Every other one is an error.
package upstream
