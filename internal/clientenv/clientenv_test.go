package clientenv

import (
	"os"
	"path/filepath"
	"testing"
)

// TestCargoIndex: what cargo uses in place of crates.io.
func TestCargoIndex(t *testing.T) {
	for config, want := range map[string]string{
		"": "",
		"[source.crates-io]\nreplace-with = 'm'\n[source.m]\nregistry = 'sparse+https://mirror.example/'":                             "sparse+https://mirror.example/",
		"[source.crates-io]\nreplace-with = 'a'\n[source.a]\nreplace-with = 'b'\n[registries.b]\nindex = 'sparse+https://b.example/'": "sparse+https://b.example/",
		"[source.crates-io]\nreplace-with = 'pkgswarm'\n[registries.pkgswarm]\nindex = 'sparse+http://127.0.0.1:7070/cargo/'":         "",
		"[source.crates-io]\nreplace-with = 'v'\n[source.v]\ndirectory = 'vendor'":                                                    "",
		"[source.crates-io]\nreplace-with = 'a'\n[source.a]\nreplace-with = 'a'":                                                      "",
		"not toml [": "",
	} {
		home := t.TempDir()
		t.Setenv("CARGO_HOME", home)
		os.WriteFile(filepath.Join(home, "config.toml"), []byte(config), 0o600)
		if _, got := ReadCargo().Replacement(); got != want {
			t.Errorf("replacement with %q = %q, want %q", config, got, want)
		}
	}
}

// TestCargoToken: cargo's own settings open the registry that they are for. SEC-33
func TestCargoProvider(t *testing.T) {
	home := t.TempDir()
	t.Setenv("CARGO_HOME", home)
	t.Setenv("CARGO_REGISTRIES_C_TOKEN", "c")
	os.WriteFile(filepath.Join(home, "config.toml"), []byte("[registry]\nglobal-credential-providers = ['cargo:token', 'cargo:libsecret']\n"+
		"[registries.a]\nindex = 'sparse+https://a.example/'\ncredential-provider = ['cargo:token-from-stdout', 'print', 'secret']\n"+
		"[registries.b]\nindex = 'sparse+https://b.example/'\ncredential-provider = 'cargo:token'\n"+
		"[registries.c]\nindex = 'sparse+https://c.example/'\n[registries.d]\nindex = 'sparse+https://d.example/'\n"), 0o600)
	for name, want := range map[string]string{"a": "cargo:token-from-stdout", "b": "", "c": "", "d": "cargo:libsecret"} {
		s, err := ReadCargo().Source("sparse+https://"+name+".example/", "")
		if err != nil || s.Provider != want {
			t.Errorf("%s: provider %q, %v, want %q", name, s.Provider, err, want)
		}
	}
}

func TestCargoToken(t *testing.T) {
	home := t.TempDir()
	t.Setenv("CARGO_HOME", home)
	os.WriteFile(filepath.Join(home, "config.toml"), []byte("[registries.corp]\nindex = 'sparse+https://h.example/registry/'\n[registries.my-ci]\nindex = 'sparse+https://ci.example/'\n[source.mirror]\nregistry = 'sparse+https://m.example/'\n"), 0o600)
	os.WriteFile(filepath.Join(home, "credentials.toml"), []byte("[registry]\ntoken = 'crates.io'\n[registries.corp]\ntoken = 'corp'\n[registries.mirror]\ntoken = 'mirror'\n"), 0o600)
	t.Setenv("CARGO_REGISTRIES_MY_CI_TOKEN", "ci")
	for configured, want := range map[string]string{
		"sparse+https://h.example/registry/":          "https://h.example/registry/ corp",
		"sparse+https://h.example/registry":           "https://h.example/registry corp",
		"sparse+https://h.example/registry.git/":      "",
		"sparse+https://h.example/":                   "",
		"sparse+https://ci.example/":                  "https://ci.example/ ci",
		"sparse+https://m.example/":                   "https://m.example/ mirror",
		"sparse+https://u:p@h.example/registry/":      "https://h.example/registry/ Basic dTpw",
		"sparse+https://index.unknown.example/crates": "",
	} {
		s, err := ReadCargo().Source(configured, "")
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, scope := range s.Scopes {
			got += scope.URL + " " + scope.Authorization
		}
		if got != want {
			t.Errorf("credentials for %s = %q, want %q", configured, got, want)
		}
	}
}
