package lockfile_test

import (
	"fmt"
	"log"
	"strings"

	"github.com/pkgswarm/pkgswarm/registry/lockfile"
)

func Example() {
	packages, err := lockfile.Read("go.sum", strings.NewReader(
		"golang.org/x/mod v0.42.0 h1:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n"+
			"golang.org/x/mod v0.42.0/go.mod h1:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n"))
	if err != nil {
		log.Fatal(err)
	}
	for _, p := range packages {
		fmt.Println(p.Ecosystem, p.Name, p.Version, p.ModOnly)
	}
	// Output: go golang.org/x/mod v0.42.0 false
}
