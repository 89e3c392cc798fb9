package httpd

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics are those of the API itself.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "debvisor_http_requests_total",
			Help: "Requests answered, by method, route and status."}, []string{"method", "route", "status"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "debvisor_http_request_seconds",
			Help:    "Time from the first header to the end of the answer, in seconds; waits and streams included.",
			Buckets: []float64{.001, .003, .01, .03, .1, .3, 1, 3, 10, 60}}, []string{"method"}),
	}
	m.registry.MustRegister(m.requests, m.seconds)
	return m
}

// watchGate shows how many requests are inside a gate.
func (m *metrics) watchGate(g gate) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "debvisor_http_open", Help: "Requests being answered, by the limit that they count against.",
		ConstLabels: prometheus.Labels{"limit": g.name}}, func() float64 { return float64(g.open.Load()) }))
}

func (m *metrics) observe(method, route string, status int, took time.Duration) {
	switch method {
	case http.MethodGet, http.MethodPut, http.MethodPost, http.MethodDelete:
	default:
		method = "other"
	}
	m.requests.WithLabelValues(method, route, strconv.Itoa(status)).Inc()
	m.seconds.WithLabelValues(method).Observe(took.Seconds())
}

func (s *Server) metricsHandler() http.Handler {
	all := prometheus.Gatherers{s.metrics.registry}
	if s.cfg.Registry != nil {
		all = append(all, s.cfg.Registry)
	}
	return promhttp.HandlerFor(all, promhttp.HandlerOpts{DisableCompression: true})
}
