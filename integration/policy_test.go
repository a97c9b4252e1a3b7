package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/internal/cargoupstream"
	"github.com/pkgswarm/pkgswarm/internal/goupstream"
	"github.com/pkgswarm/pkgswarm/internal/node"
	"github.com/pkgswarm/pkgswarm/internal/testenv"
	"github.com/pkgswarm/pkgswarm/registry/policy"
)

// TestPolicyCargo: the real cargo resolves to what the policy lets out, and shows its
// user why it is refused what a lock file names.
func TestPolicyCargo(t *testing.T) {
	testenv.Need(t, "cargo")
	up := cargoupstream.New(t)
	published := func(age time.Duration) string {
		return `"pubtime":"` + time.Now().UTC().Add(-age).Format(time.RFC3339) + `"`
	}
	add := func(name, version string, age time.Duration) {
		up.Add(t, name, version, packCrate(t, name, version, map[string]string{
			"Cargo.toml": "[package]\nname = \"" + name + "\"\nversion = \"" + version + "\"\nedition = \"2021\"\n",
			"src/lib.rs": "",
		}), published(age))
	}
	const day = 24 * time.Hour
	add("lib", "1.0.0", 90*day)
	add("lib", "1.1.0", 60*day) // will be blocked
	add("lib", "1.2.0", time.Hour)
	add("our-lib", "1.0.0", time.Hour)
	add("evil", "1.0.0", 90*day)
	rules := policy.Rules{Block: []string{"lib@1.1.0", "evil"}, Except: []string{"our-*"}, Cooldown: policy.Duration(3 * day)}
	_, url := cargoNode(t, up, node.Config{Policy: policy.Config{Cargo: rules}})
	manifest := func(deps ...string) string {
		return "[package]\nname = \"app\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[dependencies]\n" + strings.Join(deps, "\n") + "\n"
	}
	locked := func(lock string) func(*cargoClient) {
		return func(c *cargoClient) { c.write("Cargo.lock", lock) }
	}
	user := func(url, toml string, more ...func(*cargoClient)) *cargoClient {
		c := newCargoClient(t, url, false)
		c.write("Cargo.toml", toml)
		for _, f := range more {
			f(c)
		}
		return c
	}
	c := user(url, manifest(`lib = "1"`, `our-lib = "1"`))
	c.run("fetch")
	if lock := c.lock(); !strings.Contains(lock, "name = \"lib\"\nversion = \"1.0.0\"") || !strings.Contains(lock, "our-lib") {
		t.Errorf("resolved to\n%s", lock)
	}

	// Without the mirror the newest is taken; its lock file comes to the mirror.
	direct := user(up.Index(), manifest(`lib = "1"`, `evil = "1"`))
	direct.run("generate-lockfile")
	newest := direct.lock()
	if !strings.Contains(newest, "1.2.0") {
		t.Fatalf("without the mirror:\n%s", newest)
	}
	out, err := user(url, manifest(`evil = "1"`)).try("fetch")
	if err == nil || !strings.Contains(out, `refused by this mirror's policy: it matches the blocked pattern "evil"`) {
		t.Errorf("a blocked crate: %v\n%s", err, out)
	}
	// cargo does not ask for a version that a lock file names and the index lacks: it
	// only says that there is none. why has the reason. REL-17
	direct = user(up.Index(), manifest(`lib = "1"`))
	direct.run("generate-lockfile")
	out, err = user(url, manifest(`lib = "1"`), locked(direct.lock())).try("fetch", "--locked")
	if err == nil || !strings.Contains(out, "(locked to 1.2.0)") {
		t.Errorf("a lock file with a version that the policy hides: %v\n%s", err, out)
	}
	status, text := getStatus(t, strings.TrimSuffix(strings.TrimPrefix(url, "sparse+"), "cargo/")+"api/v1/why/cargo/lib@1.2.0")
	if status != 200 || !strings.Contains(text, "refused by this mirror's policy: it was published") {
		t.Errorf("why lib@1.2.0: %d %s", status, text)
	}
	// A client that has resolved elsewhere asks for the file itself.
	for path, want := range map[string]string{
		"evil/1.0.0":    `refused by this mirror's policy: it matches the blocked pattern "evil"`,
		"lib/1.1.0":     `it matches the blocked pattern "lib@1.1.0"`,
		"lib/1.2.0":     "versions are held back for 72h0m0s: available from",
		"our-lib/1.0.0": "",
	} {
		status, text := getStatus(t, strings.TrimPrefix(strings.TrimSuffix(url, "/"), "sparse+")+"/dl/"+path+"/download")
		if want == "" && status != 200 || want != "" && (status != 403 || !strings.Contains(text, want)) {
			t.Errorf("%s: %d %s, want %q", path, status, text, want)
		}
	}

	// The same in a dry run: nothing is refused.
	_, url = cargoNode(t, up, node.Config{Policy: policy.Config{Cargo: rules, DryRun: true}})
	c = user(url, manifest(`lib = "1"`, `evil = "1"`), locked(newest))
	c.run("fetch", "--locked")
}

