package crates

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/pkgswarm/pkgswarm/internal/compact"
	"github.com/pkgswarm/pkgswarm/registry"
	"github.com/pkgswarm/pkgswarm/registry/artifact"
	"github.com/pkgswarm/pkgswarm/registry/fetch"
	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

// Crate returns the .crate of a version. The error matches
// [upstream.ErrNotFound] if the index has no such version.
func (s *Crates) Crate(ctx context.Context, name registry.CrateName, version string) (*fetch.Body, error) {
	began := time.Now()
	lines, err := s.version(ctx, name, version)
	if err != nil {
		return nil, err
	}
	if r := s.refuse(lines[0]); r != nil {
		return nil, r
	}
	a := &fetch.Artifact{
		Name:     strings.TrimPrefix(fmt.Sprintf("%s %s-%s.crate", s.c.Name, lines[0].Name, version), " "),
		Private:  s.c.Unshared,
		Since:    began,
		MaxBytes: upstream.Crate.MaxExpanded,
	}
	for _, l := range lines {
		a.Known = append(a.Known, artifact.Digest{Alg: artifact.SHA256, Sum: l.Cksum})
	}
	if s.c.Upstream != nil {
		a.Upstream = func(ctx context.Context) (*fetch.Download, error) { return s.download(ctx, lines) }
	}
	return s.c.Fetcher.Fetch(ctx, a)
}

// Digests returns the digests of a version's .crate, of which one is right.
func (s *Crates) Digests(ctx context.Context, name registry.CrateName, version string) ([]artifact.Digest, error) {
	lines, err := s.version(ctx, name, version)
	var ds []artifact.Digest
	for _, l := range lines {
		ds = append(ds, artifact.Digest{Alg: artifact.SHA256, Sum: l.Cksum})
	}
	return ds, err
}

// version returns the lines of a version. What a line says about a .crate never
// changes, so a copy of any age will do.
func (s *Crates) version(ctx context.Context, name registry.CrateName, version string) ([]registry.CargoLine, error) {
	if f, err := s.held(name); err == nil && !s.private(name) {
		if lines := f.version(version); len(lines) > 0 {
			return lines, nil
		}
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	f, err := s.file(ctx, name)
	if err != nil {
		return nil, err
	}
	lines := f.version(version)
	switch {
	case len(lines) > 0:
		return lines, nil
	case f.Stale:
		return nil, fmt.Errorf("%s %s: %w", name, version, upstream.ErrUnreachable) // not known to be absent
	}
	return nil, fmt.Errorf("%s %s: %w", name, version, ErrNoVersion)
}

func (f *File) version(version string) []registry.CargoLine {
	var lines []registry.CargoLine
	for _, l := range f.Lines {
		if l.Vers == version {
			lines = append(lines, l)
		}
	}
	return lines
}

// download opens a .crate at the upstream.
func (s *Crates) download(ctx context.Context, lines []registry.CargoLine) (*fetch.Download, error) {
	dl, err := s.dl(ctx)
	if err != nil {
		return nil, err
	}
	l := lines[len(lines)-1]
	from := registry.ExpandDL(dl, l.Name, l.Vers, hex.EncodeToString(l.Cksum[:]))
	st, err := s.c.Upstream.Open(ctx, upstream.Request{URL: from, Kind: upstream.Crate})
	if err != nil {
		return nil, err
	}
	return fetch.NewDownload(st, from), nil
}

// Locate finds out where the upstream has its .crate files, which may then be asked
// for there.
func (s *Crates) Locate(ctx context.Context) error {
	_, err := s.dl(ctx)
	return err
}

// dl returns the download template of the upstream's config.json.
func (s *Crates) dl(ctx context.Context) (string, error) {
	if s.c.DL != "" {
		return s.c.DL, nil
	}
	return shared(ctx, s, "config", func(ctx context.Context) (string, error) {
		var old *upstream.Answer
		var checked time.Time
		if b, err := s.c.Cache.Get(s.key("config")); err == nil {
			d := compact.NewDecoder(b)
			d.Byte()
			checked = time.Unix(int64(d.Uint()), 0)
			v := upstream.Validators{ETag: d.String(), LastModified: d.String()}
			if body := d.Rest(); d.Err() == nil {
				old = &upstream.Answer{Body: body, Validators: v}
			}
		}
		if age := time.Since(checked); old == nil || age < 0 || age > configTTL {
			r := upstream.Request{URL: s.index + "config.json", Kind: upstream.IndexConfig}
			if a, err := s.c.Upstream.Get(ctx, r); err == nil {
				old = a
				f := File{Body: a.Body, validators: a.Validators, checked: time.Now()}
				if err := s.c.Cache.Put(s.key("config"), f.encode()); err != nil {
					s.log.Debug("config.json not kept on disk", "err", err)
				}
			} else if old == nil {
				return "", notAbsent(err)
			}
		}
		return s.parseConfig(old.Body)
	})
}

// notAbsent keeps the absence of config.json from looking like that of a crate.
func notAbsent(err error) error {
	if errors.Is(err, upstream.ErrNotFound) {
		return fmt.Errorf("%w: the upstream index has no config.json", upstream.ErrBadAnswer)
	}
	return err
}

func (s *Crates) parseConfig(b []byte) (string, error) {
	var c struct {
		DL   string `json:"dl"`
		Auth bool   `json:"auth-required"`
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return "", fmt.Errorf("%w: config.json: %w", upstream.ErrBadAnswer, err)
	}
	u, err := url.Parse(registry.ExpandDL(c.DL, "c", "1", "0"))
	if err != nil || u.Host == "" {
		return "", fmt.Errorf("%w: config.json: dl is %.200q", upstream.ErrBadAnswer, c.DL)
	}
	// The index is configured, and says where its crates are (SEC-30).
	if err := s.c.Upstream.AddNamed(u.Scheme+"://"+u.Host, s.index); err != nil {
		return "", fmt.Errorf("%w: config.json: dl: %w", upstream.ErrBadAnswer, err)
	}
	if c.Auth {
		s.authorize(c.DL)
	}
	return c.DL, nil
}

// authorize lets the token be sent to the downloads, which are at dl, on whatever
// host: as cargo does it, the index that the token was given for says who gets it.
// It is not sent over plain http, nor any further by a redirect (SEC-33).
func (s *Crates) authorize(dl string) {
	if s.c.Token == "" {
		return
	}
	if marker := strings.IndexByte(dl, '{'); marker >= 0 {
		dl = dl[:strings.LastIndexByte(dl[:marker], '/')]
	}
	if err := s.c.Upstream.AddScope(upstream.Scope{URL: dl, Authorization: s.c.Token}); err != nil {
		s.log.Warn("token not sent to downloads", "err", err)
	}
}
