package relay

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// Values of the label reason of relay_publish_errors_total.
const (
	reasonTooLarge     = "too_large"
	reasonUnknownTopic = "unknown_topic"
	reasonInvalidTopic = "invalid_topic"
	reasonDenied       = "not_authorized"
	reasonHeaders      = "bad_headers"
	reasonRejected     = "rejected"
	reasonMessage      = "bad_message"
)

var reasons = []string{reasonTooLarge, reasonUnknownTopic, reasonInvalidTopic, reasonDenied, reasonHeaders, reasonRejected, reasonMessage}

// walStatuses are the values of wal_status in pg_replication_slots.
var walStatuses = []string{"reserved", "extended", "unreserved", "lost"}

type metrics struct {
	published     *prometheus.CounterVec
	publishErrors *prometheus.CounterVec
	commitToAck   prometheus.Histogram
	retained      prometheus.Gauge
	unconfirmed   prometheus.Gauge
	safe          prometheus.Gauge
	active        prometheus.Gauge
	walStatus     *prometheus.GaugeVec
	leader        prometheus.Gauge
	heartbeat     prometheus.Gauge
	lag           prometheus.Gauge
	spilled       prometheus.Gauge
}

// newMetrics registers the metrics that the source has.
func newMetrics(to prometheus.Registerer, source Source) (*metrics, error) {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "converge", Subsystem: "relay", Name: name, Help: help})
	}
	m := &metrics{
		published: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "converge", Subsystem: "relay",
			Name: "events_published_total",
			Help: "Outbox rows acknowledged by all in-sync replicas, repeats included, by topic."}, []string{"topic"}),
		publishErrors: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "converge", Subsystem: "relay",
			Name: "publish_errors_total",
			Help: "Rows that could not be published, by reason. unknown_topic and not_authorized stop the stream until someone acts; the others are dead letters."}, []string{"reason"}),
		commitToAck: prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "converge", Subsystem: "relay",
			Name:    "commit_to_ack_seconds",
			Help:    "From a transaction's commit, by the database's clock, to the acknowledgement of its last record. A rise means the relay or Kafka falls behind.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 1800}}),
		retained:    gauge("slot_retained_wal_bytes", "WAL that the slot keeps on the server's disk. A rise means that confirmations do not move."),
		unconfirmed: gauge("slot_unconfirmed_bytes", "WAL behind the last confirmed position. A rise means the relay falls behind."),
		safe:        gauge("slot_safe_wal_bytes", "WAL that can still be written before the slot is invalidated and rows are lost; -1 when max_slot_wal_keep_size sets no limit."),
		active:      gauge("slot_active", "1 while any relay reads the slot."),
		walStatus: prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "converge", Subsystem: "relay",
			Name: "slot_wal_status",
			Help: "1 for the slot's wal_status. unreserved means the slot is about to be lost, lost that it is."}, []string{"status"}),
		leader:    gauge("leader", "1 while this relay reads the slot, 0 while it stands by or is disconnected."),
		heartbeat: gauge("last_heartbeat_timestamp_seconds", "When this relay last reported its position to the server, Unix time. Stale means that it does not stream."),
	}
	m.lag = gauge("lag_seconds", "Age of the oldest transaction that is not acknowledged, by this machine's clock; 0 when none waits here. A rise means the relay or Kafka falls behind.")
	m.spilled = gauge("spilled_bytes", "Large transactions on this machine's disk that have not ended, see --spill-dir. A rise without an end means a transaction that stays open.")
	for _, r := range reasons {
		m.publishErrors.WithLabelValues(r)
	}
	for _, s := range walStatuses {
		m.walStatus.WithLabelValues(s)
	}
	if to == nil {
		return m, nil
	}
	collectors := []prometheus.Collector{m.published, m.publishErrors, m.commitToAck, m.leader, m.heartbeat, m.lag}
	if source != SourcePolling {
		collectors = append(collectors, m.retained, m.unconfirmed, m.safe, m.active, m.walStatus, m.spilled)
	}
	var errs []error
	for _, c := range collectors {
		errs = append(errs, to.Register(c))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("registering the relay's metrics: %w", err)
	}
	return m, nil
}
