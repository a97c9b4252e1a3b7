//go:build linux

package integration

import (
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"

	"github.com/pkgswarm/pkgswarm/internal/machines"
	"github.com/pkgswarm/pkgswarm/internal/testenv"
)

// A scenario is docker-compose.yml in operation: each service is a machine with what
// the file says of its command, environment, volumes and network.
type scenario struct {
	t       *testing.T
	n       *machines.Network
	img     *image
	reg     registries
	project *types.Project
	volumes map[string]string // directories of named volumes
	up      map[string]*container
}

// loadCompose reads the file with variables set.
func loadCompose(t *testing.T, env ...string) *types.Project {
	t.Helper()
	o, err := cli.NewProjectOptions([]string{"../docker-compose.yml"}, cli.WithWorkingDirectory(".."), cli.WithResolvedPaths(true), cli.WithEnv(env))
	if err != nil {
		t.Fatal(err)
	}
	p, err := o.LoadProject(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (s *scenario) service(name string) types.ServiceConfig {
	s.t.Helper()
	svc, err := s.project.GetService(name)
	if err != nil {
		s.t.Fatal(err)
	}
	return svc
}

// mounts returns what a service mounts, by path.
func (s *scenario) mounts(svc types.ServiceConfig) map[string]machines.Mount {
	m := map[string]machines.Mount{}
	for _, v := range svc.Volumes {
		switch v.Type {
		case types.VolumeTypeBind:
			m[v.Target] = machines.Mount{From: v.Source, ReadOnly: v.ReadOnly}
		case types.VolumeTypeVolume:
			if s.volumes[v.Source] == "" {
				s.volumes[v.Source] = s.img.volume(s.t, v.Target)
			}
			m[v.Target] = machines.Mount{From: s.volumes[v.Source]}
		default:
			s.t.Fatalf("service %s has a volume of type %s", svc.Name, v.Type)
		}
	}
	return m
}

// container makes the container of a service that runs our image.
func (s *scenario) container(name string) *container {
	s.t.Helper()
	svc := s.service(name)
	if svc.Image != "pkgswarm" || !svc.ReadOnly || !slices.Contains(svc.CapDrop, "ALL") || !slices.Contains(svc.Tmpfs, "/tmp") {
		s.t.Fatalf("service %s: image %s, read_only %v, cap_drop %v, tmpfs %v: this test runs others than it says", name, svc.Image, svc.ReadOnly, svc.CapDrop, svc.Tmpfs)
	}
	var share *machines.Machine
	if other, ok := strings.CutPrefix(svc.NetworkMode, "service:"); ok {
		share = s.up[other].Machine
	}
	c := s.img.start(s.t, s.n, name, s.mounts(svc), share)
	for k, v := range svc.Environment {
		if v != nil {
			c.env = append(c.env, k+"="+*v)
		}
	}
	c.env = append(c.env, "PKGSWARM_INDEX="+s.reg.cargo.Index(), "PKGSWARM_GOPROXY="+s.reg.mods.URL, "PKGSWARM_SUMDB="+s.reg.mods.Key,
		"PKGSWARM_CARGO_UPSTREAM="+s.reg.cargo.Index(), "PKGSWARM_GO_UPSTREAM="+s.reg.mods.URL)
	s.up[name] = c
	return c
}

// reach makes the registries reachable from a container.
func (s *scenario) reach(c *container) {
	s.t.Helper()
	for _, addr := range []string{s.reg.cargo.URL, s.reg.mods.URL} {
		u, err := url.Parse(addr)
		if err != nil {
			s.t.Fatal(err)
		}
		c.Forward(u.Host)
	}
}

// complete runs a service to its end.
func (s *scenario) complete(c *container) {
	s.t.Helper()
	out, err := c.run(s.service(c.Name).Command...)
	if err != nil {
		s.t.Fatalf("service %s: %v\n%s", c.Name, err, out)
	}
	s.t.Logf("%s: %s", c.Name, out)
}

// background starts a service that goes on, and returns what it prints.
func (s *scenario) background(c *container) *lockedBuilder {
	s.t.Helper()
	cmd := c.command(s.service(c.Name).Command...)
	said := &lockedBuilder{}
	cmd.Stdout, cmd.Stderr = said, said
	if err := c.Start(cmd); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		c.Stop()
		cmd.Wait()
		s.t.Logf("%s: %s", c.Name, said)
	})
	return said
}

