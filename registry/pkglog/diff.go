package pkglog

import (
	"bytes"
	"slices"
)

// DiffIndex returns the events that lead from the folded crate log s to the
// upstream's index file. key names the version that a line is about; lines of
// equal keys are matched in the order they come. The events are the fewest that
// name every version added, changed or gone; when nothing differs there are none.
//
// Apply them in the order given: removals from the back, then a reordering,
// then changes, then additions from the front. s is not changed.
func DiffIndex(s *State, file []byte, key func(line []byte) string) []Event {
	lines, noNewline := SplitIndex(file)
	if len(lines) == 0 {
		if len(s.lines) == 0 {
			return nil
		}
		return []Event{{Kind: Removed, All: true}}
	}
	d := indexDiff{old: s.lines, lines: lines, noNewline: noNewline}
	if !d.extends() {
		d.match(key)
	}
	d.add()
	d.fixEnd(s.noNewline)
	return d.events
}

// SplitIndex splits an index file into lines without their newlines and reports
// whether the last newline is missing. Slices alias file.
func SplitIndex(file []byte) (lines [][]byte, noNewline bool) {
	if len(file) == 0 {
		return nil, false
	}
	noNewline = file[len(file)-1] != '\n'
	return bytes.Split(bytes.TrimSuffix(file, []byte{'\n'}), []byte{'\n'}), noNewline
}

type indexDiff struct {
	old, lines [][]byte // before and after
	noNewline  bool     // after
	from       []int    // for each line after, its position before, or -1; nil means prefix
	events     []Event
}

// extends reports whether the old lines are the first of the new ones, which is
// so for all but a few updates.
func (d *indexDiff) extends() bool {
	return len(d.old) <= len(d.lines) && slices.EqualFunc(d.old, d.lines[:len(d.old)], bytes.Equal)
}

// match pairs lines and emits removals, the reordering and changes.
func (d *indexDiff) match(key func([]byte) string) {
	at := make(map[string][]int)
	for i, l := range d.old {
		k := key(l)
		at[k] = append(at[k], i)
	}
	d.from = make([]int, len(d.lines))
	kept := make([]bool, len(d.old))
	for i, l := range d.lines {
		d.from[i] = -1
		if k := key(l); len(at[k]) > 0 {
			d.from[i], at[k] = at[k][0], at[k][1:]
			kept[d.from[i]] = true
		}
	}
	now := make([]int, len(d.old)) // position of an old line once others are removed
	for i, n := 0, 0; i < len(d.old); i++ {
		now[i] = n
		if kept[i] {
			n++
		}
	}
	for i := len(d.old) - 1; i >= 0; i-- {
		if !kept[i] {
			d.events = append(d.events, Event{Kind: Removed, Position: i})
		}
	}
	d.reorder(now)
	position := 0
	for i, f := range d.from {
		if f < 0 {
			continue
		}
		if !bytes.Equal(d.old[f], d.lines[i]) {
			d.events = append(d.events, Event{Kind: Changed, Position: position, Line: d.lines[i]})
		}
		position++
	}
}

func (d *indexDiff) reorder(now []int) {
	var runs []Run
	for _, f := range d.from {
		if f < 0 {
			continue
		}
		if n := len(runs); n > 0 && runs[n-1].First+runs[n-1].Count == now[f] {
			runs[n-1].Count++
		} else {
			runs = append(runs, Run{now[f], 1})
		}
	}
	if len(runs) > 1 {
		d.events = append(d.events, Event{Kind: Reordered, Order: runs})
	}
}

// add emits the lines that were not there before.
func (d *indexDiff) add() {
	d.events = slices.Grow(d.events, max(len(d.lines)-len(d.old), 0))
	for i, l := range d.lines {
		if d.from == nil && i < len(d.old) || d.from != nil && d.from[i] >= 0 {
			continue
		}
		d.events = append(d.events, Event{Kind: Published, Position: i, Line: l})
	}
}

// fixEnd sets the flag for the missing newline at the end of the file on the
// last event that can carry it, or adds one that does.
func (d *indexDiff) fixEnd(was bool) {
	last := -1
	for i := range d.events {
		if k := d.events[i].Kind; k == Published || k == Changed {
			d.events[i].NoNewline = d.noNewline
			last = i
		}
	}
	if last < 0 && was != d.noNewline {
		n := len(d.lines) - 1
		d.events = append(d.events, Event{Kind: Changed, Position: n, Line: d.lines[n], NoNewline: d.noNewline})
	}
}
