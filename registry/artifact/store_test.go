package artifact

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/core"
	"golang.org/x/mod/sumdb/dirhash"
)

// fakeCores remembers which keys are shared; the key is the SHA-256 backwards.
type fakeCores struct {
	mu   sync.Mutex
	keys map[Key]string
}

func (c *fakeCores) Add(path string, r io.ReaderAt, size int64) (Key, error) {
	b := make([]byte, size)
	if _, err := r.ReadAt(b, 0); err != nil && err != io.EOF {
		return Key{}, err
	}
	k := Key(sha256.Sum256(append([]byte("core"), b...)))
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.keys == nil {
		c.keys = make(map[Key]string)
	}
	c.keys[k] = path
	return k, nil
}

func (c *fakeCores) Has(k Key) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.keys[k] != ""
}

func (c *fakeCores) Remove(k Key) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.keys, k)
	return nil
}

func open(t testing.TB, dir string, o Options) *Store {
	t.Helper()
	if o.MinFree == 0 {
		o.MinFree = -1
	}
	s, err := Open(filepath.Join(dir, "artifacts"), filepath.Join(dir, "store", "artifacts"), o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func openTemp(t testing.TB, o Options) *Store {
	s := open(t, t.TempDir(), o)
	t.Cleanup(func() { s.Close() })
	return s
}

func digestOf(b []byte) Digest { return Digest{SHA256, sha256.Sum256(b)} }

func put(s *Store, b []byte, want Digest, private bool) (Info, error) {
	w, err := s.Create(int64(len(b)))
	if err != nil {
		return Info{}, err
	}
	defer w.Close()
	if _, err := w.Write(b); err != nil {
		return Info{}, err
	}
	return w.Commit(want, private)
}

func mustPut(t testing.TB, s *Store, b []byte) Info {
	t.Helper()
	info, err := put(s, b, digestOf(b), false)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func content(s *Store, d Digest) ([]byte, error) {
	f, err := s.Open(d)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

func wantContent(t testing.TB, s *Store, b []byte) {
	t.Helper()
	got, err := content(s, digestOf(b))
	if err != nil || !bytes.Equal(got, b) {
		t.Errorf("content of %v = %d bytes, %v; want the %d bytes stored", digestOf(b), len(got), err, len(b))
	}
}

func wantMissing(t testing.TB, s *Store, d Digest) {
	t.Helper()
	if _, err := content(s, d); !errors.Is(err, ErrNotFound) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open %v: %v, want ErrNotFound", d, err)
	}
}

func moduleZip(t testing.TB, method uint16) []byte {
	var buf bytes.Buffer
	z := zip.NewWriter(&buf)
	for _, name := range []string{"example.com/m@v1.0.0/go.mod", "example.com/m@v1.0.0/m.go"} {
		w, err := z.CreateHeader(&zip.FileHeader{Name: name, Method: method})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(w, "// %s\n", name)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestStoreAndReopen(t *testing.T) {
	dir, cores := t.TempDir(), &fakeCores{}
	s := open(t, dir, Options{Cores: cores})
	a, b := bytes.Repeat([]byte("a"), 100_000), []byte("b")
	info := mustPut(t, s, a)
	mustPut(t, s, b)
	if info.Size != int64(len(a)) || cores.keys[info.Key] == "" {
		t.Errorf("info = %+v, shared %v", info, cores.keys)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, Options{Cores: cores})
	defer s.Close()
	wantContent(t, s, a)
	wantContent(t, s, b)
	if got, err := s.StatKey(info.Key); err != nil || got.SHA256 != info.SHA256 {
		t.Errorf("StatKey = %v, %v", got, err)
	}
	if st := s.Stats(); st.Files != 2 || st.Bytes != 100_001 {
		t.Errorf("stats = %+v, want 2 files of 100001 bytes", st)
	}
}

func TestOriginKept(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	long := make([]string, 20)
	for i := range long {
		long[i] = strings.Repeat("x", 1000)
	}
	for _, c := range []struct {
		from, want []string
	}{
		{nil, nil},
		{[]string{"", "https://example.com/a.crate?token=secret"}, []string{"https://example.com/a.crate"}}, // SEC-57
		{long, slices.Repeat([]string{long[0][:maxOriginBytes]}, maxOriginFrom)},
	} {
		b := fmt.Appendf(nil, "from %d", len(c.from))
		w, err := s.Create(-1)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(b); err != nil {
			t.Fatal(err)
		}
		w.SetOrigin(FromUpstream, c.from...)
		if _, err := w.Commit(digestOf(b), false); err != nil {
			t.Fatal(err)
		}
		w.Close()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, dir, Options{})
		info, at, err := s.Checked(digestOf(b))
		if err != nil || info.Origin.Source != FromUpstream || !slices.Equal(info.Origin.From, c.want) || time.Since(info.Origin.Time) > time.Minute || at.IsZero() {
			t.Errorf("from %.50q: origin %+v, checked %v, %v", c.from, info.Origin, at, err)
		}
	}
	s.Close()
}

// Records written before there were origins are read as they were.
func TestRecordWithoutOrigin(t *testing.T) { // REL-13
	r := &record{Info: Info{Size: 7, LastRequest: time.Unix(9, 0)}}
	b := r.append(nil)
	got, err := parseRecord(Sum{}, b)
	if err != nil || got.Origin.Source != "" || got.Size != 7 {
		t.Errorf("parseRecord = %+v, %v", got, err)
	}
	r.Origin = Origin{Source: FromPeers, From: []string{"a", "b"}, Time: time.Unix(5, 0)}
	with := r.append(nil)
	if !bytes.HasPrefix(with[2:], b[2:]) {
		t.Error("an origin changes what stands before it")
	}
	for n := range len(with) - len(b) {
		if n > 0 {
			if _, err := parseRecord(Sum{}, with[:len(b)+n]); err == nil {
				t.Errorf("record cut to %d of %d bytes is accepted", len(b)+n, len(with))
			}
		}
	}
}

func TestCommitRefusesWrongBytes(t *testing.T) { // SEC-2
	s := openTemp(t, Options{})
	w, err := s.Create(-1)
	if err != nil {
		t.Fatal(err)
	}
	w.Write([]byte("wrong"))
	_, err = w.Commit(digestOf([]byte("right")), false)
	w.Close()
	if _, ok := errors.AsType[*MismatchError](err); !ok {
		t.Errorf("Commit = %v, want a MismatchError", err)
	}
	wantMissing(t, s, digestOf([]byte("right")))
	wantMissing(t, s, digestOf([]byte("wrong")))
	if names, _ := os.ReadDir(filepath.Join(s.dir, tmpDir)); len(names) != 0 {
		t.Errorf("%d temporary files left", len(names))
	}
}

func TestH1KeepsFirstZip(t *testing.T) {
	s := openTemp(t, Options{})
	stored, deflated := moduleZip(t, zip.Store), moduleZip(t, zip.Deflate)
	name := filepath.Join(t.TempDir(), "m.zip")
	if err := os.WriteFile(name, stored, 0o600); err != nil {
		t.Fatal(err)
	}
	h, err := dirhash.HashZip(name, dirhash.Hash1)
	if err != nil {
		t.Fatal(err)
	}
	d, err := ParseH1(h)
	if err != nil || d.String() != h {
		t.Fatalf("ParseH1(%q) = %v, %v", h, d, err)
	}
	first, err := put(s, stored, d, false)
	if err != nil {
		t.Fatal(err)
	}
	second, err := put(s, deflated, d, false)
	if err != nil || second.SHA256 != first.SHA256 {
		t.Errorf("second zip of the same h1: %v, %v; want the first, %v", second.SHA256, err, first.SHA256)
	}
	got, err := content(s, d)
	if err != nil || !bytes.Equal(got, stored) {
		t.Errorf("open by h1: %v", err)
	}
}

// TestHashZipBounds: at the limits of x/mod, and over. SEC-43
func TestHashZipBounds(t *testing.T) {
	pack := func(sizes map[string]int) []byte {
		var buf bytes.Buffer
		z := zip.NewWriter(&buf)
		zeros := make([]byte, 1<<20)
		for name, size := range sizes {
			w, _ := z.Create(name)
			for ; size > 0; size -= len(zeros) {
				w.Write(zeros[:min(size, len(zeros))])
			}
		}
		z.Close()
		return buf.Bytes()
	}
	const m = "example.com/m@v1.0.0/"
	for name, tt := range map[string]struct {
		sizes map[string]int
		want  bool
		slow  bool
	}{
		"500 MiB":            {map[string]int{m + "a": 400 << 20, m + "b": 100 << 20}, true, true},
		"500 MiB + 1":        {map[string]int{m + "a": 400 << 20, m + "b": 100<<20 + 1}, false, true},
		"600 MiB":            {map[string]int{m + "bomb": 600 << 20}, false, false},
		"go.mod 16 MiB":      {map[string]int{m + "go.mod": maxSpecial}, true, false},
		"go.mod 16 MiB + 1":  {map[string]int{m + "go.mod": maxSpecial + 1}, false, false},
		"LICENSE 16 MiB + 1": {map[string]int{m + "LICENSE": maxSpecial + 1}, false, false},
		"other LICENSE":      {map[string]int{m + "a/LICENSE": maxSpecial + 1}, true, false},
	} {
		if tt.slow && testing.Short() {
			continue
		}
		b := pack(tt.sizes)
		if _, err := HashZip(bytes.NewReader(b), int64(len(b))); (err == nil) != tt.want {
			t.Errorf("%s: %v, want ok %v", name, err, tt.want)
		}
	}
	// A directory that says less than there is.
	b := pack(map[string]int{m + "go.mod": maxSpecial + 1})
	real := binary.LittleEndian.AppendUint32(nil, maxSpecial+1)
	b = bytes.ReplaceAll(b, real, binary.LittleEndian.AppendUint32(nil, 100))
	if _, err := HashZip(bytes.NewReader(b), int64(len(b))); err == nil {
		t.Error("an entry larger than it says was taken")
	}
	if _, err := HashZip(bytes.NewReader(nil), MaxZip+1); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("a zip of 500 MiB + 1: %v", err)
	}
	// 1,000,000 entries without a name.
	var many bytes.Buffer
	header := make([]byte, 46)
	copy(header, "PK\x01\x02")
	for range 1_000_000 {
		many.Write(header)
	}
	end := make([]byte, 22)
	copy(end, "PK\x05\x06")
	binary.LittleEndian.PutUint16(end[8:], 1_000_000%65536)
	binary.LittleEndian.PutUint16(end[10:], 1_000_000%65536)
	binary.LittleEndian.PutUint32(end[12:], uint32(many.Len()))
	many.Write(end)
	if _, err := HashZip(bytes.NewReader(many.Bytes()), int64(many.Len())); err == nil || !strings.Contains(err.Error(), "list of entries") {
		t.Errorf("1,000,000 entries: %v", err)
	}
	var twice bytes.Buffer
	z := zip.NewWriter(&twice)
	z.Create(m + "a")
	z.Create(m + "a")
	z.Close()
	if _, err := HashZip(bytes.NewReader(twice.Bytes()), int64(twice.Len())); err == nil {
		t.Error("an entry that is there twice was taken")
	}
}

// TestDamageNeverServed damages a stored file in every way we know of. SEC-42, REL-4
func TestDamageNeverServed(t *testing.T) {
	good := bytes.Repeat([]byte("0123456789abcdef"), 10_000)
	rewrite := func(f func(b []byte) []byte) func(name string) error {
		return func(name string) error {
			b, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			return os.WriteFile(name, f(b), 0o600)
		}
	}
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, good, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func(string) error{
		"bit":       rewrite(func(b []byte) []byte { b[70_000] ^= 4; return b }),
		"zero page": rewrite(func(b []byte) []byte { clear(b[4096:8192]); return b }),
		"cut":       rewrite(func(b []byte) []byte { return b[:len(b)-1] }),
		"empty":     rewrite(func(b []byte) []byte { return nil }),
		"grown":     rewrite(func(b []byte) []byte { return append(b, 0) }),
		"swapped":   rewrite(func(b []byte) []byte { return append(b[16:], b[:16]...)[1:] }),
		"missing":   os.Remove,
		"symlink": func(name string) error {
			return errors.Join(os.Remove(name), os.Symlink(outside, name))
		},
		"directory": func(name string) error {
			return errors.Join(os.Remove(name), os.MkdirAll(filepath.Join(name, "x"), 0o700))
		},
		"fifo": func(name string) error {
			return errors.Join(os.Remove(name), syscall.Mkfifo(name, 0o600))
		},
	} {
		for _, warm := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/warm=%v", name, warm), func(t *testing.T) {
				dir, cores := t.TempDir(), &fakeCores{}
				s := open(t, dir, Options{Cores: cores})
				info := mustPut(t, s, good)
				wantContent(t, s, good)
				if !warm {
					s.Close()
					s = open(t, dir, Options{Cores: cores})
				}
				defer s.Close()
				if err := damage(s.abs(info.path())); err != nil {
					t.Fatal(err)
				}
				if _, err := s.CheckSharedKey(info.Key); !errors.Is(err, ErrNotFound) {
					t.Errorf("CheckSharedKey = %v, want ErrNotFound", err)
				}
				wantMissing(t, s, info.Digest())
				if st := s.Stats(); st.Damaged != 1 || st.Files != 0 || st.Bytes != 0 {
					t.Errorf("stats after damage = %+v", st)
				}
				if len(cores.keys) != 0 {
					t.Errorf("still shared: %v", cores.keys)
				}
				mustPut(t, s, good) // heals
				wantContent(t, s, good)
			})
		}
	}
}

