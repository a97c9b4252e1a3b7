// Package sample has a dependency, for demonstrations.
package sample

import "github.com/google/uuid"

// ID returns a new identifier.
func ID() string { return uuid.NewString() }
