package bundle

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// Write writes the bundle that m describes to w and returns its ID. open opens the
// files of m, one at a time; one that is not what m says of it is an error.
func Write(w io.Writer, m *Manifest, open func(File) (io.ReadCloser, error)) (Sum, error) {
	m.Format = Format
	if err := m.check(); err != nil {
		return Sum{}, err
	}
	text, id, err := m.Encode()
	if err != nil {
		return id, err
	}
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return id, err
	}
	defer z.Close()
	t := &writer{tar: tar.NewWriter(w), z: z}
	if err := t.entry(manifestName, int64(len(text)), bytes.NewReader(text)); err != nil {
		return id, err
	}
	written := make(map[Sum]bool, len(m.Files))
	for _, f := range m.Files {
		if written[f.Sum] {
			continue
		}
		written[f.Sum] = true
		if err := t.file(f, open); err != nil {
			return id, fmt.Errorf("%s: %w", f.Path, err)
		}
	}
	return id, t.tar.Close()
}

type writer struct {
	tar *tar.Writer
	z   *zstd.Encoder
}

func (t *writer) entry(name string, size int64, r io.Reader) error {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size, Format: tar.FormatUSTAR}
	if err := t.tar.WriteHeader(h); err != nil {
		return err
	}
	_, err := io.Copy(t.tar, r)
	return err
}

func (t *writer) file(f File, open func(File) (io.ReadCloser, error)) error {
	r, err := open(f)
	if err != nil {
		return err
	}
	defer r.Close()
	in := &checker{r: r, left: f.Size, want: f.Sum, hash: sha256.New()}
	if _, text, _ := kind(f.Path); !text || f.Size < minPack {
		return t.entry(filesDir+f.Sum.String(), f.Size, in)
	}
	b, err := io.ReadAll(in) // in ends at f.Size, which is bounded
	if err != nil {
		return err
	}
	b = t.z.EncodeAll(b, nil)
	return t.entry(filesDir+f.Sum.String()+packed, int64(len(b)), bytes.NewReader(b))
}
