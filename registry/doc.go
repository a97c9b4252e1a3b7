// Package registry holds what the parts of the mirror share about package
// registries.
package registry
