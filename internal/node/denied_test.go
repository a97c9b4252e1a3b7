package node

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/internal/goupstream"
	"github.com/pkgswarm/pkgswarm/registry/artifact"
)

// post sends a POST and returns the status and the answer.
func (n *testNode) post(t *testing.T, path, token string, body any) (int, string) {
	t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequest("POST", n.URL()+path, bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set(tokenHeader, token)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text)
}

// TestDeny denies versions whose files are on the disk: clients are refused with the
// reason, the index does not list them, peers get nothing by digest or key, and
// neither a restart nor a restored data directory changes that. SEC-19
func TestDeny(t *testing.T) {
	u := newRegistry(t, 1000, 2000)
	g := goupstream.New(t)
	for _, v := range []string{"v1.0.0", "v1.1.0"} {
		g.Add(t, "example.com/m", v, map[string]string{"go.mod": "module example.com/m\n", "m.go": "package m // " + v + "\n"})
	}
	conf := config(t, u, t.TempDir())
	conf.GoUpstream, conf.SumDB = g.URL, g.Key
	conf.Policy.DryRun = true // a denial is no policy to be tried
	n := start(t, conf)
	n.fetchAll(t, u)
	for _, f := range []string{"v1.0.0.mod", "v1.0.0.zip", "v1.1.0.zip"} {
		if status, b, err := n.get("/go/example.com/m/@v/" + f); status != 200 || err != nil {
			t.Fatalf("%s: %d %s %v", f, status, b, err)
		}
	}
	token, err := os.ReadFile(filepath.Join(conf.State, "token"))
	if err != nil {
		t.Fatal(err)
	}
	crate := Denial{Ecosystem: "cargo", Name: "CRATE00", Version: "1.0.0", Reason: "it steals"}
	mod := Denial{Ecosystem: "go", Name: "example.com/m", Version: "v1.1.0", Reason: "it steals too"}
	for _, d := range []Denial{crate, mod} {
		if status, text := n.post(t, "/api/v1/deny", strings.TrimSpace(string(token)), d); status != 200 {
			t.Fatalf("deny: %d %s", status, text)
		}
	}
	sum := sha256.Sum256(u.crates["crate00"])
	check := func(what string, n *testNode) {
		t.Helper()
		if status, b, _ := n.get("/cargo/dl/crate00/1.0.0/download"); status != 403 || !strings.Contains(string(b), "it steals") {
			t.Errorf("%s: a denied crate: %d %s", what, status, b)
		}
		if status, b, _ := n.get("/cargo/cr/at/crate00"); status != 403 || strings.Contains(string(b), "cksum") {
			t.Errorf("%s: the index lists it: %d %s", what, status, b)
		}
		if err := n.fetch(u, "crate01"); err != nil {
			t.Errorf("%s: another crate: %v", what, err)
		}
		for _, f := range []string{"v1.1.0.zip", "v1.1.0.mod", "v1.1.0.info"} {
			if status, b, _ := n.get("/go/example.com/m/@v/" + f); status != 403 || !strings.Contains(string(b), "it steals too") {
				t.Errorf("%s: %s: %d %s", what, f, status, b)
			}
		}
		if _, b, _ := n.get("/go/example.com/m/@v/list"); string(b) != "v1.0.0\n" {
			t.Errorf("%s: the list is %q", what, b)
		}
		if status, _, _ := n.get("/go/example.com/m/@v/v1.0.0.zip"); status != 200 {
			t.Errorf("%s: another version: %d", what, status)
		}
		if _, err := n.artifacts.CheckShared(artifact.Digest{Alg: artifact.SHA256, Sum: sum}); err == nil {
			t.Errorf("%s: peers get the crate", what)
		}
	}
	check("running", n)
	info, err := n.artifacts.Find(artifact.Digest{Alg: artifact.SHA256, Sum: sum})
	if err != nil {
		t.Fatal("the file is not on the disk any more: ", err)
	}
	if _, _, err := n.openShared(t.Context(), coreKey(info.Key)); err == nil {
		t.Error("peers get the crate by its core")
	}
	n.stop(t)
	n = start(t, conf)
	check("restarted", n)
	n.stop(t)
	before := conf
	conf.Data, conf.State = filepath.Join(t.TempDir(), "data"), filepath.Join(t.TempDir(), "state")
	other := start(t, conf) // an older cache, of a node that knew of no denial
	other.fetchAll(t, u)
	for _, f := range []string{"v1.1.0.zip"} {
		other.get("/go/example.com/m/@v/" + f)
	}
	other.stop(t)
	before.Data = conf.Data
	n = start(t, before)
	check("restored", n)

	for _, d := range []Denial{crate, mod} {
		if status, text := n.post(t, "/api/v1/allow", strings.TrimSpace(string(token)), d); status != 200 {
			t.Errorf("allow: %d %s", status, text)
		}
	}
	if err := n.fetch(u, "crate00"); err != nil {
		t.Errorf("allowed again: %v", err)
	}
	if status, _, _ := n.get("/go/example.com/m/@v/v1.1.0.zip"); status != 200 {
		t.Errorf("allowed again: %d", status)
	}
}

