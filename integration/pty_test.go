//go:build linux

package integration

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// columns and rows are the size of the terminals that people are taken to have.
const columns, rows = 80, 24

// A screen is a terminal as a person sees it, of unbounded length. It knows the
// control sequences that the program and cargo use, and notes those that it does
// not know.
type screen struct {
	mu      sync.Mutex
	lines   [][]rune
	row     int
	col     int
	pending []byte // of a sequence or character that is not complete
	erased  string // what was last erased or overwritten: a progress bar
	unknown []string
}

func (s *screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	data := append(s.pending, b...)
	for len(data) > 0 {
		n := s.next(data)
		if n == 0 {
			break
		}
		data = data[n:]
	}
	s.pending = append([]byte(nil), data...)
	return len(b), nil
}

// next takes one character or sequence and returns its length, 0 if it is not
// complete.
func (s *screen) next(b []byte) int {
	switch c := b[0]; {
	case c == '\x1b':
		return s.escape(b)
	case c == '\n':
		s.row++
		return 1
	case c == '\r':
		s.col = 0
		return 1
	case c < ' ':
		s.unknown = append(s.unknown, fmt.Sprintf("%q", c))
		return 1
	}
	text := string(b[:min(len(b), 4)])
	for i, r := range text {
		if i > 0 {
			return i + s.put([]rune(text)[0])
		}
		if r == '\uFFFD' && len(b) < 4 {
			return 0
		}
	}
	s.put([]rune(text)[0])
	return len(text)
}

func (s *screen) put(r rune) int {
	if s.col == columns {
		s.row, s.col = s.row+1, 0
	}
	for len(s.lines) <= s.row {
		s.lines = append(s.lines, nil)
	}
	line := s.lines[s.row]
	for len(line) <= s.col {
		line = append(line, ' ')
	}
	if s.col == 0 && r == ' ' {
		s.note(line)
	}
	line[s.col] = r
	s.lines[s.row] = line
	s.col++
	return 0
}

// note keeps a line that is about to be erased.
func (s *screen) note(line []rune) {
	if text := strings.TrimSpace(string(line)); text != "" {
		s.erased = text
	}
}

// escape handles ESC [ parameters letter.
func (s *screen) escape(b []byte) int {
	if len(b) < 2 {
		return 0
	}
	if b[1] != '[' {
		s.unknown = append(s.unknown, fmt.Sprintf("%q", b[:2]))
		return 2
	}
	end := 2
	for end < len(b) && (b[end] < 0x40 || b[end] > 0x7e) {
		end++
	}
	if end == len(b) {
		return 0
	}
	param := string(b[2:end])
	switch b[end] {
	case 'm': // colours
	case 'K':
		if s.row < len(s.lines) {
			s.note(s.lines[s.row])
			from := s.col
			if param == "2" {
				from = 0
			}
			s.lines[s.row] = s.lines[s.row][:min(from, len(s.lines[s.row]))]
		}
	case 'A':
		n, err := strconv.Atoi(param)
		if err != nil {
			n = 1
		}
		s.row = max(0, s.row-n)
	default:
		s.unknown = append(s.unknown, fmt.Sprintf("%q", b[:end+1]))
	}
	return end + 1
}

// text returns what is on the screen.
func (s *screen) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	for _, l := range s.lines {
		b.WriteString(strings.TrimRight(string(l), " ") + "\n")
	}
	return strings.TrimRight(b.String(), "\n") + "\n"
}

// A terminal is a command in a pseudo-terminal of a computer.
type terminal struct {
	t   testing.TB
	cmd *exec.Cmd
	screen
	end chan error
}

// openPTY returns both ends of a pseudo-terminal.
func openPTY(t testing.TB) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	fd := int(master.Fd())
	n, err := unix.IoctlGetUint32(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns})
	}
	if err == nil {
		slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		t.Fatalf("pseudo-terminal: %v", err)
	}
	return master, slave
}

// open types a command into a terminal of the computer.
func (c *computer) open(command string) *terminal {
	c.t.Helper()
	master, slave := openPTY(c.t)
	defer slave.Close()
	t := &terminal{t: c.t, cmd: c.command("sh", "-c", "exec "+command), end: make(chan error, 1)}
	t.cmd.Stdin, t.cmd.Stdout, t.cmd.Stderr = slave, slave, slave
	t.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	t.Write([]byte("$ " + command + "\r\n"))
	if err := c.Start(t.cmd); err != nil {
		c.t.Fatal(err)
	}
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			t.Write(buf[:n])
			if err != nil { // nobody has the other end any more
				t.end <- t.cmd.Wait()
				return
			}
		}
	}()
	return t
}

// close waits until the command has ended with an exit code.
func (t *terminal) close(code int) {
	t.t.Helper()
	select {
	case err := <-t.end:
		if got := max(0, exitCode(err)); err != nil && got != code || err == nil && code != 0 {
			t.t.Errorf("%s: %v, want exit code %d\n%s", t.cmd.Args[len(t.cmd.Args)-1], err, code, t.text())
		}
	case <-time.After(commandLimit):
		t.cmd.Process.Kill()
		t.t.Fatalf("%s does not end\n%s", t.cmd.Args, t.text())
	}
	if len(t.unknown) > 0 {
		t.t.Errorf("%s writes control sequences %s", t.cmd.Args, t.unknown)
	}
}

// await waits until text is on the screen.
func (t *terminal) await(text string) {
	t.t.Helper()
	for end := time.Now().Add(commandLimit); !strings.Contains(t.text(), text); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.t.Fatalf("%q does not come\n%s", text, t.text())
		}
	}
}

// A lockedBuilder is a strings.Builder that several goroutines may use.
type lockedBuilder struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedBuilder) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuilder) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
