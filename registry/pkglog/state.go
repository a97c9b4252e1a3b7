package pkglog

import (
	"bytes"
	"fmt"
	"iter"
	"maps"
	"slices"

	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"
)

// A State is a package log folded up to some length. Slices that its methods
// return belong to it and must not be changed. It is not for concurrent use
// while events are applied.
type State struct {
	header    Header
	length    uint64 // blocks folded, the header included
	lines     [][]byte
	noNewline bool
	modules   map[string]*ModuleVersion
	last      []byte // payload of the module version of the last event that had one
	bytes     int    // of lines and module versions held
	artifacts map[string][]Artifact
	withdrawn []Withdrawal
	scratch   []byte // for the payload of the event that is being appended
}

// A Withdrawal is a version that the upstream removed: it must not be served or
// seeded any more.
type Withdrawal struct {
	Line      []byte // the last index line of a crate's version
	Version   string // of a module
	Artifacts []Artifact
}

// NewState returns the state of a log that holds only its header.
func NewState(h Header) *State {
	return &State{header: h, length: 1, modules: make(map[string]*ModuleVersion), artifacts: make(map[string][]Artifact)}
}

// Fold folds blocks, the header first. want is the package that the log must be
// about. The state keeps parts of the blocks.
func Fold(want Header, blocks iter.Seq2[[]byte, error]) (*State, error) {
	var s *State
	for b, err := range blocks {
		switch {
		case err != nil:
			return nil, err
		case s == nil:
			h, err := DecodeHeader(b)
			if err != nil {
				return nil, err
			}
			if h != want {
				return nil, fmt.Errorf("%w: log of %s offered for %s", ErrMalformed, h.Name(), want.Name())
			}
			s = NewState(h)
		default:
			if _, err := s.Apply(b); err != nil {
				return nil, fmt.Errorf("block %d: %w", s.length, err)
			}
		}
	}
	if s == nil {
		return nil, fmt.Errorf("%w: no header", ErrMalformed)
	}
	return s, nil
}

// Header returns which package the log is about.
func (s *State) Header() Header { return s.header }

// Length returns the number of blocks folded, the header included.
func (s *State) Length() uint64 { return s.length }

// Exists reports whether the package has any version left.
func (s *State) Exists() bool { return len(s.lines) > 0 || len(s.modules) > 0 }

// Lines returns the index lines of a crate, in order, without newlines.
func (s *State) Lines() [][]byte { return s.lines }

// IndexFile returns the index file of a crate, byte for byte the upstream's. It
// is nil if the crate does not exist.
func (s *State) IndexFile() []byte {
	if len(s.lines) == 0 {
		return nil
	}
	file := append(bytes.Join(s.lines, []byte{'\n'}), '\n')
	if s.noNewline {
		file = file[:len(file)-1]
	}
	return file
}

// Module returns a version of a module, or nil.
func (s *State) Module(version string) *ModuleVersion { return s.modules[version] }

// Versions returns all versions of a module in semantic order,
// pseudo-versions included.
func (s *State) Versions() []string {
	return slices.SortedFunc(maps.Keys(s.modules), semver.Compare)
}

// List returns the @v/list file: the versions in semantic order without
// pseudo-versions, one a line.
func (s *State) List() []byte {
	var b []byte
	for _, v := range s.Versions() {
		if !module.IsPseudoVersion(v) {
			b = append(append(b, v...), '\n')
		}
	}
	return b
}

// Latest returns what @latest names: the highest release, else the highest
// pre-release, else the pseudo-version of the latest time; nil if there is none.
func (s *State) Latest() *ModuleVersion {
	var best *ModuleVersion
	for _, v := range s.Versions() {
		if m := s.modules[v]; best == nil || rank(m) > rank(best) || rank(m) == rank(best) && (rank(m) > 0 || m.Time >= best.Time) {
			best = m
		}
	}
	return best
}

func rank(m *ModuleVersion) int {
	switch {
	case module.IsPseudoVersion(m.Version):
		return 0
	case semver.Prerelease(m.Version) != "":
		return 1
	}
	return 2
}

// Artifacts returns the known files of a version, the newest last. A crate's
// version may have several when its index lines differ in digest.
func (s *State) Artifacts(version string) []Artifact { return s.artifacts[version] }

// Withdrawn returns the versions removed and not published again.
func (s *State) Withdrawn() []Withdrawal { return s.withdrawn }

