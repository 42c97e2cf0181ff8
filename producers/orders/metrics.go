package orders

import (
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// metrics counts what is decided inside transactions, so a batch that is rolled back and done again
// counts again: rates, not ledgers. The gauges are read from the table.
type metrics struct {
	instances   *prometheus.GaugeVec
	oldest      *prometheus.GaugeVec
	transitions *prometheus.CounterVec
	duration    *prometheus.HistogramVec
	timeouts    *prometheus.CounterVec
	recent      recent
}

// steps names what an order waited for when its time was up.
var steps = map[State]string{Pending: "reservation", Reserved: "payment", Paid: "shipment", Compensating: "acknowledgement"}

func newMetrics(registerer prometheus.Registerer) *metrics {
	f := promauto.With(registerer)
	m := &metrics{
		instances: f.NewGaugeVec(prometheus.GaugeOpts{Name: "converge_saga_instances",
			Help: "Open sagas by state. STUCK above 0 means that a participant does not acknowledge: somebody must look."}, []string{"state"}),
		oldest: f.NewGaugeVec(prometheus.GaugeOpts{Name: "converge_saga_oldest_open_seconds",
			Help: "Age of the oldest open saga in each state, 0 when there is none. A steady rise means that sagas do not move on."}, []string{"state"}),
		transitions: f.NewCounterVec(prometheus.CounterOpts{Name: "converge_saga_transitions_total",
			Help: "Changes of state decided. A rise from any state to COMPENSATING means that orders are being undone."}, []string{"from", "to"}),
		duration: f.NewHistogramVec(prometheus.HistogramOpts{Name: "converge_saga_duration_seconds",
			Help:    "From POST to the end of the saga, by how it ended. Blind to sagas that do not end: see converge_saga_oldest_open_seconds.",
			Buckets: []float64{.01, .025, .05, .1, .2, .3, .5, 1, 2.5, 5, 10, 30, 60, 300}}, []string{"outcome"}),
		timeouts: f.NewCounterVec(prometheus.CounterOpts{Name: "converge_saga_timeouts_total",
			Help: "Deadlines that passed, by the step waited for. A rise means that this step's service is slow or away."}, []string{"step"}),
	}
	for _, state := range States() {
		if !state.Terminal() && state != Shipped {
			m.instances.WithLabelValues(string(state))
			m.oldest.WithLabelValues(string(state))
		}
	}
	for _, edge := range Edges() {
		m.transitions.WithLabelValues(fromLabel(edge.From), string(edge.To))
	}
	for _, o := range []Outcome{Delivered, OutOfStock, Declined, Refused, TimedOut, WasCancelled} {
		m.duration.WithLabelValues(string(o))
	}
	for _, step := range steps {
		m.timeouts.WithLabelValues(step)
	}
	return m
}

// fromLabel names the state that a change left; an order that was just placed left none.
func fromLabel(s State) string {
	if s == "" {
		return "none"
	}
	return string(s)
}

// entered counts what a move of an order did.
func (m *metrics) entered(o *order, from State, states []State, at time.Time) {
	for _, to := range states {
		m.transitions.WithLabelValues(fromLabel(from), string(to)).Inc()
		from = to
		if to.Terminal() {
			took := at.Sub(o.createdAt)
			m.duration.WithLabelValues(string(o.saga.Outcome)).Observe(took.Seconds())
			m.recent.add(took)
		}
	}
}

// counted is one row of openSQL.
type counted struct {
	state  State
	number int64
	oldest float64 // seconds
}

// open sets the gauges; states that are not counted are empty.
func (m *metrics) open(rows []counted) {
	for _, state := range States() {
		if state.Terminal() || state == Shipped {
			continue
		}
		i := slices.IndexFunc(rows, func(c counted) bool { return c.state == state })
		if i < 0 {
			m.instances.WithLabelValues(string(state)).Set(0)
			m.oldest.WithLabelValues(string(state)).Set(0)
			continue
		}
		m.instances.WithLabelValues(string(state)).Set(float64(rows[i].number))
		m.oldest.WithLabelValues(string(state)).Set(rows[i].oldest)
	}
}

// recent remembers how long the latest sagas took, for the advice in Retry-After.
type recent struct {
	mu   sync.Mutex
	ring [128]time.Duration
	n    int // how many were ever added
}

func (r *recent) add(took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ring[r.n%len(r.ring)] = took
	r.n++
}

// p90 returns the duration that nine of ten recent sagas did not exceed, 0 before the first.
func (r *recent) p90() time.Duration {
	r.mu.Lock()
	known := slices.Clone(r.ring[:min(r.n, len(r.ring))])
	r.mu.Unlock()
	if len(known) == 0 {
		return 0
	}
	slices.Sort(known)
	return known[(len(known)*9-1)/10]
}
