//go:build linux

package deploy

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pkgswarm/pkgswarm/internal/machines"
	"github.com/pkgswarm/pkgswarm/internal/testenv"
)

// home is that of the CI's user; there is none on this machine.
const home = "/home" + "/runner"

// A job is a CI job on a machine of its own.
type job struct {
	t   *testing.T
	m   *machines.Machine
	env []string
}

func newJob(t *testing.T, n *machines.Network, name, prog string) *job {
	t.Helper()
	m := n.Start(machines.Config{Name: name, Mounts: []machines.Mount{
		{To: home}, {To: "/tmp"}, {From: prog, To: "/usr/local/bin/pkgswarm", ReadOnly: true},
	}})
	goTool := testenv.Need(t, "go")
	return &job{t, m, []string{"HOME=" + home, "PATH=/usr/local/bin:" + filepath.Dir(goTool) + ":/usr/bin:/bin", "PKGSWARM_LAN=false"}}
}

// sh runs a script as a CI does.
func (j *job) sh(script string, env ...string) (string, error) {
	j.t.Helper()
	cmd := j.m.Command(machines.User{Dir: home}, "bash", "-eo", "pipefail", "-c", script)
	cmd.Env = append(j.env[:len(j.env):len(j.env)], env...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := j.m.Start(cmd); err != nil {
		j.t.Fatal(err)
	}
	err := cmd.Wait()
	return out.String(), err
}

// TestGitHubAction runs the steps of the action: afterwards a node runs, with the
// settings given, and go asks it. Without the program the job goes on all the same.
func TestGitHubAction(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the program")
	}
	n := machines.New(t)
	prog := program(t, "..")
	action := parse(t, read(t, "github-action/action.yml"))
	inputs := at(t, action, "inputs").(map[string]any)
	start := func(j *job, given map[string]string) (string, error) {
		expand := func(s string) string {
			for name := range inputs {
				v, ok := given[name]
				if !ok {
					v, _ = at(t, inputs, name, "default").(string)
				}
				s = strings.ReplaceAll(s, "${{ inputs."+name+" }}", v)
			}
			s = strings.ReplaceAll(s, "${{ runner.temp }}", "/tmp/runner")
			if strings.Contains(s, "${{") {
				t.Errorf("an expression that is not known here: %s", s)
			}
			return s
		}
		var all string
		for _, s := range at(t, action, "runs", "steps").([]any) {
			step := s.(map[string]any)
			if step["run"] == nil {
				continue // an action of others
			}
			env := []string{"RUNNER_TEMP=/tmp/runner"}
			for k, v := range at(t, step, "env").(map[string]any) {
				env = append(env, k+"="+expand(v.(string)))
			}
			out, err := j.sh("mkdir -p /tmp/runner; "+step["run"].(string), env...)
			if all += out; err != nil {
				return all, err
			}
		}
		return all, nil
	}
	j := newJob(t, n, "github", prog)
	token := strings.Repeat("secret", 8)
	out, err := start(j, map[string]string{"fleet-token": token, "peers": "127.0.0.1:9"})
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if strings.Contains(out, token) {
		t.Error("the token is in the log") // SEC-57
	}
	out, err = j.sh("pkgswarm status --json; go env GOPROXY; cat /tmp/runner/pkgswarm.log")
	if err != nil || !strings.Contains(out, `"fleet":true`) || !strings.Contains(out, "http://127.0.0.1:7070/go|") || !strings.Contains(out, "dialling 127.0.0.1:9") {
		t.Errorf("after the action: %v\n%s", err, out)
	}
	out, err = start(newJob(t, n, "without", prog), map[string]string{"binary": "/nowhere/pkgswarm"})
	if err != nil || !strings.Contains(out, "::warning::") {
		t.Errorf("without the program: %v\n%s", err, out)
	}
}

// TestGitLab runs a job that extends the template.
func TestGitLab(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the program")
	}
	j := newJob(t, machines.New(t), "gitlab", program(t, ".."))
	tmpl := at(t, parse(t, read(t, "gitlab/pkgswarm.gitlab-ci.yml")), ".pkgswarm").(map[string]any)
	env := []string{"CI_PROJECT_DIR=" + home + "/project", "FLEET_TOKEN=/tmp/variable"}
	for k, v := range at(t, tmpl, "variables").(map[string]any) {
		env = append(env, k+"="+strings.ReplaceAll(v.(string), "$CI_PROJECT_DIR", home+"/project"))
	}
	var script []string
	for _, line := range at(t, tmpl, "before_script").([]any) {
		script = append(script, line.(string))
	}
	script = append(script, `pkgswarm run -- sh -c 'echo $GOPROXY'`)
	setUp := fmt.Sprintf("mkdir project; echo %s > /tmp/variable; chmod 666 /tmp/variable", strings.Repeat("secret", 8))
	if out, err := j.sh(setUp); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	out, err := j.sh(strings.Join(script, "\n"), env...)
	if err != nil || !strings.Contains(out, "http://127.0.0.1:") {
		t.Errorf("%v\n%s", err, out)
	}
	for _, path := range at(t, tmpl, "cache", "paths").([]any) {
		if out, err := j.sh("ls -d project/" + path.(string) + "/store"); err != nil {
			t.Errorf("the cache is not where it is said to be: %s", out)
		}
	}
}
