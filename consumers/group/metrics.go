package group

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"converge/consumers/event"
	"converge/consumers/retry"
)

type metrics struct {
	events      *prometheus.CounterVec // topic, outcome
	process     prometheus.Observer
	batch       prometheus.Observer
	rebalances  prometheus.Counter
	fenced      prometheus.Counter
	scheduled   *prometheus.CounterVec // rung, reason
	attempts    prometheus.Observer
	dead        *prometheus.CounterVec // topic, reason
	redrives    *prometheus.CounterVec // outcome
	waiting     prometheus.Gauge
	heldKeys    prometheus.Gauge
	deadNow     prometheus.Gauge
	deadOldest  prometheus.Gauge
	guard       prometheus.Gauge
	consistency prometheus.Observer // nil without a read model
}

const (
	applied   = "applied"
	duplicate = "duplicate"
	retried   = "retried"
	dead      = "dead"
)

var (
	processBuckets     = prometheus.ExponentialBuckets(0.0005, 2, 14)
	consistencyBuckets = []float64{0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5.5, 10, 30, 60, 300, 900}
)

// newMetrics registers a group's metrics. Several groups share the families of one registry: each has its
// name as a constant label.
func newMetrics(c *Config) (*metrics, error) {
	if c.Registerer == nil {
		c.Registerer = prometheus.NewRegistry()
	}
	own := prometheus.Labels{"group": c.Name}
	var errs error
	add := func(collector prometheus.Collector) { errs = errors.Join(errs, c.Registerer.Register(collector)) }
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: own}, labels)
		add(v)
		return v
	}
	counter := func(name, help string) prometheus.Counter {
		v := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: own})
		add(v)
		return v
	}
	gauge := func(name, help string) prometheus.Gauge {
		v := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: own})
		add(v)
		return v
	}
	histogram := func(name, help string, buckets []float64, labels prometheus.Labels) prometheus.Histogram {
		v := prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets, ConstLabels: labels})
		add(v)
		return v
	}
	m := &metrics{
		events:     counters("converge_consumer_events_total", "Events by what became of them. A rise of retried or dead means that a handler refuses events.", "topic", "outcome"),
		process:    histogram("converge_consumer_process_seconds", "Time of one batch transaction. A rise means that the handlers or the database are slower.", processBuckets, own),
		batch:      histogram("converge_consumer_batch_events", "Events per batch transaction. A rise means that the group catches up.", prometheus.ExponentialBuckets(1, 2, 12), own),
		rebalances: counter("converge_consumer_rebalances_total", "Assignments of partitions to this member. A steady rise means that members come and go."),
		fenced:     counter("converge_consumer_fenced_total", "Batches that were rolled back because another owner had moved the partition on."),
		scheduled:  counters("converge_retry_scheduled_total", "Tries put on a rung of the ladder, by the class of the error.", "rung", "reason"),
		attempts:   histogram("converge_retry_attempts", "Failed tries of an event when its waiting ended, in success or death.", []float64{1, 2, 3, 4, 6, 8, 10}, own),
		dead:       counters("converge_dlq_published_total", "Events that became dead letters, by the class of the error.", "topic", "reason"),
		redrives:   counters("converge_dlq_redrives_total", "Redriven dead letters by what became of a try: applied, retried or dead again.", "outcome"),
		waiting:    gauge("converge_retry_waiting_messages", "Events that wait behind a held key."),
		heldKeys:   gauge("converge_retry_held_keys", "Keys whose first waiting event failed."),
		guard:      gauge("converge_consumer_guard_tripped", "1 while the group has stopped because the events of many keys fail: a bad deploy."),
		deadNow:    gauge("converge_dlq_messages", "Dead letters that are neither resolved nor discarded."),
		deadOldest: gauge("converge_dlq_oldest_seconds", "Age of the oldest dead letter that is neither resolved nor discarded; 0 when there is none."),
	}
	if c.ReadModel != "" {
		m.consistency = histogram("converge_time_to_consistency_seconds", "Time from the commit of an event to its effect in the read model. Blind to a total stall: see the oldest unapplied event.",
			consistencyBuckets, prometheus.Labels{"read_model": c.ReadModel})
	}
	for _, topic := range c.Topics {
		for _, outcome := range []string{applied, duplicate, retried, dead} {
			m.events.WithLabelValues(topic, outcome)
		}
		for _, class := range []event.Class{event.ClassRetriable, event.ClassPermanent} {
			m.dead.WithLabelValues(topic, class.String())
		}
	}
	for _, outcome := range []string{applied, retried, dead} {
		m.redrives.WithLabelValues(outcome)
	}
	for _, rung := range c.Retry.RungNames() {
		m.scheduled.WithLabelValues(rung, event.ClassRetriable.String())
	}
	if errs != nil {
		return nil, fmt.Errorf("registering the metrics of group %s: %w", c.Name, errs)
	}
	return m, nil
}

// failed counts what a ladder took on.
func (m *metrics) failed(c *Config, again, buried []retry.Failure) {
	for _, f := range again {
		if f.Blocks { // it is buried
			continue
		}
		m.events.WithLabelValues(f.Event.Topic, retried).Inc()
		m.scheduled.WithLabelValues(c.Retry.RungName(f.Attempts), event.Classify(f.Err).String()).Inc()
	}
	for _, f := range buried {
		m.events.WithLabelValues(f.Event.Topic, dead).Inc()
		m.dead.WithLabelValues(f.Event.Topic, event.Classify(f.Err).String()).Inc()
		m.attempts.Observe(float64(f.Attempts))
	}
}

func (m *metrics) observeConsistency(events []*event.Event) {
	if m.consistency == nil {
		return
	}
	now := time.Now()
	for _, e := range events {
		from := e.CommittedAt
		if from.IsZero() {
			from = e.OccurredAt
		}
		if !from.IsZero() {
			m.consistency.Observe(max(0, now.Sub(from).Seconds()))
		}
	}
}

const sampleSQL = `
SELECT (SELECT count(*) FROM held_events WHERE consumer = $1),
       (SELECT count(*) FROM held_keys WHERE consumer = $1),
       count(*),
       coalesce(extract(epoch FROM now() - min(first_failed_at)), 0)::float8
FROM dead_letters
WHERE consumer = $1 AND state IN ('dead', 'redriving')`

// sample reads the gauges from the tables, which alone know.
func (g *Group) sample(ctx context.Context) error {
	now, err := g.store.sample(ctx)
	if err != nil {
		return err
	}
	g.metrics.waiting.Set(float64(now.waiting))
	g.metrics.heldKeys.Set(float64(now.keys))
	g.metrics.deadNow.Set(float64(now.letters))
	g.metrics.deadOldest.Set(max(0, now.oldest))
	return nil
}

// gauges is what the tables hold at a moment.
type gauges struct {
	waiting, keys, letters int64
	oldest                 float64 // of the letters, in seconds
}

func (t tables) sample(ctx context.Context) (gauges, error) {
	var now gauges
	if err := t.pool.QueryRow(ctx, sampleSQL, t.Consumer).Scan(&now.waiting, &now.keys, &now.letters, &now.oldest); err != nil {
		return gauges{}, fmt.Errorf("counting held events and dead letters: %w", err)
	}
	return now, nil
}
