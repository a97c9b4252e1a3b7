package goproxy_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"

	"github.com/pkgswarm/pkgswarm/goproxy"
	"github.com/pkgswarm/pkgswarm/registry/fetch"
	"github.com/pkgswarm/pkgswarm/registry/modules"
	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

// oneModule has the version list of one module, and nothing else.
type oneModule struct{}

func (oneModule) List(_ context.Context, path string) (*modules.File, error) {
	if path != "example.com/Foo" {
		return nil, upstream.ErrNotFound
	}
	return &modules.File{Body: []byte("v1.0.0\n"), ETag: `"1"`}, nil
}

func (oneModule) Latest(context.Context, string) (*modules.File, error) {
	return nil, upstream.ErrNotFound
}

func (oneModule) Info(context.Context, string, string) (*modules.File, error) {
	return nil, upstream.ErrUnreachable
}

func (oneModule) Mod(context.Context, string, string) (*modules.File, error) {
	return nil, upstream.ErrNotFound
}

func (oneModule) Zip(context.Context, string, string) (*fetch.Body, error) {
	return nil, upstream.ErrNotFound
}

func (oneModule) Secret(string) bool { return false }

// A handler serves what go asks a GOPROXY. Paths reach [goproxy.Modules] unescaped, and
// its errors decide the status: go asks its next proxy after 404, so that is for what
// is known not to exist, and not for an upstream that is down.
func Example() {
	srv := httptest.NewServer(goproxy.New(goproxy.Config{Prefix: "/go/", Modules: oneModule{}}))
	defer srv.Close()
	for _, path := range []string{"example.com/!foo/@v/list", "example.com/bar/@v/list", "example.com/!foo/@v/v1.0.0.info"} {
		resp, err := http.Get(srv.URL + "/go/" + path)
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
	// 200 "v1.0.0\n"
	// 404 "not found: example.com/bar: list: not found\n"
	// 504 "example.com/Foo@v1.0.0: upstream unreachable\n"
}
