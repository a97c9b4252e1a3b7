// Package bench measures a node beside what it is compared with: nginx and Go's
// file server with the same files, the go command's own file:// proxy, and the
// upstream asked directly. Commands in its directories measure the rest:
// reference (cores and bees beside the JavaScript reference), imports (an
// operator's import).
//
//	go test ./integration/bench -run '^$' -bench .            the whole table, about 8 minutes
//	go test ./integration/bench -run '^$' -bench Warm         one row or a few
//
// At its end a run prints a table, a line for each figure: what ours was, what the
// other side's was in the same run, what follows, and the goal for that. Sides take
// turns, five times at least (-benchtime 10x: ten times that), and the ratio is
// the middle one of the rounds', so that a machine that is busy with other things
// slows both down. "CPU s" is the time of all threads of all processes that take
// part, the client among them; it says more than the clock where others use the
// machine.
//
//	benchmark    goal  what is measured
//	Warm         P1    requests a second for small answers that are held: .info, .mod, an index file
//	             P2    the same for @v/list and @latest
//	             P3    bytes a second of files of 1 MB and 50 MB: .crate and .zip
//	GoDownload   P4    go mod download and go mod graph of this module, cold client, warm node
//	Cold         P5    what a node adds to an upstream 20 ms away: .info, index file, first byte of 50 MB
//	Requests     P6    upstream requests of a cold go mod download through a cold node
//	Cargo        P7    cargo resolving and fetching 200 crates, cold, the upstream 50 ms away
//	FromPeer     P8    a file of 10 KB from a peer; what asking costs when no peer has it
//	Fleet        S2    the upstream's downloads when 8 cold nodes of a fleet want the same files
//	Start        N1    the program's start, memory and size
//
// GoDownload, Requests and Cargo use what this machine's go has downloaded to
// build this module, and the crates that the tests in package integration have
// downloaded; rows for which something is missing say so and are left out.
// goproxy/goproxy, the other party of P1 and P2, is not measured here: it cannot be had
// from the module proxy. It asks its upstream for each list.
package bench