func TestScrub(t *testing.T) { // REL-6
	s := openTemp(t, Options{})
	var infos []Info
	for i := range 10 {
		infos = append(infos, mustPut(t, s, fmt.Appendf(nil, "file %d", i)))
	}
	if err := os.WriteFile(s.abs(infos[3].path()), []byte("file X"), 0o600); err != nil {
		t.Fatal(err)
	}
	os.Remove(s.abs(infos[7].path()))
	for _, repair := range []bool{false, true} {
		found, err := s.Scrub(context.Background(), repair)
		if err != nil || len(found) != 2 {
			t.Errorf("Scrub(%v) = %v, %v; want 2 damaged", repair, found, err)
		}
	}
	if found, err := s.Scrub(context.Background(), false); err != nil || len(found) != 0 {
		t.Errorf("Scrub after repair = %v, %v", found, err)
	}
	if st := s.Stats(); st.Files != 8 {
		t.Errorf("%d files left, want 8", st.Files)
	}
}

func TestCapEvictsLeastRecentlyRequested(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{Cap: 350})
	defer func() { s.Close() }()
	block := func(c byte) []byte { return bytes.Repeat([]byte{c}, 100) }
	for c := byte('a'); c <= 'c'; c++ {
		mustPut(t, s, block(c))
	}
	// The order is to the second: set it, a oldest.
	for i, c := range []byte("abc") {
		setLastRequest(t, s, block(c), int64(1000+i))
	}
	if err := s.Pin(Sum(digestOf(block('a')).Sum)); err != nil {
		t.Fatal(err)
	}
	b, err := s.Open(digestOf(block('b'))) // in use: passed over
	if err != nil {
		t.Fatal(err)
	}
	setLastRequest(t, s, block('b'), 1001)
	mustPut(t, s, block('d'))
	wantMissing(t, s, digestOf(block('c')))
	for _, c := range []byte("abd") {
		wantContent(t, s, block(c))
	}
	b.Close()
	if err := s.Unpin(Sum(digestOf(block('a')).Sum)); err != nil {
		t.Fatal(err)
	}
	if _, err := put(s, bytes.Repeat([]byte("x"), 400), digestOf(bytes.Repeat([]byte("x"), 400)), false); !errors.Is(err, ErrNoSpace) {
		t.Errorf("a file above the cap: %v, want ErrNoSpace", err)
	}
}

