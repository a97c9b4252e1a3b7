package integration

import (
	"io"
	"net/http"
	"slices"
	"testing"

	"github.com/pkgswarm/pkgswarm/internal/node"
)

// TestHeadersStay: of an upstream's answer a client gets the body and validators
// alone, also with an error, and of a client's request the upstream gets nothing;
// what the upstream's config.json names is not passed on. SEC-32, SEC-33, SEC-34
func TestHeadersStay(t *testing.T) {
	up, crates := madeUp(t, 1, 100_000)
	hostile := []string{"Set-Cookie", "Access-Control-Allow-Origin", "Location", "X-Evil", "Content-Disposition", "Refresh", "Link", "Alt-Svc", "Strict-Transport-Security"}
	mine := []string{"Authorization", "Cookie", "Proxy-Authorization", "X-Forwarded-For", "Referer", "X-Api-Key"}
	up.Tamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		for _, name := range mine {
			if slices.Contains(r.Header[name], "mine") {
				t.Errorf("%s: the upstream was sent the client's %s", r.URL.Path, name)
			}
		}
		for _, name := range hostile {
			w.Header().Set(name, "evil")
		}
		next.ServeHTTP(w, r)
	})
	n, _ := cargoNode(t, up, node.Config{})
	for path, status := range map[string]int{
		"/cargo/config.json":                  200,
		"/cargo/cr/at/crate000":               200,
		"/cargo/cr/at/crate999":               404,
		"/cargo/dl/crate000/1.0.0/download":   200,
		"/cargo/dl/crate000/9.9.9/download":   404,
		"/cargo/api/v1/crates?q=crate&page=1": 200,
	} {
		for range 2 { // from the upstream, and from what is kept of it
			r, err := http.NewRequest("GET", n.URL()+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range mine {
				r.Header.Set(name, "mine")
			}
			resp, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != status {
				t.Errorf("%s: %d %.100q, %v, want %d", path, resp.StatusCode, body, err, status)
			}
			for name, values := range resp.Header {
				if slices.Contains(values, "evil") {
					t.Errorf("%s: the upstream's %s came through", path, name)
				}
			}
			if want := `{"dl":"` + n.URL() + `/cargo/dl","api":"` + n.URL() + `/cargo"}`; path == "/cargo/config.json" && string(body) != want {
				t.Errorf("config.json is %s, want %s", body, want)
			}
			if path == "/cargo/dl/crate000/1.0.0/download" && string(body) != string(crates["crate000"]) {
				t.Errorf("%s: %d bytes", path, len(body))
			}
		}
	}
	http.DefaultClient.CloseIdleConnections()
}
