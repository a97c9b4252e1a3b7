package sparseindex_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"

	"github.com/pkgswarm/pkgswarm/registry"
	"github.com/pkgswarm/pkgswarm/registry/crates"
	"github.com/pkgswarm/pkgswarm/registry/fetch"
	"github.com/pkgswarm/pkgswarm/registry/upstream"
	"github.com/pkgswarm/pkgswarm/sparseindex"
)

// oneCrate is an index of one crate, whose files nobody has.
type oneCrate struct{}

func (oneCrate) Index(_ context.Context, name registry.CrateName) (*crates.File, error) {
	if name != "foo" {
		return nil, upstream.ErrNotFound
	}
	return &crates.File{Body: []byte("{\"name\":\"foo\"}\n"), ETag: `"1"`}, nil
}

func (oneCrate) Crate(context.Context, registry.CrateName, string) (*fetch.Body, error) {
	return nil, upstream.ErrNotFound
}

func (oneCrate) Search(string, int) ([]crates.Match, int) { return nil, 0 }

// A handler serves what cargo asks a registry. The error of an index decides the
// status: 404 is for what is known not to exist.
func Example() {
	srv := httptest.NewServer(sparseindex.New(sparseindex.Config{
		Index:   oneCrate{},
		Prefix:  "/cargo/",
		BaseURL: func(r *http.Request) string { return "http://" + r.Host + "/cargo" },
	}))
	defer srv.Close()
	for _, path := range []string{"3/f/foo", "3/b/bar"} {
		resp, err := http.Get(srv.URL + "/cargo/" + path)
		if err != nil {
			fmt.Println(err)
			return
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Printf("%d %q\n", resp.StatusCode, body)
	}
	// Output:
	// 200 "{\"name\":\"foo\"}\n"
	// 404 "not found\n"
}
