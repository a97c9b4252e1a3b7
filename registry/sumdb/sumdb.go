package sumdb

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sync/singleflight"

	"github.com/pkgswarm/pkgswarm/internal/filecache"
	"github.com/pkgswarm/pkgswarm/registry/upstream"
)

const (
	tileHeight   = 8                // the only one that go asks for
	maxRecords   = 16_384           // verified records in memory
	maxTiles     = 2_048            // verified tiles in memory, 8 KiB each
	maxTrees     = 64               // verified trees in memory, besides the newest
	lookupLimit  = 25 * time.Second // for one look-up with its tiles
	latestFresh  = 30 * time.Second // before the database is asked for a newer tree again
	latestNeeded = time.Second      // the same, when a client knows a newer tree than we do
	maxEvidence  = 16               // files of evidence kept
	maxModuleKey = 4 << 10          // bytes of an escaped module@version
)

var (
	// ErrMismatch says that the database's answer proves nothing about the module
	// asked for, or that what it proves is not what was found.
	ErrMismatch = errors.New("checksum database mismatch")
	// ErrFork says that the database has shown two histories.
	ErrFork = errors.New("checksum database shows two histories")
)

// A Getter asks upstreams; an [upstream.Client] is one.
type Getter interface {
	Get(ctx context.Context, r upstream.Request) (*upstream.Answer, error)
}

// A Config says which database to follow, and where to keep it.
type Config struct {
	// Key is the database's verifier key, "name+hash+key".
	Key string
	// URL is the database's root. If it is empty, the Proxies are asked, as go
	// does, whether they carry the database, and then https://name.
	URL     string
	Proxies []string // roots of GOPROXYs
	// Upstream reaches them. Nil means offline.
	Upstream Getter
	// StateDir is the node's state directory; see the package comment.
	StateDir string
	Cache    *filecache.Cache
	// NoRecords keeps records in memory only, for who asks for each once.
	NoRecords bool
	Logger    *slog.Logger // nil discards
}

// A DB is a checksum database as far as this node has verified it. It is safe
// for concurrent use. One process at a time uses a state directory.
type DB struct {
	name     string
	key      string
	verifier note.Verifier
	remote   *remote
	head     *headFile
	cache    *filecache.Cache
	log      *slog.Logger

	keepRecords bool

	records    *lru.Cache[string, Record]              // by escaped module@version
	tiles      *lru.Cache[tlog.Tile, []byte]           // by coordinates with W 0: the widest known
	flights    singleflight.Group                      // look-ups
	trees      *lru.Cache[[sha256.Size]byte, struct{}] // hashes of notes of one history with the kept tree
	advancing  sync.Mutex                              // held while a tree is compared with the kept one and put in its place
	refreshing sync.Mutex                              // held while the latest tree is asked for
	asked      atomic.Int64                            // when the latest tree was last asked for, Unix ns
	forks      atomic.Int64
}

// A Record is what the database says of a module version, proven.
type Record struct {
	ID   int64
	Text []byte // the go.sum lines, each with its newline; not to be changed
	Zip  string // the "h1:" hash of the zip
	Mod  string // the "h1:" hash of go.mod
}

// Open opens the database that c names.
func Open(c Config) (*DB, error) {
	v, err := note.NewVerifier(c.Key)
	if err != nil {
		return nil, fmt.Errorf("checksum database key: %w", err)
	}
	log := c.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	dir := filepath.Join(c.StateDir, "sumdb", stateName(v.Name()))
	head, err := openHead(dir, v)
	if err != nil {
		return nil, fmt.Errorf("checksum database %s: %w", v.Name(), err)
	}
	records, err := lru.New[string, Record](maxRecords)
	if err != nil {
		return nil, err
	}
	tiles, err := lru.New[tlog.Tile, []byte](maxTiles)
	if err != nil {
		return nil, err
	}
	trees, err := lru.New[[sha256.Size]byte, struct{}](maxTrees)
	if err != nil {
		return nil, err
	}
	return &DB{
		name: v.Name(), key: c.Key, verifier: v, head: head, cache: c.Cache, log: log,
		remote:  newRemote(v.Name(), c),
		records: records, tiles: tiles, trees: trees, keepRecords: !c.NoRecords,
	}, nil
}

