// Package modules has Go modules as a node sees them: the files of the GOPROXY
// protocol, from memory, disk, peers or upstream proxies, and what proves them.
//
//	list, @latest, branch .info   kept for a minute; then asked for again, with
//	                              validators; served stale while no upstream answers
//	.info of a version            kept for ever; nothing proves it but the upstream
//	.mod                          kept for ever; matches the checksum database
//	.zip                          an artifact (package fetch); likewise
//
// Equal requests share one upstream request, which goes on when a client leaves.
//
// # Private modules
//
// The first thing done with a module path is to see whether it is private
// (SEC-60). A private module is answered by the proxies configured for its
// pattern or not at all (SEC-62), and nobody else hears of it: no public proxy, no
// checksum database, no peer. Its zips are kept as they were first seen, as those
// of all modules are that no checksum database covers.
//
// # What proving costs
//
// A client with a complete go.sum asks no checksum database. A node does all the
// same: it cannot see that go.sum, and its next client may have none. For each
// version whose .mod or .zip it serves it asks for one record, which holds both
// hashes, and for the tiles that prove it, most of which records share. Against
// such a client's own requests that is one more for each version at least: 1.45
// times as many for this module's dependencies, 420 in place of 290. The 130 are
// 126 records, three tiles, and one question whether a proxy has the database:
// nothing is asked twice, and a record can only be found by asking for it, since
// tiles are by number, and a version's number is in its record. Against a client
// that asks the database itself it is none more, and none at all without one.
//
// Asking later would not be asking less. A .mod could be passed on unproven, since
// go checks it again, and be proven when the .zip, or a second client, asks for
// the record. But what is unproven must not be kept, so that each .mod whose .zip
// is never wanted, a third of them, would be missing when the upstream is; proving
// those in the background asks for the same records. And a .zip must be proven
// before its end goes out (SEC-3), whatever the client believes (SEC-5). So both
// are proven at once, while they are on their way: that takes requests, not time.
package modules
