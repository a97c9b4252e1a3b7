package bench

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"
)

// rounds is how often the sides of a comparison take turns.
const rounds = 5

// A figure is a line of the table.
type figure struct {
	goal, what   string
	unit         string
	ours, theirs float64
	against      string // whose theirs is; empty if nobody's
	result       float64
	form         string  // of result, such as "%.2fx"
	want         float64 // 0: no goal
	least        bool    // want is a lower bound, not an upper one
}

var table struct {
	mu      sync.Mutex
	figures []figure
}

// add puts a line into the table, in place of an earlier one of its name.
func add(f figure) {
	table.mu.Lock()
	defer table.mu.Unlock()
	for i, g := range table.figures {
		if g.what == f.what && g.unit == f.unit && g.against == f.against {
			table.figures[i] = f
			return
		}
	}
	table.figures = append(table.figures, f)
}

func TestMain(m *testing.M) {
	code := m.Run()
	if len(table.figures) > 0 {
		fmt.Printf("\n%s", text(table.figures))
	}
	os.Exit(code)
}

func text(figures []figure) string {
	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "goal\twhat\tours\tagainst\ttheirs\tresult\twanted\t")
	for _, f := range figures {
		theirs, wanted, verdict := "", "", ""
		if f.against != "" {
			theirs = fmt.Sprintf("%.4g", f.theirs)
		}
		switch {
		case f.want == 0:
		case f.least:
			wanted = fmt.Sprintf(">= "+f.form, f.want)
		default:
			wanted = fmt.Sprintf("<= "+f.form, f.want)
		}
		if f.want != 0 && f.result != f.want && f.least == (f.result < f.want) {
			verdict = "MISSED"
		}
		fmt.Fprintf(w, "%s\t%s, %s\t%.4g\t%s\t%s\t"+f.form+"\t%s\t%s\n",
			f.goal, f.what, f.unit, f.ours, f.against, theirs, f.result, wanted, verdict)
	}
	w.Flush()
	return out.String()
}

// A side is one party of a comparison: something that yields a figure.
type side struct {
	name string
	run  func() float64
}

// turns has the sides take turns, each round beginning with another, and returns
// the figures of each, a round's at the same index.
func turns(b *testing.B, sides ...side) map[string][]float64 {
	figures := make(map[string][]float64)
	first := 0
	for b.Loop() {
		for range rounds {
			for i := range sides {
				s := sides[(first+i)%len(sides)]
				figures[s.name] = append(figures[s.name], s.run())
			}
			first++
		}
	}
	return figures
}

// ratio returns the middle of the ratios of ours to theirs, round by round.
func ratio(ours, theirs []float64) float64 {
	r := make([]float64, len(ours))
	for i := range r {
		r[i] = ours[i] / theirs[i]
	}
	return median(r)
}

// excess returns the middle of the differences of ours to theirs, round by round.
func excess(ours, theirs []float64) float64 {
	d := make([]float64, len(ours))
	for i := range d {
		d[i] = ours[i] - theirs[i]
	}
	return median(d)
}

func milliseconds(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }

// percentile returns the value below which p of 100 of v are.
func percentile(v []time.Duration, p int) float64 {
	ms := make([]float64, len(v))
	for i, d := range v {
		ms[i] = milliseconds(d)
	}
	return sorted(ms)[len(ms)*p/100]
}

func sorted(v []float64) []float64 { return slices.Sorted(slices.Values(v)) }

// median returns the middle one of figures.
func median(v []float64) float64 { return sorted(v)[len(v)/2] }
