package swarm

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// Identity returns the identity in the file at path, and makes one, readable by
// its owner alone, if there is none. A file that others may read is an error.
func Identity(path string) (ed25519.PrivateKey, error) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("identity %s is no file: restore it, or move it away for a new one", path)
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return newIdentity(path)
	}
	if err != nil {
		return nil, fmt.Errorf("read identity: %w", err)
	}
	if info, err := os.Stat(path); err != nil || os.PathSeparator == '/' && info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("identity %s is open to other users: chmod 600 it", path)
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != identityType || len(block.Bytes) != ed25519.SeedSize {
		return nil, fmt.Errorf("identity %s is damaged: restore it, or delete it for a new one", path)
	}
	return ed25519.NewKeyFromSeed(block.Bytes), nil
}

const identityType = "PKGSWARM IDENTITY SEED"

func newIdentity(path string) (ed25519.PrivateKey, error) {
	var seed [ed25519.SeedSize]byte
	rand.Read(seed[:])
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make identity: %w", err)
	}
	err = pem.Encode(f, &pem.Block{Type: identityType, Bytes: seed[:]})
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		os.Remove(path)
		return nil, fmt.Errorf("make identity: %w", err)
	}
	return ed25519.NewKeyFromSeed(seed[:]), nil
}
