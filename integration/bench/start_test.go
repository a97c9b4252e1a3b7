package bench

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// BenchmarkStart is goal N1: the time from starting the program until it is ready,
// its memory when idle, and the size of its file.
func BenchmarkStart(b *testing.B) {
	dir := b.TempDir()
	bin := filepath.Join(dir, "pkgswarm")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", bin, "./cmd/pkgswarm")
	build.Dir = "../.."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("build: %v\n%s", err, out)
	}
	fi, err := os.Stat(bin)
	if err != nil {
		b.Fatal(err)
	}
	var ready, memory []float64
	for b.Loop() {
		for range 2 * rounds {
			r, m := startOnce(b, bin, dir)
			ready, memory = append(ready, r), append(memory, m)
		}
	}
	alone := func(what, unit string, v, want float64) {
		add(figure{"N1", what, unit, v, 0, "", v, "%.1f " + unit, want, false})
	}
	alone("start to ready", "ms", median(ready), 100)
	alone("memory when idle", "MB", median(memory), 40)
	alone("program", "MB", float64(fi.Size())/1e6, 30)
}

// startOnce returns how long a start took, in milliseconds, and the memory that the
// program then had, in MB.
func startOnce(b *testing.B, bin, dir string) (ready, memory float64) {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	cmd := exec.CommandContext(ctx, bin, "serve", "--listen", "127.0.0.1:0", "--no-lan", "--data", filepath.Join(dir, "data"), "--state", filepath.Join(dir, "state"))
	stderr, err := cmd.StderrPipe()
	if err != nil {
		b.Fatal(err)
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	line, err := bufio.NewReader(stderr).ReadString('\n')
	url := line[strings.LastIndexByte(line, ' ')+1:]
	if err != nil || !strings.Contains(line, "ready") {
		b.Fatalf("first line %q, %v", line, err)
	}
	get(b, strings.TrimSpace(url)+"/readyz")
	ready = milliseconds(time.Since(start))
	time.Sleep(200 * time.Millisecond)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	stop()
	cmd.Wait()
	return ready, float64(field(status, "VmRSS:")) * 1024 / 1e6
}

// field returns the number behind a name in a file of /proc, in KiB.
func field(file []byte, name string) int {
	_, rest, _ := bytes.Cut(file, []byte(name))
	f := bytes.Fields(rest)
	if len(f) == 0 {
		return 0
	}
	n, _ := strconv.Atoi(string(f[0]))
	return n
}
