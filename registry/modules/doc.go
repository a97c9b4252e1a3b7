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
package modules
