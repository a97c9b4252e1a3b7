//go:build linux

package integration

import (
	"debug/elf"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pkgswarm/pkgswarm/internal/machines"
	"github.com/pkgswarm/pkgswarm/internal/testenv"
)

// An image is what the Dockerfile makes: a root directory, and how it is run.
type image struct {
	root       string
	user       machines.User
	env        []string
	entrypoint []string
	cmd        []string
	health     []string
	volumes    []string
	expose     []string
}

// An instruction is one of a Dockerfile.
type instruction struct {
	name  string
	flags map[string]string
	args  string
}

// readDockerfile parses the Dockerfile as far as it goes: an instruction that the
// builder below does not know fails the test.
func readDockerfile(t testing.TB) []instruction {
	t.Helper()
	var list []instruction
	joined := ""
	for line := range strings.Lines(read(t, "../Dockerfile")) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if head, ok := strings.CutSuffix(line, `\`); ok {
			joined += head
			continue
		}
		name, rest, _ := strings.Cut(joined+line, " ")
		joined = ""
		in := instruction{name: name, flags: map[string]string{}}
		for strings.HasPrefix(strings.TrimSpace(rest), "--") {
			var flag string
			flag, rest, _ = strings.Cut(strings.TrimSpace(rest), " ")
			k, v, _ := strings.Cut(flag[2:], "=")
			in.flags[k] = v
		}
		in.args = strings.TrimSpace(rest)
		list = append(list, in)
	}
	return list
}

// jsonArgs parses the exec form of an instruction.
func jsonArgs(t testing.TB, s string) (args []string) {
	t.Helper()
	if err := json.Unmarshal([]byte(s), &args); err != nil {
		t.Fatalf("%s is not in the exec form: %v", s, err)
	}
	return args
}

// A stage is one of a Dockerfile being built.
type stage struct {
	t    testing.TB
	m    *machines.Machine // nil: from scratch
	dir  string            // working directory
	root string            // from scratch: the root; else where the machine sees the other stage's
}

// built is the image, which is built once.
var built struct {
	sync.Once
	image *image
}

// buildImage does what the Dockerfile says, with this machine's files in place of
// the first stage's image.
func buildImage(t testing.TB) *image {
	t.Helper()
	built.Do(func() {
		dir, err := sharedDir()
		if err != nil {
			t.Fatal(err)
		}
		img := &image{root: dir}
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		img.build(t)
		built.image = img
	})
	if built.image == nil {
		t.Fatal("the image could not be built")
	}
	return built.image
}

func (img *image) build(t testing.TB) {
	t.Helper()
	cmd := exec.Command("go", "mod", "download") // which the machine does without a network
	cmd.Dir = ".."
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go mod download: %v\n%s", err, out)
	}
	n := machines.New(t)
	var build, last *stage
	for _, in := range readDockerfile(t) {
		if in.name == "FROM" {
			last = img.from(t, n, in.args)
			if build == nil {
				build = last
			}
			continue
		}
		img.do(t, in, build, last)
	}
	if build.m == nil || last.m != nil {
		t.Fatal("the Dockerfile does not end in a stage from scratch")
	}
	build.m.Stop()
}

func (img *image) from(t testing.TB, n *machines.Network, args string) *stage {
	t.Helper()
	base := strings.Fields(args)[0]
	if base == "scratch" {
		return &stage{t: t, root: img.root, dir: "/"}
	}
	if version := goEnv(t, "GOVERSION"); !strings.HasPrefix(version, strings.Replace(base, "golang:", "go", 1)) {
		t.Errorf("the Dockerfile builds with %s, this machine with %s", base, version)
	}
	cache := goEnv(t, "GOCACHE")
	m := n.Start(machines.Config{Name: "build", Mounts: []machines.Mount{
		{From: buildContext(t), To: "/.context", ReadOnly: true},
		{From: img.root, To: "/.image"},
		{From: cache, To: cache},
	}})
	return &stage{t: t, m: m, dir: "/", root: "/.image"}
}

// buildContext returns a directory with the files that a builder is sent: those of
// the repository without what .dockerignore names.
func buildContext(t testing.TB) string {
	t.Helper()
	testenv.Need(t, "git")
	cmd := exec.Command("git", "ls-files")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	ignored := strings.Fields(read(t, "../.dockerignore"))
	dir := t.TempDir()
	for name := range strings.SplitSeq(strings.TrimSpace(string(out)), "\n") {
		if slices.ContainsFunc(ignored, func(i string) bool { return name == i || strings.HasPrefix(name, strings.TrimSuffix(i, "/")+"/") }) {
			continue
		}
		b, err := os.ReadFile(filepath.Join("..", name))
		if err != nil {
			continue // deleted, not committed
		}
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// do carries out an instruction of stage s.
func (img *image) do(t testing.TB, in instruction, build, s *stage) {
	t.Helper()
	switch {
	case in.name == "WORKDIR" && s.m != nil:
		build.sh("mkdir -p " + in.args)
		s.dir = in.args
	case in.name == "RUN" && s.m != nil:
		build.sh(in.args)
	case in.name == "COPY":
		img.copy(in, build, s)
	case in.name == "USER" && s.m == nil:
		if _, err := fmt.Sscanf(in.args, "%d:%d", &img.user.UID, &img.user.GID); err != nil {
			t.Fatalf("USER %s: %v", in.args, err)
		}
		img.user.NoNew = true
	case in.name == "ENV" && s.m == nil:
		img.env = append(img.env, strings.Fields(in.args)...)
	case in.name == "VOLUME" && s.m == nil:
		img.volumes = jsonArgs(t, in.args)
	case in.name == "EXPOSE" && s.m == nil:
		img.expose = strings.Fields(in.args)
	case in.name == "HEALTHCHECK" && s.m == nil:
		img.health = jsonArgs(t, strings.TrimPrefix(in.args, "CMD "))
	case in.name == "ENTRYPOINT" && s.m == nil:
		img.entrypoint = jsonArgs(t, in.args)
	case in.name == "CMD" && s.m == nil:
		img.cmd = jsonArgs(t, in.args)
	default:
		t.Fatalf("instruction %s %s is not known to this test", in.name, in.args)
	}
}

// copy does what a builder does for COPY: missing directories are made with mode
// 0755, of a directory the content is copied, owners are root's or --chown's, and
// modes stay.
func (img *image) copy(in instruction, build, s *stage) {
	f := strings.Fields(in.args)
	sources, to := f[:len(f)-1], f[len(f)-1]
	from := "/.context"
	if in.flags["from"] != "" {
		from = ""
	}
	target := filepath.Join(s.dir, to)
	if s.m == nil {
		target = filepath.Join("/.image", to)
	}
	owner := "0:0"
	if o := in.flags["chown"]; o != "" {
		owner = o
	}
	into := strings.HasSuffix(to, "/")
	for _, src := range sources {
		build.sh(fmt.Sprintf(`
src=%s target=%s owner=%s
make_dirs() { [ -d "$1" ] || { make_dirs "$(dirname "$1")"; mkdir -m 0755 "$1"; chown "$owner" "$1"; }; }
if [ -d "$src" ]; then
  make_dirs "$target"
  for f in "$src"/* "$src"/.[!.]*; do
    [ -e "$f" ] || continue
    chown -R "$owner" "$f" 2>/dev/null || { cp -a "$f" /tmp/; f=/tmp/$(basename "$f"); chown -R "$owner" "$f"; }
    cp -a "$f" "$target"/
  done
else
  if %v; then make_dirs "$target"; else make_dirs "$(dirname "$target")"; fi
  cp -L --preserve=mode "$src" "$target"
  [ -d "$target" ] && target=$target/$(basename "$src")
  chown "$owner" "$target"
fi`, filepath.Join("/", from, src), target, owner, into))
	}
}

// sh runs a script in the stage's working directory.
func (s *stage) sh(script string) {
	s.t.Helper()
	home, err := os.UserHomeDir()
	if err != nil {
		s.t.Fatal(err)
	}
	cmd := s.m.Command(machines.User{Dir: s.dir}, "sh", "-ec", script)
	cmd.Env = []string{"HOME=" + home, "PATH=" + goEnv(s.t, "GOROOT") + "/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"GOCACHE=" + goEnv(s.t, "GOCACHE"), "GOMODCACHE=" + goEnv(s.t, "GOMODCACHE"), "GOPROXY=off", "GOTOOLCHAIN=local"}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := s.m.Start(cmd); err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		s.t.Fatalf("%s: %v\n%s", script, err, &out)
	}
}

// A container is a running image.
type container struct {
	*machines.Machine
	t   testing.TB
	img *image
	env []string
}

// volume makes a directory for a volume of the image at path: as empty as it is
// there, with the same owner and mode.
func (img *image) volume(t testing.TB, path string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "volume")
	info, err := os.Stat(filepath.Join(img.root, path))
	if err != nil {
		t.Fatal(err)
	}
	st := info.Sys().(*syscall.Stat_t)
	if err := os.Mkdir(dir, info.Mode().Perm()); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, int(st.Uid), int(st.Gid)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// start starts a container without a process. volumes says what is mounted, by
// path; the image's other volumes are new.
func (img *image) start(t testing.TB, n *machines.Network, name string, volumes map[string]machines.Mount, share *machines.Machine) *container {
	t.Helper()
	c := machines.Config{Name: name, Root: img.root, ReadOnly: true, Share: share, Mounts: []machines.Mount{{To: "/tmp"}}}
	for _, path := range img.volumes {
		if _, ok := volumes[path]; !ok {
			c.Mounts = append(c.Mounts, machines.Mount{From: img.volume(t, path), To: path})
		}
	}
	for path, m := range volumes {
		m.To = path
		c.Mounts = append(c.Mounts, m)
	}
	return &container{Machine: n.Start(c), t: t, img: img, env: img.env}
}

// command returns the entry point with arguments.
func (c *container) command(args ...string) *exec.Cmd {
	cmd := c.Command(c.img.user, append(c.img.entrypoint[:len(c.img.entrypoint):len(c.img.entrypoint)], args...)...)
	cmd.Env = c.env
	return cmd
}

// run runs the entry point with arguments to its end.
func (c *container) run(args ...string) (string, error) {
	c.t.Helper()
	cmd := c.command(args...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := c.Start(cmd); err != nil {
		c.t.Fatal(err)
	}
	err := cmd.Wait()
	return out.String(), err
}

// healthy reports whether the health check passes.
func (c *container) healthy() bool {
	cmd := c.Command(c.img.user, c.img.health...)
	cmd.Env = c.env
	if err := c.Start(cmd); err != nil {
		c.t.Fatal(err)
	}
	return cmd.Wait() == nil
}

// awaitHealthy waits until the health check passes.
func (c *container) awaitHealthy(said fmt.Stringer) {
	c.t.Helper()
	for end := time.Now().Add(30 * time.Second); !c.healthy(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			c.t.Fatalf("%s does not become healthy\n%s", c.Name, said)
		}
	}
}

// TestImage builds the image as the Dockerfile says, without a container engine, and
// runs it as one would: unprivileged, with a root that cannot be written.
func TestImage(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the program")
	}
	img := buildImage(t)
	t.Run("content", func(t *testing.T) {
		var files []string
		filepath.WalkDir(img.root, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				t.Error(err)
			} else if !d.IsDir() {
				files = append(files, strings.TrimPrefix(path, img.root))
			}
			return nil
		})
		if want := []string{"/etc/ssl/certs/ca-certificates.crt", "/pkgswarm"}; !slices.Equal(files, want) {
			t.Errorf("the image has %q, want %q", files, want)
		}
		f, err := elf.Open(filepath.Join(img.root, "pkgswarm"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for _, p := range f.Progs {
			if p.Type == elf.PT_INTERP {
				t.Error("the program is not static")
			}
		}
		for _, path := range img.volumes {
			info, err := os.Stat(filepath.Join(img.root, path))
			if err != nil {
				t.Fatal(err)
			}
			if st := info.Sys().(*syscall.Stat_t); info.Mode().Perm() != 0o700 || int(st.Uid) != img.user.UID || int(st.Gid) != img.user.GID {
				t.Errorf("%s has mode %v, owner %d:%d", path, info.Mode(), st.Uid, st.Gid)
			}
		}
		if img.user.UID == 0 {
			t.Error("the image runs as root")
		}
	})
	t.Run("run", func(t *testing.T) {
		n := machines.New(t)
		state := img.volume(t, "/var/lib/pkgswarm/state")
		c := img.start(t, n, "pkgswarm", map[string]machines.Mount{"/var/lib/pkgswarm/state": {From: state}}, nil)
		if c.healthy() {
			t.Error("it is healthy before it runs")
		}
		cmd := c.command(img.cmd...)
		said := &lockedBuilder{}
		cmd.Stdout, cmd.Stderr = said, said
		if err := c.Start(cmd); err != nil {
			t.Fatal(err)
		}
		c.awaitHealthy(said)
		cmd.Process.Signal(syscall.SIGTERM) // as an engine stops it
		if err := cmd.Wait(); err != nil {
			t.Errorf("stopped: %v\n%s", err, said)
		}
		if _, err := os.Stat(filepath.Join(state, "identity")); err != nil {
			t.Errorf("nothing is in the volume: %v", err)
		}
	})
}
