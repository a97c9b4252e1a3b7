// Package deploy holds what it takes to run pkgswarm somewhere; it has tests only.
package deploy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"text/template"

	"github.com/compose-spec/compose-go/v2/cli"
	"go.yaml.in/yaml/v3"
)

// TestCompose loads docker-compose.yml as docker compose does, its schema and what
// services refer to included.
func TestCompose(t *testing.T) {
	o, err := cli.NewProjectOptions([]string{"../docker-compose.yml"}, cli.WithWorkingDirectory(".."), cli.WithResolvedPaths(true))
	if err != nil {
		t.Fatal(err)
	}
	p, err := o.LoadProject(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"build-cargo", "build-go", "client-1", "client-2", "fill", "import-go", "operator", "seed", "seeder-1", "seeder-2"}
	for _, name := range want {
		if _, err := p.GetService(name); err != nil {
			t.Errorf("service %s: %v", name, err)
		}
	}
	if err := p.CheckContainerNameUnicity(); err != nil {
		t.Error(err)
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func parse(t *testing.T, text string) map[string]any {
	t.Helper()
	var v map[string]any
	if err := yaml.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return v
}

// at returns the value below keys and indices of v.
func at(t *testing.T, v any, path ...any) any {
	t.Helper()
	for i, p := range path {
		switch p := p.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[p]
		case int:
			l, _ := v.([]any)
			if p >= len(l) {
				t.Fatalf("nothing at %v", path[:i+1])
			}
			v = l[p]
		}
		if v == nil {
			t.Fatalf("nothing at %v", path[:i+1])
		}
	}
	return v
}

// program builds the program as releases are built, in a copy of the source or,
// with none, in place.
func program(t *testing.T, src string) string {
	t.Helper()
	build := at(t, parse(t, read(t, "../.goreleaser.yaml")), "builds", 0)
	out := filepath.Join(t.TempDir(), "pkgswarm")
	args := []string{"build", "-o", out, "-buildvcs=false"}
	for _, f := range at(t, build, "flags").([]any) {
		args = append(args, f.(string))
	}
	var ldflags []string
	for _, f := range at(t, build, "ldflags").([]any) {
		ldflags = append(ldflags, f.(string))
	}
	cmd := exec.Command("go", append(args, "-ldflags="+strings.Join(ldflags, " "), at(t, build, "main").(string))...)
	cmd.Dir, cmd.Env = src, os.Environ()
	for _, e := range at(t, build, "env").([]any) {
		cmd.Env = append(cmd.Env, e.(string))
	}
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, b)
	}
	return out
}