func setLastRequest(t *testing.T, s *Store, b []byte, sec int64) {
	t.Helper()
	s.flushTouched()
	if err := s.flushOne(Sum(digestOf(b).Sum), timeUnix(sec)); err != nil {
		t.Fatal(err)
	}
}

func TestWithdrawn(t *testing.T) { // SEC-19
	cores := &fakeCores{}
	s := openTemp(t, Options{Cores: cores})
	b := []byte("malware")
	info := mustPut(t, s, b)
	if err := s.Withdraw(info.SHA256, "malware"); err != nil {
		t.Fatal(err)
	}
	_, err := s.Open(info.Digest())
	if w, ok := errors.AsType[*WithdrawnError](err); !ok || w.Reason != "malware" {
		t.Errorf("Open = %v, want a WithdrawnError", err)
	}
	if _, err := s.CheckShared(info.Digest()); !errors.Is(err, ErrNotFound) || len(cores.keys) != 0 {
		t.Errorf("CheckShared = %v, shared %v", err, cores.keys)
	}
	absent := digestOf([]byte("comes later"))
	if err := s.Withdraw(Sum(absent.Sum), "malware"); err != nil {
		t.Fatal(err)
	}
	_, err = s.Open(absent)
	if _, ok := errors.AsType[*WithdrawnError](err); !ok {
		t.Errorf("Open of a withdrawn file that is not here = %v, want a WithdrawnError", err)
	}
	if err := s.Restore(info.SHA256); err != nil {
		t.Fatal(err)
	}
	wantContent(t, s, b)
	if len(cores.keys) != 1 {
		t.Errorf("not shared after Restore")
	}
}

