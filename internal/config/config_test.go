package config_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/pkgswarm/pkgswarm/internal/config"
	"github.com/spf13/pflag"
)

func flags() *pflag.FlagSet {
	fs := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	fs.String("listen", "127.0.0.1:7070", "")
	fs.StringSlice("peer", nil, "")
	fs.Bool("lan", true, "")
	fs.Duration("index-ttl", 0, "")
	return fs
}

func TestApplyPrecedence(t *testing.T) {
	fs := flags()
	if err := fs.Parse([]string{"--listen=flag:1"}); err != nil {
		t.Fatal(err)
	}
	f, err := config.Parse("c.toml", []byte("listen = 'file:1'\npeer = ['a:1', 'b:2']\nlan = false\n[policy]\nblock = ['x']\n"))
	if err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"PKGSWARM_LISTEN": "env:1", "PKGSWARM_INDEX_TTL": "5m"}
	values, err := config.Apply(fs, func(k string) string { return env[k] }, f)
	if err != nil {
		t.Fatal(err)
	}
	want := []config.Value{
		{Name: "index-ttl", Value: "5m0s", Source: "environment PKGSWARM_INDEX_TTL"},
		{Name: "lan", Value: "false", Source: "file c.toml"},
		{Name: "listen", Value: "flag:1", Source: "flag"},
		{Name: "peer", Value: "[a:1,b:2]", Source: "file c.toml"},
	}
	if len(values) != len(want) {
		t.Fatalf("values = %v, want %v", values, want)
	}
	for i := range want {
		if values[i] != want[i] {
			t.Errorf("value %d = %v, want %v", i, values[i], want[i])
		}
	}
	if err := f.Unknown(func(n string) bool { return fs.Lookup(n) != nil }); err != nil {
		t.Errorf("Unknown = %v, want nil", err)
	}
}

func TestBadFiles(t *testing.T) {
	for _, c := range []struct{ file, want string }{
		{"listen = ", "c.toml:1:"},
		{"listen = ['a', 'b']", "want one value"},
		{"lan = 'perhaps'", "lan"},
		{"index-ttl = 1979-05-27", "no value for a setting"},
		{"lissten = 'x'", "no setting has the name lissten"},
	} {
		fs := flags()
		f, err := config.Parse("c.toml", []byte(c.file))
		if err == nil {
			_, err = config.Apply(fs, func(string) string { return "" }, f)
		}
		if err == nil {
			err = f.Unknown(func(n string) bool { return fs.Lookup(n) != nil })
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: error %v, want one with %q", c.file, err, c.want)
		}
	}
}

func TestMissingFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none.toml")
	if _, err := config.Read(path, false); err != nil {
		t.Errorf("Read of an optional file = %v, want nil", err)
	}
	if _, err := config.Read(path, true); err == nil {
		t.Error("Read of a file that must exist = nil, want an error")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("listen = 'x'\npeer = ['a']\n[policy]\nblock = []"))
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := config.Parse("c.toml", b)
		if err != nil {
			return
		}
		fs := flags()
		config.Apply(fs, func(string) string { return "" }, file)
	})
}
