package catalog

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"filippo.io/age"
	"filippo.io/age/armor"

	"github.com/pkgswarm/pkgswarm/internal/durable"
)

// seedFile is the operator's seed in a state directory: a line that says what
// it is, then 64 hexadecimal digits. It has mode 0600.
const (
	seedFile = "operator.seed"
	seedHead = "pkgswarm operator seed 1"
)

var (
	// ErrNoSeed means that a state directory holds no operator's seed.
	ErrNoSeed = errors.New("no operator's seed")
	// ErrSeedExists means that a seed would be overwritten.
	ErrSeedExists = errors.New("there is an operator's seed already")
	// ErrPassphrase means that a backup is not of that passphrase.
	ErrPassphrase = errors.New("wrong passphrase")
)

// NewSeed returns a random seed.
func NewSeed() (s Seed) {
	rand.Read(s[:]) // never fails
	return s
}

// SeedPath returns where the seed of a state directory is.
func SeedPath(stateDir string) string { return filepath.Join(stateDir, seedFile) }

// LoadSeed reads the seed of a state directory. A file that others may read is
// refused. SEC-57
func LoadSeed(stateDir string) (Seed, error) { return LoadSeedFile(SeedPath(stateDir)) }

// LoadSeedFile is LoadSeed for a file elsewhere.
func LoadSeedFile(path string) (Seed, error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Seed{}, fmt.Errorf("%w in %s", ErrNoSeed, filepath.Dir(path))
	}
	if err != nil {
		return Seed{}, err
	}
	if m := info.Mode(); !m.IsRegular() || m.Perm()&0o077 != 0 && runtime.GOOS != "windows" {
		return Seed{}, fmt.Errorf("%s: mode is %v, want -rw-------: others may have read the seed", path, m)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return Seed{}, err
	}
	s, err := parseSeed(b)
	if err != nil {
		return Seed{}, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

func parseSeed(b []byte) (s Seed, err error) {
	text, ok := strings.CutPrefix(string(b), seedHead+"\n")
	text = strings.TrimSuffix(text, "\n")
	if !ok || len(text) != 2*len(s) {
		return Seed{}, errors.New("not an operator's seed")
	}
	if _, err := hex.Decode(s[:], []byte(text)); err != nil {
		return Seed{}, errors.New("not an operator's seed") // no part of it in the error
	}
	return s, nil
}

func (s Seed) text() []byte { return []byte(seedHead + "\n" + hex.EncodeToString(s[:]) + "\n") }

// SaveSeed writes the seed of a state directory that has none.
func SaveSeed(stateDir string, s Seed) error {
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return err
	}
	path := SeedPath(stateDir)
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("%s: %w", path, ErrSeedExists)
	}
	return durable.WriteFile(path, s.text(), 0o600)
}

// restoredFile says that the seed came from a backup, and that what was signed with
// it has not been seen here yet.
const restoredFile = seedFile + ".restored"

// SaveRestored is SaveSeed for a seed out of a backup, with which others may have
// signed: a catalog that is begun anew would fork theirs. SEC-16
func SaveRestored(stateDir string, s Seed) error {
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return err
	}
	if _, err := os.Lstat(SeedPath(stateDir)); err == nil {
		return fmt.Errorf("%s: %w", SeedPath(stateDir), ErrSeedExists)
	}
	if err := durable.WriteFile(filepath.Join(stateDir, restoredFile), nil, 0o600); err != nil {
		return err
	}
	return SaveSeed(stateDir, s)
}

// ErrNotRecovered means that a seed came from a backup, and what was signed with it
// is not here.
var ErrNotRecovered = errors.New("the seed was restored, and the catalog that it has signed is not here: a new one would fork it")

// CheckRecovered returns [ErrNotRecovered] if the seed of a state directory came from
// a backup and the catalog is empty still. Otherwise the catalog counts from now on.
func CheckRecovered(stateDir string, length uint64) error {
	path := filepath.Join(stateDir, restoredFile)
	switch _, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case length == 0:
		return ErrNotRecovered
	}
	return durable.Remove(path)
}

// nextFile is the seed that a rotation under way goes over to.
const nextFile = seedFile + ".next"

// NextSeed returns the seed that a rotation goes over to: that of one which was
// cut short, else a new one, saved.
func NextSeed(stateDir string) (Seed, error) {
	path := filepath.Join(stateDir, nextFile)
	s, err := LoadSeedFile(path)
	if err != nil && !errors.Is(err, ErrNoSeed) {
		return Seed{}, err
	}
	if now, nowErr := LoadSeed(stateDir); err == nil && (nowErr != nil || now != s) {
		return s, nowErr
	}
	s = NewSeed()
	return s, durable.WriteFile(path, s.text(), 0o600)
}

// ReplaceSeed makes s the seed of a state directory and keeps the old one in a
// file beside it, whose name it returns.
func ReplaceSeed(stateDir string, s Seed) (old string, err error) {
	prev, err := LoadSeed(stateDir)
	if err != nil {
		return "", err
	}
	old = SeedPath(stateDir) + "." + NewOperator(prev).RegistryKey().String()[:8]
	if err := durable.WriteFile(old, prev.text(), 0o600); err != nil {
		return "", err
	}
	if err := durable.WriteFile(SeedPath(stateDir), s.text(), 0o600); err != nil {
		return "", err
	}
	return old, durable.Remove(filepath.Join(stateDir, nextFile))
}

// backupWork is the cost of guessing a backup's passphrase, as a power of two:
// about a second a guess.
const backupWork = 18

// Backup writes s to w, encrypted with a passphrase in the format of age
// (age-encryption.org/v1), in ASCII: age -d decrypts it, too.
func Backup(w io.Writer, s Seed, passphrase string) error {
	return backup(w, s, passphrase, backupWork)
}

func backup(w io.Writer, s Seed, passphrase string, work int) error {
	r, err := age.NewScryptRecipient(passphrase)
	if err != nil {
		return err
	}
	r.SetWorkFactor(work)
	a := armor.NewWriter(w)
	e, err := age.Encrypt(a, r)
	if err != nil {
		return err
	}
	if _, err := e.Write(s.text()); err != nil {
		return err
	}
	if err := e.Close(); err != nil {
		return err
	}
	return a.Close()
}

// maxBackup bounds an encrypted backup, in bytes.
const maxBackup = 64 << 10

// Restore reads what Backup wrote.
func Restore(r io.Reader, passphrase string) (Seed, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxBackup))
	if err != nil {
		return Seed{}, err
	}
	id, err := age.NewScryptIdentity(passphrase)
	if err != nil {
		return Seed{}, err
	}
	plain, err := age.Decrypt(armor.NewReader(bytes.NewReader(b)), id)
	if err != nil {
		if _, ok := errors.AsType[*age.NoIdentityMatchError](err); ok {
			return Seed{}, ErrPassphrase
		}
		return Seed{}, fmt.Errorf("read backup: %w", err)
	}
	text, err := io.ReadAll(io.LimitReader(plain, maxBackup))
	if err != nil {
		return Seed{}, fmt.Errorf("read backup: %w", err)
	}
	return parseSeed(text)
}
