// Package core keeps Hypercore 11 logs: append-only lists of blocks that are
// signed by their writer and can be verified, block by block, by anyone who has
// the log's key. It is compatible with the reference implementation in
// JavaScript: the same content gives the same trees, signatures and keys, and
// either side verifies the proofs of the other.
//
// A [Store] is a directory with any number of cores. A [Core] is opened by name
// (writable, its key pair derived from the store's primary key as corestore does),
// by manifest, or by key: a replica, which [Core.Apply] fills with proofs from
// [Core.Prove] of another one, in any order, with as few blocks as wanted.
// Package swarm does that over the network, with peers in Go or JavaScript; its
// example exchanges a Hyperbee with either.
//
// A static core has no writer: its manifest fixes the tree hash, so that its key
// is a function of the content. The blocks of one made from a file are ranges of
// 64 KiB of the file itself; see [HashStatic].
//
// # Promises
//
// All methods may be called concurrently. One process uses a store at a time;
// another one gets an [*InUseError].
//
// [Core.Append], [Core.Truncate] and [Store.Sync] return when what they did, and
// all that was done to the store before, survives a power loss. Everything else,
// such as [Core.AppendLazy] and Apply, is durable with the next of those. Each is
// done wholly or not at all, whenever the process ends. Concurrent appends share
// one wait for the disk.
//
// A block is checked against the tree whenever it is read. One that is damaged is
// a [*DamageError], is forgotten, and can be fetched again; other blocks and cores
// are not concerned. When the disk refuses a write that cannot be done without,
// all further ones are refused with [ErrFailed] until the store is opened anew;
// reading goes on. A disk that is nearly full is refused in time, with
// [ErrNoSpace].
//
// A database that is so damaged that it cannot be opened, or written, is set aside
// and made anew at the next opening (rebuild.go). Static cores are read from their
// files then, replicas have to be fetched again. A core that is signed here and has
// less than was acknowledged, for this or another reason, says so with a
// [*LossError] and is not appended to until it is whole again: there must not be
// two histories.
//
// # On disk
//
// The directory of a store, format version 1:
//
//	format          the format version, read before anything else is touched
//	lock, process   held, and the process that holds it
//	primary         the primary key, and a checksum; the database has it, too
//	heads           the acknowledged heads of the cores signed here; see acks.go
//	db/             Pebble: records of cores, heads, tree pages, small blocks
//	blocks/N        segments: the data of large appends, one after another
//	damaged-N/      a database, and its segments, that was set aside
//	rebuild         there while that is not done
//
// The keys of the database stand in schema.go. A core's tree is cut into pages of
// 32 blocks (page.go) that hold the leaves; what lies above two known nodes is
// computed. Up to 16 KiB of blocks that are appended together go to the database,
// more of them to the current segment. So a durable append of small blocks waits for
// one sync, of the database's log, which is filled with zeros ahead of what is
// written, so that the file system's journal has no part in it; closing the store
// turns the log into tables. A segment is synced before the commit that
// refers to it, if that is to be durable; otherwise the commit notes that the
// page's data may not be, and the next opening looks. Segments of which nothing is
// used are removed.
//
// # Sources
//
// Formats follow hypercore 11.37, hypercore-crypto 3.7 and corestore 7.12. Hashes
// and proofs are in package merkle.
package core
