package synthetic

import (
	"bytes"
	"encoding/json"
	"testing"
)

func TestCargoLooksReal(t *testing.T) {
	c := Cargo{Crates: 3000, Seed: 1}
	lines, size, most := 0, 0, 0
	for i := range c.Crates {
		k := c.Crate(i)
		if again := c.Crate(i); !bytes.Equal(again.File(), k.File()) {
			t.Fatalf("crate %d differs from itself", i)
		}
		for _, l := range k.Lines {
			if !json.Valid(l) {
				t.Fatalf("not JSON: %s", l)
			}
			size += len(l)
		}
		lines += len(k.Lines)
		most = max(most, len(k.Lines))
	}
	if mean := lines / c.Crates; mean < 6 || mean > 10 {
		t.Errorf("%d versions a crate in the mean", mean)
	}
	if mean := size / lines; mean < 600 || mean > 1300 {
		t.Errorf("%d bytes a line in the mean", mean)
	}
	if most < 100 {
		t.Errorf("no crate has more than %d versions", most)
	}
	t.Logf("%d crates, %d lines, %d bytes, %d a line, at most %d versions", c.Crates, lines, size, size/lines, most)
}
