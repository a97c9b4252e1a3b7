package httpguard

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func ok(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "ok %s", r.Header.Get("Range")) }

// serve answers raw requests through a guard on a real connection.
func serve(t *testing.T, c Config, h http.HandlerFunc) net.Addr {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if c.Hosts == nil {
		c.Hosts = append(LoopbackHosts(7070), "mirror.example.org")
	}
	srv := Server(New(c, h), nil)
	go srv.Serve(Listen(ln))
	t.Cleanup(func() { srv.Close() })
	return ln.Addr()
}

// roundTrip sends raw bytes and returns all status lines and whether the server
// closed the connection by itself.
func roundTrip(t *testing.T, addr net.Addr, raw string) (statuses []string, body string) {
	t.Helper()
	c, err := net.Dial(addr.Network(), addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	io.WriteString(c, raw)
	c.(*net.TCPConn).CloseWrite()
	b, _ := io.ReadAll(c)
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "HTTP/1.") {
			statuses = append(statuses, line[9:12])
		}
	}
	return statuses, string(b)
}

func TestHost(t *testing.T) { // SEC-50
	addr := serve(t, Config{}, ok)
	for host, want := range map[string]string{
		"127.0.0.1:7070":                "200",
		"localhost:7070":                "200",
		"LOCALHOST:7070":                "200",
		"[::1]:7070":                    "200",
		"mirror.example.org":            "200",
		"localhost":                     "421",
		"localhost:80":                  "421",
		"evil.example:7070":             "421",
		"localhost.evil.example:7070":   "421",
		"evil-localhost:7070":           "421",
		"localhost.:7070":               "421",
		"user@localhost:7070":           "400",
		"2130706433:7070":               "421",
		"127.1:7070":                    "421",
		"127.0.0.1:7070, evil.example":  "400",
		"":                              "421",
		"mirror.example.org:7070":       "421",
		"127.0.0.1:7070\r\nHost: evil":  "400",
		"evil\r\nHost: 127.0.0.1:7070":  "400",
		"[::ffff:127.0.0.1]:7070":       "421",
		"[::1%25lo]:7070":               "421",
		"127.0.0.1:7070.evil.example":   "421",
		"127.0.0.1:07070":               "421",
		"0x7f000001:7070":               "421",
		"localhost:7070 evil.example":   "400",
		"localhost:7070\x00evil":        "400",
		"xn--lcalhost-54a:7070":         "421",
		"127.0.0.1:7070/../evil":        "400",
		"127.0.0.1:7070?x":              "400",
		"127.0.0.1:7070#x":              "400",
		"127.0.0.1:7070\\@evil.example": "400",
	} {
		got, _ := roundTrip(t, addr, "GET / HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n")
		if len(got) != 1 || got[0] != want && !(want == "400" && got[0] == "421") {
			t.Errorf("Host %q: %v, want %s", host, got, want)
		}
	}
	if got, _ := roundTrip(t, addr, "GET / HTTP/1.1\r\n\r\n"); len(got) != 1 || got[0] != "400" {
		t.Errorf("no Host: %v, want 400", got)
	}
}