// NameOf returns the name in a database's verifier key.
func NameOf(key string) (string, error) {
	v, err := note.NewVerifier(key)
	if err != nil {
		return "", fmt.Errorf("checksum database key: %w", err)
	}
	return v.Name(), nil
}

// stateName makes a database's name one path element.
func stateName(name string) string { return strings.ReplaceAll(name, "/", "!") }

// Name returns the database's name, as it stands in its signatures.
func (db *DB) Name() string { return db.name }

// Forks returns how many answers showed a second history since Open. More than
// none means that the database, or whoever holds its key, cannot be trusted.
func (db *DB) Forks() int64 { return db.forks.Load() }

// Lookup returns the record of a module version, proven to be in the kept tree.
//
// The error matches [upstream.ErrNotFound] where the database does not know the
// version or refuses it, [ErrMismatch] and [ErrFork] where its answer is not to
// be believed, and the other classes of package upstream where there is none. The
// work is shared by all who ask at once, and goes on when ctx ends.
func (db *DB) Lookup(ctx context.Context, m module.Version) (Record, error) {
	key, err := escape(m)
	if err != nil {
		return Record{}, err
	}
	if r, ok := db.records.Get(key); ok {
		return r, nil
	}
	ch := db.flights.DoChan(key, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookupLimit)
		defer cancel()
		r, err := db.prove(ctx, m, key)
		if err == nil {
			db.records.Add(key, r)
		}
		return r, err
	})
	select {
	case res := <-ch:
		if res.Err != nil {
			return Record{}, fmt.Errorf("checksum database %s: %s@%s: %w", db.name, m.Path, m.Version, res.Err)
		}
		return res.Val.(Record), nil
	case <-ctx.Done():
		return Record{}, ctx.Err()
	}
}

// Held returns the record of a module version if it is proven and at hand.
func (db *DB) Held(m module.Version) (Record, bool) {
	key, err := escape(m)
	if err != nil {
		return Record{}, false
	}
	return db.records.Get(key)
}

func escape(m module.Version) (string, error) {
	path, err := module.EscapePath(m.Path)
	if err != nil {
		return "", err
	}
	version, err := module.EscapeVersion(m.Version)
	if err != nil {
		return "", err
	}
	if len(path)+len(version) > maxModuleKey {
		return "", fmt.Errorf("module name of %d bytes", len(path)+len(version))
	}
	return path + "@" + version, nil
}

// newRecord returns the record with the given text if it is of m.
func newRecord(m module.Version, id int64, text []byte) (Record, error) {
	r := Record{ID: id, Text: bytes.Clone(text)}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) != 3 || f[0] != m.Path || !strings.HasPrefix(f[2], "h1:") {
			continue
		}
		switch f[1] {
		case m.Version:
			r.Zip = once(r.Zip, f[2])
		case m.Version + "/go.mod":
			r.Mod = once(r.Mod, f[2])
		}
	}
	if !strings.HasPrefix(r.Zip, "h1:") || !strings.HasPrefix(r.Mod, "h1:") {
		return Record{}, fmt.Errorf("%w: record %d is not of %s@%s", ErrMismatch, id, m.Path, m.Version)
	}
	return r, nil
}

// once returns found unless there is another value already.
func once(have, found string) string {
	if have != "" && have != found {
		return "two hashes"
	}
	return found
}

// Answer returns what a client's look-up of m is answered: the record under the
// newest verified tree. Errors are those of Lookup.
func (db *DB) Answer(ctx context.Context, m module.Version) ([]byte, error) {
	r, err := db.Lookup(ctx, m)
	if err != nil {
		return nil, err
	}
	msg, err := tlog.FormatRecord(r.ID, r.Text)
	if err != nil {
		return nil, err
	}
	_, signed := db.head.load()
	return append(msg, signed...), nil
}

