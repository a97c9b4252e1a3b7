package bundle

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

// sample returns a manifest of some files, and their contents.
func sample() (*Manifest, map[string][]byte) {
	m := &Manifest{
		Created:  time.Unix(1_700_000_000, 0).UTC(),
		Packages: []Package{{Ecosystem: "cargo", Name: "serde", Version: "1.0.0"}},
	}
	files := map[string][]byte{
		"cargo/se/rd/serde":       bytes.Repeat([]byte(`{"name":"serde"}`+"\n"), 500),
		"cargo/dl/serde/1.0.0":    bytes.Repeat([]byte{1, 2, 3}, 999),
		"go/a.test/b/@v/v1.0.mod": []byte("module a.test/b\n"),
		"sumdb/tile/8/0/000":      bytes.Repeat([]byte{9}, 8192),
	}
	for _, path := range []string{"cargo/dl/serde/1.0.0", "cargo/se/rd/serde", "go/a.test/b/@v/v1.0.mod", "sumdb/tile/8/0/000"} {
		m.Files = append(m.Files, File{path, sha256.Sum256(files[path]), int64(len(files[path]))})
	}
	return m, files
}

func write(t testing.TB, m *Manifest, files map[string][]byte) ([]byte, Sum) {
	t.Helper()
	var b bytes.Buffer
	id, err := Write(&b, m, func(f File) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(files[f.Path])), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), id
}

func TestWriteAndRead(t *testing.T) {
	m, files := sample()
	b, id := write(t, m, files)
	again, _ := write(t, m, files)
	if !bytes.Equal(b, again) {
		t.Error("one manifest makes two bundles")
	}
	r, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil || r.Cut != nil || r.ID != id {
		t.Fatalf("Open = %+v, %v", r, err)
	}
	for path, want := range files {
		if got, err := r.Read(path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v, want %d", path, len(got), err, len(want))
		}
	}
	if _, err := r.Read("cargo/no/pe/nope"); !errors.Is(err, ErrMissing) {
		t.Errorf("Read of what is not there: %v", err)
	}
}

func TestWriteRefusesOtherBytes(t *testing.T) {
	m, files := sample()
	for _, wrong := range [][]byte{nil, []byte("modul a.test/b\n"), []byte("module a.test/b\nx")} {
		files["go/a.test/b/@v/v1.0.mod"] = wrong
		_, err := Write(io.Discard, m, func(f File) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(files[f.Path])), nil
		})
		if err == nil {
			t.Errorf("%q was written in place of another file", wrong)
		}
	}
}

// SEC-1: whatever byte is altered, no file comes out other than it went in, under
// the ID that its maker has told.
func TestAnyByteAltered(t *testing.T) {
	m, files := sample()
	b, id := write(t, m, files)
	for i := range b {
		b[i] ^= 1 << (i % 8)
		if r, err := Open(bytes.NewReader(b), int64(len(b))); err == nil && r.ID == id {
			for path, want := range files {
				if got, err := r.Read(path); err == nil && !bytes.Equal(got, want) {
					t.Fatalf("byte %d altered: %s has other bytes", i, path)
				}
			}
		}
		b[i] ^= 1 << (i % 8)
	}
}

func TestCutAnywhere(t *testing.T) {
	m, files := sample()
	b, _ := write(t, m, files)
	most := 0
	for n := 0; n < len(b)-1024; n += 97 { // the last 1024 bytes are the end's mark
		r, err := Open(bytes.NewReader(b[:n]), int64(n))
		if err != nil {
			continue // in the manifest
		}
		if r.Cut == nil {
			t.Fatalf("cut to %d of %d bytes: not noticed", n, len(b))
		}
		here := 0
		for path, want := range files {
			got, err := r.Read(path)
			if err == nil && bytes.Equal(got, want) {
				here++
			} else if err == nil {
				t.Fatalf("cut to %d bytes: %s is wrong", n, path)
			}
		}
		most = max(most, here)
	}
	if most != len(files)-1 {
		t.Errorf("at most %d of %d files came before a cut", most, len(files))
	}
}

// SEC-8, SEC-43: archives that are not as Write makes them are refused.
func TestHostileArchives(t *testing.T) {
	m, files := sample()
	m.Format = Format
	text, _, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	manifest := tar.Header{Name: manifestName, Typeflag: tar.TypeReg, Size: int64(len(text))}
	mod := files["go/a.test/b/@v/v1.0.mod"]
	entry := tar.Header{Name: filesDir + Sum(sha256.Sum256(mod)).String(), Typeflag: tar.TypeReg, Size: int64(len(mod))}
	with := func(h tar.Header, change func(*tar.Header)) tar.Header { change(&h); return h }
	type part struct {
		h tar.Header
		b []byte
	}
	for _, c := range []struct {
		name  string
		parts []part
	}{
		{"empty", nil},
		{"no manifest", []part{{entry, mod}}},
		{"manifest is a link", []part{{with(manifest, func(h *tar.Header) { h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, "/etc/passwd", 0 }), nil}}},
		{"manifest with an extended header", []part{{with(manifest, func(h *tar.Header) { h.PAXRecords = map[string]string{"x.y": "z"} }), text}}},
		{"climbing entry", []part{{manifest, text}, {with(entry, func(h *tar.Header) { h.Name = "../" + h.Name }), mod}}},
		{"entry of another name", []part{{manifest, text}, {with(entry, func(h *tar.Header) { h.Name = "files/x" }), mod}}},
		{"entry not in the manifest", []part{{manifest, text}, {with(entry, func(h *tar.Header) { h.Name = filesDir + Sum{}.String() }), mod}}},
		{"entry twice", []part{{manifest, text}, {entry, mod}, {entry, mod}}},
		{"entry is a device", []part{{manifest, text}, {with(entry, func(h *tar.Header) { h.Typeflag, h.Size = tar.TypeChar, 0 }), nil}}},
		{"entry is a directory", []part{{manifest, text}, {with(entry, func(h *tar.Header) { h.Typeflag, h.Name, h.Size = tar.TypeDir, h.Name+"/", 0 }), nil}}},
	} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, p := range c.parts {
			if err := w.WriteHeader(&p.h); err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			w.Write(p.b)
		}
		w.Close()
		if _, err := Open(bytes.NewReader(b.Bytes()), int64(b.Len())); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v, want it refused", c.name, err)
		}
	}
}