func TestFraming(t *testing.T) { // SEC-54, SEC-40
	addr := serve(t, Config{}, ok)
	const host = "Host: 127.0.0.1:7070\r\n"
	second := "GET /second HTTP/1.1\r\n" + host + "\r\n"
	for name, raw := range map[string]string{
		"GET with a body":      "GET / HTTP/1.1\r\n" + host + "Content-Length: " + fmt.Sprint(len(second)) + "\r\n\r\n" + second,
		"HEAD with a body":     "HEAD / HTTP/1.1\r\n" + host + "Content-Length: 2\r\n\r\nxx" + second,
		"GET, chunked":         "GET / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + second,
		"two lengths":          "POST / HTTP/1.1\r\n" + host + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx" + second,
		"length and chunked":   "GET / HTTP/1.1\r\n" + host + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + second,
		"space before colon":   "GET / HTTP/1.1\r\n" + host + "Content-Length : 2\r\n\r\nxx" + second,
		"absolute form":        "GET http://127.0.0.1:7070/ HTTP/1.1\r\n" + host + "\r\n" + second,
		"absolute, other host": "GET http://evil.example/ HTTP/1.1\r\n" + host + "\r\n" + second,
		"CONNECT":              "CONNECT evil.example:443 HTTP/1.1\r\n" + host + "\r\n" + second,
		"TRACE":                "TRACE / HTTP/1.1\r\n" + host + "\r\n" + second,
		"asterisk":             "OPTIONS * HTTP/1.1\r\n" + host + "\r\n",
		"HTTP/0.9":             "GET /\r\n",
		"encoded slash":        "GET /cargo/..%2fetc HTTP/1.1\r\n" + host + "\r\n" + second,
		"encoded slash alone":  "GET /cargo/a%2fb HTTP/1.1\r\n" + host + "\r\n" + second,
		"encoded backslash":    "GET /cargo/a%5Cb HTTP/1.1\r\n" + host + "\r\n" + second,
		"dots":                 "GET /cargo/../etc HTTP/1.1\r\n" + host + "\r\n" + second,
		"encoded dots":         "GET /cargo/%2e%2e/etc HTTP/1.1\r\n" + host + "\r\n" + second,
		"backslash":            "GET /cargo/%5c..%5cetc HTTP/1.1\r\n" + host + "\r\n" + second,
		"NUL":                  "GET /cargo/a%00b HTTP/1.1\r\n" + host + "\r\n" + second,
		"invalid UTF-8":        "GET /cargo/%ff HTTP/1.1\r\n" + host + "\r\n" + second,
		"header of 70 KB":      "GET / HTTP/1.1\r\n" + host + "X: " + strings.Repeat("x", 70<<10) + "\r\n\r\n" + second,
	} {
		got, body := roundTrip(t, addr, raw)
		if strings.Contains(body, "ok") || len(got) > 1 {
			t.Errorf("%s: answered %v %q, want one refusal and the end", name, got, body)
		}
		if len(got) != 1 || got[0][0] != '4' && got[0] != "501" {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestBrowsers(t *testing.T) { // SEC-51
	h := New(Config{Hosts: LoopbackHosts(7070), Pages: []string{"/"}}, http.HandlerFunc(ok))
	for _, c := range []struct {
		path    string
		headers string
		want    int
	}{
		{"/cargo/config.json", "", 200},
		{"/api/v1/status", "Origin=http://127.0.0.1:7070", 200},
		{"/api/v1/status", "Origin=http://127.0.0.1:8080", 403},
		{"/api/v1/status", "Origin=null", 403},
		{"/api/v1/status", "Origin=https://evil.example", 403},
		{"/cargo/config.json", "Sec-Fetch-Site=cross-site;Sec-Fetch-Mode=no-cors;Sec-Fetch-Dest=image", 403},
		{"/cargo/config.json", "Sec-Fetch-Site=same-site", 403},
		{"/api/v1/status", "Sec-Fetch-Site=same-origin", 200},
		{"/", "Sec-Fetch-Site=cross-site;Sec-Fetch-Mode=navigate;Sec-Fetch-Dest=document", 200},
		{"/", "Sec-Fetch-Site=cross-site;Sec-Fetch-Mode=navigate;Sec-Fetch-Dest=iframe", 403},
		{"/", "Sec-Fetch-Site=cross-site;Sec-Fetch-Mode=no-cors;Sec-Fetch-Dest=document", 403},
		{"/", "Sec-Fetch-Site=cross-site;Sec-Fetch-Mode=websocket;Sec-Fetch-Dest=websocket", 403},
		{"/", "Sec-Fetch-Site=same-site;Sec-Fetch-Mode=cors;Sec-Fetch-Dest=empty", 403},
		{"/", "Sec-Fetch-Site=unheard-of", 403},
		{"/api/v1/status", "Sec-Fetch-Site=cross-site;Sec-Fetch-Mode=navigate;Sec-Fetch-Dest=document", 403},
		{"/", "Origin=https://evil.example;Sec-Fetch-Site=cross-site;Sec-Fetch-Mode=navigate;Sec-Fetch-Dest=document", 403},
	} {
		r := httptest.NewRequest("GET", c.path, nil)
		r.RequestURI, r.URL.Host, r.URL.Scheme, r.Host = c.path, "", "", "127.0.0.1:7070"
		for kv := range strings.SplitSeq(c.headers, ";") {
			if k, v, ok := strings.Cut(kv, "="); ok {
				r.Header.Set(k, v)
			}
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != c.want {
			t.Errorf("GET %s with %q = %d, want %d", c.path, c.headers, w.Code, c.want)
		}
		if w.Header().Get("X-Content-Type-Options") != "nosniff" || w.Header().Get("Cross-Origin-Resource-Policy") != "same-origin" ||
			w.Header().Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("GET %s: headers %v", c.path, w.Header())
		}
	}
}

func TestManyRanges(t *testing.T) { // SEC-55
	addr := serve(t, Config{}, ok)
	_, body := roundTrip(t, addr, "GET / HTTP/1.1\r\nHost: localhost:7070\r\nConnection: close\r\nRange: bytes="+
		strings.Repeat("0-,", 1300)+"0-\r\n\r\n")
	if !strings.HasSuffix(body, "ok ") {
		t.Errorf("1301 ranges reached the handler: %.200q", body)
	}
}

func TestAnyAddress(t *testing.T) {
	h := New(Config{AnyAddress: true, Ports: []uint16{7070}}, http.HandlerFunc(ok))
	for host, want := range map[string]int{"10.1.2.3:7070": 200, "[fd00::1]:7070": 200, "10.1.2.3:80": 421, "evil.example:7070": 421} {
		r := httptest.NewRequest("GET", "/", nil)
		r.RequestURI, r.URL.Host, r.URL.Scheme, r.Host = "/", "", "", host
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("Host %s = %d, want %d", host, w.Code, want)
		}
	}
}

func TestPanicContained(t *testing.T) { // REL-16
	n := 0
	addr := serve(t, Config{Panicked: func() { n++ }}, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/boom" {
			w.Write([]byte("half an ans"))
			panic("injected")
		}
		ok(w, r)
	})
	get := func(path string) string {
		_, body := roundTrip(t, addr, "GET "+path+" HTTP/1.1\r\nHost: localhost:7070\r\nConnection: close\r\n\r\n")
		return body
	}
	if body := get("/boom"); strings.HasSuffix(body, "0\r\n\r\n") {
		t.Errorf("the answer after a panic looks complete: %q", body)
	}
	if !strings.Contains(get("/"), "ok") || n != 1 {
		t.Errorf("panics counted: %d", n)
	}
}

