//go:build unix

package main

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/cockroachdb/pebble/v2"
	"golang.org/x/crypto/blake2b"

	"github.com/pkgswarm/pkgswarm/importer"
	"github.com/pkgswarm/pkgswarm/integration/synthetic"
	"github.com/pkgswarm/pkgswarm/internal/testenv"
	"github.com/pkgswarm/pkgswarm/registry"
)

// compare imports an index in turn with two others who have to do with the same
// lines: what the machine allows (limit), and a JavaScript Hyperbee that puts
// each line under its name and version, which makes one core and one signature a
// thousand lines where the import makes one of each a package. It prints lines per second of processor
// time, medians of the rounds.
func compare(index, work string, lines int64, rounds int) error {
	node, err := exec.LookPath("node")
	if err != nil {
		return err
	}
	js, err := testenv.NewNode(node, "bench.mjs")
	if err != nil {
		return err
	}
	defer js.Close()
	sides := []struct {
		name string
		run  func() (seconds float64, err error)
	}{
		{"import", func() (float64, error) {
			if err := os.RemoveAll(work); err != nil {
				return 0, err
			}
			r, err := measure("import", work, cargoDir(index))
			return r.cpu.Seconds(), err
		}},
		{"limit", func() (float64, error) {
			if err := os.RemoveAll(work); err != nil {
				return 0, err
			}
			cpu := cpuTime()
			err := limit(index, work)
			return (cpuTime() - cpu).Seconds(), err
		}},
		{"JavaScript bee, in order", func() (float64, error) { return putJS(js, index, false) }},
		{"JavaScript bee, in no order", func() (float64, error) { return putJS(js, index, true) }},
	}
	figures := make([][]float64, len(sides))
	for range rounds {
		for i, s := range sides {
			cpu, err := s.run()
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			figures[i] = append(figures[i], float64(lines)/cpu)
		}
	}
	for i := range figures {
		slices.Sort(figures[i])
	}
	median := func(i int) float64 { return figures[i][rounds/2] }
	for i, s := range sides {
		fmt.Printf("%-28s %8.0f lines per CPU-s", s.name, median(i))
		if i > 0 {
			fmt.Printf("   import is %.2fx", median(0)/median(i))
		}
		fmt.Println()
	}
	return nil
}

// putJS puts an index into a Hyperbee in JavaScript.
func putJS(js *testenv.Node, index string, shuffle bool) (seconds float64, err error) {
	var r struct{ CPU float64 }
	err = js.Call("putIndex", map[string]any{"dir": index, "batch": 1000, "shuffle": shuffle}, &r)
	return r.CPU, err
}

// limit does to each line of an index what no import can do without: find its
// name, version and digest, hash it into a tree, write it and a node of a B-tree
// to Pebble, and sign once for a thousand of them.
func limit(index, work string) error {
	db, err := pebble.Open(work, &pebble.Options{MemTableSize: 16 << 20, FormatMajorVersion: pebble.FormatValueSeparation, Logger: quiet{}})
	if err != nil {
		return err
	}
	defer db.Close()
	l := &limiter{db: db, b: db.NewBatch(), key: ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))}
	d, err := importer.OpenCargoDir(index)
	if err != nil {
		return err
	}
	names, err := d.Names()
	if err != nil {
		return err
	}
	for _, name := range names {
		file, err := os.ReadFile(filepath.Join(index, filepath.FromSlash(synthetic.Path(name))))
		if err != nil {
			return err
		}
		for line := range bytes.Lines(file) {
			if err := l.line(name, bytes.TrimSuffix(line, []byte("\n"))); err != nil {
				return err
			}
		}
	}
	if err := l.commit(); err != nil {
		return err
	}
	return db.Flush()
}

type limiter struct {
	db   *pebble.DB
	b    *pebble.Batch
	key  ed25519.PrivateKey
	n    uint64
	root [32]byte
}

func (l *limiter) line(name string, line []byte) error {
	if _, err := registry.ParseCargoLine(registry.CrateName(name), line); err != nil {
		return err
	}
	leaf := blake2b.Sum256(line)
	l.root = blake2b.Sum256(append(leaf[:], l.root[:]...))
	l.n++
	if err := l.b.Set(binary.BigEndian.AppendUint64([]byte("line "), l.n), line, nil); err != nil {
		return err
	}
	if err := l.b.Set(binary.BigEndian.AppendUint64([]byte("node "), l.n), append(leaf[:], l.root[:]...), nil); err != nil {
		return err
	}
	if l.n%1000 == 0 {
		return l.commit()
	}
	return nil
}

func (l *limiter) commit() error {
	if err := l.b.Set([]byte("head"), ed25519.Sign(l.key, l.root[:]), nil); err != nil {
		return err
	}
	err := l.b.Commit(pebble.NoSync)
	l.b = l.db.NewBatch()
	return err
}

// quiet is a logger of Pebble.
type quiet struct{}

func (quiet) Infof(string, ...any)           {}
func (quiet) Errorf(format string, a ...any) { fmt.Fprintf(os.Stderr, format+"\n", a...) }
func (quiet) Fatalf(format string, a ...any) { panic(fmt.Sprintf(format, a...)) }
