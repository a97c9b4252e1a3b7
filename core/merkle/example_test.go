package merkle_test

import (
	"fmt"

	"github.com/pkgswarm/pkgswarm/core/merkle"
)

// The tree of two blocks has their parent as its only root.
func ExampleTreeHash() {
	a, b := merkle.Leaf(0, []byte("hello")), merkle.Leaf(1, []byte("world"))
	root := merkle.Parent(a, b)
	fmt.Printf("node %d is of %d bytes\n", root.Index, root.Size)
	fmt.Printf("%x\n", merkle.TreeHash([]merkle.Node{root}))
	// Output:
	// node 1 is of 10 bytes
	// 28ac717e6b6a3fe16b4363f16cf1a308edceccf4a05ec501bd05fdbe5b42215b
}
