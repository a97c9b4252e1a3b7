package node

import (
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strings"
	"syscall"

	"github.com/pkgswarm/pkgswarm/internal/durable"
)

const maxSecret = 4096 // bytes of a secret's file

// readSecret reads a file that holds one secret on one line and that nobody else
// may read (SEC-57).
func readSecret(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return "", err
	}
	if !fi.Mode().IsRegular() {
		return "", fmt.Errorf("%s is no file: restore it, or move it away for a new one", path)
	}
	if runtime.GOOS != "windows" && fi.Mode().Perm()&0o077 != 0 {
		return "", &PermError{path, fi.Mode().Perm()}
	}
	b := make([]byte, maxSecret)
	n, err := f.Read(b)
	s := strings.TrimSpace(string(b[:n]))
	if err != nil || s == "" || n == maxSecret || strings.ContainsAny(s, "\r\n") {
		return "", fmt.Errorf("%s does not hold one line with a secret", path)
	}
	return s, nil
}

// loadToken reads the token at path, making a new one if there is none.
func loadToken(path string) (string, error) {
	s, err := readSecret(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return s, err
	}
	s = rand.Text()
	return s, durable.WriteFile(path, []byte(s+"\n"), 0o600)
}

// loadCertificate reads the certificate of the listener; nil if there is to be none.
func loadCertificate(certFile, keyFile string) (*tls.Certificate, error) {
	switch {
	case certFile == "" && keyFile == "":
		return nil, nil
	case certFile == "":
		return nil, setting("tls-cert", errors.New("--tls-key needs a certificate beside it"))
	case keyFile == "":
		return nil, setting("tls-key", errors.New("--tls-cert needs a key beside it"))
	}
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, setting("tls-cert", err)
	}
	return &cert, nil
}

// isAddrInUse reports whether err says that an address is taken.
func isAddrInUse(err error) bool { return errors.Is(err, syscall.EADDRINUSE) }
