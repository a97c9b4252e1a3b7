package registry

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/bits"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	minLine    = 90      // bytes of an index line, about: a digest has 64
	maxLine    = 1 << 20 // bytes of an index line
	maxNesting = 64      // of JSON
)

// A CargoLine is what this program reads from a line of a cargo index file. The
// rest of the line is kept, not interpreted.
type CargoLine struct {
	Raw     []byte // without the newline; part of the file's buffer
	Name    string // as spelt here
	Vers    string
	Cksum   [32]byte // SHA-256 of the .crate
	Yanked  bool
	PubTime string // RFC 3339; empty if the line does not tell
}

// ParseCargoIndex parses the index file of a crate. It refuses a file with a line
// that is not a JSON object, names another crate, or has no digest (SEC-7). It
// does not refuse two lines of one version: old crates have such, with different
// digests, and the line's .crate may be either.
func ParseCargoIndex(name CrateName, file []byte) ([]CargoLine, error) {
	lines := make([]CargoLine, 0, min(bytes.Count(file, []byte{'\n'}), len(file)/minLine)+1)
	n := 0
	for raw := range bytes.Lines(file) {
		n++
		if raw = bytes.TrimRight(raw, "\r\n"); len(raw) == 0 {
			continue
		}
		l, err := ParseCargoLine(name, raw)
		if err != nil {
			return nil, fmt.Errorf("index file of %s: line %d: %w", name, n, err)
		}
		lines = append(lines, l)
	}
	return lines, nil
}

// ParseCargoLine parses one line, without its newline, of a crate's index file.
func ParseCargoLine(name CrateName, raw []byte) (CargoLine, error) {
	l := CargoLine{Raw: raw}
	if len(raw) > maxLine {
		return l, fmt.Errorf("%d bytes, more than %d", len(raw), maxLine)
	}
	if !utf8.Valid(raw) {
		return l, errors.New("not UTF-8")
	}
	s := &scanner{b: raw}
	var sum []byte
	err := s.object(func(key []byte) (err error) {
		switch string(key) {
		case "name":
			l.Name, err = s.string()
		case "vers":
			l.Vers, err = s.string()
		case "cksum":
			sum, err = s.bytes()
		case "yanked":
			l.Yanked, err = s.bool()
		case "pubtime":
			l.PubTime, err = s.string()
		default:
			err = s.skip(1)
		}
		return err
	})
	if err == nil {
		err = s.end()
	}
	if err != nil {
		return l, err
	}
	if !strings.EqualFold(l.Name, string(name)) {
		return l, fmt.Errorf("it is about %.80q", l.Name)
	}
	if err := CheckCrateVersion(l.Vers); err != nil {
		return l, err
	}
	if k, err := hex.Decode(l.Cksum[:], sum[:min(len(sum), 64)]); err != nil || k != 32 || len(sum) != 64 {
		return l, fmt.Errorf("cksum %.80q is not 64 hex digits", sum)
	}
	return l, nil
}

// A scanner reads JSON, of which it keeps what it is asked for. It checks the
// structure and the nesting, but not the grammar of numbers and escapes of what
// it skips.
type scanner struct {
	b []byte
	i int
}

func (s *scanner) errorf(format string, args ...any) error {
	return fmt.Errorf("byte %d: "+format, append([]any{s.i}, args...)...)
}

// peek returns the next byte that is not white space, or 0 at the end.
func (s *scanner) peek() byte {
	for ; s.i < len(s.b); s.i++ {
		switch c := s.b[s.i]; c {
		case ' ', '\t', '\r', '\n':
		default:
			return c
		}
	}
	return 0
}

func (s *scanner) take(want byte) error {
	if c := s.peek(); c != want {
		return s.errorf("want %q, have %q", want, c)
	}
	s.i++
	return nil
}

func (s *scanner) end() error {
	if s.peek() != 0 || s.i < len(s.b) {
		return s.errorf("more after the object")
	}
	return nil
}