func TestPrivateNotShared(t *testing.T) { // SEC-25
	cores := &fakeCores{}
	s := openTemp(t, Options{Cores: cores})
	b := []byte("private")
	if _, err := put(s, b, digestOf(b), true); err != nil {
		t.Fatal(err)
	}
	wantContent(t, s, b)
	if _, err := s.CheckShared(digestOf(b)); !errors.Is(err, ErrNotFound) || len(cores.keys) != 0 {
		t.Errorf("a private file is shared: %v, %v", err, cores.keys)
	}
	if _, err := put(s, b, digestOf(b), false); err != nil { // shown to be public
		t.Fatal(err)
	}
	if _, err := s.CheckShared(digestOf(b)); err != nil {
		t.Errorf("CheckShared after a public commit: %v", err)
	}
	wantContent(t, s, b)
}

// TestDatabaseLost removes or damages the database. REL-5
func TestDatabaseLost(t *testing.T) {
	for _, how := range []string{"removed", "garbage"} {
		t.Run(how, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir, Options{})
			z := moduleZip(t, zip.Store)
			h1, err := HashZip(bytes.NewReader(z), int64(len(z)))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := put(s, z, h1, false); err != nil {
				t.Fatal(err)
			}
			bad := mustPut(t, s, []byte("will be damaged"))
			os.WriteFile(s.abs(bad.path()), []byte("will be DAMAGED"), 0o600)
			s.Close()
			db := filepath.Join(dir, "store", "artifacts")
			if how == "removed" {
				os.RemoveAll(db)
			} else {
				files, _ := filepath.Glob(filepath.Join(db, "*"))
				for _, f := range files {
					os.WriteFile(f, []byte("garbage"), 0o600)
				}
			}
			s = open(t, dir, Options{})
			defer s.Close()
			if n := s.Stats().Files; n != 0 {
				t.Fatalf("the loss went unnoticed: %d files", n)
			}
			if err := s.Rebuild(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got, err := content(s, h1); err != nil || !bytes.Equal(got, z) {
				t.Errorf("open by h1 after the rebuild: %v", err)
			}
			wantMissing(t, s, bad.Digest())
		})
	}
}

