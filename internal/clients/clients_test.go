package clients_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/pkgswarm/pkgswarm/internal/clients"
)

const base = "http://127.0.0.1:7070"

func TestAddCargo(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"empty", "", `# >>> pkgswarm setup (pkgswarm setup --undo removes these lines)
[source.crates-io]
replace-with = "pkgswarm"
[registries.pkgswarm]
index = "sparse+http://127.0.0.1:7070/cargo/"
# <<< pkgswarm setup
`},
		{"comments kept", "# mine\n[build]\njobs = 2 # two\n", `# mine
[build]
jobs = 2 # two
# >>> pkgswarm setup (pkgswarm setup --undo removes these lines)
[source.crates-io]
replace-with = "pkgswarm"
[registries.pkgswarm]
index = "sparse+http://127.0.0.1:7070/cargo/"
# <<< pkgswarm setup
`},
		{"table exists", "[ source.\"crates-io\" ] # x\nregistry = 'r'\n", `[ source."crates-io" ] # x
replace-with = "pkgswarm" # pkgswarm setup
registry = 'r'
# >>> pkgswarm setup (pkgswarm setup --undo removes these lines)
[registries.pkgswarm]
index = "sparse+http://127.0.0.1:7070/cargo/"
# <<< pkgswarm setup
`},
	} {
		got, err := clients.AddCargo([]byte(c.in), base)
		if err != nil || string(got) != c.want {
			t.Errorf("%s: got\n%s\n%v, want\n%s", c.name, got, err, c.want)
			continue
		}
		again, err := clients.AddCargo(got, base)
		if err != nil || string(again) != c.want {
			t.Errorf("%s, a second time: got\n%s\n%v", c.name, again, err)
		}
		if back := clients.RemoveCargo(got); string(back) != c.in {
			t.Errorf("%s: undone: got\n%s\nwant\n%s", c.name, back, c.in)
		}
	}
}

func TestAddCargoRefuses(t *testing.T) {
	_, err := clients.AddCargo([]byte("[source.crates-io]\nreplace-with = 'corp'\n"), base)
	if e, ok := errors.AsType[*clients.ReplacedError](err); !ok || e.With != "corp" {
		t.Errorf("replaced already: %v", err)
	}
	for _, in := range []string{"[source", "[registries.pkgswarm]\nindex='x'\n", "source = { crates-io = { registry = 'x' } }\n"} {
		if got, err := clients.AddCargo([]byte(in), base); err == nil {
			t.Errorf("AddCargo(%q) = %q, want an error", in, got)
		}
	}
	cut := "[a]\n# >>> pkgswarm setup (pkgswarm setup --undo removes these lines)\n[b]\n"
	if got := clients.RemoveCargo([]byte(cut)); string(got) != cut {
		t.Errorf("RemoveCargo of a block without end = %q, want it unchanged", got)
	}
}

func TestGoList(t *testing.T) {
	for _, c := range []struct {
		in     string
		strict bool
		want   string
	}{
		{"https://p.example,direct", false, "http://127.0.0.1:7070/go|https://p.example,direct"},
		{"https://p.example,direct", true, "http://127.0.0.1:7070/go,https://p.example,direct"},
		{"http://127.0.0.1:7070/go|direct", true, "http://127.0.0.1:7070/go,direct"},
		{"", false, "http://127.0.0.1:7070/go"},
		{"http://127.0.0.1:7070/gone", false, "http://127.0.0.1:7070/go|http://127.0.0.1:7070/gone"},
	} {
		got := clients.AddGo(c.in, base, c.strict)
		if got != c.want {
			t.Errorf("AddGo(%q, strict %v) = %q, want %q", c.in, c.strict, got, c.want)
		}
		if again := clients.AddGo(got, base, c.strict); again != got {
			t.Errorf("AddGo twice = %q, want %q", again, got)
		}
		if strings.Contains(clients.RemoveGo(got, base), "7070/go|") {
			t.Errorf("RemoveGo(%q) = %q", got, clients.RemoveGo(got, base))
		}
	}
}

func TestCargoArgs(t *testing.T) {
	config := []string{"--config", `source.crates-io.replace-with="pkgswarm"`}
	for _, c := range []struct{ in, want []string }{
		{nil, config},
		{[]string{"build"}, append(slices.Clone(config), "build")},
		{[]string{"+nightly", "build"}, append(append([]string{"+nightly"}, config...), "build")},
	} {
		if got := clients.CargoArgs(c.in); !slices.Equal(got, c.want) {
			t.Errorf("CargoArgs(%q) = %q, want %q", c.in, got, c.want)
		}
	}
}

func FuzzAddCargo(f *testing.F) {
	f.Add([]byte("[source.crates-io]\nregistry='x'\n"))
	f.Add([]byte("[source]\ncrates-io.registry = 'x'"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := clients.AddCargo(b, base)
		if err != nil {
			return
		}
		if again, err := clients.AddCargo(got, base); err != nil || string(again) != string(got) {
			t.Fatalf("%q: twice gives %q, %v, want %q", b, again, err, got)
		}
	})
}
