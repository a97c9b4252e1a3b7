// Package vectors holds test vectors that were made by running the reference
// implementation of the Hypercore protocols in JavaScript. Only tests import it.
package vectors

import (
	"embed"
	"encoding/hex"
	"encoding/json"
	"testing"
)

//go:embed testdata/*.json
var files embed.FS

// Load decodes the vector file of that name, such as "merkle.json", into v.
func Load(t testing.TB, name string, v any) {
	t.Helper()
	b, err := files.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// Hex is a byte string that a vector file writes as hex digits; a JSON null
// leaves it nil.
type Hex []byte

// UnmarshalJSON implements [json.Unmarshaler].
func (h *Hex) UnmarshalJSON(b []byte) error {
	var s *string
	if err := json.Unmarshal(b, &s); err != nil || s == nil {
		return err
	}
	v, err := hex.DecodeString(*s)
	*h = v
	return err
}