// object reads an object, calling member with each key to read its value.
func (s *scanner) object(member func(key []byte) error) error {
	if err := s.take('{'); err != nil {
		return err
	}
	return s.list('}', func() error {
		key, err := s.bytes()
		if err != nil {
			return err
		}
		if err := s.take(':'); err != nil {
			return err
		}
		return member(key)
	})
}

// list reads what item reads, separated by commas, up to the closing byte.
func (s *scanner) list(closing byte, item func() error) error {
	if s.peek() == closing {
		s.i++
		return nil
	}
	for {
		if err := item(); err != nil {
			return err
		}
		switch c := s.peek(); c {
		case ',':
			s.i++
		case closing:
			s.i++
			return nil
		default:
			return s.errorf("want a comma or %q, have %q", closing, c)
		}
	}
}

// raw reads a string and returns it with its quotes, and whether it has escapes.
func (s *scanner) raw() ([]byte, bool, error) {
	if err := s.take('"'); err != nil {
		return nil, false, err
	}
	start, escapes := s.i-1, false
	for ; s.i < len(s.b); s.i++ {
		s.i += plain(s.b[s.i:])
		if s.i == len(s.b) {
			break
		}
		switch c := s.b[s.i]; {
		case c == '"':
			s.i++
			return s.b[start:s.i], escapes, nil
		case c == '\\':
			escapes = true
			s.i++
		case c < 0x20:
			return nil, false, s.errorf("control character in a string")
		}
	}
	return nil, false, s.errorf("string without an end")
}

// plain returns how many bytes at the front of b are of a string and mean
// themselves, eight at a time: no quotes, backslashes or control characters.
func plain(b []byte) int {
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	n := 0
	for ; n+8 <= len(b); n += 8 {
		x := binary.LittleEndian.Uint64(b[n:])
		quote, slash := x^'"'*ones, x^'\\'*ones
		// The lowest marked byte is one that was looked for; those above may not be.
		if m := ((quote-ones)&^quote | (slash-ones)&^slash | (x-' '*ones)&^x) & tops; m != 0 {
			return n + bits.TrailingZeros64(m)/8
		}
	}
	return n
}

// bytes reads a string, or null as an empty one. What it returns may be part of
// what is read.
func (s *scanner) bytes() ([]byte, error) {
	if s.peek() == 'n' {
		return nil, s.skip(0)
	}
	raw, escapes, err := s.raw()
	if err != nil {
		return nil, err
	}
	if !escapes {
		return raw[1 : len(raw)-1], nil
	}
	// What names and versions may hold needs no escapes, so this is rare. Go's
	// strings differ from JSON's in "\/" only.
	v, err := strconv.Unquote(strings.ReplaceAll(string(raw), `\/`, `/`))
	if err != nil {
		return nil, s.errorf("malformed string")
	}
	return []byte(v), nil
}

func (s *scanner) string() (string, error) {
	b, err := s.bytes()
	return string(b), err
}

func (s *scanner) bool() (bool, error) {
	v := s.peek() == 't'
	return v, s.skip(0)
}

// skip reads a value of any kind, which is in that many objects and arrays.
func (s *scanner) skip(depth int) error {
	switch c := s.peek(); {
	case (c == '{' || c == '[') && depth >= maxNesting:
		return s.errorf("nested more than %d deep", maxNesting)
	case c == '"':
		_, _, err := s.raw()
		return err
	case c == '{':
		s.i++
		return s.list('}', func() error {
			if _, _, err := s.raw(); err != nil {
				return err
			}
			if err := s.take(':'); err != nil {
				return err
			}
			return s.skip(depth + 1)
		})
	case c == '[':
		s.i++
		return s.list(']', func() error { return s.skip(depth + 1) })
	case c == '-' || '0' <= c && c <= '9':
		for s.i < len(s.b) && strings.IndexByte("+-.eE0123456789", s.b[s.i]) >= 0 {
			s.i++
		}
		return nil
	}
	for _, word := range []string{"null", "true", "false"} {
		if bytes.HasPrefix(s.b[s.i:], []byte(word)) {
			s.i += len(word)
			return nil
		}
	}
	return s.errorf("no JSON value")
}
