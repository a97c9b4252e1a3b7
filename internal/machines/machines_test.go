//go:build linux

package machines

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func output(t *testing.T, m *Machine, u User, args ...string) string {
	t.Helper()
	cmd := m.Command(u, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := m.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Logf("%s: %v", args, err)
	}
	return strings.TrimSpace(out.String())
}

// TestMachines: what a machine writes is its own, its processes are alone, its
// network has the others and nothing of the host.
func TestMachines(t *testing.T) {
	n := New(t)
	a := n.Start(Config{Name: "a", Mounts: []Mount{{To: "/home"}}})
	b := n.Start(Config{Name: "b", ReadOnly: true})
	if got := output(t, a, User{Dir: "/home"}, "sh", "-c", "echo hello > f; mkdir /only-a; cat /home/f; ls -d /only-a; id -u"); got != "hello\n/only-a\n0" {
		t.Errorf("a's files: %q", got)
	}
	if got := output(t, b, User{}, "sh", "-c", "ls -d /only-a; touch /f"); !strings.Contains(got, "No such file") || !strings.Contains(got, "Read-only") {
		t.Errorf("b's files: %q", got)
	}
	if got := output(t, b, User{UID: 7, GID: 8}, "sh", "-c", "id -u; id -g; id -G"); got != "7\n8\n8" {
		t.Errorf("b's user: %q", got)
	}
	if got := output(t, a, User{}, "sh", "-c", "ls -d /proc/[0-9]* | wc -l"); len(got) != 1 {
		t.Errorf("%s processes are seen, want a few", got)
	}
	ln, err := a.Listen(":7000")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write([]byte("of a")) }))
	srv.Listener.Close()
	srv.Listener = ln
	srv.Start()
	defer srv.Close()
	if got := output(t, b, User{}, "sh", "-c", "getent hosts a"); !strings.Contains(got, a.Addr) {
		t.Errorf("b resolves a to %q", got)
	}
	err = b.h.inside(func() error {
		c, err := net.Dial("tcp", a.Addr+":7000")
		if err == nil {
			c.Close()
		}
		return err
	})
	if err != nil {
		t.Errorf("b cannot reach a: %v", err)
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil || strings.Contains(fmt.Sprint(addrs), a.Addr[:len("10.78.0.")]) {
		t.Errorf("the host's addresses are %v, %v", addrs, err)
	}
}

// TestForward: a server of the test is there on the machine, at the same address.
func TestForward(t *testing.T) {
	n := New(t)
	m := n.Start(Config{Name: "m"})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write([]byte("hello")) }))
	defer srv.Close()
	m.Forward(srv.Listener.Addr().String())
	s := n.Start(Config{Name: "s", Share: m})
	var resp *http.Response
	err := s.h.inside(func() (err error) {
		resp, err = (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get(srv.URL)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if s.Addr != m.Addr {
		t.Error("a shared network has two addresses")
	}
}

// TestRoot: a machine of a directory has what is in it and what is mounted.
func TestRoot(t *testing.T) {
	n := New(t)
	root, vol := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(vol, "f"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	m := n.Start(Config{Name: "m", Root: root, Mounts: []Mount{
		{From: vol, To: "/vol", ReadOnly: true},
		{From: "/bin", To: "/bin", ReadOnly: true}, {From: "/usr", To: "/usr", ReadOnly: true}, {From: "/lib", To: "/lib", ReadOnly: true}, {From: "/lib64", To: "/lib64", ReadOnly: true},
	}})
	if got := output(t, m, User{NoNew: true}, "/bin/sh", "-c", "cat /vol/f; touch /vol/g; ls -d /root"); !strings.HasPrefix(got, "x") || !strings.Contains(got, "Read-only") || !strings.Contains(got, "No such") {
		t.Errorf("got %q", got)
	}
}
