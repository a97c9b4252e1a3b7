//go:build race

package swarm_test

// raceEnabled: the race detector's memory is not ours.
const raceEnabled = true
