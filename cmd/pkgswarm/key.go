package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/pkgswarm/pkgswarm/importer"
	"github.com/pkgswarm/pkgswarm/internal/durable"
	"github.com/pkgswarm/pkgswarm/registry/catalog"
)

func newKeyCommand(s *streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Make, show, back up and replace the keys of a registry operator",
		Long: `An operator has one secret seed, from which the keys of the catalog and of
all package logs derive. The catalog's public key is the registry key, which
users configure.`,
		Example: `  pkgswarm key new
  pkgswarm key backup seed.age`,
		Args: cobra.NoArgs,
	}
	cmd.AddCommand(newKeyNewCommand(s), newKeyShowCommand(s), newKeyBackupCommand(s), newKeyRestoreCommand(s), newKeyRotateCommand(s))
	return cmd
}

// printRegistryKey prints the key that users configure.
func printRegistryKey(s *streams, seed catalog.Seed, asJSON bool) error {
	key := catalog.NewOperator(seed).RegistryKey()
	if asJSON {
		return json.NewEncoder(s.out).Encode(map[string]string{"registry_key": key.String()})
	}
	_, err := fmt.Fprintln(s.out, key)
	return err
}

func newKeyNewCommand(s *streams) *cobra.Command {
	var d dirs
	var asJSON, keep bool
	cmd := &cobra.Command{
		Use:     "new",
		Example: "  pkgswarm key new",
		Short:   "Make a seed and print the registry key",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if keep {
				if old, err := catalog.LoadSeed(d.state); err == nil {
					return printRegistryKey(s, old, asJSON)
				}
			}
			seed := catalog.NewSeed()
			if err := catalog.SaveSeed(d.state, seed); err != nil {
				return keyError(err)
			}
			fmt.Fprintf(s.err, "wrote %s\nkeep a backup of it: pkgswarm key backup FILE\n", catalog.SeedPath(d.state))
			return printRegistryKey(s, seed, asJSON)
		},
	}
	d.addFlags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.Flags().BoolVar(&keep, "keep", false, "if there is a seed already, print its registry key")
	return cmd
}

func newKeyShowCommand(s *streams) *cobra.Command {
	var d dirs
	asJSON := false
	cmd := &cobra.Command{
		Use:     "show",
		Example: "  pkgswarm key show",
		Short:   "Print the registry key",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			seed, err := catalog.LoadSeed(d.state)
			if err != nil {
				return keyError(err)
			}
			return printRegistryKey(s, seed, asJSON)
		},
	}
	d.addFlags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func newKeyBackupCommand(s *streams) *cobra.Command {
	var d dirs
	passFile := ""
	cmd := &cobra.Command{
		Use:     "backup FILE",
		Example: "  pkgswarm key backup seed.age",
		Short:   "Write the seed to a file, encrypted with a passphrase",
		Long: `Writes the seed to FILE in the format of age, encrypted with a passphrase that
is asked for on the terminal or read from the first line of a file.`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			seed, err := catalog.LoadSeed(d.state)
			if err != nil {
				return keyError(err)
			}
			if _, err := os.Lstat(args[0]); err == nil {
				return fmt.Errorf("%s exists", args[0])
			}
			pass, err := readPassphrase(s, passFile, true)
			if err != nil {
				return err
			}
			var b strings.Builder
			if err := catalog.Backup(&b, seed, pass); err != nil {
				return err
			}
			return durable.WriteFile(args[0], []byte(b.String()), 0o600)
		},
	}
	d.addFlags(cmd)
	cmd.Flags().StringVar(&passFile, "passphrase-file", "", "read the passphrase from the first line of `FILE`")
	return cmd
}

func newKeyRestoreCommand(s *streams) *cobra.Command {
	var d dirs
	passFile, asJSON, unused := "", false, false
	cmd := &cobra.Command{
		Use:     "restore FILE",
		Example: "  pkgswarm key restore seed.age",
		Short:   "Read the seed from a backup",
		Long: `Reads the seed from a backup. Whoever signs with it must have what was signed
before: a catalog begun anew would fork the old one, which nodes then refuse. So
import stops until it is there. Either copy the data and the state directory of
the old machine, which must never import again, or fetch all from its seeders:

  pkgswarm serve --registry KEY --peer HOST:PORT --mirror=index

until pkgswarm status says that all package logs are here. Then stop that, and
import as before, with the same --data and --state.`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			if _, err := catalog.LoadSeed(d.state); !errors.Is(err, catalog.ErrNoSeed) {
				return keyError(errors.Join(catalog.ErrSeedExists, err))
			}
			pass, err := readPassphrase(s, passFile, false)
			if err != nil {
				return err
			}
			seed, err := catalog.Restore(f, pass)
			if err != nil {
				return err
			}
			save := catalog.SaveRestored
			if unused {
				save = catalog.SaveSeed
			}
			if err := save(d.state, seed); err != nil {
				return keyError(err)
			}
			return printRegistryKey(s, seed, asJSON)
		},
	}
	d.addFlags(cmd)
	cmd.Flags().BoolVar(&unused, "unused", false, "nothing was ever signed with this seed")
	cmd.Flags().StringVar(&passFile, "passphrase-file", "", "read the passphrase from the first line of `FILE`")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// keyError adds what to do about the seed.