// Apply folds one more block and returns its event. If it fails, s is unchanged.
func (s *State) Apply(block []byte) (Event, error) {
	r, err := decodeRecord(block, s.header.Ecosystem)
	if err != nil {
		return Event{}, err
	}
	e, err := s.expand(r)
	if err != nil {
		return Event{}, err
	}
	if err := s.fold(&e); err != nil {
		return Event{}, fmt.Errorf("%w: %v event: %w", ErrMalformed, e.Kind, err)
	}
	s.length++
	return e, nil
}

// Append folds e and returns its block. If it fails, s is unchanged.
func (s *State) Append(e Event) ([]byte, error) {
	r := s.record(&e)
	block := r.append(make([]byte, 0, len(r.payload)+16), s.header.Ecosystem)
	if len(block) > MaxEvent {
		return nil, fmt.Errorf("%w: %d bytes", ErrTooLarge, len(block))
	}
	if err := s.fold(&e); err != nil {
		return nil, fmt.Errorf("%v event: %w", e.Kind, err)
	}
	s.length++
	return block, nil
}

// record returns the outer form of e as the next event of s, good until the one
// after.
func (s *State) record(e *Event) record {
	r := record{kind: e.Kind, version: e.Version, artifact: e.Artifact, runs: e.Order}
	if e.NoNewline {
		r.flags |= flagNoNewline
	}
	switch e.Kind {
	case Published:
		if s.header.Ecosystem == Cargo && e.Position != len(s.lines) {
			r.flags |= flagPosition
		}
	case Removed:
		if e.All {
			r.flags = flagAll
		}
	}
	r.position = uint64(e.Position)
	if e.Kind == Published || e.Kind == Changed {
		s.scratch = packPayload(s.scratch[:0], s.header.Ecosystem, s.base(e.Kind, e.Position), e.plain())
		r.payload = s.scratch
	}
	return r
}

func (e *Event) plain() []byte {
	if e.Module != nil {
		return e.Module.append(nil)
	}
	return e.Line
}

// base returns what the payload of an event is a delta of.
func (s *State) base(k Kind, position int) []byte {
	if s.header.Ecosystem == Go {
		return s.last
	}
	if k == Published {
		position--
	}
	if position < 0 || position >= len(s.lines) {
		return nil
	}
	return s.lines[position]
}

// expand turns the outer form of the next event into the event.
func (s *State) expand(r *record) (Event, error) {
	e := Event{Kind: r.kind, Version: r.version, Artifact: r.artifact, Order: r.runs}
	if r.position > uint64(len(s.lines)) {
		return e, fmt.Errorf("%w: position %d of %d lines", ErrMalformed, r.position, len(s.lines))
	}
	e.Position = int(r.position)
	switch r.kind {
	case Removed:
		e.All = r.flags&flagAll != 0
		return e, nil
	case HasArtifact, Reordered:
		return e, nil
	}
	e.NoNewline = r.flags&flagNoNewline != 0
	if s.header.Ecosystem == Cargo && r.kind == Published && r.flags&flagPosition == 0 {
		e.Position = len(s.lines)
	} else if r.kind == Published && s.header.Ecosystem == Cargo && e.Position == len(s.lines) {
		return e, fmt.Errorf("%w: needless position", ErrMalformed)
	}
	plain, err := unpackPayload(s.header.Ecosystem, s.base(r.kind, e.Position), r.payload)
	if err != nil {
		return e, err
	}
	if s.header.Ecosystem == Go {
		e.Module, err = decodeModuleVersion(plain)
		return e, err
	}
	e.Line = plain
	return e, nil
}

// fold changes s by e, whose payload is expanded, and fills in what e replaces.
// All checks come before the first change.
func (s *State) fold(e *Event) error {
	if s.header.Ecosystem == Go && (e.Kind == Published || e.Kind == Changed) {
		return s.foldModule(e)
	}
	switch e.Kind {
	case Published:
		return s.insertLine(e)
	case Changed:
		return s.changeLine(e)
	case HasArtifact:
		return s.foldArtifact(e)
	case Removed:
		return s.foldRemoved(e)
	case Reordered:
		lines, ok := permute(s.lines, e.Order)
		if !ok || s.header.Ecosystem != Cargo {
			return fmt.Errorf("runs are no reordering of %d lines", len(s.lines))
		}
		s.lines = lines
		return nil
	}
	return fmt.Errorf("unknown kind")
}

