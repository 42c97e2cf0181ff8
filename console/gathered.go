package console

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// Names of other packages' metrics that the console shows when it runs in their process.
const (
	consistencyMetric = "converge_time_to_consistency_seconds"
	sagasMetric       = "converge_saga_instances"
)

// consistencyWindow is the past over which the headline's quantiles are taken.
const consistencyWindow = time.Minute

// metricsSource reads this process's own metrics. It belongs to one goroutine.
type metricsSource struct {
	gatherer prometheus.Gatherer
	past     []cumulative // oldest first, one per historyStep, no older than the window needs
}

// cumulative is a histogram at one moment, by read model and upper bound.
type cumulative struct {
	at     time.Time
	counts map[string]map[float64]uint64
}

type metricsSample struct {
	at       time.Time
	known    bool // the process measures time to consistency
	p50, p99 *float64
	sagas    []SagaState
}

// sample looks once. A family that fails to gather does not hide the others.
func (m *metricsSource) sample(now time.Time) (*metricsSample, error) {
	families, err := m.gatherer.Gather()
	if err != nil && len(families) == 0 {
		return nil, fmt.Errorf("gathering metrics: %w", err)
	}
	s := &metricsSample{at: now}
	for _, f := range families {
		switch f.GetName() {
		case consistencyMetric:
			s.known = true
			current := cumulative{now, histograms(f)}
			s.p50, s.p99 = m.quantile(current, 0.5), m.quantile(current, 0.99)
			m.keep(current)
		case sagasMetric:
			s.sagas = openSagas(f)
		}
	}
	return s, nil
}

func histograms(f *dto.MetricFamily) map[string]map[float64]uint64 {
	counts := map[string]map[float64]uint64{}
	for _, metric := range f.GetMetric() {
		model, h := label(metric, "read_model"), metric.GetHistogram()
		buckets := map[float64]uint64{math.Inf(1): h.GetSampleCount()}
		for _, b := range h.GetBucket() {
			buckets[b.GetUpperBound()] = b.GetCumulativeCount()
		}
		counts[model] = buckets
	}
	return counts
}

// openSagas adds up the sagas of all kinds.
func openSagas(f *dto.MetricFamily) []SagaState {
	counts := map[string]int64{}
	for _, metric := range f.GetMetric() {
		counts[label(metric, "state")] += int64(metric.GetGauge().GetValue())
	}
	var states []SagaState
	for state, count := range counts {
		states = append(states, SagaState{state, count})
	}
	slices.SortFunc(states, func(a, b SagaState) int { return strings.Compare(a.State, b.State) })
	return states
}

func label(m *dto.Metric, name string) string {
	for _, l := range m.GetLabel() {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}

func (m *metricsSource) keep(c cumulative) {
	if n := len(m.past); n == 0 || c.at.Sub(m.past[n-1].at) >= historyStep {
		m.past = append(m.past, c)
	}
	for len(m.past) > 1 && c.at.Sub(m.past[1].at) >= consistencyWindow {
		m.past = m.past[1:]
	}
}

// quantile returns the slowest read model's quantile since the window's start; nil when nothing was
// finished in it. Before the first look counts from the process's start.
func (m *metricsSource) quantile(c cumulative, q float64) *float64 {
	var base cumulative
	if len(m.past) > 0 {
		base = m.past[0]
	}
	var worst *float64
	for model, buckets := range c.counts {
		if v, ok := bucketQuantile(q, buckets, base.counts[model]); ok && (worst == nil || v > *worst) {
			worst = &v
		}
	}
	return worst
}

// bucketQuantile is PromQL's histogram_quantile over the growth from base to now: linear inside the
// bucket, and the last finite bound for what lies beyond it.
func bucketQuantile(q float64, now, base map[float64]uint64) (float64, bool) {
	bounds := make([]float64, 0, len(now))
	for b := range now {
		bounds = append(bounds, b)
	}
	slices.Sort(bounds)
	grown := func(b float64) float64 { return float64(now[b]) - float64(base[b]) }
	total := grown(math.Inf(1))
	if total <= 0 {
		return 0, false
	}
	rank := q * total
	lower, below := 0.0, 0.0
	for _, bound := range bounds {
		upTo := grown(bound)
		if upTo >= rank {
			if math.IsInf(bound, 1) {
				return lower, true
			}
			return lower + (bound-lower)*(rank-below)/max(upTo-below, 1e-9), true
		}
		lower, below = bound, upTo
	}
	return lower, true
}
