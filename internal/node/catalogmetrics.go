package node

import (
	"time"

	"github.com/pkgswarm/pkgswarm/registry/signed"
	"github.com/prometheus/client_golang/prometheus"
)

// catalogCollector tells of the catalogs that are followed, all together: labels have
// no keys in them (SEC-56).
type catalogCollector struct {
	n *Node

	catalogs, age, packages, bytes, late, wrong, files *prometheus.Desc
}

func newCatalogCollector(n *Node) *catalogCollector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("pkgswarm_"+name, help, labels, nil)
	}
	return &catalogCollector{
		n:        n,
		catalogs: desc("catalogs", "Catalogs of operators by state: fresh, stale, unread or forked.", "state"),
		age:      desc("catalog_age_seconds", "Time since the catalog that waits longest for it was vouched for."),
		packages: desc("mirror_packages", "Packages of mirrored registries: known to them, and held here.", "state"),
		bytes:    desc("mirror_log_bytes", "Bytes of package logs that mirroring has brought."),
		late:     desc("mirror_late", "Packages that no peer had, and that are asked for again.", "what"),
		wrong:    desc("mirror_wrong", "Package logs that are not as their operator signed them."),
		files:    desc("mirror_files_packages", "Packages by what became of their files: done, or left_out for want of room.", "state"),
	}
}

// Describe implements [prometheus.Collector].
func (c *catalogCollector) Describe(ch chan<- *prometheus.Desc) {
	prometheus.DescribeByCollect(c, ch)
}

// Collect implements [prometheus.Collector].
func (c *catalogCollector) Collect(ch chan<- prometheus.Metric) {
	var all []signed.Status
	if c.n.signed != nil {
		all = c.n.signed.Status()
	}
	states := map[string]int{"fresh": 0, "stale": 0, "unread": 0, "forked": 0}
	var age time.Duration
	var sum signed.MirrorStatus
	var files signed.FilesStatus
	for _, s := range all {
		states[catalogState(s)]++
		if s.Ready {
			age = max(age, s.Age)
		}
		m := s.Mirrored
		if m == nil {
			continue
		}
		sum.Known, sum.Held, sum.Bytes = sum.Known+m.Known, sum.Held+m.Held, sum.Bytes+m.Bytes
		sum.Late, sum.Wrong = sum.Late+m.Late, sum.Wrong+m.Wrong
		if f := m.Files; f != nil {
			files.Done, files.Late, files.LeftOut = files.Done+f.Done, files.Late+f.Late, files.LeftOut+f.LeftOut
		}
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for state, n := range states {
		gauge(c.catalogs, float64(n), state)
	}
	gauge(c.age, age.Seconds())
	gauge(c.packages, float64(sum.Known), "known")
	gauge(c.packages, float64(sum.Held), "held")
	gauge(c.bytes, float64(sum.Bytes))
	gauge(c.late, float64(sum.Late), "logs")
	gauge(c.late, float64(files.Late), "files")
	gauge(c.wrong, float64(sum.Wrong))
	gauge(c.files, float64(files.Done), "done")
	gauge(c.files, float64(files.LeftOut), "left_out")
}

func catalogState(s signed.Status) string {
	switch {
	case s.Forked:
		return "forked"
	case !s.Ready:
		return "unread"
	case s.Stale:
		return "stale"
	}
	return "fresh"
}