// grow accounts for n more bytes held. Deltas of a few bytes can stand for
// megabytes, so a log's length says nothing about what it folds to.
func (s *State) grow(n int) error {
	if s.bytes+n > MaxFolded {
		return fmt.Errorf("%w: package of more than %d bytes", ErrTooLarge, MaxFolded)
	}
	s.bytes += n
	return nil
}

func checkLine(line []byte) error {
	if len(line) > MaxEvent {
		return fmt.Errorf("line of %d bytes", len(line))
	}
	if bytes.IndexByte(line, '\n') >= 0 {
		return fmt.Errorf("line holds a newline")
	}
	return nil
}

func (s *State) insertLine(e *Event) error {
	if e.Position < 0 || e.Position > len(s.lines) {
		return fmt.Errorf("position %d of %d lines", e.Position, len(s.lines))
	}
	if err := checkLine(e.Line); err != nil {
		return err
	}
	if err := s.grow(len(e.Line)); err != nil {
		return err
	}
	s.lines = slices.Insert(s.lines, e.Position, e.Line)
	s.noNewline = e.NoNewline
	s.republished(func(w Withdrawal) bool { return w.Line != nil && bytes.Equal(w.Line, e.Line) })
	return nil
}

func (s *State) changeLine(e *Event) error {
	if e.Position < 0 || e.Position >= len(s.lines) {
		return fmt.Errorf("position %d of %d lines", e.Position, len(s.lines))
	}
	if err := checkLine(e.Line); err != nil {
		return err
	}
	if err := s.grow(len(e.Line) - len(s.lines[e.Position])); err != nil {
		return err
	}
	e.Replaced = s.lines[e.Position]
	s.lines[e.Position] = e.Line
	s.noNewline = e.NoNewline
	return nil
}

func (s *State) foldModule(e *Event) error {
	if e.Module == nil || !validVersion(e.Module.Version) {
		return fmt.Errorf("no module version")
	}
	_, known := s.modules[e.Module.Version]
	if known != (e.Kind == Changed) {
		return fmt.Errorf("version %q known: %v", e.Module.Version, known)
	}
	plain := e.plain()
	if err := s.grow(len(plain)); err != nil {
		return err
	}
	s.modules[e.Module.Version] = e.Module
	s.last = plain
	s.republished(func(w Withdrawal) bool { return w.Version == e.Module.Version })
	return nil
}

func (s *State) foldArtifact(e *Event) error {
	if !validVersion(e.Version) {
		return fmt.Errorf("no version")
	}
	if m := s.modules[e.Version]; s.header.Ecosystem == Go && (m == nil || m.ZipHash != e.Artifact.Digest) {
		return fmt.Errorf("digest is not that of version %q", e.Version)
	}
	if slices.Contains(s.artifacts[e.Version], e.Artifact) {
		return fmt.Errorf("artifact of %q named twice", e.Version)
	}
	s.artifacts[e.Version] = append(s.artifacts[e.Version], e.Artifact)
	return nil
}

func (s *State) foldRemoved(e *Event) error {
	switch {
	case e.All:
		if !s.Exists() {
			return fmt.Errorf("package holds no version")
		}
		for _, l := range s.lines {
			s.withdrawn = append(s.withdrawn, Withdrawal{Line: l})
		}
		for _, v := range s.Versions() {
			s.withdrawModule(v)
		}
		s.lines, s.noNewline = nil, false
	case s.header.Ecosystem == Cargo:
		if e.Position < 0 || e.Position >= len(s.lines) {
			return fmt.Errorf("position %d of %d lines", e.Position, len(s.lines))
		}
		e.Line = s.lines[e.Position]
		s.withdrawn = append(s.withdrawn, Withdrawal{Line: e.Line})
		s.lines = slices.Delete(s.lines, e.Position, e.Position+1)
	default:
		if s.modules[e.Version] == nil {
			return fmt.Errorf("version %q not known", e.Version)
		}
		s.withdrawModule(e.Version)
	}
	return nil
}

func (s *State) withdrawModule(version string) {
	s.withdrawn = append(s.withdrawn, Withdrawal{Version: version, Artifacts: s.artifacts[version]})
	delete(s.modules, version)
}

func (s *State) republished(same func(Withdrawal) bool) {
	s.withdrawn = slices.DeleteFunc(s.withdrawn, same)
}
