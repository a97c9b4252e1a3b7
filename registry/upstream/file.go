package upstream

import (
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
)

// fileTransport answers file URLs from the configured directories, and never
// from outside them, whatever links these hold.
type fileTransport struct{ c *Client }

func (t fileTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	root, name := t.find(filepath.FromSlash(req.URL.Path))
	if root == nil {
		return nil, &Error{URL: req.URL.Redacted(), Class: ErrRefused, Err: errors.New("outside the configured directories")}
	}
	f, err := root.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return fileAnswer(req, http.StatusNotFound, http.NoBody, 0), nil
	}
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		f.Close()
		return fileAnswer(req, http.StatusNotFound, http.NoBody, 0), nil
	}
	return fileAnswer(req, http.StatusOK, f, info.Size()), nil
}

// find returns the innermost configured directory that holds path, and path within it.
func (t fileTransport) find(path string) (*os.Root, string) {
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	var found *os.Root
	var name, under string
	for dir, root := range t.c.dirs {
		rel, err := filepath.Rel(dir, path)
		if err == nil && filepath.IsLocal(rel) && len(dir) > len(under) {
			found, name, under = root, rel, dir
		}
	}
	return found, strings.TrimSuffix(name, string(filepath.Separator))
}

func fileAnswer(req *http.Request, status int, body io.ReadCloser, size int64) *http.Response {
	return &http.Response{
		Status: http.StatusText(status), StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{}, Body: body, ContentLength: size, Request: req,
	}
}