// build runs a builder, with this machine's cargo or go in place of its image's.
func (s *scenario) build(name string) string {
	s.t.Helper()
	svc := s.service(name)
	node, ok := strings.CutPrefix(svc.NetworkMode, "service:")
	if !ok || s.up[node] == nil {
		s.t.Fatalf("service %s has network mode %q", name, svc.NetworkMode)
	}
	if d := svc.DependsOn[node]; d.Condition != types.ServiceConditionHealthy {
		s.t.Errorf("service %s does not wait for %s to be healthy", name, node)
	}
	c := machines.Config{Name: name, Share: s.up[node].Machine, Mounts: []machines.Mount{{To: svc.WorkingDir}, {To: home}}}
	for path, m := range s.mounts(svc) {
		m.To = path
		c.Mounts = append(c.Mounts, m)
	}
	m := s.n.Start(c)
	cmd := m.Command(machines.User{Dir: svc.WorkingDir}, svc.Command...)
	cmd.Env = []string{"HOME=" + home, "GOTOOLCHAIN=local", "GOFLAGS=-modcacherw", "RUSTUP_HOME=" + rustupHome(s.t), "CARGO_NET_RETRY=0",
		"PATH=" + strings.Join([]string{goEnv(s.t, "GOROOT") + "/bin", filepath.Dir(testenv.Need(s.t, "cargo")), "/usr/bin", "/bin"}, ":")}
	for k, v := range svc.Environment {
		cmd.Env = append(cmd.Env, k+"="+*v)
	}
	out := &lockedBuilder{}
	cmd.Stdout, cmd.Stderr = out, out
	start := time.Now()
	if err := m.Start(cmd); err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		s.t.Errorf("service %s: %v\n%s", name, err, out)
	}
	s.t.Logf("%s took %v: %s", name, time.Since(start).Round(time.Millisecond), out)
	return out.String()
}

// TestCompose runs what docker-compose.yml describes, with the registries reachable
// for the operator only. When a seeder is filled the operator goes as well: the
// builders behind the clients get all from the swarm.
func TestCompose(t *testing.T) {
	if testing.Short() {
		t.Skip("runs a small registry")
	}
	s := &scenario{
		t: t, n: machines.New(t), img: buildImage(t), reg: registries{realCrates(t), realModules(t)},
		volumes: map[string]string{}, up: map[string]*container{},
	}
	s.reg.mods.Record(t, "github.com/google/uuid", "v1.6.0")
	s.project = loadCompose(t)

	s.complete(s.container("seed"))
	importGo := s.container("import-go")
	s.reach(importGo)
	s.complete(importGo)
	operator := s.container("operator")
	s.reach(operator)
	said := s.background(operator)
	for end := time.Now().Add(time.Minute); !strings.Contains(said.String(), "blocks signed"); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the operator has not signed:\n%s", said)
		}
	}
	key, err := s.run("seed", "key", "show") // as the comment in the file says
	if err != nil || len(strings.TrimSpace(key)) != 52 {
		t.Fatalf("key show: %q, %v", key, err)
	}
	s.project = loadCompose(t, "REGISTRY_KEY="+strings.TrimSpace(key))
	for _, name := range []string{"seeder-1", "seeder-2", "client-1", "client-2"} {
		s.background(s.container(name))
	}
	names := crateNames(read(t, "testdata/sample/Cargo.lock"))
	slices.Sort(names)
	crates := len(slices.Compact(names)) // a lock file may have two versions
	for _, name := range []string{"seeder-1", "client-1", "client-2"} {
		s.up[name].awaitHealthy(nil)
		awaitStatus(t, fmt.Sprintf(": %d crates,", crates), func() (string, error) { return s.run(name, "status") })
	}
	s.complete(s.container("fill"))
	operator.Stop()
	s.reg.cargo.Reset()
	s.reg.mods.Asked()
	out := s.build("build-cargo")
	if !strings.Contains(out, "Downloaded") {
		t.Errorf("build-cargo: %s", out)
	}
	s.build("build-go")
	wantNone(t, "crates of the builders", s.reg.cargo.Downloads())
	if asked := s.reg.mods.Asked(); len(asked) > 0 {
		t.Errorf("the Go upstream was asked %v", asked)
	}
}

func (s *scenario) run(name string, args ...string) (string, error) { return s.up[name].run(args...) }
