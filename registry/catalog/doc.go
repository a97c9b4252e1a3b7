// Package catalog is an operator's signed statement about a whole registry: one
// Hyperbee whose core key is the registry key that users configure. It names
// every package's log (package pkglog) with the length and tree hash that
// count, so that one signature covers everything at one moment.
//
// # Keys and values
//
// Keys are UTF-8; values are in compact encoding, integers in their shortest
// form, nothing behind the last field, and begin with their version, uint 1.
//
//	cargo/<name in lower case>      an entry
//	go/<escaped module path>        an entry
//	!head                           a heartbeat
//	!successor                      the catalog that replaces this one
//	!predecessor                    the catalog that this one replaces
//
//	entry        uint 1, fixed32 log key, uint length, fixed32 tree hash, uint time
//	heartbeat    uint 1, uint time, uint cargo packages, uint go packages
//	successor    uint 1, buffer manifest of the new catalog's core, buffer signature
//	predecessor  uint 1, fixed32 key, uint length, fixed32 tree hash
//
// Times are seconds since 1970. An entry's is when the operator recorded that
// state of the log; the heartbeat's is up to when the operator vouches that
// nothing newer was known to it. Every flush rewrites the heartbeat as its last
// operation, and so does a watching importer every ten minutes.
//
// The entry of serde with a log of 3 blocks, recorded at 1700000000, is
//
//	01 <32 bytes> 03 <32 bytes> fe 00f15365
//
// # Keys of an operator
//
// Everything derives from one secret seed as Corestore derives named cores from
// its primary key (spec: core.DeriveKeyPair), in namespace "pkgswarm" /
// "registry": the catalog's key pair has the name "catalog", a package log's the
// name of its catalog key, such as "cargo/serde". Each is the only signer of
// its core's default manifest; a catalog of several operators has each one's
// catalog key pair as a signer, and logs derived from the first one's seed.
//
// The importing process signs with as many seeds as the quorum asks for: they are
// on its machine while it runs, from different disks or tokens perhaps, so that
// one lost or copied seed is worth nothing. It signs every few minutes, and what
// it signs is only worth the look that a signer has taken at the upstream. So
// signers on machines of their own are operators with catalogs of their own, and
// a client has agree=N of them confirm each digest (package signed).
//
// # Succession
//
// A catalog is replaced in one step: the old one gets a successor entry, which
// holds the new core's manifest and a signature by the new core's quorum over
//
//	"pkgswarm/successor" || old key || new key
//
// so that both sides have signed. The new catalog's predecessor entry names the
// old one's final head, the successor entry included; a reader follows only if
// that is the head it has itself verified.
//
// # What a reader holds against an operator
//
// A [Reader] keeps the newest head it has ever accepted in a file of the state
// directory, which no cache restore replaces, and refuses what does not extend
// it. Fork counters above zero, heads that are absurdly long or from the
// future, and logs that differ from what the head names are refused, too. Two
// signed heads of which neither extends the other are kept as [core.Evidence] that
// convinces anybody, and end the use of that catalog; a head that is only older
// is kept as well, until it was compared with the longer history.
package catalog
