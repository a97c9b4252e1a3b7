package node

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"

	"github.com/pkgswarm/pkgswarm/core"
)

// maxCrash is how much of a crash report is looked at, in bytes.
const maxCrash = 1 << 20

// RecordCrashes keeps what the runtime has to say when a panic ends this process,
// so that the next start can do something about it. It is for a process that runs
// one node, with that data directory, which has been opened.
func RecordCrashes(data string) error {
	if fi, err := os.Lstat(crashFile(data)); err == nil && !fi.Mode().IsRegular() {
		os.RemoveAll(crashFile(data))
	}
	f, err := os.OpenFile(crashFile(data), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close() // the runtime has a descriptor of its own
	return debug.SetCrashOutput(f, debug.CrashOptions{})
}

func crashFile(data string) string { return filepath.Join(data, "store", "crash") }

// afterCrash sets the databases aside if the last process ended with a panic in
// one of them: Pebble takes some kinds of damage for faults of its own, in
// goroutines of its own, and would do so again at once (REL-5).
func (n *Node) afterCrash() error {
	name := crashFile(n.c.Data)
	f, err := os.Open(name)
	if err != nil {
		return nil // no crash
	}
	report, err := io.ReadAll(io.LimitReader(f, maxCrash))
	f.Close()
	if err != nil || len(report) == 0 {
		return nil
	}
	if err := os.Rename(name, name+".last"); err != nil {
		return err
	}
	what, _, _ := bytes.Cut(report, []byte("\n"))
	n.log.Error("the last process ended with a panic", "panic", string(what), "report", name+".last")
	if !bytes.Contains(report, []byte("github.com/cockroachdb/pebble")) {
		return nil
	}
	if err := core.Rebuild(n.coresDir()); err != nil {
		return err
	}
	return n.setAside(filepath.Join(n.c.Data, "store", "artifacts"), string(what))
}
