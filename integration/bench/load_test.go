package bench

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// loadConns is the number of connections that load uses.
const loadConns = 16

// load sends b.N equal GET requests over keep-alive connections with as little
// work as possible on the client's side, and reports requests a second.
func load(b *testing.B, addr, path string) {
	b.Helper()
	request := fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", path, addr)
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	b.ResetTimer()
	for range loadConns {
		wg.Go(func() {
			if err := loadOne(addr, request, &left); err != nil {
				b.Error(err)
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "req/s")
}

func loadOne(addr string, request []byte, left *atomic.Int64) error {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	r := bufio.NewReaderSize(conn, 64<<10)
	for left.Add(-1) >= 0 {
		if _, err := conn.Write(request); err != nil {
			return err
		}
		if err := skipAnswer(r); err != nil {
			return err
		}
	}
	return nil
}

// skipAnswer reads an answer that must be a 200 with a Content-Length.
func skipAnswer(r *bufio.Reader) error {
	length := -1
	for first := true; ; first = false {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		switch {
		case first && !bytes.HasPrefix(line, []byte("HTTP/1.1 200")):
			return fmt.Errorf("answer %q", line)
		case len(line) <= 2:
			if length < 0 {
				return fmt.Errorf("answer without a length")
			}
			_, err := io.CopyN(io.Discard, r, int64(length))
			return err
		case len(line) > 16 && bytes.EqualFold(line[:15], []byte("Content-Length:")):
			if length, err = strconv.Atoi(string(bytes.TrimSpace(line[15:]))); err != nil {
				return err
			}
		}
	}
}

// serve serves h on loopback until the benchmark ends, and returns its address.
func serve(b testing.TB, h http.Handler) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	s := &http.Server{Handler: h}
	go s.Serve(ln)
	b.Cleanup(func() { s.Close() })
	return ln.Addr().String()
}

// nginx serves the files below dir with nginx until the benchmark ends, and
// returns its address, or "" if nginx is not installed.
func nginx(b testing.TB, dir string) string {
	b.Helper()
	bin, err := exec.LookPath("nginx")
	if err != nil {
		b.Log("SKIPPED, NOT MEASURED: nginx is not installed")
		return ""
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0") // nginx cannot choose a port itself
	if err != nil {
		b.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()
	work := b.TempDir()
	conf := filepath.Join(work, "nginx.conf")
	text := fmt.Sprintf(`daemon off; user root; worker_processes auto; pid %[1]s/pid; error_log %[1]s/error;
events { worker_connections 1024; }
http { access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000000; client_body_temp_path %[1]s/c; proxy_temp_path %[1]s/p;
fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s; open_file_cache max=1000; default_type text/plain;
server { listen %[2]s; root %[3]s; } }
`, work, addr, dir)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(bin, "-c", conf, "-e", filepath.Join(work, "error"))
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	})
	for range 200 {
		if conn, err := net.Dial("tcp", addr); err == nil {
			conn.Close()
			return addr
		}
		time.Sleep(10 * time.Millisecond)
	}
	b.Fatal("nginx does not answer")
	return ""
}
