// Package sagas is what services that follow sagas share: one set of metrics for every kind, the clock that
// deadlines are kept by, and the patience for a saga that an event is about and that cannot be seen yet. It
// decides nothing: that is for the rules of each.
//
// The guarantee: every series is there from the start, at 0; what is due is looked for until the context ends.
// Counters count what is decided inside transactions, so a batch that is rolled back and done again counts
// again: rates, not ledgers. The gauges are as old as the latest [Metrics.Count].
package sagas

import (
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Kind says what there is to measure of one kind of saga.
type Kind struct {
	Saga     string            // as in order
	Open     []string          // the states in which a saga may rest and is not over
	Edges    [][2]string       // every change of state, from and to; from "" is the beginning
	Outcomes []string          // how a saga may end
	Steps    map[string]string // by state: what a saga waits for there when its time is up
}

// Metrics are the metrics of one kind of saga. They are safe for concurrent use.
type Metrics struct {
	Recent

	kind        Kind
	instances   *prometheus.GaugeVec
	oldest      *prometheus.GaugeVec
	transitions *prometheus.CounterVec
	duration    *prometheus.HistogramVec
	timeouts    *prometheus.CounterVec
}

// New registers the metrics of a kind; with a nil registerer they are kept and not shown. A kind that is
// registered already panics.
func New(registerer prometheus.Registerer, kind Kind) *Metrics {
	f := promauto.With(registerer)
	saga := prometheus.Labels{"saga": kind.Saga}
	m := &Metrics{
		kind: kind,
		instances: f.NewGaugeVec(prometheus.GaugeOpts{Name: "converge_saga_instances", ConstLabels: saga,
			Help: "Open sagas by state. STUCK above 0 means that a participant does not answer: somebody must look."}, []string{"state"}),
		oldest: f.NewGaugeVec(prometheus.GaugeOpts{Name: "converge_saga_oldest_open_seconds", ConstLabels: saga,
			Help: "Age of the oldest open saga in each state, 0 when there is none. A steady rise means that sagas do not move on."}, []string{"state"}),
		transitions: f.NewCounterVec(prometheus.CounterOpts{Name: "converge_saga_transitions_total", ConstLabels: saga,
			Help: "Changes of state decided. A rise from any state to COMPENSATING means that steps are being undone."}, []string{"from", "to"}),
		duration: f.NewHistogramVec(prometheus.HistogramOpts{Name: "converge_saga_duration_seconds", ConstLabels: saga,
			Help:    "From POST to the end of the saga, by how it ended. Blind to sagas that do not end: see converge_saga_oldest_open_seconds.",
			Buckets: []float64{.01, .025, .05, .1, .2, .3, .5, 1, 2.5, 5, 10, 30, 60, 300}}, []string{"outcome"}),
		timeouts: f.NewCounterVec(prometheus.CounterOpts{Name: "converge_saga_timeouts_total", ConstLabels: saga,
			Help: "Deadlines that passed, by the step waited for. A rise means that this step's service is slow or away."}, []string{"step"}),
	}
	for _, state := range kind.Open {
		m.instances.WithLabelValues(state)
		m.oldest.WithLabelValues(state)
	}
	for _, edge := range kind.Edges {
		m.transitions.WithLabelValues(from(edge[0]), edge[1])
	}
	for _, outcome := range kind.Outcomes {
		m.duration.WithLabelValues(outcome)
	}
	for _, step := range kind.Steps {
		m.timeouts.WithLabelValues(step)
	}
	return m
}

// from names the state that a change left; a saga that has just begun left none.
func from(state string) string {
	if state == "" {
		return "none"
	}
	return state
}

// Moved counts a change of state.
func (m *Metrics) Moved(before, after string) {
	m.transitions.WithLabelValues(from(before), after).Inc()
}

// Ended counts a saga that is over, and how long it took.
func (m *Metrics) Ended(outcome string, took time.Duration) {
	m.duration.WithLabelValues(outcome).Observe(took.Seconds())
	m.add(took)
}

// TimedOut counts a deadline that passed in the state, unless nothing is waited for there.
func (m *Metrics) TimedOut(state string) {
	if step, ok := m.kind.Steps[state]; ok {
		m.timeouts.WithLabelValues(step).Inc()
	}
}

// Counted is how many sagas are open in a state.
type Counted struct {
	State  string
	Number int64
	Oldest float64 // age in seconds
}

// Open sets the gauges; states that are not counted are empty.
func (m *Metrics) Open(counts []Counted) {
	for _, state := range m.kind.Open {
		var c Counted
		if i := slices.IndexFunc(counts, func(c Counted) bool { return c.State == state }); i >= 0 {
			c = counts[i]
		}
		m.instances.WithLabelValues(state).Set(float64(c.Number))
		m.oldest.WithLabelValues(state).Set(c.Oldest)
	}
}

// Recent remembers how long the latest sagas took, for the advice in Retry-After. The zero Recent is empty;
// it is safe for concurrent use.
type Recent struct {
	mu   sync.Mutex
	ring [128]time.Duration
	n    int // how many were ever added
}

func (r *Recent) add(took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ring[r.n%len(r.ring)] = took
	r.n++
}

// P90 returns the duration that nine of ten recent sagas did not exceed, 0 before the first.
func (r *Recent) P90() time.Duration {
	r.mu.Lock()
	known := slices.Clone(r.ring[:min(r.n, len(r.ring))])
	r.mu.Unlock()
	if len(known) == 0 {
		return 0
	}
	slices.Sort(known)
	return known[(len(known)*9-1)/10]
}
