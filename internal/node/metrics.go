package node

import (
	"net/http"
	"strconv"
	"time"

	"github.com/go-chi/chi/v5/middleware"
	"github.com/pkgswarm/pkgswarm/registry/artifact"
	"github.com/pkgswarm/pkgswarm/registry/fetch"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics are the node's figures for Prometheus. No label is a name, a digest, a
// key or an address (SEC-56).
type metrics struct {
	registry *prometheus.Registry

	requests  *prometheus.CounterVec   // front, code
	latency   *prometheus.HistogramVec // front; until the answer is written
	artifacts *prometheus.CounterVec   // source
	bytes     *prometheus.CounterVec   // source
	failures  prometheus.Counter       // of fetching
	wrong     *prometheus.CounterVec   // from: whose bytes did not verify
	panics    prometheus.Counter
}

func newMetrics(n *Node) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pkgswarm_requests_total", Help: "HTTP requests by front end and status class."}, []string{"front", "code"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "pkgswarm_request_seconds", Help: "Time to answer a request.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}}, []string{"front"}),
		artifacts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pkgswarm_artifacts_total", Help: "Artifacts answered by where they came from."}, []string{"source"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pkgswarm_artifact_bytes_total", Help: "Bytes of artifacts answered by where they came from."}, []string{"source"}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "pkgswarm_artifact_failures_total", Help: "Artifacts that could not be had."}),
		wrong: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pkgswarm_verification_failures_total", Help: "Files that did not match what proves them."}, []string{"from"}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "pkgswarm_panics_total", Help: "Requests that ended in a panic."}),
	}
	gauge := func(name, help string, f func(artifact.Stats) int64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help},
			func() float64 { return float64(f(n.artifacts.Stats())) })
	}
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		m.requests, m.latency, m.artifacts, m.bytes, m.failures, m.wrong, m.panics, newCatalogCollector(n), banCollector{n},
		gauge("pkgswarm_store_files", "Artifacts stored.", func(s artifact.Stats) int64 { return s.Files }),
		gauge("pkgswarm_store_bytes", "Size of the artifacts stored.", func(s artifact.Stats) int64 { return s.Bytes }),
		gauge("pkgswarm_store_free_bytes", "Free space of the store's disk.", func(s artifact.Stats) int64 { return s.Free }),
		gauge("pkgswarm_store_damaged", "Stored artifacts found damaged since the start.", func(s artifact.Stats) int64 { return int64(s.Damaged) }),
		gauge("pkgswarm_store_evicted", "Artifacts evicted since the start.", func(s artifact.Stats) int64 { return int64(s.Evicted) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "pkgswarm_peers", Help: "Connected peers that exchange artifacts."},
			func() float64 { return float64(n.exchange.Connected()) }),
	)
	return m
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// observe counts an answered request for an artifact.
func (m *metrics) observe(e fetch.Event) {
	if e.Err != nil {
		m.failures.Inc()
		return
	}
	m.artifacts.WithLabelValues(string(e.Source)).Inc()
	if e.Bytes > 0 {
		m.bytes.WithLabelValues(string(e.Source)).Add(float64(e.Bytes))
	}
}

// count counts the requests of a front end.
func (m *metrics) count(front string, next http.Handler) http.Handler {
	latency := m.latency.WithLabelValues(front)
	byClass := [6]prometheus.Counter{}
	for i := range byClass {
		byClass[i] = m.requests.WithLabelValues(front, strconv.Itoa(i)+"xx")
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		ww := middleware.NewWrapResponseWriter(w, r.ProtoMajor) // keeps ReadFrom, for sendfile
		defer func() {
			byClass[min(max(ww.Status(), 200)/100, 5)].Inc()
			latency.Observe(time.Since(start).Seconds())
		}()
		next.ServeHTTP(ww, r)
	})
}

// A banCollector counts the bans of peers by reason, of which there are few (SEC-22).
type banCollector struct{ n *Node }

var bansTotal = prometheus.NewDesc("pkgswarm_peer_bans_total", "Peers banned for what they have sent.", []string{"reason"}, nil)

func (banCollector) Describe(ch chan<- *prometheus.Desc) { ch <- bansTotal }

func (c banCollector) Collect(ch chan<- prometheus.Metric) {
	for reason, n := range c.n.swarm.Bans() {
		ch <- prometheus.MustNewConstMetric(bansTotal, prometheus.CounterValue, float64(n), reason)
	}
}
