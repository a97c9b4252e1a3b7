package registry

// Where the public registries are. This is the only file that names their
// hosts; every use of a value below can be configured to be something else.
const (
	// CargoIndex is the sparse index of crates.io.
	CargoIndex = "https://index.crates.io/"
	// CargoUpdates is its feed of new versions.
	CargoUpdates = "https://static.crates.io/rss/updates.xml"
	// CargoDownload is where its .crate files are, as its config.json says.
	CargoDownload = "https://static.crates.io/crates"

	// GoProxy is the public module mirror.
	GoProxy = "https://proxy.golang.org"
	// GoIndex is its feed of versions first seen.
	GoIndex = "https://index.golang.org/index"
	// GoSumDB is the public checksum database's verifier key, as the go command
	// has it built in.
	GoSumDB = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8"
)
