package lint

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
)

// TestRequirementsCited lists the security and reliability requirements that no
// test cites.
func TestRequirementsCited(t *testing.T) {
	cited := map[string]bool{}
	number := regexp.MustCompile(`\b(SEC|REL)-[0-9]+\b`)
	eachFile(t, func(path string, b []byte) {
		if !strings.HasSuffix(path, "_test.go") || path == "internal/lint/cited_test.go" {
			return
		}
		for _, m := range number.FindAllString(string(b), -1) {
			cited[m] = true
		}
	})
	for _, r := range requirements() {
		if !cited[r] {
			t.Errorf("no test cites %s", r)
		}
	}
}

// requirements returns the numbers that there are.
func requirements() (all []string) {
	for _, r := range []struct {
		kind   string
		lo, hi int
	}{{"SEC", 1, 19}, {"SEC", 20, 28}, {"SEC", 30, 35}, {"SEC", 40, 44}, {"SEC", 50, 57}, {"SEC", 60, 63}, {"REL", 1, 18}} {
		for i := r.lo; i <= r.hi; i++ {
			all = append(all, fmt.Sprintf("%s-%d", r.kind, i))
		}
	}
	return all
}
