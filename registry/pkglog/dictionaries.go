package pkglog

import _ "embed"

// The fixed texts that deltas copy from: what index lines and module versions
// have in common. Changing one byte makes old logs unreadable: a better text
// needs a new payload form.
var (
	//go:embed cargo.dict
	cargoText       string
	cargoDictionary = newDictionary(cargoText)

	//go:embed go.dict
	goText       string
	goDictionary = newDictionary(goText)
)
