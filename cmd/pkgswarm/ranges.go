package main

import (
	"fmt"
	"strconv"
	"strings"
)

// A blockRange is [from, to).
type blockRange struct{ from, to uint64 }

func parseIndex(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 53)
	if err != nil {
		return 0, &exitError{exitUsage, fmt.Errorf("%q is not a block number", s), "block numbers begin at 0"}
	}
	return n, nil
}

// parseRange reads INDEX, FROM..TO, FROM.. or ..TO of a core of length blocks.
func parseRange(s string, length uint64) (r blockRange, err error) {
	from, to, isRange := strings.Cut(s, "..")
	r.to = length
	if from != "" || !isRange {
		if r.from, err = parseIndex(from); err != nil {
			return r, err
		}
	}
	switch {
	case !isRange:
		r.to = r.from + 1
	case to != "":
		if r.to, err = parseIndex(to); err != nil {
			return r, err
		}
	}
	if r.from > r.to {
		return r, &exitError{exitUsage, fmt.Errorf("range %q ends before it begins", s), "a range is FROM..TO, without TO itself"}
	}
	return r, nil
}

// parseRanges reads ranges; none is all.
func parseRanges(args []string, length uint64) ([]blockRange, error) {
	if len(args) == 0 {
		return []blockRange{{0, length}}, nil
	}
	var out []blockRange
	for _, arg := range args {
		r, err := parseRange(arg, length)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}
