// Package artifact keeps verified package files: the .crate of a crate, the
// .zip of a module.
//
// A file is named by the SHA-256 of its bytes and stands under one directory
// that nothing but this package writes to:
//
//	artifacts/format          "pkgswarm artifacts 1\n"
//	artifacts/ab/ab12…        a file that peers may have (64 hex digits)
//	artifacts/private/ab/…    a file that they may not
//	artifacts/tmp/…           files being written; emptied by Open
//
// and has a record in a Pebble database, which makes it found by that digest,
// by Go's h1: hash, and by the key of its static core (see [Cores]). Keys of
// the database are one letter and fixed-size fields:
//
//	v                         format version, one byte
//	t                         number and total size of the files
//	a <sha256>                the record
//	h <h1> / k <core key>     the sha256 it belongs to
//	l <seconds, u64be> <sha256>   files in the order of their last request
//	p <sha256>                pinned
//	w <sha256>                withdrawn; the value is the reason
//	i <sha256>                the file is being put in place or removed
//
// # What is promised
//
// A file is in the store once [Writer.Commit] has returned: checked against its
// digest, written through to the disk, under its final name, and recorded, in
// that order (an i record brackets the steps, so that Open can undo half of
// them). Removal goes the other way. A crash between any two steps leaves
// either the whole file or nothing.
//
// [Store.Open] hands out only files whose bytes have been checked by this
// process since they last changed: against the BLAKE3 hash in the record, at
// first use and again whenever size, times or identity of the file differ from
// what was checked, and at least every [recheck]. A damaged file is
// removed and reported as not there, so that its next user fetches it anew.
//
// A missing or unreadable database is set aside and made anew from the files: by
// Open, or by [Store.Run] when the damage shows while the store is in use. Until
// then nothing is found and nothing can be committed.
//
// All methods may be called concurrently. One process at a time uses a store.
package artifact