// TestDatabaseDamagedInUse damages the tables of a database that is open. Nothing
// wrong is served, the database is replaced without a restart, and what the files
// do not tell is kept where it can be read. REL-4, REL-5
func TestDatabaseDamagedInUse(t *testing.T) {
	eachTable := func(f func(name string)) func(dir string) {
		return func(dir string) {
			names, _ := filepath.Glob(filepath.Join(dir, "*.sst"))
			if len(names) == 0 {
				t.Fatal("no tables")
			}
			for _, n := range names {
				f(n)
			}
		}
	}
	write := func(name string, change func(b []byte) []byte) {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_TRUNC, 0) // the same file: it may be open
		if err != nil {
			t.Fatal(err)
		}
		f.Write(change(b))
		f.Close()
	}
	for how, damage := range map[string]func(dir string){
		"garbage": eachTable(func(name string) {
			write(name, func(b []byte) []byte { return bytes.Repeat([]byte("garbage!"), len(b)/8+1) })
		}),
		"bit": eachTable(func(name string) {
			write(name, func(b []byte) []byte { b[10] ^= 1; return b })
		}),
		"cut":     eachTable(func(name string) { write(name, func(b []byte) []byte { return b[:len(b)/2] }) }),
		"empty":   eachTable(func(name string) { write(name, func([]byte) []byte { return nil }) }),
		"removed": eachTable(func(name string) { os.Remove(name) }),
		"all removed": func(dir string) {
			eachTable(func(name string) { os.Remove(name) })(dir)
			os.RemoveAll(dir)
		},
	} {
		t.Run(how, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir, Options{})
			z := moduleZip(t, zip.Store)
			h1, err := HashZip(bytes.NewReader(z), int64(len(z)))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := put(s, z, h1, false); err != nil {
				t.Fatal(err)
			}
			a := mustPut(t, s, []byte("private file"))
			s.db.db.Flush()
			// What Withdraw does first; it then looks at the tables.
			late := digestOf([]byte("withdrawn"))
			if err := s.db.set(dbKey('w', late.Sum), []byte("malware")); err != nil {
				t.Fatal(err)
			}
			damage(filepath.Join(dir, "store", "artifacts"))
			noticed := false
			for range 3 { // whatever comes now is right or is not there
				if got, err := content(s, h1); err == nil && !bytes.Equal(got, z) || err != nil && !errors.Is(err, ErrNotFound) {
					t.Fatalf("content: %v, %d bytes", err, len(got))
				}
				noticed = noticed || s.Stats().Trouble != ""
			}
			if !noticed && !strings.Contains(how, "removed") && how != "cut" { // of open files the rest can be read
				t.Fatal("the damage went unnoticed")
			}
			if noticed {
				if _, err := put(s, []byte("meanwhile"), digestOf([]byte("meanwhile")), false); err == nil {
					t.Error("a file was committed without a database")
				}
			}
			if err := s.revive(t.Context()); err != nil {
				t.Fatal(err)
			}
			if st := s.Stats(); st.Trouble != "" || st.Files != 2 {
				t.Errorf("after the rebuild: %+v", st)
			}
			if got, err := content(s, h1); err != nil || !bytes.Equal(got, z) {
				t.Errorf("after the rebuild: %v", err)
			}
			wantContent(t, s, []byte("private file"))
			if _, err := s.Open(late); !errors.As(err, new(*WithdrawnError)) {
				t.Errorf("a withdrawn file after the rebuild: %v", err)
			}
			wantContent(t, s, []byte("private file"))
			if found, err := s.Scrub(t.Context(), false); err != nil || len(found) != 0 {
				t.Errorf("scrub after the rebuild: %v %v", found, err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			s = open(t, dir, Options{}) // and the new one is what the next start finds
			defer s.Close()
			if err := s.Rebuild(t.Context()); err != nil {
				t.Fatal(err)
			}
			if n := s.Stats().Files; n != 2 {
				t.Errorf("%d files after a restart, want 2", n)
			}
			if _, err := s.Stat(a.Digest()); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestDatabaseOutOfUse: what is the machine's fault sets nothing aside. REL-5, REL-7
func TestDatabaseOutOfUse(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	defer s.Close()
	mustPut(t, s, []byte("before"))
	pebbleLog{s.db}.Fatalf("pebble: fatal commit error: %v", &fs.PathError{Op: "write", Err: syscall.ENOSPC})
	wantMissing(t, s, digestOf([]byte("before")))
	if s.Stats().Trouble == "" {
		t.Error("no trouble is told of")
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, 0) }()
	for s.Stats().Trouble != "" {
		runtime.Gosched()
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	wantContent(t, s, []byte("before"))
	mustPut(t, s, []byte("after"))
	if aside, _ := filepath.Glob(filepath.Join(dir, "store", "*damaged*")); len(aside) != 0 {
		t.Errorf("set aside: %v", aside)
	}
}

func TestNewerFormatRefused(t *testing.T) { // REL-13
	dir := t.TempDir()
	s := open(t, dir, Options{})
	s.Close()
	os.WriteFile(filepath.Join(dir, "artifacts", "format"), []byte("pkgswarm artifacts 2\n"), 0o600)
	if _, err := Open(filepath.Join(dir, "artifacts"), filepath.Join(dir, "store", "artifacts"), Options{}); !errors.Is(err, ErrNewer) {
		t.Errorf("Open = %v, want ErrNewer", err)
	}
}

// TestDamagedFormat: only a whole line of a later version is one. REL-4
func TestDamagedFormat(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	mustPut(t, s, []byte("kept"))
	s.Close()
	name := filepath.Join(dir, "artifacts", formatFile)
	for what, damage := range map[string]func() error{
		"grown":     func() error { return os.WriteFile(name, []byte(formatLine+"\x00\x00"), 0o600) },
		"cut":       func() error { return os.WriteFile(name, []byte("pkgswarm art"), 0o600) },
		"bit":       func() error { return os.WriteFile(name, []byte("pkgswarm artifacts \x11\n"), 0o600) },
		"missing":   func() error { return os.Remove(name) },
		"symlink":   func() error { return errors.Join(os.Remove(name), os.Symlink("/etc/passwd", name)) },
		"directory": func() error { return errors.Join(os.Remove(name), os.MkdirAll(filepath.Join(name, "x"), 0o700)) },
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		s, err := Open(filepath.Join(dir, "artifacts"), filepath.Join(dir, "store", "artifacts"), Options{})
		if err != nil {
			t.Errorf("%s: %v", what, err)
			os.RemoveAll(name)
			os.WriteFile(name, []byte(formatLine), 0o600)
			continue
		}
		wantContent(t, s, []byte("kept"))
		s.Close()
	}
}

// TestCapMadeSmaller: what is over the cap at the start goes. REL-2
func TestCapMadeSmaller(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	for i := range 10 {
		mustPut(t, s, bytes.Repeat([]byte{byte(i)}, 1000))
	}
	s.Close()
	s = open(t, dir, Options{Cap: 3000})
	defer s.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, 0) }()
	for s.Stats().Bytes > 3000 {
		runtime.Gosched()
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestStoreInUse(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	defer s.Close()
	if _, err := Open(filepath.Join(dir, "artifacts"), filepath.Join(dir, "store", "artifacts"), Options{}); err == nil {
		t.Error("two opens of one store")
	}
	wantMissing(t, s, digestOf(nil)) // still works
}

// TestCrashBetweenSteps stops the store between each pair of steps of storing
// and of removing a file and opens it again. REL-3
func TestCrashBetweenSteps(t *testing.T) {
	type crash struct{}
	for _, at := range []string{"write", "sync", "rename", "syncdir", "share", "record", "unshare", "unlink"} {
		t.Run(at, func(t *testing.T) {
			dir := t.TempDir()
			armed := false
			s := open(t, dir, Options{step: func(name string) error {
				if armed && name == at {
					panic(crash{})
				}
				return nil
			}})
			before := mustPut(t, s, []byte("acknowledged before"))
			func() {
				defer func() {
					if r := recover(); r != nil && r != (crash{}) {
						panic(r)
					}
				}()
				armed = true
				put(s, []byte("half done"), digestOf([]byte("half done")), false)
				s.Remove(before.SHA256)
			}()
			s.db.close()
			s.root.Close()

			s = open(t, dir, Options{})
			defer s.Close()
			removed := at == "unshare" || at == "unlink"
			if removed {
				wantMissing(t, s, before.Digest())
			} else {
				wantContent(t, s, []byte("acknowledged before"))
				wantMissing(t, s, digestOf([]byte("half done")))
			}
			files := 0
			filepath.WalkDir(filepath.Join(dir, "artifacts"), func(name string, d fs.DirEntry, _ error) error {
				if !d.IsDir() && d.Name() != formatFile {
					files++
				}
				return nil
			})
			if files != 1 || s.Stats().Files != 1 {
				t.Errorf("%d files on disk, %d recorded, want 1", files, s.Stats().Files)
			}
		})
	}
}

// TestDiskFull fails each step with ENOSPC; afterwards everything works. REL-7
func TestDiskFull(t *testing.T) {
	for _, at := range []string{"room", "write", "sync", "rename", "syncdir", "share", "record"} {
		t.Run(at, func(t *testing.T) {
			full := false
			s := openTemp(t, Options{step: func(name string) error {
				if full && name == at {
					return &fs.PathError{Op: name, Err: syscall.ENOSPC}
				}
				return nil
			}})
			mustPut(t, s, []byte("before"))
			full = true
			if _, err := put(s, []byte("after"), digestOf([]byte("after")), false); !errors.Is(err, ErrNoSpace) {
				t.Errorf("put on a full disk = %v, want ErrNoSpace", err)
			}
			wantContent(t, s, []byte("before"))
			wantMissing(t, s, digestOf([]byte("after")))
			full = false
			mustPut(t, s, []byte("after"))
			wantContent(t, s, []byte("after"))
			if st := s.Stats(); st.Files != 2 {
				t.Errorf("%d files, want 2", st.Files)
			}
		})
	}
}

// TestRandomOperations compares the store with a map, reopening it now and then.
func TestRandomOperations(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	dir, model := t.TempDir(), map[int]bool{}
	s := open(t, dir, Options{Cores: &fakeCores{}})
	defer func() { s.Close() }()
	file := func(i int) []byte { return bytes.Repeat([]byte{byte(i)}, 10+i*300) }
	for range 400 {
		i := r.IntN(20)
		switch r.IntN(8) {
		case 0, 1:
			mustPut(t, s, file(i))
			model[i] = true
		case 2:
			err := s.Remove(Sum(digestOf(file(i)).Sum))
			if model[i] != (err == nil) {
				t.Fatalf("Remove(%d) = %v, model %v", i, err, model[i])
			}
			delete(model, i)
		case 3:
			if r.IntN(8) == 0 {
				s.Close()
				s = open(t, dir, Options{Cores: &fakeCores{}})
			}
		case 4:
			s.Pin(Sum(digestOf(file(i)).Sum))
		default:
			if model[i] {
				wantContent(t, s, file(i))
			} else {
				wantMissing(t, s, digestOf(file(i)))
			}
		}
	}
	var bytes int64
	for i := range model {
		bytes += int64(len(file(i)))
	}
	if st := s.Stats(); int(st.Files) != len(model) || st.Bytes != bytes {
		t.Errorf("stats %+v, want %d files of %d bytes", st, len(model), bytes)
	}
}

func TestConcurrent(t *testing.T) {
	s := openTemp(t, Options{Cores: &fakeCores{}, Cap: 4000})
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 60 {
				b := bytes.Repeat([]byte{byte((g + i) % 16)}, 500)
				if i%3 == 0 {
					if _, err := put(s, b, digestOf(b), false); err != nil && !errors.Is(err, ErrNoSpace) {
						t.Error(err)
					}
				} else if got, err := content(s, digestOf(b)); err == nil && !bytes.Equal(got, b) {
					t.Errorf("wrong content of %x", b[0])
				} else if err != nil && !errors.Is(err, ErrNotFound) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if st := s.Stats(); st.Bytes > 4000 {
		t.Errorf("%d bytes stored, above the cap", st.Bytes)
	}
	if len(s.held) != 0 || s.reserved != 0 || s.pending != 0 {
		t.Errorf("held %v, reserved %d, pending %d after all work", s.held, s.reserved, s.pending)
	}
	if runtime.GOOS == "linux" {
		if fi, _ := os.Stat(s.dir); fi.Mode().Perm() != 0o700 { // SEC-57
			t.Errorf("directory has mode %v", fi.Mode())
		}
	}
}

func FuzzRecord(f *testing.F) { // SEC-8
	f.Add((&record{Info: Info{H1: new([32]byte), Size: 300, LastRequest: timeUnix(5)}}).append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if rec, err := parseRecord(Sum{}, b); err == nil {
			again, err := parseRecord(Sum{}, rec.append(nil))
			if err != nil || again.Size != rec.Size || again.Key != rec.Key {
				t.Errorf("%x does not survive encoding: %v", b, err)
			}
		}
	})
}

func timeUnix(sec int64) time.Time { return time.Unix(sec, 0) }

// TestInCoreStore shares files as real static cores and reads them back.
func TestInCoreStore(t *testing.T) {
	cores, err := core.OpenStore(t.TempDir(), core.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer cores.Close()
	s := openTemp(t, Options{Cores: InCoreStore(cores)})
	data := bytes.Repeat([]byte("0123456789"), 20_000)
	info := mustPut(t, s, data)
	c, err := cores.OpenExisting(core.Key(info.Key))
	if err != nil {
		t.Fatal(err)
	}
	var got []byte
	for i := range c.Length() {
		b, err := c.Get(t.Context(), i)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, b...)
	}
	c.Close()
	if !bytes.Equal(got, data) {
		t.Errorf("the core holds %d other bytes", len(got))
	}
	empty := mustPut(t, s, nil)
	if _, err := s.CheckShared(empty.Digest()); empty.Key != (Key{}) || !errors.Is(err, ErrNotFound) {
		t.Errorf("the empty file is shared: %v", err)
	}
	wantContent(t, s, nil)
	if err := cores.Delete(core.Key(info.Key)); err != nil { // lost in a crash
		t.Fatal(err)
	}
	if _, err := s.CheckShared(info.Digest()); err != nil || !InCoreStore(cores).Has(info.Key) {
		t.Errorf("the core was not made again: %v", err)
	}
	if err := s.Remove(info.SHA256); err != nil || InCoreStore(cores).Has(info.Key) {
		t.Errorf("the core outlives its file: %v", err)
	}
}