// TestPolicyGo: the same with go, which shows the reason.
func TestPolicyGo(t *testing.T) {
	up := goupstream.New(t)
	old, young := time.Now().Add(-90*24*time.Hour), time.Now().Add(-time.Hour)
	add := func(path, version string, at time.Time) {
		up.Add(t, path, version, map[string]string{"go.mod": "module " + path + "\n", "x.go": "package x // " + version + "\n"})
		up.Put(path, version+".info", []byte(`{"Version":"`+version+`","Time":"`+at.UTC().Format(time.RFC3339)+`"}`))
	}
	add("example.com/lib", "v1.0.0", old)
	add("example.com/lib", "v1.1.0", old) // will be blocked
	add("example.com/lib", "v1.2.0", young)
	add("our.example/lib", "v1.0.0", young)
	add("evil.example/x", "v1.0.0", old)
	rules := policy.Rules{Block: []string{"example.com/lib@v1.1.0", "evil.example"}, Except: []string{"our.example"}, Cooldown: policy.Duration(72 * time.Hour)}
	newNode := func(p policy.Config) string {
		return startNode(t, t.TempDir(), node.Config{GoUpstream: up.URL, SumDB: up.Key, CargoUpstream: "sparse+" + up.URL + "/index/", Policy: p}).URL() + "/go"
	}
	user := func(url string) *goClient {
		c := newPrivateUser(t, url, up.Key)
		if err := os.Remove(filepath.Join(c.dir, "main.go")); err != nil {
			t.Fatal(err)
		}
		return c
	}
	url := newNode(policy.Config{Go: rules})
	c := user(url)
	c.run("get", "example.com/lib@latest", "our.example/lib@latest")
	if mod := read(t, filepath.Join(c.dir, "go.mod")); !strings.Contains(mod, "example.com/lib v1.0.0") || !strings.Contains(mod, "our.example/lib v1.0.0") {
		t.Errorf("resolved to\n%s", mod)
	}
	if out := c.run("list", "-m", "-versions", "example.com/lib"); strings.TrimSpace(out) != "example.com/lib v1.0.0" {
		t.Errorf("versions: %s", out)
	}
	for module, want := range map[string]string{
		"example.com/lib@v1.1.0": `refused by this mirror's policy: it matches the blocked pattern "example.com/lib@v1.1.0"`,
		"example.com/lib@v1.2.0": "versions are held back for 72h0m0s: available from",
		"evil.example/x@v1.0.0":  `it matches the blocked pattern "evil.example"`,
	} {
		// The upstream stands after a comma, and is not asked all the same.
		out, err := user(url+","+up.URL).try("get", module)
		if err == nil || !strings.Contains(out, want) {
			t.Errorf("%s: %v\n%s\nwant %q", module, err, out, want)
		}
	}
	c = user(newNode(policy.Config{Go: rules, DryRun: true}))
	c.run("get", "example.com/lib@latest", "evil.example/x@v1.0.0")
	if mod := read(t, filepath.Join(c.dir, "go.mod")); !strings.Contains(mod, "example.com/lib v1.2.0") {
		t.Errorf("in a dry run:\n%s", mod)
	}
}
