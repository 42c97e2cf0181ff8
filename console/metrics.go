package console

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics exports the latest snapshot. What is unknown or stale is absent rather than old: an alert on a
// value that nobody measures any more would be a lie in either direction.
type metrics struct {
	console *Console

	messages, seconds, committed, state, oldest, up *prometheus.Desc
}

func newMetrics(c *Console) *metrics {
	partition := []string{"group", "topic", "partition"}
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("converge_"+name, help, labels, nil)
	}
	return &metrics{
		console:   c,
		messages:  desc("consumer_lag_messages", "Records after the group's committed offset; a rise that stays means that the group is slower than the writers.", partition...),
		seconds:   desc("consumer_lag_seconds", "Age of the record at the group's committed offset, 0 when there is none; grows by one a second when the group stands still.", partition...),
		committed: desc("consumer_committed_offset", "Offset of the next record that the group will read, as committed to Kafka.", partition...),
		state:     desc("consumer_partition_state", "1 for the verdict that holds (OK, LAGGING, STALLED, STOPPED, REWOUND, UNKNOWN), 0 for the others.", append(partition, "state")...),
		oldest:    desc("outbox_oldest_unapplied_seconds", "Age of the oldest event that a read model has not taken in; grows when nothing finishes, which a histogram of finished events cannot show.", "read_model"),
		up:        desc("console_source_up", "1 while the console measures the source; 0 means that the lag metrics are absent, not zero.", "source"),
	}
}

// Describe implements [prometheus.Collector].
func (m *metrics) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.messages, m.seconds, m.committed, m.state, m.oldest, m.up} {
		descs <- d
	}
}

// Collect implements [prometheus.Collector].
func (m *metrics) Collect(out chan<- prometheus.Metric) {
	s := m.console.Snapshot()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for name, source := range map[string]Source{"kafka": s.Sources.Kafka, "postgres": s.Sources.Postgres} {
		if source.Configured {
			gauge(m.up, boolean(source.fresh()), name)
		}
	}
	if !s.Sources.Kafka.fresh() {
		return
	}
	for _, g := range s.Groups {
		for _, t := range g.Topics {
			for _, p := range t.Partitions {
				labels := []string{g.Name, t.Topic, strconv.Itoa(int(p.Partition))}
				if p.Messages != nil {
					gauge(m.messages, float64(*p.Messages), labels...)
				}
				if p.Seconds != nil {
					gauge(m.seconds, *p.Seconds, labels...)
				}
				if p.Committed != nil {
					gauge(m.committed, float64(*p.Committed), labels...)
				}
				for _, v := range Verdicts() {
					gauge(m.state, boolean(v == p.Verdict), append(labels, string(v))...)
				}
			}
		}
	}
	for _, r := range s.ReadModels {
		if r.OldestUnapplied != nil {
			gauge(m.oldest, *r.OldestUnapplied, r.Name)
		}
	}
}

func boolean(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
