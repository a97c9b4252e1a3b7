package main

import (
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/pkgswarm/pkgswarm/registry/policy"
)

// readPolicy reads the table [policy] of the configuration file. A key that it does
// not know is an error: a rule that does not count is worse than none.
func readPolicy(cmd *cobra.Command) (policy.Config, error) {
	const hint = "see the policy's keys in the documentation: dry-run; allow, block, cooldown and except in [policy.cargo] and [policy.go]"
	f, err := readConfig(cmd)
	if err != nil {
		return policy.Config{}, err
	}
	var keys struct {
		Policy map[string]any `toml:"policy"`
	}
	var c struct {
		Policy policy.Config `toml:"policy"`
	}
	if err := f.Decode(&keys); err != nil {
		return c.Policy, &exitError{exitUsage, err, hint}
	}
	if err := checkPolicyKeys(keys.Policy); err != nil {
		return c.Policy, &exitError{exitUsage, fmt.Errorf("%s: %w", f.Path, err), hint}
	}
	if err := f.Decode(&c); err != nil {
		return c.Policy, &exitError{exitUsage, err, hint}
	}
	if err := c.Policy.Check(); err != nil {
		return c.Policy, &exitError{exitUsage, fmt.Errorf("%s: %w", f.Path, err), hint}
	}
	return c.Policy, nil
}

func checkPolicyKeys(table map[string]any) error {
	for key, v := range table {
		switch key {
		case "dry-run":
		case "cargo", "go":
			rules, ok := v.(map[string]any)
			if !ok {
				return fmt.Errorf("policy.%s is not a table", key)
			}
			for name := range rules {
				if !slices.Contains([]string{"allow", "block", "cooldown", "except"}, name) {
					return fmt.Errorf("policy.%s has no rule %q", key, name)
				}
			}
		default:
			return fmt.Errorf("policy has no key %q", key)
		}
	}
	return nil
}
