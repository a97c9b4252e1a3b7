package registry

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"
)

func TestIndexPath(t *testing.T) { // SEC-40, SEC-41
	for name, want := range map[string]string{
		"a": "1/a", "ab": "2/ab", "abc": "3/a/abc", "abcd": "ab/cd/abcd", "Serde": "se/rd/serde", "a-b_C9": "a-/b_/a-b_c9",
	} {
		n, err := ParseCrate(name)
		if err != nil || n.IndexPath() != want {
			t.Errorf("ParseCrate(%q) at %q, %v; want %q", name, n.IndexPath(), err, want)
		}
		if back, err := ParseIndexPath(want); err != nil || back != n {
			t.Errorf("ParseIndexPath(%q) = %q, %v", want, back, err)
		}
	}
	for _, bad := range []string{"", "a b", "a/b", "..", "a.b", "é", "a%", strings.Repeat("a", 65), "a\x00", "a+b"} {
		if n, err := ParseCrate(bad); err == nil {
			t.Errorf("ParseCrate(%q) = %q", bad, n)
		}
	}
	for _, bad := range []string{"", "a", "se/rd/Serde", "SE/RD/serde", "se/rd/sxrd", "3/l/log2", "3/log", "1/ab", "se/rd//serde", "/se/rd/serde", "se/rd/serde/"} {
		if n, err := ParseIndexPath(bad); err == nil {
			t.Errorf("ParseIndexPath(%q) = %q", bad, n)
		}
	}
}

func TestCrateVersion(t *testing.T) {
	for _, ok := range []string{"1.0.0", "0.1.0-rc.1+build.5", "10.20.30"} {
		if err := CheckCrateVersion(ok); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", "v1.0.0", "1.0/..", "1.0 0", "1.0\n", "../1", strings.Repeat("1", 129)} {
		if CheckCrateVersion(bad) == nil {
			t.Errorf("CheckCrateVersion(%q) = nil", bad)
		}
	}
}

func TestExpandDL(t *testing.T) {
	for dl, want := range map[string]string{
		"https://d/crates":                     "https://d/crates/MyCrate/1.0.0+x/download",
		"https://d/{crate}/{version}.crate":    "https://d/MyCrate/1.0.0+x.crate",
		"https://d/{prefix}/{lowerprefix}":     "https://d/My/Cr/my/cr",
		"https://d/{sha256-checksum}/{crate}.": "https://d/abc/MyCrate.",
	} {
		if got := ExpandDL(dl, "MyCrate", "1.0.0+x", "abc"); got != want {
			t.Errorf("ExpandDL(%q) = %q, want %q", dl, got, want)
		}
	}
	if got := ExpandDL("{prefix}", "log", "1.0.0", ""); got != "3/l" {
		t.Errorf("prefix of log: %q", got)
	}
}

const sum = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func line(extra string) string {
	return `{"name":"foo","vers":"1.0.0","deps":[],"cksum":"` + sum + `"` + extra + `}`
}

func TestParseCargoIndex(t *testing.T) {
	file := line(`,"yanked":false,"features":{"a":["b","\"}{"]},"v":2,"new":{"x":[1,-2.5e3,null,true]}`) + "\n" +
		`{"name":"Foo","vers":"1.1.0","deps":[{"name":"alias","package":"real","req":"^1","features":[],"optional":true,"default_features":true,"target":null,"kind":"normal","registry":null},` +
		`{"name":"d","req":"*","kind":"dev"},{"name":"other","registry":"https://elsewhere/"}],"cksum":"` + sum + `","yanked":true,"pubtime":"2025-11-12T19:30:12Z"}`
	lines, err := ParseCargoIndex("foo", []byte(file))
	if err != nil || len(lines) != 2 {
		t.Fatalf("%d lines, %v", len(lines), err)
	}
	l := lines[1]
	if l.Vers != "1.1.0" || !l.Yanked || l.PubTime != "2025-11-12T19:30:12Z" || l.Cksum[0] != 1 || l.Name != "Foo" {
		t.Errorf("line 2 = %+v", l)
	}
	if got := bytes.Join([][]byte{lines[0].Raw, lines[1].Raw}, []byte("\n")); string(got) != file {
		t.Errorf("lines are not verbatim")
	}
}

