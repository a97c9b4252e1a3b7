package upstream

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// REL-17: an origin that is down for an hour while it is asked all the time is
// told of once per interval, with the reason, and so is its return; one that comes
// and goes tells no more often.
func TestOutageTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged bytes.Buffer
		broken := true
		c := pipeClientFor(t, Config{Logger: slog.New(slog.NewTextHandler(&logged, nil))}, func(conn net.Conn, r *http.Request) {
			if broken {
				io.WriteString(conn, "HTTP/1.1 502 Bad\r\nContent-Length: 0\r\n\r\n")
				return
			}
			io.WriteString(conn, ok+"Content-Length: 1\r\n\r\na")
		})
		defer c.Close()
		asked := 0
		ask := func(d time.Duration) {
			for begin := time.Now(); time.Since(begin) < d; time.Sleep(500 * time.Millisecond) {
				asked++
				c.Get(t.Context(), Request{URL: fmt.Sprintf("http://up.example/%d", asked), Kind: text})
			}
		}
		// check says how many lines told of the fault, and of its end, since the last one.
		check := func(what string, down, up int) {
			t.Helper()
			text := logged.String()
			if d, u := strings.Count(text, "upstream is down"), strings.Count(text, "answers again"); d != down || u != up || strings.Count(text, "\n") != d+u {
				t.Errorf("%s: want %d lines of the fault and %d of its end:\n%s", what, down, up, text)
			}
			logged.Reset()
		}
		ask(time.Minute)
		if text := logged.String(); !strings.Contains(text, "upstream=http://up.example:80") || !strings.Contains(text, "502 Bad Gateway") {
			t.Errorf("the log does not say what failed and why: %s", text)
		}
		check("a minute", 1, 0)
		ask(time.Hour - time.Minute)
		check("an hour", int(time.Hour/tellEvery)-1, 0)
		broken = false
		ask(time.Minute)
		check("back", 0, 1)
		time.Sleep(tellEvery)
		for range 20 { // in four minutes
			broken = !broken
			ask(12 * time.Second)
		}
		check("on and off", 1, 1)
	})
}
