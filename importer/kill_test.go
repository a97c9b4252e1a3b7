package importer

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/integration/synthetic"
)

// killDir is set in the environment of the process that TestKilled kills: an
// operator's directory and the index it imports.
const killDir = "PKGSWARM_TEST_IMPORT"

// importForKill imports in this process, which is killed while it does.
func importForKill(dir string) error {
	n, err := newNode(filepath.Join(dir, "operator"), smallFlushes)
	if err != nil {
		return err
	}
	defer n.close()
	src, err := OpenCargoDir(filepath.Join(dir, "up"))
	if err != nil {
		return err
	}
	_, err = n.importer.Run(context.Background(), src)
	return err
}

func TestMain(m *testing.M) {
	if dir := os.Getenv(killDir); dir != "" {
		if err := importForKill(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// smallFlushes has the catalog flushed often, so that kills fall between flushes.
func smallFlushes(c *Config) { c.flushEvery = 128 }

// TestKilled kills an import with SIGKILL at random instants, starts it again
// each time, and compares what is signed in the end, to the last block, with a
// run that was left alone. REL-2, REL-14
func TestKilled(t *testing.T) {
	crates, kills := 2000, 100
	if testing.Short() {
		crates, kills = 300, 8
	}
	dir := t.TempDir()
	if _, _, err := (synthetic.Cargo{Crates: crates, Seed: 5, MeanVersions: 4}).Write(filepath.Join(dir, "up")); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	want := openNode(t, filepath.Join(dir, "undisturbed"), smallFlushes)
	want.run(t, cargoDir(t, filepath.Join(dir, "up")))
	whole := time.Since(start)

	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d, a whole run takes %v", seed, whole)
	r := rand.New(rand.NewPCG(seed, 0))
	for killed, rounds := 0, 1; killed < kills; rounds++ {
		killed += killUntilDone(t, dir, r, whole)
		n := openNode(t, filepath.Join(dir, "operator"), smallFlushes)
		n.run(t, cargoDir(t, filepath.Join(dir, "up")))
		wantSame(t, n, want)
		n.close()
		t.Logf("round %d, killed %d times", rounds, killed)
		if t.Failed() {
			return
		}
		if err := os.RemoveAll(filepath.Join(dir, "operator")); err != nil {
			t.Fatal(err)
		}
	}
}

// killUntilDone starts an import again and again, kills it after at most a part
// of the time that it takes, and returns how often, once it has ended by itself.
func killUntilDone(t *testing.T, dir string, r *rand.Rand, whole time.Duration) (killed int) {
	t.Helper()
	for {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), killDir+"="+dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// A little longer each time: a process may take longer to start than a part
		// of the import does, and then none would ever get anywhere.
		patience := 50*time.Millisecond + time.Duration(r.Int64N(int64(whole)/3)) + time.Duration(killed)*whole/8
		timer := time.AfterFunc(patience, func() { cmd.Process.Kill() })
		err := cmd.Wait()
		timer.Stop()
		if err == nil {
			return killed
		}
		if cmd.ProcessState.ExitCode() != -1 {
			t.Fatalf("import failed by itself: %v", err)
		}
		killed++
	}
}

// wantSame compares all that two operators have signed.
func wantSame(t *testing.T, got, want *operatorNode) {
	t.Helper()
	if got.head() != want.head() {
		t.Errorf("catalog is %s, undisturbed %s", got.head(), want.head())
	}
	for key, err := range want.store.Cores() {
		if err != nil {
			t.Fatal(err)
		}
		a, err := want.store.OpenExisting(key)
		if err != nil {
			t.Fatal(err)
		}
		b, err := got.store.OpenExisting(key)
		if err != nil {
			t.Fatalf("log %s: %v", key.Short(), err)
		}
		if a.Tree().Hash() != b.Tree().Hash() {
			t.Errorf("log %s has %d blocks, undisturbed %d, or others", key.Short(), b.Length(), a.Length())
		}
		a.Close()
		b.Close()
	}
}
