package core

// FormatLine is the content of the file "format" of a version.
var FormatLine = formatLine

// AddMerger is what a database of a store must be opened with.
var AddMerger = addMerger
