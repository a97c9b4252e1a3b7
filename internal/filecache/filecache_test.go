package filecache

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func open(t *testing.T, dir string, max int64) *Cache {
	t.Helper()
	c, err := Open(dir, max)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestPutGet(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir, 0)
	for _, key := range []string{"", "a", "../../etc/passwd", strings.Repeat("k", 10_000), "\x00"} {
		for _, data := range [][]byte{{}, []byte("one"), bytes.Repeat([]byte("x"), 100_000)} {
			if err := c.Put(key, data); err != nil {
				t.Fatalf("Put(%.20q): %v", key, err)
			}
			got, err := open(t, dir, 0).Get(key)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("Get(%.20q) = %d bytes, %v, want %d", key, len(got), err, len(data))
			}
		}
	}
	if _, err := c.Get("other"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Get(other): %v, want missing", err)
	}
	if err := c.Put("big", make([]byte, MaxEntry+1)); err == nil {
		t.Error("an entry over the limit was taken")
	}
	c.Remove("a")
	if _, err := c.Get("a"); err == nil {
		t.Error("a removed entry is still there")
	}
}

func TestKeys(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir, 0)
	for _, key := range []string{"index a", "index b", "config", "", "index " + strings.Repeat("k", 1000)} {
		if err := c.Put(key, []byte(key)); err != nil {
			t.Fatal(err)
		}
	}
	os.WriteFile(filepath.Join(dir, "stray"), []byte("no entry"), 0o600)
	b, err := os.ReadFile(filepath.Join(dir, fileName("index a")))
	if err != nil {
		t.Fatal(err)
	}
	os.WriteFile(filepath.Join(dir, fileName("index b")), b, 0o600) // misplaced
	keys := func(prefix string) (all []string) {
		c.Keys(prefix, func(key string) bool { all = append(all, key); return true })
		slices.Sort(all)
		return all
	}
	if got := keys("index "); !slices.Equal(got, []string{"index a"}) {
		t.Errorf("Keys(index) = %q", got)
	}
	if got := keys(""); !slices.Equal(got, []string{"", "config", "index a"}) {
		t.Errorf("Keys = %q", got)
	}
	n := 0
	c.Keys("", func(string) bool { n++; return false })
	if n != 1 {
		t.Errorf("Keys went on after false: %d", n)
	}
}

// REL-4: whatever happens to a file, its entry is right or missing.
func TestDamage(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir, 0)
	file := func(key string) string { return filepath.Join(dir, fileName(key)) }
	data := []byte("the right bytes")
	for name, damage := range map[string]func(b []byte) []byte{
		"bit":   func(b []byte) []byte { b[rand.IntN(len(b))] ^= 1 << rand.IntN(8); return b },
		"zeros": func(b []byte) []byte { clear(b); return b },
		"cut":   func(b []byte) []byte { return b[:rand.IntN(len(b))] },
		"grown": func(b []byte) []byte { return append(b, 0) },
		"empty": func(b []byte) []byte { return nil },
		"other": func(b []byte) []byte { return encode("other", data) },
	} {
		for range 50 {
			c.Put("key", data)
			b, _ := os.ReadFile(file("key"))
			os.WriteFile(file("key"), damage(b), 0o600)
			if got, err := c.Get("key"); err == nil {
				t.Fatalf("%s: Get = %q", name, got)
			}
		}
	}
	c.Put("key", data)
	c.Put("victim", data)
	outside := filepath.Join(t.TempDir(), "f")
	os.WriteFile(outside, encode("key", []byte("foreign")), 0o600)
	os.Remove(file("key"))
	os.Symlink(outside, file("key"))
	if got, err := c.Get("key"); err == nil { // SEC-42
		t.Errorf("a link out of the cache was followed: %q", got)
	}
	os.Remove(file("victim"))
	os.Mkdir(file("victim"), 0o700)
	if _, err := c.Get("victim"); err == nil {
		t.Error("a directory was read")
	}
}

func TestTrim(t *testing.T) {
	c := open(t, t.TempDir(), 100_000)
	c.wg.Wait()
	for i := range 50 {
		key := string(rune('a' + i))
		if err := c.Put(key, make([]byte, 10_000)); err != nil {
			t.Fatal(err)
		}
		when := time.Now().Add(time.Duration(i-1000) * time.Second)
		c.root.Chtimes(fileName(key), when, when)
	}
	c.wg.Wait()
	c.Trim()
	held := 0
	for i := range 50 {
		if _, err := c.Get(string(rune('a' + i))); err == nil {
			held++
		}
	}
	if held == 0 || held > 10 || c.size.Load() > 100_000 {
		t.Errorf("%d entries, %d bytes held", held, c.size.Load())
	}
	if _, err := c.Get(string(rune('a' + 49))); err != nil {
		t.Errorf("the newest entry is gone: %v", err)
	}
}

// REL-2: a half-written file does not stay.
func TestLeftovers(t *testing.T) {
	dir := t.TempDir()
	open(t, dir, 0).Put("k", []byte("v"))
	left := filepath.Join(dir, "tmp-1-1")
	os.WriteFile(left, []byte("half"), 0o600)
	hourAgo := time.Now().Add(-time.Hour)
	os.Chtimes(left, hourAgo, hourAgo)
	c := open(t, dir, 0)
	c.wg.Wait()
	if _, err := os.Stat(left); err == nil {
		t.Error("a leftover stays")
	}
	if _, err := c.Get("k"); err != nil {
		t.Errorf("entry: %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add("k", encode("k", []byte("v")))
	f.Fuzz(func(t *testing.T, key string, b []byte) { // SEC-8
		if data, ok := decode(key, b); ok && !bytes.Equal(encode(key, data), b) {
			t.Errorf("decode(%q, %q) is not the inverse of encode", key, b)
		}
	})
}
