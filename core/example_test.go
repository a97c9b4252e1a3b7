package core_test

import (
	"context"
	"fmt"
	"log"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/core/merkle"
)

// A writer appends; a reader that knows the key alone gets one block, proven.
func Example() {
	ctx := context.Background()
	writer, reader := tempStore(), tempStore()
	defer writer.Close()
	defer reader.Close()

	notes, err := writer.Named("notes")
	if err != nil {
		log.Fatal(err)
	}
	length, err := notes.Append([]byte("first"), []byte("second"), []byte("third"))
	if err != nil {
		log.Fatal(err)
	}

	// Elsewhere. A proof travels as a message; package swarm sends them.
	replica, err := reader.Open(notes.Key())
	if err != nil {
		log.Fatal(err)
	}
	proof, err := notes.Prove(merkle.Request{
		Block:    &merkle.BlockRequest{Index: 1},
		Upgrade:  &merkle.UpgradeRequest{Length: length},
		Manifest: true,
	})
	if err != nil {
		log.Fatal(err)
	}
	if _, err := replica.Apply(proof); err != nil {
		log.Fatal(err)
	}
	block, err := replica.Get(ctx, 1)
	if err != nil {
		log.Fatal(err)
	}
	_, err = replica.Get(ctx, 2)
	fmt.Printf("%d blocks, block 1 is %q\n", replica.Length(), block)
	fmt.Println("block 2 is not here:", strings.Contains(err.Error(), core.ErrMissing.Error()))
	// Output:
	// 3 blocks, block 1 is "second"
	// block 2 is not here: true
}

// The key of a static core is a function of the content.
func ExampleHashStatic() {
	content := strings.NewReader("hello")
	tree, err := core.HashStatic(content, content.Size())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(tree.Key().Hex())
	// Output: 43674e76c44f75d9977b384ac4d7a5de0e96a5db453c72a0b6d7ec456e839f03
}

// tempStore opens a store whose directory is in memory.
func tempStore() *core.Store {
	s, err := core.OpenStore("store", core.Options{FS: vfs.NewMem()})
	if err != nil {
		log.Fatal(err)
	}
	return s
}
