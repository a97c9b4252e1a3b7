// Package sumdb follows a Go checksum database and proves go.sum lines with it,
// also offline.
//
// A [DB] keeps the newest signed tree it has verified. Every look-up checks the
// signature of the tree that the answer came with, that this tree and the kept one
// are one history, and, once the newer of the two is kept, that the record is in
// it. The record must be of the module asked for. A tree that forks from the kept
// one is saved as evidence and nothing that came with it is believed. The proofs
// are those of golang.org/x/mod/sumdb/tlog; its client, which keeps all it has seen
// for ever, errors too, is not used.
//
// What was verified once is not verified again: a tree with the same note, or the
// way to the root of a tile in memory. A record is then the hash of a few lines.
//
// # What is on disk
//
//	STATE/sumdb/NAME/latest       the newest verified tree, a signed note; fsynced, never older
//	STATE/sumdb/NAME/fork-…       evidence of a fork, for people
//	CACHE                         entries of a filecache.Cache:
//	  sumdb NAME lookup M@V       a record and the tree it was proven with
//	  sumdb NAME tile/8/L/K       the widest prefix of a tile that was proven
//
// The state must not be restored from an older copy (SEC-6). The cache may be
// anybody's: what is read from it is proven again, once in a process.
//
// # Why any mix of records verifies offline
//
// A record is served under the kept tree, whatever tree it was proven with. A
// client that knows tree N1 and is given a record under tree N2 needs the tiles
// on the way from the record to the root of N2, and those that show N1 in N2. Full
// tiles never change; a tile that was partial when it was needed lies on the right
// edge of its tree, and proving that tree in its successor reads the same tile
// again, as wide as it is there. As the DB steps through every tree that it ever
// serves, it holds all of them for the newest.
package sumdb