// TestReproducible builds a release twice, in different directories and with
// different homes: it is the same file.
func TestReproducible(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the program twice")
	}
	other := filepath.Join(t.TempDir(), "some", "other", "place")
	if err := os.MkdirAll(filepath.Dir(other), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"go.mod", "go.sum", "cmd", "internal", "registry", "core", "bee", "swarm", "importer", "goproxy", "sparseindex"} {
		from := filepath.Join("..", name)
		info, err := os.Stat(from)
		if err != nil {
			t.Fatal(err)
		}
		if info.IsDir() {
			err = os.CopyFS(filepath.Join(other, name), os.DirFS(from))
		} else {
			err = os.MkdirAll(other, 0o755)
			if err == nil {
				err = os.WriteFile(filepath.Join(other, name), []byte(read(t, from)), 0o644)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if a, b := read(t, program(t, "..")), read(t, program(t, other)); a != b {
		t.Errorf("two builds differ: %d and %d bytes", len(a), len(b))
	}
}

// TestReleases: releases have what is promised of them.
func TestReleases(t *testing.T) {
	c := parse(t, read(t, "../.goreleaser.yaml"))
	if v := at(t, c, "version"); v != 2 {
		t.Errorf("version %v", v)
	}
	build := at(t, c, "builds", 0)
	for key, want := range map[string][]any{"goos": {"linux", "darwin", "windows"}, "goarch": {"amd64", "arm64"}, "env": {"CGO_ENABLED=0"}, "flags": {"-trimpath"}} {
		if got := at(t, build, key); !reflect.DeepEqual(got, want) {
			t.Errorf("%s is %v, want %v", key, got, want)
		}
	}
	at(t, c, "sboms", 0, "artifacts")
	at(t, c, "checksum", "name_template")
	for _, pattern := range at(t, c, "archives", 0, "files").([]any) {
		if found, err := filepath.Glob(filepath.Join("..", pattern.(string))); err != nil || len(found) == 0 {
			t.Errorf("archives have %v, which does not exist", pattern)
		}
	}
	for _, file := range []string{"../Dockerfile", "../.ci/run"} {
		if !strings.Contains(read(t, file), "-trimpath -ldflags='-s -w'") {
			t.Errorf("%s builds otherwise than releases are built", file)
		}
	}
}

// TestSettings: every PKGSWARM_ variable in what is deployed is one that the program
// knows.
func TestSettings(t *testing.T) {
	cmd := exec.Command("go", "run", "./cmd/pkgswarm", "config", "show", "--json")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	known := []string{"PKGSWARM_CONFIG", "PKGSWARM_FLAG", // in README: the pattern
		"PKGSWARM_BINARY"} // of the GitHub action itself
	for dec := json.NewDecoder(bytes.NewReader(out)); dec.More(); {
		var v struct{ Name string }
		if err := dec.Decode(&v); err != nil {
			t.Fatal(err)
		}
		known = append(known, "PKGSWARM_"+strings.ToUpper(strings.ReplaceAll(v.Name, "-", "_")))
	}
	variable := regexp.MustCompile(`\bPKGSWARM_[A-Z_]*[A-Z]`)
	files, _ := filepath.Glob("*/*.*")
	templates, _ := filepath.Glob("helm/pkgswarm/*/*.yaml")
	files = append(append(files, templates...), "../docker-compose.yml", "../Dockerfile", "../README.md", "../CONTRIBUTING.md", "../SECURITY.md")
	n := 0
	for _, file := range files {
		for _, name := range variable.FindAllString(read(t, file), -1) {
			if n++; !slices.Contains(known, name) {
				t.Errorf("%s has %s, which no flag of serve stands for", file, name)
			}
		}
	}
	if n < 15 {
		t.Errorf("%d variables found only", n)
	}
}

// render renders the chart with values in place of the defaults, as helm does as far
// as the chart's functions go.
func render(t *testing.T, values map[string]any) map[string]map[string]any {
	t.Helper()
	dir := "helm/pkgswarm/"
	chart := parse(t, read(t, dir+"Chart.yaml"))
	all := parse(t, read(t, dir+"values.yaml"))
	for k, v := range values {
		if _, ok := all[k]; !ok {
			t.Fatalf("values.yaml has no %s", k)
		}
		all[k] = v
	}
	root := template.New("chart").Option("missingkey=error")
	indent := func(n int, s string) string { return strings.ReplaceAll(s, "\n", "\n"+strings.Repeat(" ", n)) }
	root.Funcs(template.FuncMap{
		"include": func(name string, data any) (string, error) {
			var b strings.Builder
			err := root.ExecuteTemplate(&b, name, data)
			return strings.TrimSpace(b.String()), err
		},
		"nindent": func(n int, s string) string { return indent(n, "\n"+s) },
		"quote":   func(v any) string { return fmt.Sprintf("%q", fmt.Sprint(v)) },
		"upper":   strings.ToUpper,
		"replace": func(old, new, s string) string { return strings.ReplaceAll(s, old, new) },
		"default": func(d, v any) any {
			if v == nil || reflect.ValueOf(v).IsZero() {
				return d
			}
			return v
		},
		"join": func(sep string, v []any) string {
			var s []string
			for _, e := range v {
				s = append(s, fmt.Sprint(e))
			}
			return strings.Join(s, sep)
		},
		"toYaml": func(v any) (string, error) {
			b, err := yaml.Marshal(v)
			return strings.TrimSpace(string(b)), err
		},
	})
	if _, err := root.ParseGlob(dir + "templates/*"); err != nil {
		t.Fatal(err)
	}
	data := map[string]any{
		"Values": all, "Release": map[string]any{"Name": "mirror", "Namespace": "ci", "Service": "Helm"},
		"Chart": map[string]any{"AppVersion": chart["appVersion"], "Name": chart["name"]},
	}
	docs := map[string]map[string]any{}
	for _, name := range []string{"daemonset.yaml", "service.yaml"} {
		var b strings.Builder
		if err := root.ExecuteTemplate(&b, name, data); err != nil {
			t.Fatal(err)
		}
		doc := parse(t, b.String())
		docs[doc["kind"].(string)] = doc
	}
	return docs
}

// TestHelm renders the chart: nodes find each other by the headless service, and what
// belongs together has the same names.
func TestHelm(t *testing.T) {
	docs := render(t, map[string]any{
		"fleetTokenSecret": "token", "registries": []any{"key1", "key2"}, "settings": map[string]any{"index-ttl": "5m"},
		"nodeSelector": map[string]any{"ci": "true"}, "tolerations": []any{map[string]any{"operator": "Exists"}},
	})
	ds, svc := docs["DaemonSet"], docs["Service"]
	pod := at(t, ds, "spec", "template", "spec")
	node := at(t, pod, "containers", 0)
	env := map[string]string{}
	for _, e := range at(t, node, "env").([]any) {
		env[at(t, e, "name").(string)] = at(t, e, "value").(string)
	}
	peers := fmt.Sprintf("%s.ci.svc:%v", at(t, svc, "metadata", "name"), at(t, svc, "spec", "ports", 0, "port"))
	for name, want := range map[string]string{
		"PKGSWARM_PEER": peers, "PKGSWARM_REGISTRY": "key1,key2", "PKGSWARM_INDEX_TTL": "5m", "PKGSWARM_LISTEN": "127.0.0.1:7070",
		"PKGSWARM_FLEET_TOKEN_FILE": "/var/run/pkgswarm/token", "PKGSWARM_DISK_CAP": "50GB",
	} {
		if env[name] != want {
			t.Errorf("%s is %q, want %q", name, env[name], want)
		}
	}
	if at(t, svc, "spec", "clusterIP") != "None" {
		t.Error("the service is not headless")
	}
	labels := at(t, ds, "spec", "template", "metadata", "labels").(map[string]any)
	for _, selector := range []any{at(t, svc, "spec", "selector"), at(t, ds, "spec", "selector", "matchLabels")} {
		for k, v := range selector.(map[string]any) {
			if labels[k] != v {
				t.Errorf("pods have %s=%v, selected is %v", k, labels[k], v)
			}
		}
	}
	for _, c := range []any{node, at(t, pod, "initContainers", 0)} {
		for _, m := range at(t, c, "volumeMounts").([]any) {
			if !slices.ContainsFunc(at(t, pod, "volumes").([]any), func(v any) bool { return at(t, v, "name") == at(t, m, "name") }) {
				t.Errorf("no volume for the mount %v", m)
			}
		}
	}
	if image := at(t, node, "image"); image != "pkgswarm:0.1.0" {
		t.Errorf("image %v", image)
	}
	plain := render(t, nil)["DaemonSet"]
	if s := fmt.Sprint(plain); strings.Contains(s, "FLEET") || strings.Contains(s, "PKGSWARM_REGISTRY") || strings.Contains(s, "nodeSelector") {
		t.Errorf("the defaults have what was not asked for:\n%s", s)
	}
}

// TestSystemd has systemd look at the units, where there is systemd.
func TestSystemd(t *testing.T) {
	for _, name := range []string{"pkgswarm.service", "pkgswarm-import.service"} {
		unit := read(t, "systemd/"+name)
		if _, err := exec.LookPath("systemd-analyze"); err != nil {
			t.Log("no systemd-analyze: only read")
			return
		}
		file := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(file, []byte(strings.ReplaceAll(unit, "/usr/local/bin/pkgswarm", "/bin/true")), 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("systemd-analyze", "verify", "--man=no", file).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("systemd-analyze verify: %v\n%s", err, out)
		}
	}
}
