package importer_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/importer"
	"github.com/pkgswarm/pkgswarm/registry/catalog"
)

// An index with one crate becomes a package log and a catalog that names it; the
// same again signs nothing.
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "importer")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	index := filepath.Join(dir, "index")
	if err := os.MkdirAll(filepath.Join(index, "3", "f"), 0o755); err != nil {
		log.Fatal(err)
	}
	line := fmt.Sprintf(`{"name":"foo","vers":"1.0.0","deps":[],"cksum":"%064d","features":{},"yanked":false}`+"\n", 1)
	if err := os.WriteFile(filepath.Join(index, "3", "f", "foo"), []byte(line), 0o644); err != nil {
		log.Fatal(err)
	}

	operator := catalog.NewOperator(catalog.NewSeed())
	store, err := core.OpenStore(filepath.Join(dir, "store"), importer.StoreOptions())
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	manifest, pairs := operator.Catalog()
	c, err := store.Create(manifest, pairs...)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	memory, err := catalog.OpenMemory(filepath.Join(dir, "heads")) // not with the store: SEC-16
	if err != nil {
		log.Fatal(err)
	}
	w, err := catalog.OpenWriter(ctx, c, memory)
	if err != nil {
		log.Fatal(err)
	}

	im := importer.New(importer.Config{
		Logs:    &importer.CoreLogs{Store: store, Operator: operator},
		Catalog: w,
		Dir:     filepath.Join(dir, "importer"),
	})
	src, err := importer.OpenCargoDir(index)
	if err != nil {
		log.Fatal(err)
	}
	for range 2 {
		sum, err := im.Run(ctx, src)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(sum.Packages, "crate,", sum.Events, "blocks signed")
	}
	// Output:
	// 1 crate, 2 blocks signed
	// 1 crate, 0 blocks signed
}
