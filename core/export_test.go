package core

// AddMerger is what a database of a store must be opened with.
var AddMerger = addMerger