// TestSlowReaderDropped has readers of different speeds. SEC-55
func TestSlowReaderDropped(t *testing.T) {
	for rate, want := range map[int]bool{500: false, 5000: true} { // bytes a second
		synctest.Test(t, func(t *testing.T) {
			ours, theirs := net.Pipe()
			c := &conn{Conn: ours, heard: func() {}, free: func() {}}
			defer c.Close()
			var reader sync.WaitGroup
			defer reader.Wait()
			defer ours.Close()
			reader.Go(func() {
				defer theirs.Close()
				io.ReadFull(theirs, make([]byte, 2)) // of earlier answers
				buf := make([]byte, rate)
				for {
					time.Sleep(time.Second)
					if _, err := io.ReadFull(theirs, buf); err != nil {
						return
					}
				}
			})
			for range 2 { // each ends, and is followed by silence
				if _, err := c.Write([]byte{0}); err != nil {
					t.Error(err)
				}
				c.SetWriteDeadline(time.Time{})
				time.Sleep(2 * slowWindow)
			}
			n, err := c.Write(make([]byte, rate*200))
			if (err == nil) != want {
				t.Errorf("%d B/s: wrote %d bytes, %v; want success %v", rate, n, err, want)
			}
			if want && n != rate*200 {
				t.Errorf("wrote %d bytes, want %d", n, rate*200)
			}
		})
	}
}

// A deadlines counts the deadlines of writing that a connection is given.
type deadlines struct {
	net.Conn
	n int
}

func (d *deadlines) SetWriteDeadline(t time.Time) error {
	d.n++
	return d.Conn.SetWriteDeadline(t)
}

// Answers in quick succession share a deadline, which one set by others replaces.
func TestWriteDeadlines(t *testing.T) { // SEC-55
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		d := &deadlines{Conn: ours}
		c := &conn{Conn: d, heard: func() {}, free: func() {}}
		var reader sync.WaitGroup
		reader.Go(func() { io.Copy(io.Discard, theirs) })
		answer := func() {
			if _, err := c.Write([]byte{0}); err != nil {
				t.Error(err)
			}
			c.SetWriteDeadline(time.Time{})
		}
		for range 50 {
			answer()
			time.Sleep(100 * time.Millisecond)
		}
		if d.n < 4 || d.n > 6 {
			t.Errorf("5 s of answers: %d deadlines, want one each second", d.n)
		}
		before := d.n
		c.SetDeadline(time.Now().Add(time.Hour))
		answer()
		if d.n != before+2 {
			t.Errorf("after a deadline of somebody else: %d more, want it and our own", d.n-before)
		}
		c.Close()
		reader.Wait()
		theirs.Close()
	})
}

// TestFilesAreSentWhole checks the path that sendfile takes.
func TestFilesAreSentWhole(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	data := bytes.Repeat([]byte("0123456789"), 1<<20)
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	addr := serve(t, Config{}, func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, name) })
	c, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET /f HTTP/1.1\r\nHost: localhost:7070\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("got %d bytes, %v; want %d", len(got), err, len(data))
	}
}
