package lockfile_test

import (
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/pkgswarm/pkgswarm/registry/lockfile"
)

const sum = "9abbd1bc6865053c427f7198e6af43bfdedc55ab791faed4fbd361d789575ff1"

func TestRead(t *testing.T) {
	bar := lockfile.Package{Ecosystem: "cargo", Name: "bar", Version: "1.2.3+x"}
	barSum := bar
	barSum.Checksum = sum
	mod := lockfile.Package{Ecosystem: "go", Name: "example.com/Foo", Version: "v1.0.0"}
	for _, c := range []struct {
		name, in string
		want     []lockfile.Package
	}{
		{"Cargo.lock", `version = 4
[[package]]
name = "bar"
version = "1.2.3+x"
source = "registry+https://example.com/index"
checksum = "` + sum + `"
[[package]]
name = "mine"
version = "0.1.0"
[[package]]
name = "forge"
version = "0.1.0"
source = "git+https://example.com/forge#abc"
`, []lockfile.Package{barSum}},
		{"Cargo.lock", `[[package]]
name = "bar"
version = "1.2.3+x"
source = "registry+https://example.com/index"
[metadata]
"checksum bar 1.2.3+x (registry+https://example.com/index)" = "` + sum + `"
`, []lockfile.Package{barSum}},
		{"go.sum", "example.com/Foo v1.0.0 h1:abc=\nexample.com/Foo v1.0.0/go.mod h1:def=\nexample.com/m v1.1.0/go.mod h1:ghi=\n",
			[]lockfile.Package{
				{Ecosystem: "go", Name: "example.com/Foo", Version: "v1.0.0", Checksum: "h1:abc="},
				{Ecosystem: "go", Name: "example.com/m", Version: "v1.1.0", ModOnly: true},
			}},
		{"go.mod", "module m\nrequire (\n example.com/Foo v1.0.0\n example.com/dir v1.0.0\n example.com/fork v1.0.0 // indirect\n)\nreplace example.com/dir => ../dir\nreplace example.com/fork v1.0.0 => example.com/new v1.5.0\n",
			[]lockfile.Package{mod, {Ecosystem: "go", Name: "example.com/new", Version: "v1.5.0"}}},
		{"bom.json", `{"bomFormat":"CycloneDX","specVersion":"1.5","components":[
{"type":"library","name":"bar","purl":"pkg:cargo/bar@1.2.3%2Bx","hashes":[{"alg":"SHA-256","content":"` + strings.ToUpper(sum) + `"}],
 "components":[{"type":"library","name":"Foo","purl":"pkg:golang/example.com/Foo@v1.0.0"}]},
{"type":"library","name":"left-pad","purl":"pkg:npm/left-pad@1.0.0"}]}`, []lockfile.Package{barSum, mod}},
		{"bom.xml", `<?xml version="1.0"?><bom xmlns="http://cyclonedx.org/schema/bom/1.5"><components>
<component type="library"><name>bar</name><purl>pkg:cargo/bar@1.2.3%2Bx</purl></component></components></bom>`, []lockfile.Package{bar}},
		{"sbom.spdx.json", `{"spdxVersion":"SPDX-2.3","dataLicense":"CC0-1.0","SPDXID":"SPDXRef-DOCUMENT","name":"x","documentNamespace":"https://example.com/x",
"creationInfo":{"creators":["Tool: x"],"created":"2024-01-01T00:00:00Z"},
"packages":[{"name":"bar","SPDXID":"SPDXRef-bar","downloadLocation":"NOASSERTION","externalRefs":[
{"referenceCategory":"PACKAGE-MANAGER","referenceType":"purl","referenceLocator":"pkg:cargo/bar@1.2.3%2Bx"}]}]}`, []lockfile.Package{bar}},
		{"sbom.spdx", `SPDXVersion: SPDX-2.3
DataLicense: CC0-1.0
SPDXID: SPDXRef-DOCUMENT
DocumentName: x
DocumentNamespace: https://example.com/x
Creator: Tool: x
Created: 2024-01-01T00:00:00Z
PackageName: bar
SPDXID: SPDXRef-bar
PackageDownloadLocation: NOASSERTION
FilesAnalyzed: false
ExternalRef: PACKAGE-MANAGER purl pkg:cargo/bar@1.2.3%2Bx
`, []lockfile.Package{bar}},
	} {
		got, err := lockfile.Read(c.name, strings.NewReader(c.in))
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got %+v, %v, want %+v", c.name, got, err, c.want)
		}
	}
}

func TestReadOwnGoSum(t *testing.T) {
	f, err := os.Open("../../go.sum")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	pkgs, err := lockfile.Read("go.sum", f)
	if err != nil || len(pkgs) < 50 {
		t.Errorf("got %d packages, %v", len(pkgs), err)
	}
}

func TestUnknownFormat(t *testing.T) {
	for _, in := range []string{"", "{}", "hello", "<html/>"} {
		if _, err := lockfile.Read("x.json", strings.NewReader(in)); !errors.Is(err, lockfile.ErrFormat) {
			t.Errorf("%q: error %v, want ErrFormat", in, err)
		}
	}
}

// SEC-8: hostile lock files end in an error, never in a panic.
func FuzzRead(f *testing.F) {
	f.Add("Cargo.lock", []byte("[[package]]\nname='a'\nversion='1'\nsource='registry+x'"))
	f.Add("go.sum", []byte("a v1 h1:x"))
	f.Add("go.mod", []byte("module m\nrequire a v1.0.0"))
	f.Add("x.json", []byte(`{"bomFormat":"CycloneDX","components":[]}`))
	f.Add("x.spdx", []byte("SPDXVersion: SPDX-2.3\nPackageName: x"))
	f.Fuzz(func(t *testing.T, name string, b []byte) {
		pkgs, err := lockfile.Read(name, strings.NewReader(string(b)))
		if err != nil && pkgs != nil {
			t.Fatalf("both packages and the error %v", err)
		}
	})
}
