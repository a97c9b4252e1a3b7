// Package importer turns what an upstream registry says into an operator's
// signed cores: package logs and the catalog that names them.
//
// # A run
//
// A [Source] lists packages in an order that depends on nothing but its
// content. Workers take them up in parallel: each folds the package's log,
// asks the source what is new, and appends the events in one step. The results
// are put back into the source's order, and after every [FlushEvery] listed
// packages the catalog is flushed once, with all that changed among them.
// Entries bear the time at which the run began, which a run record keeps until
// the run has ended. So a run that is killed at any instant and started again
// leaves the same blocks and the same signatures as one that was not; what had
// been appended is found there and not appended again. REL-14
//
// What a source showed of each package last (a [Stamp]: the size and time of a
// file, an ETag) is kept beside the store. It only saves work: without it, a
// run looks at everything and appends nothing.
//
// # Order of writes
//
// Logs are durable before the catalog that names them is signed, the catalog
// before the memory of its head, that before the stamps.
package importer

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"runtime"
	"time"

	"github.com/pkgswarm/pkgswarm/registry/catalog"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
)

// FlushEvery is the number of listed packages between flushes of the catalog.
// It decides which blocks a run appends: it is part of what makes runs equal.
const FlushEvery = 8192

// A Stamp tells whether a source's idea of a package may have changed. It is
// opaque, and empty when the source cannot tell.
type Stamp string

// A Source lists the packages of one ecosystem. Its methods are not called
// concurrently; those of the packages it yields are. A source that also has
// a method Done() error is told when all that it listed is signed.
type Source interface {
	// ID names the source, such as its URL, to tell its stamps from others.
	ID() string
	// Ecosystem returns that of all packages.
	Ecosystem() pkglog.Ecosystem
	// Complete reports whether a package that is not listed does not exist
	// upstream, once listing ended without error.
	Complete() bool
	// Packages lists the packages, each once, always in the same order. An
	// error ends the list.
	Packages(ctx context.Context) iter.Seq2[Package, error]
}

// A Package is one package as a source lists it.
type Package interface {
	// Name returns the validated name: of a crate in lower case, or a module path.
	Name() string
	// Stamp returns what can be told without loading the package.
	Stamp() Stamp
	// Update returns the events that lead from s to what the source has now.
	// last is the stamp of the update before. An error that matches
	// fs.ErrNotExist means that the package is gone or never was.
	Update(ctx context.Context, s *pkglog.State, last Stamp) (*Update, error)
}

// An Update is what is new about one package.
type Update struct {
	Events   []pkglog.Event
	Problems []Problem // entries that are not signed
	Versions int       // entries that were looked at
	Bytes    int64     // of upstream data that was looked at
	Stamp    Stamp     // for the next time

	buffer *[]byte // that events and problems are parts of, of [buffers]; or nil
}

// release gives the memory of u back: its events are of no use any more.
func (u *Update) release() {
	if u != nil && u.buffer != nil && cap(*u.buffer) <= maxBuffer {
		buffers.Put(u.buffer)
	}
}

// maxBuffer bounds the memory that is kept for files, in bytes.
const maxBuffer = 1 << 20

// A Problem is an entry that was not signed.
type Problem struct {
	Ecosystem pkglog.Ecosystem `json:"ecosystem"`
	Package   string           `json:"package"`
	Version   string           `json:"version,omitempty"` // empty if the whole package is meant
	Reason    string           `json:"reason"`
}

func (p Problem) String() string {
	name := string(p.Ecosystem) + " " + p.Package
	if p.Version != "" {
		name += "@" + p.Version
	}
	return name + ": " + p.Reason
}

// A Log is one package log as the importer writes it. *core.Core is one.
type Log interface {
	catalog.Core
	// Append appends blocks in one step, durably.
	Append(blocks ...[]byte) (length uint64, err error)
	// AppendLazy is Append but for becoming durable with the next Logs.Sync.
	AppendLazy(blocks ...[]byte) (length uint64, err error)
	Close() error
}

// Logs opens package logs. It may be called concurrently for different packages.
type Logs interface {
	// Log returns the log of a package, which is empty if it is new.
	Log(h pkglog.Header) (Log, error)
	// Sync makes all appended blocks durable.
	Sync() error
}

