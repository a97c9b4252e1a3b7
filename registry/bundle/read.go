package bundle

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// A Reader reads a bundle. Its methods may be called concurrently.
type Reader struct {
	ID       Sum
	Manifest *Manifest
	// Cut says why the archive could not be read to its end; nil if it could.
	Cut error

	file   io.ReaderAt
	byPath map[string]File
	places map[Sum]place
}

// A place is where a file's bytes are in the archive.
type place struct {
	offset, size int64
	packed       bool
}

// Open reads the manifest of the bundle in the size bytes of file and finds its
// entries. The files are read, and checked, when they are opened.
func Open(file io.ReaderAt, size int64) (*Reader, error) {
	at := io.NewSectionReader(file, 0, size)
	t := tar.NewReader(at)
	h, err := t.Next()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if h.Name != manifestName || !plain(h) || h.Size > MaxManifest || h.Size > size {
		return nil, fmt.Errorf("%w: it does not begin with %s", ErrFormat, manifestName)
	}
	text, err := io.ReadAll(t)
	if err != nil {
		return nil, fmt.Errorf("%w: manifest: %w", ErrFormat, err)
	}
	m, err := Decode(text)
	if err != nil {
		return nil, err
	}
	r := &Reader{ID: sha256.Sum256(text), Manifest: m, file: file, byPath: make(map[string]File, len(m.Files)), places: make(map[Sum]place)}
	known := make(map[Sum]bool, len(m.Files))
	for _, f := range m.Files {
		r.byPath[f.Path] = f
		known[f.Sum] = true
	}
	return r, r.scan(t, at, size, known)
}

// plain reports whether an entry is as Write makes them: no link, no hole, no
// extended header that gives it another name or size.
func plain(h *tar.Header) bool {
	return h.Typeflag == tar.TypeReg && len(h.PAXRecords) == 0 && h.Size >= 0 && len(h.Name) < 100
}

// scan finds the entries that known files are in. at stands where t reads.
func (r *Reader) scan(t *tar.Reader, at io.Seeker, size int64, known map[Sum]bool) error {
	for {
		h, err := t.Next()
		if err == io.EOF && len(r.places) < len(known) {
			err = io.ErrUnexpectedEOF
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			r.Cut = err
			return nil
		}
		name, isFile := strings.CutPrefix(h.Name, filesDir)
		name, isPacked := strings.CutSuffix(name, packed)
		var sum Sum
		if err := sum.UnmarshalText([]byte(name)); !isFile || err != nil || !plain(h) {
			return fmt.Errorf("%w: entry %.200q", ErrFormat, h.Name)
		}
		_, twice := r.places[sum]
		if !known[sum] || twice {
			return fmt.Errorf("%w: entry %.200q is not in the manifest, or there twice", ErrFormat, h.Name)
		}
		offset, err := at.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		if h.Size > size-offset {
			r.Cut = io.ErrUnexpectedEOF
			return nil
		}
		r.places[sum] = place{offset, h.Size, isPacked}
	}
}

// Open opens the file at path, whose reader fails in the end if the bytes are not
// those that the manifest names. The error matches [ErrMissing] if the bundle does
// not have it.
func (r *Reader) Open(path string) (io.ReadCloser, int64, error) {
	f, ok := r.byPath[path]
	p, here := r.places[f.Sum]
	if !ok || !here {
		if ok && r.Cut != nil {
			return nil, 0, fmt.Errorf("%w, which was cut short", ErrMissing)
		}
		return nil, 0, ErrMissing
	}
	in := io.Reader(io.NewSectionReader(r.file, p.offset, p.size))
	c := &checker{left: f.Size, want: f.Sum, hash: sha256.New()}
	if p.packed {
		z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(uint64(f.Size)+8<<20), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, 0, fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		c.close = z.Close
		in = z
	}
	c.r = in
	return c, f.Size, nil
}

// Read returns the file at path.
func (r *Reader) Read(path string) ([]byte, error) {
	f, size, err := r.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var b bytes.Buffer
	b.Grow(int(min(size, 1<<20)))
	_, err = b.ReadFrom(f)
	if err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// Has reports whether the manifest names a file at path.
func (r *Reader) Has(path string) bool {
	_, ok := r.byPath[path]
	return ok
}

// A checker reads exactly the bytes whose number and hash are known; anything else
// ends in an error.
type checker struct {
	r     io.Reader
	left  int64
	want  Sum
	hash  hash.Hash
	close func()
	done  bool
}

func (c *checker) Read(p []byte) (int, error) {
	if c.done {
		return 0, io.EOF
	}
	if int64(len(p)) > c.left+1 {
		p = p[:c.left+1] // one more shows that there is more
	}
	n, err := c.r.Read(p)
	if int64(n) > c.left {
		return 0, fmt.Errorf("%w: a file is longer than its manifest says", ErrDamaged)
	}
	c.hash.Write(p[:n])
	c.left -= int64(n)
	switch {
	case err == io.EOF && c.left > 0:
		return n, fmt.Errorf("%w: a file is shorter than its manifest says", ErrDamaged)
	case err == io.EOF:
		if Sum(c.hash.Sum(nil)) != c.want {
			return n, fmt.Errorf("%w: a file is not %s", ErrDamaged, c.want)
		}
		c.done = true
	case err != nil && !errors.Is(err, ErrDamaged):
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return n, err
}

func (c *checker) Close() error {
	if c.close != nil {
		c.close()
	}
	return nil
}
