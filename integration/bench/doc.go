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
//
// # What bounds the figures
//
// A small answer takes 17 to 18 microseconds of CPU time, the client's included; a
// handler that answers the same bytes from memory through net/http takes 15 (Warm has
// it in the same run: a node is at 0.92 times its answers a second, 0.86 times those
// per CPU second). A profile's rows, of all: the client 30%, write 19%, reading the
// request 9% and parsing it 9%, what is ours 12%, net/http's header 5%, scheduling
// 4%, deadlines 2%, watching the connection meanwhile 3%. Beside Go's file server,
// which opens a file for every request, that is 1.23 to 1.26 times the answers a
// second where the load is enough for two cores. Over 16 connections the machine
// waits for a third of the time, mostly for a thread to be woken, whoever serves:
// 1.15 to 1.2 times there, where net/http itself comes to 1.24. More would take a
// server of our own in place of net/http, for half the time of an answer that takes
// 13 microseconds; every check of package httpguard would have to be made again.
//
// The go command asks for few things at a time, and what it waits for most is itself.
// go mod download takes 1.05 times as long from nginx as by file://, since its
// client gets 95 MB through a socket and 290 answers: no server comes to the goal,
// 1.03. A node takes 1.02 times as long as nginx. For go mod graph, 126 files in 10
// ms, a node takes 1.13 times nginx's time and net/http's file server 1.14: a
// process that sleeps between requests wakes two threads for each.
//
// # What is not measured
//
// goproxy/goproxy, the other party of P1 and P2, is not measured here: it cannot be had
// from the module proxy. It asks its upstream for each list.
package bench
