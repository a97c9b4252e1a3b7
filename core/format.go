package core

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// formatVersion is that of the store on disk. A store of a higher version is
// refused untouched.
const formatVersion = 1

// formatLine returns the content of the file "format" of a store: the version, and
// the CRC-32C of what stands before it, so that a damaged line is not taken for a
// newer version.
func formatLine(version int) []byte {
	text := fmt.Sprintf("pkgswarm cores %d", version)
	return fmt.Appendf(nil, "%s %08x\n", text, crc32.Checksum([]byte(text), castagnoli))
}

// ErrVersion is matched by the error of a store that a newer program made.
var ErrVersion = errors.New("core: store has a newer format")

// readFormat returns the version of the store in dir, 0 if nothing says. It is
// called before anything is touched. The error matches ErrVersion.
func readFormat(fsys vfs.FS, dir string) (int, error) {
	b, err := readSmall(fsys, fsys.PathJoin(dir, "format"))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil && !isBroken(err) {
		return 0, err
	}
	version, sum := 0, 0
	if _, err := fmt.Sscanf(string(b), "pkgswarm cores %d %x\n", &version, &sum); err != nil || !bytes.Equal(b, formatLine(version)) {
		return formatVersion, nil // damaged: the database has it, too
	}
	if version > formatVersion {
		return version, fmt.Errorf("%w: version %d, this program knows %d", ErrVersion, version, formatVersion)
	}
	return version, nil
}

// The primary key is kept in a file besides the database: the key, 32 bytes, and
// the CRC-32C of it, little endian.

func (s *Store) primaryPath() string { return s.fs.PathJoin(s.dir, "primary") }

// readPrimary returns the primary key in the file; false if it is not there, or
// damaged.
func (s *Store) readPrimary() (key [32]byte, ok bool, err error) {
	b, err := readSmall(s.fs, s.primaryPath())
	if errors.Is(err, fs.ErrNotExist) {
		return key, false, nil
	}
	if isBroken(err) {
		return key, false, nil
	}
	if err != nil || len(b) != 36 || crc32.Checksum(b[:32], castagnoli) != binary.LittleEndian.Uint32(b[32:]) {
		return key, false, err
	}
	return [32]byte(b), true, nil
}

func (s *Store) writePrimary(key [32]byte) error {
	b := binary.LittleEndian.AppendUint32(key[:], crc32.Checksum(key[:], castagnoli))
	return writeSmall(s.fs, s.primaryPath(), b)
}

// maxSmall bounds what is read of small files, in bytes.
const maxSmall = 1 << 10

func readSmall(fsys vfs.FS, path string) ([]byte, error) {
	f, err := fsys.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxSmall))
}

// writeSmall replaces a file so that it has the old or the new content after a
// crash, and the new one once it has returned.
func writeSmall(fsys vfs.FS, path string, data []byte) error {
	if old, err := readSmall(fsys, path); err == nil && bytes.Equal(old, data) {
		return nil
	}
	tmp := path + ".tmp"
	f, err := fsys.Create(tmp, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = fsys.Rename(tmp, path)
	}
	if err == nil {
		err = syncDir(fsys, fsys.PathDir(path))
	}
	return err
}

// clearWay moves directories aside that stand where small files of the store in dir
// belong, as damage to a file system may leave them; the last one of each name is kept.
func clearWay(fsys vfs.FS, dir string, names ...string) error {
	for _, name := range names {
		path := fsys.PathJoin(dir, name)
		if info, err := fsys.Stat(path); err != nil || !info.IsDir() {
			continue // who uses the file will say why
		}
		if err := fsys.RemoveAll(path + ".damaged"); err != nil {
			return err
		}
		if err := fsys.Rename(path, path+".damaged"); err != nil {
			return err
		}
	}
	return nil
}
