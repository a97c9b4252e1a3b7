package policy_test

import (
	"strings"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pkgswarm/pkgswarm/registry/policy"
)

func TestRefuse(t *testing.T) {
	now := time.Date(2026, 1, 10, 0, 0, 0, 0, time.UTC)
	old, young := now.Add(-240*time.Hour), now.Add(-time.Hour)
	day := policy.Duration(24 * time.Hour)
	for _, c := range []struct {
		name      string
		rules     policy.Rules
		pkg       string
		version   string
		published time.Time
		rule      string // "" means allowed
	}{
		{"no rules", policy.Rules{}, "a", "1.0.0", young, ""},
		{"blocked name", policy.Rules{Block: []string{"evil-*"}}, "evil-x", "1.0.0", old, "block"},
		{"other name", policy.Rules{Block: []string{"evil-*"}}, "good", "1.0.0", old, ""},
		{"blocked version", policy.Rules{Block: []string{"a@1.0.*"}}, "a", "1.0.7", old, "block"},
		{"other version", policy.Rules{Block: []string{"a@1.0.*"}}, "a", "1.1.0", old, ""},
		{"block beats allow", policy.Rules{Allow: []string{"a"}, Block: []string{"a"}}, "a", "1.0.0", old, "block"},
		{"not allowed", policy.Rules{Allow: []string{"a"}}, "b", "1.0.0", old, "allow"},
		{"too young", policy.Rules{Cooldown: day}, "a", "1.0.0", young, "cooldown"},
		{"in the future", policy.Rules{Cooldown: day}, "a", "1.0.0", now.Add(time.Hour), "cooldown"},
		{"old enough", policy.Rules{Cooldown: day}, "a", "1.0.0", now.Add(-24 * time.Hour), ""},
		{"unknown time", policy.Rules{Cooldown: day}, "a", "1.0.0", time.Time{}, ""},
		{"exception", policy.Rules{Cooldown: day, Block: []string{"our-*"}, Except: []string{"our-*"}}, "our-x", "1.0.0", young, ""},
		{"Go prefix", policy.Rules{Block: []string{"example.com/evil"}}, "example.com/evil/v2", "v2.0.0", old, "block"},
		{"Go neighbour", policy.Rules{Block: []string{"example.com/evil"}}, "example.com/eviler", "v1.0.0", old, ""},
		{"Go star", policy.Rules{Block: []string{"*.example.com"}}, "x.example.com/a/b", "v1.0.0", old, "block"},
	} {
		got := c.rules.Refuse(c.pkg, c.version, c.published, now)
		if rule := ruleOf(got); rule != c.rule {
			t.Errorf("%s: refused by %q, want %q", c.name, rule, c.rule)
		}
	}
}

func ruleOf(r *policy.Refusal) string {
	if r == nil {
		return ""
	}
	return r.Rule
}

// REL-17: the message says what, why and from when.
func TestRefusalText(t *testing.T) {
	published := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	r := policy.Rules{Cooldown: policy.Duration(72 * time.Hour)}.Refuse("serde", "1.0.0", published, published)
	want := "serde@1.0.0 is refused by this mirror's policy: it was published 2026-01-01T00:00:00Z, and versions are held back for 72h0m0s: available from 2026-01-04T00:00:00Z"
	if r.Error() != want {
		t.Errorf("got %q, want %q", r.Error(), want)
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"[policy]\ndry-run = true\n[policy.cargo]\ncooldown = '3d'\nblock = ['a@1.*']", ""},
		{"[policy.go]\nblock = ['[']", "malformed pattern"},
		{"[policy.go]\nallow = ['@v1']", "malformed pattern"},
		{"[policy.go]\ncooldown = 'soon'", "duration"},
		{"[policy.go]\ncooldown = '-3h'", "negative"},
	} {
		var f struct{ Policy policy.Config }
		err := toml.Unmarshal([]byte(c.in), &f)
		if err == nil {
			err = f.Policy.Check()
		}
		if c.want == "" {
			if err != nil || !f.Policy.DryRun || time.Duration(f.Policy.Cargo.Cooldown) != 72*time.Hour {
				t.Errorf("%q: %+v, %v", c.in, f.Policy, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: error %v, want %q", c.in, err, c.want)
		}
	}
}
