package httpapi

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	requests    *prometheus.CounterVec
	seconds     *prometheus.HistogramVec
	idempotency *prometheus.CounterVec
	waiting     prometheus.Gauge
}

// What became of an Idempotency-Key.
const (
	keyFresh    = "fresh"
	keyReplayed = "replayed"
	keyReused   = "reused"
	keyInFlight = "in_flight"
	keyExpired  = "expired"
)

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	if reg == nil {
		reg = prometheus.NewRegistry()
	}
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "converge_api_requests_total",
			Help: "Requests by route, method and status code. A rise of 5xx means trouble here, of 4xx with clients."}, []string{"route", "method", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "converge_api_request_seconds",
			Help:    "Time from the request's head to the answer's end, without those that waited for a change or streamed. A rise means that the database is slower.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 15)}, []string{"route", "method"}),
		idempotency: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "converge_api_idempotency_total",
			Help: "Requests with an Idempotency-Key by what became of the key. A rise of replayed means that clients retry."}, []string{"route", "result"}),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{Name: "converge_api_waiting_requests",
			Help: "Requests that wait for a change now, streams among them. At its bound, more are answered 429."}),
	}
	if err := errors.Join(reg.Register(m.requests), reg.Register(m.seconds), reg.Register(m.idempotency), reg.Register(m.waiting)); err != nil {
		return nil, fmt.Errorf("registering the API's metrics: %w", err)
	}
	return m, nil
}

// prepare makes a route's series be there at 0.
func (m *metrics) prepare(method, path string) {
	codes := []int{200, 400, 404, 500, 503}
	if method == http.MethodPost {
		codes = []int{201, 202, 400, 409, 422, 500, 503}
		for _, result := range []string{keyFresh, keyReplayed, keyReused, keyInFlight, keyExpired} {
			m.idempotency.WithLabelValues(path, result)
		}
	}
	for _, code := range codes {
		m.requests.WithLabelValues(path, method, strconv.Itoa(code))
	}
	m.seconds.WithLabelValues(path, method)
}

var methods = []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions}

func (m *metrics) observe(method, pattern string, code int, took time.Duration, waited bool) {
	if !slices.Contains(methods, method) {
		method = "other" // whoever calls chooses it: no label for each
	}
	_, path, ok := strings.Cut(pattern, " ")
	if !ok {
		path = "none"
	}
	m.requests.WithLabelValues(path, method, strconv.Itoa(code)).Inc()
	if !waited { // it took as long as the client or the world wanted
		m.seconds.WithLabelValues(path, method).Observe(took.Seconds())
	}
}