func TestParseCargoIndexRefuses(t *testing.T) { // SEC-7, SEC-44
	deep := strings.Repeat("[", 200_000) + strings.Repeat("]", 200_000)
	for name, bad := range map[string]string{
		"other crate":    strings.Replace(line(""), "foo", "bar", 1),
		"no digest":      `{"name":"foo","vers":"1.0.0"}`,
		"empty digest":   strings.Replace(line(""), sum, "", 1),
		"short digest":   strings.Replace(line(""), sum, sum[1:], 1),
		"not hex":        strings.Replace(line(""), sum, "g"+sum[1:], 1),
		"no version":     strings.Replace(line(""), "1.0.0", "", 1),
		"bad version":    strings.Replace(line(""), "1.0.0", "../../x", 1),
		"invalid UTF-8":  line(",\"x\":\"\xff\""),
		"deep":           line(`,"x":` + deep),
		"cut":            line("")[:40],
		"junk after":     line("") + "x",
		"two objects":    line("") + line(""),
		"web page":       "<html></html>",
		"array":          "[]",
		"number":         "5",
		"64 MiB":         line(`,"x":"` + strings.Repeat("x", 64<<20) + `"`),
		"control":        line(",\"x\":\"\x01\""),
		"digest nested":  `{"name":"foo","vers":"1.0.0","x":{"cksum":"` + sum + `"}}`,
		"digest numeric": `{"name":"foo","vers":"1.0.0","cksum":5}`,
	} {
		if lines, err := ParseCargoIndex("foo", []byte(bad)); err == nil {
			t.Errorf("%s: taken as %d lines", name, len(lines))
		}
	}
}

// SEC-7, SEC-44: lines at the limits, and one over.
func TestCargoLineLimits(t *testing.T) {
	nested := func(n int) string { return line(`,"x":` + strings.Repeat("[", n) + strings.Repeat("]", n)) }
	long := func(n int) string { return line(`,"x":"` + strings.Repeat("x", n-len(line(`,"x":""`))) + `"`) }
	for name, tt := range map[string]struct {
		line string
		want bool
	}{
		"nesting 64": {nested(maxNesting - 1), true}, // the line is an object itself
		"nesting 65": {nested(maxNesting), false},
		"1 MiB":      {long(maxLine), true},
		"1 MiB + 1":  {long(maxLine + 1), false},
	} {
		if _, err := ParseCargoLine("foo", []byte(tt.line)); (err == nil) != tt.want {
			t.Errorf("%s: %v, want ok %v", name, err, tt.want)
		}
	}
	// Old crates have a version twice, with two digests: both lines are used as written.
	twice := line("") + "\n" + strings.Replace(line(""), sum, strings.Repeat("0f", 32), 1) + "\n"
	if lines, err := ParseCargoIndex("foo", []byte(twice)); err != nil || len(lines) != 2 || lines[0].Cksum == lines[1].Cksum {
		t.Errorf("a version twice: %+v, %v", lines, err)
	}
}

func FuzzParseCargoLine(f *testing.F) { // SEC-8
	f.Add([]byte(line("")))
	f.Add([]byte(line(`,"deps":[{"name":"a"}],"yanked":true`)))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := ParseCargoLine("foo", b)
		if err != nil {
			return
		}
		var v struct {
			Name, Vers string
			Cksum      string
		}
		if json.Unmarshal(b, &v) == nil && json.Valid(b) && (strings.EqualFold(v.Name, "foo") && v.Vers != l.Vers && v.Vers != "") {
			// encoding/json takes keys in any case, and the last of equal ones.
			if bytes.Count(bytes.ToLower(b), []byte(`vers`)) == 1 {
				t.Errorf("%q: version %q, encoding/json has %q", b, l.Vers, v.Vers)
			}
		}
	})
}

func BenchmarkParseCargoLine(b *testing.B) {
	l := []byte(line(`,"features":{"default":["std"],"std":[]},"yanked":false,"deps":[` + strings.Repeat(`{"name":"serde","req":"^1.0","features":["derive"],"optional":true,"default_features":true,"target":null,"kind":"normal"},`, 5) + `{"name":"x"}]`))
	b.SetBytes(int64(len(l)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseCargoLine("foo", l); err != nil {
			b.Fatal(err)
		}
	}
}

// TestPlain compares with one byte at a time.
func TestPlain(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		b := make([]byte, r.IntN(40))
		for i := range b {
			b[i] = byte(r.Uint32())
			if r.IntN(8) > 0 {
				b[i] |= 0x40 // mostly bytes that mean themselves
			}
		}
		special := bytes.IndexFunc(b, func(c rune) bool { return c == '"' || c == '\\' || c < ' ' })
		got := plain(b)
		for i, c := range b[:got] {
			if c == '"' || c == '\\' || c < ' ' {
				t.Fatalf("%x: byte %d of %d is not plain", b, i, got)
			}
		}
		if special >= 0 && got > special || special < 0 && got < len(b)-7 {
			t.Fatalf("%x: %d, special at %d", b, got, special)
		}
	}
}
