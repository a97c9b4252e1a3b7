package artifact

import (
	"archive/zip"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"

	"golang.org/x/mod/sumdb/dirhash"
)

// Limits on a module zip, those of golang.org/x/mod/zip.
const (
	MaxZip        = 500 << 20 // bytes, packed and expanded
	maxSpecial    = 16 << 20  // bytes of go.mod and LICENSE at the module's root
	maxDirectory  = 16 << 20  // bytes of the list of entries, which is kept in memory
	maxZipEntries = 200_000   // cheap to list, far above any real module
)

// An Algorithm says how a file is hashed. Its numbers are on the wire and on disk.
type Algorithm uint8

const (
	SHA256 Algorithm = 1 // of the file's bytes
	H1     Algorithm = 2 // Go's h1: of the names and contents of a zip's entries
)

// A Digest identifies a file by a registry's own hash.
type Digest struct {
	Alg Algorithm
	Sum [32]byte
}

// ParseSHA256 parses 64 hexadecimal digits.
func ParseSHA256(s string) (Digest, error) {
	d := Digest{Alg: SHA256}
	if n, err := hex.Decode(d.Sum[:], []byte(s[:min(len(s), 64)])); err != nil || n != 32 || len(s) != 64 {
		return Digest{}, fmt.Errorf("%.80q is not a SHA-256 of 64 hex digits", s)
	}
	return d, nil
}

// ParseH1 parses a hash as go.sum has it: "h1:" and base64.
func ParseH1(s string) (Digest, error) {
	b64, ok := strings.CutPrefix(s, "h1:")
	b, err := base64.StdEncoding.DecodeString(b64)
	if !ok || err != nil || len(b) != 32 {
		return Digest{}, fmt.Errorf("%.80q is not an h1: hash", s)
	}
	return Digest{H1, [32]byte(b)}, nil
}

// String returns "sha256:" and hex, or "h1:" and base64.
func (d Digest) String() string {
	switch d.Alg {
	case SHA256:
		return "sha256:" + hex.EncodeToString(d.Sum[:])
	case H1:
		return "h1:" + base64.StdEncoding.EncodeToString(d.Sum[:])
	}
	return fmt.Sprintf("digest(%d):%x", d.Alg, d.Sum)
}

// A MismatchError says that a file is not the one that was asked for.
type MismatchError struct {
	Want, Got Digest
	Size      int64 // of the file, in bytes
}

func (e *MismatchError) Error() string {
	return fmt.Sprintf("%d bytes hash to %v, want %v", e.Size, e.Got, e.Want)
}

// Verify checks the size bytes of r against d. The error is a [MismatchError]
// if they hash to something else.
func (d Digest) Verify(r io.ReaderAt, size int64) error {
	got := Digest{Alg: d.Alg}
	switch d.Alg {
	case SHA256:
		h := sha256.New()
		if _, err := io.Copy(h, io.NewSectionReader(r, 0, size)); err != nil {
			return err
		}
		h.Sum(got.Sum[:0])
	case H1:
		var err error
		if got, err = HashZip(r, size); err != nil {
			return fmt.Errorf("check for %v: %w", d, err)
		}
	default:
		return fmt.Errorf("unknown digest algorithm %d", d.Alg)
	}
	if got != d {
		return &MismatchError{d, got, size}
	}
	return nil
}

// HashZip returns the h1: hash of a module zip. It reads at most MaxZip bytes
// of contents, whatever the zip's directory claims. It does not check names: a
// checksum-database record that the hash matches vouches for these.
func HashZip(r io.ReaderAt, size int64) (Digest, error) {
	if size > MaxZip {
		return Digest{}, fmt.Errorf("zip has %d bytes, more than %d", size, int64(MaxZip))
	}
	d := &directoryReader{r: r, left: maxDirectory}
	z, err := zip.NewReader(d, size)
	if err != nil {
		return Digest{}, err
	}
	d.open = true
	if len(z.File) > maxZipEntries {
		return Digest{}, fmt.Errorf("zip has %d entries, more than %d", len(z.File), maxZipEntries)
	}
	files := make(map[string]*zip.File, len(z.File))
	names := make([]string, 0, len(z.File))
	for _, f := range z.File {
		if files[f.Name] != nil {
			return Digest{}, fmt.Errorf("zip has two entries %.200q", f.Name)
		}
		// What is read is no more than what the entry says.
		if f.UncompressedSize64 > maxSpecial && isSpecial(f.Name) {
			return Digest{}, fmt.Errorf("zip has %.200q with %d bytes, more than %d", f.Name, f.UncompressedSize64, int64(maxSpecial))
		}
		files[f.Name] = f
		names = append(names, f.Name)
	}
	left := int64(MaxZip)
	sum, err := dirhash.Hash1(names, func(name string) (io.ReadCloser, error) {
		rc, err := files[name].Open()
		if err != nil {
			return nil, err
		}
		return &budgetReader{rc, &left}, nil
	})
	if err != nil {
		return Digest{}, err
	}
	return ParseH1(sum)
}

// isSpecial reports whether a zip's entry is the go.mod or the LICENSE of its module:
// PATH@VERSION/go.mod.
func isSpecial(name string) bool {
	_, name, _ = strings.Cut(name, "@")
	_, name, _ = strings.Cut(name, "/")
	return name == "go.mod" || name == "LICENSE"
}

var errTooBig = errors.New("zip expands to more than 500 MiB")

// A directoryReader bounds what zip.NewReader reads, which is the list of entries, by
// itself as long as a file may be (SEC-8).
type directoryReader struct {
	r    io.ReaderAt
	left int64
	open bool // the list has been read
}

func (d *directoryReader) ReadAt(p []byte, off int64) (int, error) {
	if d.open {
		return d.r.ReadAt(p, off)
	}
	if d.left -= int64(len(p)); d.left < 0 {
		return 0, fmt.Errorf("zip has a list of entries of more than %d bytes", int64(maxDirectory))
	}
	return d.r.ReadAt(p, off)
}

// A budgetReader fails once the bytes read through all readers that share a
// budget exceed it.
type budgetReader struct {
	io.ReadCloser
	left *int64
}

func (r *budgetReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if *r.left -= int64(n); *r.left < 0 {
		return n, errTooBig
	}
	return n, err
}
