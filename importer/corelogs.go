package importer

import (
	"github.com/pkgswarm/pkgswarm/core"
	"github.com/pkgswarm/pkgswarm/registry/catalog"
	"github.com/pkgswarm/pkgswarm/registry/pkglog"
)

// StoreOptions are those of a store to import into. Pebble takes what is gathered in
// memory out of the cache, of which nothing would be left: the filters that tell
// new logs from old ones would be read again and again.
func StoreOptions() core.Options { return core.Options{CacheBytes: 40 << 20} }

// CoreLogs are the package logs of an operator in a store.
type CoreLogs struct {
	Store    *core.Store
	Operator *catalog.Operator
}

// Log opens the log of a package with the key pair that derives for it.
func (l *CoreLogs) Log(h pkglog.Header) (Log, error) {
	m, pair, err := l.Operator.Log(h)
	if err != nil {
		return nil, err
	}
	c, err := l.Store.Create(m, pair)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Sync makes all appended blocks durable.
func (l *CoreLogs) Sync() error { return l.Store.Sync() }