// TestChangesNeedToken: nothing changes but by a POST with the token. SEC-53
func TestChangesNeedToken(t *testing.T) {
	u := newRegistry(t, 1000)
	conf := config(t, u, t.TempDir())
	n := start(t, conf)
	n.fetchAll(t, u)
	b, err := os.ReadFile(filepath.Join(conf.State, "token"))
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(filepath.Join(conf.State, "token")); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the token's file: %v %v", fi.Mode(), err) // SEC-57
	}
	token := strings.TrimSpace(string(b))
	d := Denial{Ecosystem: "cargo", Name: "crate00", Version: "1.0.0", Reason: "x"}
	for path := range n.changes() {
		for _, wrong := range []string{"", "wrong", token + "x", token[1:], " "} {
			if status, _ := n.post(t, path, wrong, d); status != 403 {
				t.Errorf("%s with token %.5q…: %d", path, wrong, status)
			}
		}
		for _, method := range []string{"GET", "HEAD", "PUT", "DELETE", "PATCH"} {
			for _, override := range []string{"", "X-HTTP-Method-Override", "X-Method-Override", "X-HTTP-Method"} {
				req, _ := http.NewRequest(method, n.URL()+path+"?_method=POST", nil)
				req.Header.Set(tokenHeader, token)
				if override != "" {
					req.Header.Set(override, "POST")
				}
				resp, err := client.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				if resp.StatusCode != 405 {
					t.Errorf("%s %s %s: %d", method, path, override, resp.StatusCode)
				}
			}
		}
		for _, other := range []string{path + "/", "/" + path, strings.Replace(path, "/v1", "//v1", 1), strings.Replace(path, "api", "%61pi", 1), "/x/.." + path, strings.ToUpper(path)} {
			if status, _ := n.post(t, other, "", d); status < 400 {
				t.Errorf("POST %s without a token: %d", other, status)
			}
		}
	}
	if err := n.fetch(u, "crate00"); err != nil {
		t.Errorf("something was denied: %v", err)
	}
	for _, bad := range []any{Denial{}, Denial{Ecosystem: "npm", Name: "x", Version: "1.0.0"}, Denial{Ecosystem: "cargo", Name: "../x", Version: "1.0.0"},
		Denial{Ecosystem: "go", Name: "example.com/m", Version: "latest"}, map[string]any{"unknown": 1}, strings.Repeat("x", 1<<20)} {
		if status, text := n.post(t, "/api/v1/deny", token, bad); status != 400 {
			t.Errorf("%.50v: %d %s", bad, status, text)
		}
	}
	if status, text := n.post(t, "/api/v1/gc", token, struct{}{}); status != 200 || !strings.Contains(text, "freed_bytes") {
		t.Errorf("gc: %d %s", status, text)
	}
}

func coreKey(k artifact.Key) core.DiscoveryKey { return core.Key(k).Discovery() }
