// Package deploy holds what it takes to run pkgswarm somewhere; it has tests only.
package deploy

import (
	"testing"

	"github.com/compose-spec/compose-go/v2/cli"
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
