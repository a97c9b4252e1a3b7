package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

// A longError has more to say than its text, as the database's errors have.
type longError struct{}

func (longError) Error() string                 { return "what failed" }
func (longError) Format(f fmt.State, verb rune) { fmt.Fprint(f, "attached stack trace") }

// REL-17: an error in the log is one line of what failed.
func TestLoggedError(t *testing.T) {
	var b bytes.Buffer
	slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{ReplaceAttr: plainError})).Error("message", "err", longError{})
	if s := b.String(); !strings.Contains(s, `err="what failed"`) || strings.Contains(s, "stack") {
		t.Errorf("logged %s", s)
	}
}