func keyError(err error) error {
	switch {
	case errors.Is(err, catalog.ErrNoSeed):
		return &exitError{exitFailed, err, "make one with pkgswarm key new, or pkgswarm key restore FILE"}
	case errors.Is(err, catalog.ErrSeedExists):
		return &exitError{exitFailed, err, "pkgswarm key rotate replaces it by a successor; another operator has a --state and --data of its own"}
	}
	return err
}

// readPassphrase reads a passphrase from the first line of file, or asks for it
// on the terminal, twice if a new one is wanted. It is never taken from
// arguments or the environment, which others can see. SEC-57
func readPassphrase(s *streams, file string, isNew bool) (string, error) {
	if file != "" {
		f, err := os.Open(file)
		if err != nil {
			return "", err
		}
		defer f.Close()
		line, err := bufio.NewReader(io.LimitReader(f, 4096)).ReadString('\n')
		if err != nil && err != io.EOF {
			return "", err
		}
		return checkPassphrase(strings.TrimRight(line, "\r\n"), isNew)
	}
	in, ok := s.in.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return "", &exitError{exitUsage, errors.New("no terminal to ask for the passphrase"), "use --passphrase-file"}
	}
	ask := func(prompt string) (string, error) {
		fmt.Fprint(s.err, prompt)
		b, err := term.ReadPassword(int(in.Fd()))
		fmt.Fprintln(s.err)
		return string(b), err
	}
	pass, err := ask("Passphrase: ")
	if err != nil {
		return "", err
	}
	if isNew {
		again, err := ask("The same again: ")
		if err != nil {
			return "", err
		}
		if again != pass {
			return "", errors.New("the passphrases differ")
		}
	}
	return checkPassphrase(pass, isNew)
}

// minPassphrase is the fewest bytes of a new passphrase.
const minPassphrase = 12

func checkPassphrase(p string, isNew bool) (string, error) {
	if isNew && len(p) < minPassphrase {
		return "", fmt.Errorf("passphrase of less than %d characters", minPassphrase)
	}
	return p, nil
}

func newKeyRotateCommand(s *streams) *cobra.Command {
	var f importFlags
	asJSON := false
	cmd := &cobra.Command{
		Use:     "rotate",
		Example: "  pkgswarm key rotate",
		Short:   "Replace the seed by a new one that the old one vouches for",
		Long: `Makes a new seed, signs it as the successor of the old one, and signs all
package logs anew. Users need not change anything: their nodes follow. The old
seed is kept beside the new one until you remove it; it signs nothing more.

Keep the old catalog seeded for as long as nodes may not have seen the change.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return rotate(cmd.Context(), s, &f, asJSON)
		},
	}
	f.addFlags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// rotate replaces the seed of a state directory. The new seed is written first,
// so that a rotation that is cut short goes on with it.
func rotate(ctx context.Context, s *streams, f *importFlags, asJSON bool) error {
	old, err := catalog.LoadSeed(f.state)
	if err != nil {
		return keyError(err)
	}
	if err := catalog.CheckRecovered(f.state, 0); err != nil { // an import that could begin ends that
		return operatorError(err)
	}
	next, err := catalog.NextSeed(f.state)
	if err != nil {
		return err
	}
	op := new(operator)
	defer op.close()
	if err := op.open(f.dirs); err != nil {
		return operatorError(err)
	}
	if err := importer.Rotate(ctx, op.store, catalog.NewOperator(old), catalog.NewOperator(next), op.memory); err != nil {
		return operatorError(err)
	}
	kept, err := catalog.ReplaceSeed(f.state, next)
	if err != nil {
		return err
	}
	fmt.Fprintf(s.err, "kept the old seed in %s\n", kept)
	return printRegistryKey(s, next, asJSON)
}