// Config says how an Importer works.
type Config struct {
	Logs    Logs
	Catalog *catalog.Writer
	Dir     string // for stamps and the run record; created when missing

	// Artifacts fetches the files of versions; nil to sign metadata only.
	Artifacts ArtifactFetcher

	// Served says that peers can read logs while they are written. Each append
	// to a log that they may know is durable then before it can be seen: a log
	// that was seen longer than it is after a crash would be forked by the next
	// append. SEC-16
	Served bool

	Workers int              // packages in work at a time; 0 means twice as many as processors
	Report  func(Problem)    // is told each problem; nil ignores them
	Status  func(Progress)   // is told progress now and then; nil ignores it
	Logger  *slog.Logger     // nil discards
	Now     func() time.Time // wall clock for new runs; nil means time.Now

	// Private are patterns of names, as in GOPRIVATE: they are left out. Nobody is
	// asked about them, and none is signed, changed or removed. SEC-60
	Private string

	// AllowRemoval lets a complete source remove more than a tenth of a
	// registry at once, which otherwise looks like a source that is broken.
	AllowRemoval bool

	flushEvery int64 // FlushEvery unless a test says otherwise
}

// An ArtifactFetcher fetches, verifies and keeps the files of versions.
type ArtifactFetcher interface {
	// Fetch fetches the files of a package that are not at hand.
	Fetch(ctx context.Context, s *pkglog.State) (Fetched, error)
	// Withdraw stops the seeding of the files of versions that were removed.
	Withdraw(s *pkglog.State) error
}

// Fetched says what became of the files of a package.
type Fetched struct {
	Events    []pkglog.Event // of files that the log does not name yet
	Problems  []Problem      // with those that could not be had
	Files     int            // that are new here
	NotCached int            // that the source, a cache, does not hold
}

// An Importer imports sources into one catalog, one after the other.
type Importer struct {
	c Config
}

// New returns an importer.
func New(c Config) *Importer {
	if c.Workers <= 0 {
		c.Workers = 2 * runtime.GOMAXPROCS(0)
	}
	if c.flushEvery == 0 {
		c.flushEvery = FlushEvery
	}
	if c.Report == nil {
		c.Report = func(Problem) {}
	}
	if c.Status == nil {
		c.Status = func(Progress) {}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return &Importer{c}
}

// A Progress counts what a run has done so far.
type Progress struct {
	Packages int64 // listed and dealt with
	Versions int64
	Bytes    int64
}

// A Summary counts what a run did.
type Summary struct {
	Packages  int64         `json:"packages"`  // listed by the source
	Unchanged int64         `json:"unchanged"` // of them, told by their stamp or their content
	Changed   int64         `json:"changed"`   // logs that were appended to
	Versions  int64         `json:"versions"`  // entries looked at
	Events    int64         `json:"events"`    // blocks appended to logs, headers included
	Bytes     int64         `json:"bytes"`     // of upstream data looked at
	Problems  int64         `json:"problems"`
	Files     int64         `json:"files"`      // fetched
	NotCached int64         `json:"not_cached"` // files that a cache does not hold
	Private   int64         `json:"private"`    // packages that were left out
	Elapsed   time.Duration `json:"elapsed_ns"`
}

// Add adds o to s.
func (s *Summary) Add(o Summary) {
	s.Packages += o.Packages
	s.Unchanged += o.Unchanged
	s.Changed += o.Changed
	s.Versions += o.Versions
	s.Events += o.Events
	s.Bytes += o.Bytes
	s.Problems += o.Problems
	s.Files += o.Files
	s.NotCached += o.NotCached
	s.Private += o.Private
	s.Elapsed += o.Elapsed
}

// Run imports a source once. What it returns counts also when it fails. A
// problem with one package is reported and does not fail the run; a broken
// store, catalog or list does.
func (im *Importer) Run(ctx context.Context, src Source) (Summary, error) {
	start := time.Now()
	r, err := im.begin(src)
	if err != nil {
		return Summary{}, fmt.Errorf("import %s: %w", src.ID(), err)
	}
	err = r.run(ctx)
	if endErr := r.end(err == nil); err == nil {
		err = endErr
	}
	r.sum.Elapsed = time.Since(start)
	if err != nil {
		return r.sum, fmt.Errorf("import %s: %w", src.ID(), err)
	}
	return r.sum, nil
}