// SEC-8, SEC-31: a file that expands to more than its manifest says, or does not
// hash to what it says, ends in an error within that size.
func TestHostileFiles(t *testing.T) {
	const path = "cargo/se/rd/serde"
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	bomb := z.EncodeAll(make([]byte, 100<<20), nil)
	for _, c := range []struct {
		name   string
		size   int64
		packed []byte
	}{
		{"bomb", 1000, bomb},
		{"not zstd", 1000, []byte("nonsense")},
		{"shorter", 1000, z.EncodeAll(make([]byte, 999), nil)},
		{"longer by one", 1000, z.EncodeAll(make([]byte, 1001), nil)},
		{"other bytes", 1000, z.EncodeAll(bytes.Repeat([]byte{1}, 1000), nil)},
		{"empty", 1000, nil},
	} {
		m := &Manifest{Format: Format, Files: []File{{path, sha256.Sum256(make([]byte, 1000)), c.size}}}
		text, _, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		w := &writer{tar: tar.NewWriter(&b)}
		if err := errors.Join(w.entry(manifestName, int64(len(text)), bytes.NewReader(text)),
			w.entry(filesDir+m.Files[0].Sum.String()+packed, int64(len(c.packed)), bytes.NewReader(c.packed)), w.tar.Close()); err != nil {
			t.Fatal(err)
		}
		r, err := Open(bytes.NewReader(b.Bytes()), int64(b.Len()))
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if got, err := r.Read(path); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %d bytes, %v, want it refused", c.name, len(got), err)
		}
	}
}

func TestManifestLimits(t *testing.T) {
	sum := strings.Repeat("a", 64)
	for _, c := range []struct{ name, text string }{
		{"nothing", ``},
		{"no object", `[]`},
		{"other format", `{"format":2}`},
		{"path of no kind", `{"format":1,"files":[{"path":"etc/passwd","sha256":"` + sum + `","size":1}]}`},
		{"empty path", `{"format":1,"files":[{"path":"","sha256":"` + sum + `","size":1}]}`},
		{"negative size", `{"format":1,"files":[{"path":"cargo/se/rd/serde","sha256":"` + sum + `","size":-1}]}`},
		{"too big", `{"format":1,"files":[{"path":"go/a.test/b/@v/v1.0.0.info","sha256":"` + sum + `","size":1048577}]}`},
		{"path twice", `{"format":1,"files":[{"path":"cargo/a","sha256":"` + sum + `"},{"path":"cargo/a","sha256":"` + sum + `"}]}`},
		{"short hash", `{"format":1,"files":[{"path":"cargo/a","sha256":"aa"}]}`},
		{"hash in upper case", `{"format":1,"files":[{"path":"cargo/a","sha256":"` + strings.ToUpper(sum) + `"}]}`},
		{"nested deep", `{"format":1,"packages":` + strings.Repeat("[", 200_000)},
		{"packages", `{"format":1,"packages":[` + strings.Repeat(`{},`, MaxPackages) + `{}]}`},
	} {
		if _, err := Decode([]byte(c.text)); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v, want it refused", c.name, err)
		}
	}
}

// FuzzOpen holds that no archive makes a reader panic or hand out a file that is
// not what its manifest names. SEC-8
func FuzzOpen(f *testing.F) {
	const index = "cargo/1/a"
	line := bytes.Repeat([]byte("{}\n"), minPack)
	m := &Manifest{Files: []File{{index, sha256.Sum256(line), int64(len(line))}}}
	b, _ := write(f, m, map[string][]byte{index: line})
	b = bytes.TrimRight(b, "\x00") // short inputs are worked through faster
	f.Add(b)
	f.Add(b[:len(b)/2])
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := Open(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		for _, file := range r.Manifest.Files {
			if got, err := r.Read(file.Path); err == nil && (int64(len(got)) != file.Size || sha256.Sum256(got) != file.Sum) {
				t.Errorf("%s: %d bytes that are not %v", file.Path, len(got), file.Sum)
			}
		}
	})
}

func ExampleOpen() {
	var b bytes.Buffer
	line := []byte("{\"name\":\"a\",\"vers\":\"1.0.0\"}\n")
	m := &Manifest{Files: []File{{"cargo/1/a", sha256.Sum256(line), int64(len(line))}}}
	id, err := Write(&b, m, func(File) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(line)), nil })
	if err != nil {
		panic(err)
	}
	r, err := Open(bytes.NewReader(b.Bytes()), int64(b.Len()))
	if err != nil {
		panic(err)
	}
	got, err := r.Read("cargo/1/a")
	fmt.Printf("%t %s%v", r.ID == id, got, err)
	// Output: true {"name":"a","vers":"1.0.0"}
	// <nil>
}
