package pkglog

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"

	"github.com/pkgswarm/pkgswarm/integration/synthetic"

	"pgregory.net/rapid"
)

var serde = Header{Cargo, "serde"}

// line makes an index line much like the real ones.
func line(name, vers string, deps int, yanked bool) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, `{"name":%q,"vers":%q,"deps":[`, name, vers)
	for i := range deps {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"name":"dep-%d","req":"^1.%d","features":[],"optional":false,"default_features":true,"target":null,"kind":"normal"}`, i, i)
	}
	sum := sha256.Sum256([]byte(name + vers))
	fmt.Fprintf(&b, `],"cksum":"%s","features":{"default":["std"]},"yanked":%v,"pubtime":"2024-05-06T07:08:09Z"}`, hex.EncodeToString(sum[:]), yanked)
	return []byte(b.String())
}

func vers(line []byte) string {
	var l struct {
		Vers string `json:"vers"`
	}
	if json.Unmarshal(line, &l) != nil {
		return string(line)
	}
	return l.Vers
}

func file(lines ...[]byte) []byte {
	return append(bytes.Join(lines, []byte{'\n'}), '\n')
}

// update appends what leads s to file and returns the new blocks.
func update(t testing.TB, s *State, file []byte) [][]byte {
	t.Helper()
	var blocks [][]byte
	for _, e := range DiffIndex(s, file, vers) {
		b, err := s.Append(e)
		if err != nil {
			t.Fatal(err)
		}
		blocks = append(blocks, b)
	}
	if !bytes.Equal(s.IndexFile(), file) && len(file) > 0 {
		t.Fatalf("folded to\n%s\nwant\n%s", s.IndexFile(), file)
	}
	return blocks
}

func all(h Header, blocks [][]byte) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for _, b := range append([][]byte{h.Encode()}, blocks...) {
			if !yield(b, nil) {
				return
			}
		}
	}
}

func kinds(events []Event) string {
	var s []string
	for _, e := range events {
		s = append(s, e.Kind.String())
	}
	return strings.Join(s, " ")
}

func TestDiffIsMinimal(t *testing.T) {
	a, b, c, d := line("serde", "1.0.0", 2, false), line("serde", "1.0.1", 2, false), line("serde", "1.0.2", 3, false), line("serde", "2.0.0", 0, false)
	by := line("serde", "1.0.1", 2, true)
	tests := []struct {
		name      string
		old, file []byte
		want      string
	}{
		{"nothing", file(a, b), file(a, b), ""},
		{"no file", nil, nil, ""},
		{"append", file(a), file(a, b, c), "published published"},
		{"yank", file(a, b, c), file(a, by, c), "changed"},
		{"remove", file(a, b, c), file(a, c), "removed"},
		{"remove all", file(a, b, c), nil, "removed"},
		{"insert in front", file(b, c), file(a, b, c), "published"},
		{"reorder", file(a, b, c), file(c, a, b), "reordered"},
		{"all at once", file(a, b, c), file(c, by, d), "removed reordered changed published"},
		{"last newline lost", file(a, b), bytes.TrimSuffix(file(a, b), []byte("\n")), "changed"},
		{"last newline back", bytes.TrimSuffix(file(a, b), []byte("\n")), file(a, b), "changed"},
		{"append without newline", file(a), bytes.TrimSuffix(file(a, b), []byte("\n")), "published"},
		{"blank line inside", file(a, b), file(a, []byte{}, b), "published"},
		{"same version twice", file(a, b), file(a, a, b), "published"},
		{"carriage return", file(a), file(append(slices.Clone(a), '\r')), "changed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := NewState(serde)
			first := update(t, s, tt.old)
			events := DiffIndex(s, tt.file, vers)
			if got := kinds(events); got != tt.want && tt.name != "carriage return" {
				t.Errorf("events %q, want %q", got, tt.want)
			}
			second := update(t, s, tt.file)
			again, err := Fold(serde, all(serde, append(first, second...)))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(again.IndexFile(), s.IndexFile()) || again.Exists() != (len(tt.file) > 0) {
				t.Errorf("folded again to\n%s\nwant\n%s", again.IndexFile(), tt.file)
			}
		})
	}
}

// TestAnyHistoryFolds lets an index file change at random and folds its log.
func TestAnyHistoryFolds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := NewState(serde)
		var blocks [][]byte
		for range rapid.IntRange(1, 5).Draw(t, "updates") {
			var lines [][]byte
			for range rapid.IntRange(0, 12).Draw(t, "lines") {
				v := fmt.Sprintf("%d.0.%d", rapid.IntRange(0, 1).Draw(t, "major"), rapid.IntRange(0, 5).Draw(t, "patch"))
				lines = append(lines, line("serde", v, rapid.IntRange(0, 2).Draw(t, "deps"), rapid.Bool().Draw(t, "yanked")))
			}
			next := bytes.Join(lines, []byte{'\n'})
			if len(lines) > 0 && rapid.Bool().Draw(t, "newline") {
				next = append(next, '\n')
			}
			for _, e := range DiffIndex(s, next, vers) {
				b, err := s.Append(e)
				if err != nil {
					t.Fatalf("append %v: %v", e.Kind, err)
				}
				blocks = append(blocks, b)
			}
			if !bytes.Equal(s.IndexFile(), next) {
				t.Fatalf("state is\n%s\nwant\n%s", s.IndexFile(), next)
			}
			if e := DiffIndex(s, next, vers); len(e) > 0 {
				t.Fatalf("second diff has %d events", len(e))
			}
		}
		again, err := Fold(serde, all(serde, blocks))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(again.IndexFile(), s.IndexFile()) || again.Length() != s.Length() {
			t.Fatalf("folded to\n%s\nwant\n%s", again.IndexFile(), s.IndexFile())
		}
	})
}

func moduleVersion(v string, deps int) *ModuleVersion {
	m := &ModuleVersion{
		Version: v, Time: 1700000000,
		Info: fmt.Appendf(nil, `{"Version":%q,"Time":"2023-11-14T22:13:20Z"}`, v),
		Mod:  []byte("module github.com/Azure/x\n\ngo 1.21\n"),
	}
	for i := range deps {
		m.Mod = fmt.Appendf(m.Mod, "require example.com/m%d v1.%d.0\n", i, i)
	}
	m.ModHash, m.ZipHash = sha256.Sum256(m.Mod), sha256.Sum256([]byte(v))
	return m
}

func TestGoLog(t *testing.T) {
	h := Header{Go, "github.com/Azure/x"}
	s := NewState(h)
	var blocks [][]byte
	add := func(e Event) {
		t.Helper()
		b, err := s.Append(e)
		if err != nil {
			t.Fatal(err)
		}
		blocks = append(blocks, b)
	}
	pseudo := "v0.0.0-20231114221320-abcdefabcdef"
	for _, v := range []string{"v1.10.0", pseudo, "v1.9.0", "v2.0.0-rc.1+incompatible"} {
		add(Event{Kind: Published, Module: moduleVersion(v, 3)})
	}
	a := Artifact{Key: [32]byte{1}, ByteLength: 70000, Digest: s.Module("v1.9.0").ZipHash}
	add(Event{Kind: HasArtifact, Version: "v1.9.0", Artifact: a})
	add(Event{Kind: Removed, Version: "v1.10.0"})
	changed := moduleVersion("v1.9.0", 3)
	changed.Info = []byte(`{"Version":"v1.9.0"}`)
	add(Event{Kind: Changed, Module: changed})

	s, err := Fold(h, all(h, blocks))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(s.List()), "v1.9.0\nv2.0.0-rc.1+incompatible\n"; got != want {
		t.Errorf("list is %q, want %q", got, want)
	}
	if got := s.Latest().Version; got != "v1.9.0" {
		t.Errorf("latest is %s", got)
	}
	if got := string(s.Module("v1.9.0").Info); got != string(changed.Info) {
		t.Errorf("info is %s", got)
	}
	if s.Module(pseudo) == nil || s.Module("v1.10.0") != nil {
		t.Error("wrong versions known")
	}
	if w := s.Withdrawn(); len(w) != 1 || w[0].Version != "v1.10.0" { // SEC-19
		t.Errorf("withdrawn: %v", w)
	}
	if got := s.Artifacts("v1.9.0"); len(got) != 1 || got[0] != a {
		t.Errorf("artifacts: %v", got)
	}
	for _, e := range []Event{
		{Kind: Published, Module: moduleVersion("v1.9.0", 0)},
		{Kind: Changed, Module: moduleVersion("v7.0.0", 0)},
		{Kind: Removed, Version: "v7.0.0"},
		{Kind: HasArtifact, Version: "v1.9.0", Artifact: a},
		{Kind: HasArtifact, Version: pseudo, Artifact: a},
		{Kind: Reordered, Order: []Run{{0, 1}, {1, 1}}},
	} {
		if _, err := s.Append(e); err == nil {
			t.Errorf("%v event accepted: %+v", e.Kind, e)
		}
	}
}

func TestHeaderIsStrict(t *testing.T) {
	good := serde.Encode()
	if h, err := DecodeHeader(good); err != nil || h != serde {
		t.Fatalf("header is %v, %v", h, err)
	}
	for _, bad := range [][]byte{nil, good[:len(good)-1], append(slices.Clone(good), 0), Header{"npm", "x"}.Encode(), Header{Cargo, ""}.Encode(), []byte("\x0a\x08hyperbee")} {
		if _, err := DecodeHeader(bad); !errors.Is(err, ErrMalformed) {
			t.Errorf("header %q: %v, want malformed", bad, err)
		}
	}
	newer := bytes.Replace(good, []byte("log\x01"), []byte("log\x02"), 1)
	if _, err := DecodeHeader(newer); !errors.Is(err, ErrFormat) {
		t.Errorf("newer format: %v", err)
	}
	// SEC-12: a log of another package is no log of this one.
	if _, err := Fold(Header{Cargo, "serde_json"}, all(serde, nil)); !errors.Is(err, ErrMalformed) {
		t.Errorf("log for another package: %v", err)
	}
}

// TestDeltaBomb: a few bytes must not fold to more than MaxFolded.
func TestDeltaBomb(t *testing.T) {
	s := NewState(serde)
	big := bytes.Repeat([]byte("x"), 8<<20)
	for i := range 20 {
		_, err := s.Append(Event{Kind: Published, Position: i, Line: big})
		if err == nil {
			continue
		}
		if !errors.Is(err, ErrTooLarge) || i != MaxFolded/len(big) {
			t.Errorf("event %d: %v", i, err)
		}
		return
	}
	t.Error("160 MiB folded")
}

// TestSizes holds what makes a full registry small: a line costs a tenth.
func TestSizes(t *testing.T) {
	s := NewState(serde)
	var lines [][]byte
	raw, packed := 0, 0
	for i := range 100 {
		lines = append(lines, line("serde", fmt.Sprintf("1.0.%d", i), 6, false))
		raw += len(lines[i])
	}
	for _, b := range update(t, s, file(lines...)) {
		packed += len(b)
	}
	if packed*8 > raw {
		t.Errorf("%d bytes of lines take %d", raw, packed)
	}
}

func BenchmarkAppendFold(b *testing.B) {
	var lines [][]byte
	for i := range 100 {
		lines = append(lines, line("serde", fmt.Sprintf("1.0.%d", i), 6, false))
	}
	f := file(lines...)
	var blocks [][]byte
	b.Run("append", func(b *testing.B) {
		b.SetBytes(int64(len(f)))
		for b.Loop() {
			blocks = update(b, NewState(serde), f)
		}
	})
	b.Run("fold", func(b *testing.B) {
		b.SetBytes(int64(len(f)))
		for b.Loop() {
			if _, err := Fold(serde, all(serde, blocks)); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkRegistry appends crates as a registry has them: most of few versions.
func BenchmarkRegistry(b *testing.B) {
	syn := synthetic.Cargo{Crates: 2000, Seed: 7}
	var crates []synthetic.Crate
	lines, raw := 0, 0
	for i := range syn.Crates {
		k := syn.Crate(i)
		crates = append(crates, k)
		lines, raw = lines+len(k.Lines), raw+len(k.File())
	}
	packed := 0
	for b.Loop() {
		packed = 0
		for _, k := range crates {
			s := NewState(Header{Cargo, k.Name})
			for i, l := range k.Lines {
				block, err := s.Append(Event{Kind: Published, Position: i, Line: l})
				if err != nil {
					b.Fatal(err)
				}
				packed += len(block)
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(lines), "ns/line")
	b.ReportMetric(100*float64(packed)/float64(raw), "%size")
}

// TestDictionariesStay: logs that exist could not be read with other texts.
func TestDictionariesStay(t *testing.T) {
	for text, want := range map[string]string{
		cargoText: "b83ea27a27ed21dc52a9261937eb5f25495c6a30b556057058727d18dcce112c",
		goText:    "57325eb4581d9910e6a4b7a8df28fc03d9d6fa31b0884359b45fac1da8cc0482",
	} {
		sum := sha256.Sum256([]byte(text))
		if got := hex.EncodeToString(sum[:]); got != want {
			t.Errorf("SHA-256 of a dictionary is %s, want %s", got, want)
		}
	}
}
