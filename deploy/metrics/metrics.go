// Package metrics holds the list of the metrics that a converge process exports: name, type and labels.
// Dashboards and alerts are checked against it.
//
// The guarantee: an expression that does not parse, or that names a metric or a label outside the list,
// fails a test of this package. It holds as far as the list is true, so whoever wires the processes
// compares [List] with [Describe] of everything that was gathered, and writes the file anew from it.
package metrics

import (
	_ "embed"
	"fmt"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// List is the contract, one metric a line: name, type, then its labels, sorted.
//
//go:embed metrics.txt
var List string

// Describe writes what gatherer exports in the form of [List]. A family without a sample is not there:
// gather after every label combination exists.
func Describe(gatherer prometheus.Gatherer) (string, error) {
	families, err := gatherer.Gather()
	if err != nil {
		return "", fmt.Errorf("gathering metrics to describe: %w", err)
	}
	var lines []string
	for _, f := range families {
		labels := map[string]bool{}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = true
			}
		}
		words := []string{f.GetName(), strings.ToLower(dto.MetricType_name[int32(f.GetType())])}
		var names []string
		for name := range labels {
			names = append(names, name)
		}
		slices.Sort(names)
		lines = append(lines, strings.Join(append(words, names...), " "))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n") + "\n", nil
}

// known is the list as queries see it: series name to its labels. A histogram has three series.
func known(list string) map[string][]string {
	series := map[string][]string{}
	for line := range strings.Lines(list) {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		name, kind, labels := words[0], words[1], append(words[2:len(words):len(words)], "job", "instance")
		switch kind {
		case "histogram":
			series[name+"_bucket"] = append(labels, "le")
			series[name+"_sum"], series[name+"_count"] = labels, labels
		case "summary":
			series[name] = append(labels, "quantile")
			series[name+"_sum"], series[name+"_count"] = labels, labels
		default:
			series[name] = labels
		}
	}
	series["up"] = []string{"job", "instance"}
	return series
}
