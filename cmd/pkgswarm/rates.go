package main

import (
	"fmt"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/pkgswarm/pkgswarm/swarm"
	"github.com/spf13/pflag"
)

// A rateFlags caps what a command exchanges with peers.
type rateFlags struct{ upload, download string }

func (f *rateFlags) add(fs *pflag.FlagSet) {
	fs.StringVar(&f.upload, "upload-rate", "0", "most that is sent to peers, a `RATE` such as 10MB/s; 0 is no bound")
	fs.StringVar(&f.download, "download-rate", "0", "most that is taken from peers, a `RATE` such as 10MB/s; 0 is no bound")
}

// limits returns what the flags say.
func (f *rateFlags) limits() (l swarm.Limits, err error) {
	if l.Upload, err = parseRate("upload-rate", f.upload); err != nil {
		return l, err
	}
	l.Download, err = parseRate("download-rate", f.download)
	return l, err
}

// parseRate parses the value of a flag such as 10MB/s.
func parseRate(flag, value string) (int64, error) {
	n, err := humanize.ParseBytes(strings.TrimSuffix(value, "/s"))
	if err != nil || n > 1<<50 {
		return 0, &exitError{exitUsage, fmt.Errorf("--%s: %q is not a number of bytes a second", flag, value), "write it as 500kB/s or 10MiB/s; 0 is no bound"}
	}
	return int64(n), nil
}