// Latest returns the newest verified tree, a signed note, after asking the
// database for a newer one if it was not asked for a while. If the database does not
// answer, the kept tree is served. The error matches that of Lookup.
func (db *DB) Latest(ctx context.Context) ([]byte, error) {
	err := db.refresh(ctx, latestFresh)
	_, signed := db.head.load()
	if len(signed) > 0 {
		return signed, nil
	}
	if err == nil {
		err = &upstream.Error{URL: db.name, Class: upstream.ErrUnreachable, Err: errors.New("no tree known yet")}
	}
	return nil, err
}

// refresh asks for the newest tree unless that was done less than fresh ago. Who comes while
// it is being asked for waits: its tile may be in the answer.
func (db *DB) refresh(ctx context.Context, fresh time.Duration) error {
	db.refreshing.Lock()
	defer db.refreshing.Unlock()
	now, last := time.Now().UnixNano(), db.asked.Load()
	if now-last < int64(fresh) && last != 0 {
		return nil
	}
	db.asked.Store(now)
	signed, err := db.remote.get(ctx, "/latest")
	if err != nil {
		return err
	}
	return db.advance(ctx, signed)
}

// advance makes signed the kept tree if it is newer than that and extends it.
func (db *DB) advance(ctx context.Context, signed []byte) error {
	tree, err := openTree(signed, db.verifier)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrMismatch, err)
	}
	kept, _ := db.head.load()
	if tree.N > kept.N {
		db.advancing.Lock()
		defer db.advancing.Unlock()
		kept, _ = db.head.load()
	}
	if err := db.compare(ctx, tree, signed); err != nil || tree.N <= kept.N {
		return err
	}
	// Once more, keeping the tiles that show the kept tree in the new one.
	err = db.proving(ctx, func(r tlog.TileReader) error {
		_, err := tlog.TreeHash(kept.N, tlog.TileHashReader(tree, r))
		return err
	})
	if err != nil {
		return mismatch(fmt.Errorf("tiles of tree %d: %w", tree.N, err))
	}
	return db.head.set(tree, signed)
}

// compare returns [ErrFork], having reported it, if tree and the kept tree are
// not one history. It keeps no tiles of tree: they may be of a fork.
func (db *DB) compare(ctx context.Context, tree tlog.Tree, signed []byte) error {
	kept, keptSigned := db.head.load()
	if kept.N == 0 {
		return nil
	}
	older, newer := kept, tree
	if tree.N <= kept.N {
		older, newer = tree, kept
	}
	h := newer.Hash
	if older.N < newer.N {
		prove := func(r tlog.TileReader) (err error) {
			h, err = tlog.TreeHash(older.N, tlog.TileHashReader(newer, r))
			return err
		}
		var err error
		if newer == tree {
			err = prove(&reader{db: db, ctx: ctx, fresh: true, bare: true})
		} else {
			err = db.proving(ctx, prove)
		}
		if err != nil {
			return mismatch(fmt.Errorf("check tree %d against tree %d: %w", older.N, newer.N, err))
		}
	}
	if h == older.Hash {
		return nil
	}
	db.reportFork(fmt.Sprintf("kept tree:\n\n%s\nother tree:\n\n%s\nroot of the first %d records of the larger: %v\n", keptSigned, signed, older.N, h))
	return ErrFork
}

// reportFork keeps the evidence of a second history where people find it.
func (db *DB) reportFork(evidence string) {
	n := db.forks.Add(1)
	db.log.Error("checksum database shows two histories", "database", db.name, "dir", db.head.dir)
	if n > maxEvidence {
		return
	}
	name := filepath.Join(db.head.dir, "fork-"+time.Now().UTC().Format("20060102T150405.000000000"))
	if err := os.WriteFile(name, []byte(evidence), 0o600); err != nil && !errors.Is(err, fs.ErrExist) {
		db.log.Error("cannot save evidence", "err", err)
	}
}
