package modules

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/semver"

	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

// accept returns the file of an answer.
func (w *wanted) accept(url string, a *upstream.Answer, old *File) (*File, error) {
	if a.NotModified && old != nil {
		f := *old
		f.Asked, f.Stale = time.Now(), false
		return &f, nil
	}
	if err := w.check(a.Body); err != nil {
		return nil, &upstream.Error{URL: url, Class: upstream.ErrBadAnswer, Err: err}
	}
	return newFile(a.Body, a.Validators, time.Now(), w.forever), nil
}

// checkList accepts a list that is empty or names a version.
func checkList(body []byte) error {
	blank := true
	for line := range bytes.Lines(body) {
		f := bytes.Fields(line)
		if len(f) == 0 {
			continue
		}
		if semver.IsValid(string(f[0])) {
			return nil
		}
		blank = false
	}
	if !blank {
		return errors.New("not a list of versions")
	}
	return nil
}

// checkInfo returns a check for an .info of a version, or of any if it is empty.
func checkInfo(version string) func([]byte) error {
	return func(body []byte) error {
		var info struct{ Version string }
		if err := json.Unmarshal(body, &info); err != nil {
			return fmt.Errorf("not an .info file: %w", err)
		}
		if version == "" && !Canonical(info.Version) || version != "" && info.Version != version {
			return fmt.Errorf("info of version %.80q", info.Version)
		}
		return nil
	}
}

func checkMod(body []byte) error {
	if modfile.ModulePath(body) == "" {
		return errors.New("go.mod without a module line")
	}
	return nil
}
