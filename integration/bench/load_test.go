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

// loadWorkers is how many workers a load has.
const loadWorkers = 2

// load sends equal GET requests over conns keep-alive connections for a [window]
// and returns the number of answers and the seconds that took. A worker first
// sends on all its connections and then reads from all, so that most reads find
// their answer there: the client needs the machine's two cores as little as may be.
func load(b *testing.B, conns int, addr, path string) (n, seconds float64) {
	b.Helper()
	request := fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", path, addr)
	var answers atomic.Int64
	var wg sync.WaitGroup
	start := time.Now()
	for range loadWorkers {
		wg.Go(func() {
			n, err := loadOne(addr, conns/loadWorkers, request, start.Add(window))
			if err != nil {
				b.Error(err)
			}
			answers.Add(int64(n))
		})
	}
	wg.Wait()
	return float64(answers.Load()), time.Since(start).Seconds()
}

// loadOne is a worker until the time is up, and returns how many answers it read.
func loadOne(addr string, n int, request []byte, until time.Time) (answers int, err error) {
	var conns []net.Conn
	var readers []*bufio.Reader
	for range n {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			return 0, err
		}
		defer conn.Close()
		conns = append(conns, conn)
		readers = append(readers, bufio.NewReaderSize(conn, 64<<10))
	}
	for time.Now().Before(until) {
		for _, c := range conns {
			if _, err := c.Write(request); err != nil {
				return answers, err
			}
		}
		for _, r := range readers {
			if err := skipAnswer(r); err != nil {
				return answers, err
			}
			answers++
		}
	}
	return answers, nil
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
// returns its address, or "" if nginx is not installed, and the CPU time that it
// has used so far, in seconds.
func nginx(b testing.TB, dir string) (addr string, cpu func() float64) {
	b.Helper()
	bin, err := exec.LookPath("nginx")
	if err != nil {
		b.Log("SKIPPED, NOT MEASURED: nginx is not installed")
		return "", nil
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0") // nginx cannot choose a port itself
	if err != nil {
		b.Fatal(err)
	}
	addr = ln.Addr().String()
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
			return addr, func() float64 { return childrenCPU(cmd.Process.Pid) }
		}
		time.Sleep(10 * time.Millisecond)
	}
	b.Fatal("nginx does not answer")
	return "", nil
}

// childrenCPU returns the CPU time that the children of a process have used, in
// seconds; see proc_pid_stat(5).
func childrenCPU(pid int) (seconds float64) {
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
	for _, child := range bytes.Fields(children) {
		stat, _ := os.ReadFile(fmt.Sprintf("/proc/%s/stat", child))
		_, rest, _ := bytes.Cut(stat, []byte(") ")) // begins with the third field
		if f := bytes.Fields(rest); len(f) > 12 {
			user, _ := strconv.Atoi(string(f[11]))
			system, _ := strconv.Atoi(string(f[12]))
			seconds += float64(user+system) / 100 // clock ticks, 100 a second on Linux
		}
	}
	return seconds
}
