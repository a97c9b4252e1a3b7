// Package pkglog is the format of a package log: the append-only core in which
// a registry's operator signs what the upstream registry says about one
// package. It turns events into blocks and blocks into events, folds them into
// the upstream's files, and finds the events that lead from a folded log to a
// new upstream file. It is pure: bytes in, bytes out.
//
// # Blocks
//
// Everything is in compact encoding (package compact), integers in their
// shortest form, nothing behind the last field. Block 0 is the header:
//
//	string  "pkgswarm/package-log"
//	uint    format, 1
//	string  ecosystem, "cargo" or "go"
//	string  package: the crate's name in lower case; the module path, not escaped
//
// For the crate serde that is 14 "pkgswarm/package-log" 01 05 "cargo" 05 "serde",
// the lengths in hexadecimal.
//
// Each further block is one event, in the upstream's order. It begins with its
// kind:
//
//	1 published  cargo: uint flags (1: a position follows, else the line goes to the end;
//	             2: the file now ends without newline), [uint position], payload
//	             go: payload
//	2 changed    cargo: uint flags (2), uint position, payload; go: payload
//	3 artifact   string version, fixed32 artifact key, uint byte length, fixed32 digest
//	             (cargo: SHA-256 of the .crate; go: the h1 hash of the zip)
//	4 removed    uint flags (1: the whole package); unless 1, cargo: uint position, go: string version
//	5 reordered  cargo only: array of runs {uint first position, uint count}
//
// A position is a line's number in the index file, from 0, at that point of the
// log. The runs of a reordering name every old position once, in the new order.
//
// # Payloads
//
// The payload of a cargo event is the index line, without its newline. That of
// a go event is
//
//	string  version, canonical
//	int     time of the version in seconds since 1970
//	fixed32 h1 hash of the go.mod file      fixed32 h1 hash of the zip
//	buffer  the .info file                  buffer  the .mod file
//
// It takes up the rest of the block, after a byte for its form:
//
//	0 plain      the bytes
//	1 zstd       one zstd frame (RFC 8878) that states its content size
//	2 delta      uint length of the result, then instructions
//
// An instruction is uint (n << 2 | op), n > 0. Op 0 copies n bytes of the
// dictionary; an int follows, the distance from where the previous copy ended
// plus the bytes inserted since (at first from the end of the fixed text) to
// where this one begins. Op 1 inserts the n bytes that follow; op 2 the n bytes
// that follow as 2n hexadecimal digits in lower case. The dictionary is the
// ecosystem's fixed text (cargo.dict, go.dict) followed by the base: for a changed
// line the one that it replaces; for a published line the one before it in the
// file; for a module version the payload of the last event that had one; empty
// if there is none. A copy lies within one of the two.
//
// Lines of one package are so alike that a delta is a tenth of a line, where
// zstd without a dictionary makes half of it; writers take the smallest form.
//
// # Folding
//
// The lines of a cargo log, in order, each with a newline (but the last, if so
// flagged), are the index file, byte for byte. A log without lines is a crate
// that does not exist (any more). A go log gives .info and .mod of each version
// byte for byte, and the version list in semantic order without
// pseudo-versions. A removed version stays known as removed.
package pkglog
