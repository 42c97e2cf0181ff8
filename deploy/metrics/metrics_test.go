package metrics

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/promql/parser"
	"go.yaml.in/yaml/v4"
)

// expression is one query with the place where it stands.
type expression struct{ where, text string }

// dashboard is the part of Grafana's JSON that holds queries.
type dashboard struct {
	UID         string
	Panels      []panel
	Annotations struct{ List []struct{ Name, Expr string } }
	Templating  struct {
		List []struct{ Name, Definition string }
	}
}

type panel struct {
	ID         int
	Type       string
	Title      string
	Datasource source
	GridPos    struct{ X, Y, W, H int }
	Targets    []struct {
		Expr       string
		Datasource source
	}
}

type source struct{ Type, UID string }

func dashboards(t *testing.T) map[string]dashboard {
	t.Helper()
	files, err := filepath.Glob("../grafana/dashboards/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no dashboards: %v", err)
	}
	all := map[string]dashboard{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var d dashboard
		if err := json.Unmarshal(text, &d); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		all[filepath.Base(file)] = d
	}
	return all
}

// grafana replaces the variables that Grafana fills in before Prometheus sees the query.
var grafana = strings.NewReplacer("$__rate_interval", "1m", "$__range", "1h", "$__interval", "15s", "$group", ".+", "$topic", ".+")

// rules reads the rule files; recorded names come with the labels that their expression keeps.
func rules(t *testing.T) (queries []expression, recorded []string) {
	t.Helper()
	files, err := filepath.Glob("../prometheus/rules/*.yml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no rules: %v", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var f struct {
			Groups []struct {
				Rules []struct{ Record, Alert, Expr string }
			}
		}
		if err := yaml.Unmarshal(text, &f); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		for _, g := range f.Groups {
			for _, r := range g.Rules {
				queries = append(queries, expression{filepath.Base(file) + ": " + r.Alert + r.Record, r.Expr})
				if r.Record != "" {
					recorded = append(recorded, r.Record)
				}
			}
		}
	}
	return queries, recorded
}

func expressions(t *testing.T) ([]expression, map[string][]string) {
	t.Helper()
	queries, recorded := rules(t)
	for file, d := range dashboards(t) {
		for _, p := range d.Panels {
			for _, target := range p.Targets {
				queries = append(queries, expression{fmt.Sprintf("%s: panel %q", file, p.Title), grafana.Replace(target.Expr)})
			}
		}
		for _, a := range d.Annotations.List {
			if a.Expr != "" {
				queries = append(queries, expression{file + ": annotation " + a.Name, a.Expr})
			}
		}
	}
	series := known(List)
	for _, name := range recorded {
		series[name] = []string{"read_model"}
	}
	return queries, series
}

// check returns what is wrong with a query: that it does not parse, a series that nobody exports, a label
// that the series has not, in a matcher or in a grouping.
func check(query string, series map[string][]string) []string {
	parsed, err := parser.NewParser(parser.Options{}).ParseExpr(query)
	if err != nil {
		return []string{err.Error()}
	}
	var wrong []string
	var known []string // labels of all series below the node
	parser.Inspect(parsed, func(node parser.Node, _ []parser.Node) error {
		selector, ok := node.(*parser.VectorSelector)
		if !ok {
			return nil
		}
		has, ok := series[selector.Name]
		if !ok {
			wrong = append(wrong, "no metric "+selector.Name)
			return nil
		}
		known = append(known, has...)
		for _, m := range selector.LabelMatchers {
			if m.Name != model.MetricNameLabel && !slices.Contains(has, m.Name) {
				wrong = append(wrong, fmt.Sprintf("%s has no label %s", selector.Name, m.Name))
			}
		}
		return nil
	})
	parser.Inspect(parsed, func(node parser.Node, _ []parser.Node) error {
		if aggregate, ok := node.(*parser.AggregateExpr); ok {
			for _, name := range aggregate.Grouping {
				if !slices.Contains(known, name) {
					wrong = append(wrong, "grouped by "+name+", which no series has")
				}
			}
		}
		return nil
	})
	return wrong
}

func TestEveryPanelAndAlertQueriesWhatIsExported(t *testing.T) {
	queries, series := expressions(t)
	if len(queries) < 40 {
		t.Errorf("only %d queries were found", len(queries))
	}
	for _, q := range queries {
		for _, wrong := range check(q.text, series) {
			t.Errorf("%s: %s\n\t%s", q.where, wrong, q.text)
		}
	}
}

func TestWrongQueriesAreFound(t *testing.T) {
	series := known(List)
	for query, want := range map[string]string{
		`sum(rate(converge_consumer_lag_mesages[5m]))`:                                 "no metric converge_consumer_lag_mesages",
		`converge_consumer_lag_seconds{consumer="inventory"}`:                          "converge_consumer_lag_seconds has no label consumer",
		`sum by (event_id) (converge_dlq_messages)`:                                    "grouped by event_id, which no series has",
		`histogram_quantile(0.9, rate(converge_time_to_consistency_seconds[5m]))`:      "no metric converge_time_to_consistency_seconds",
		`rate(converge_relay_events_published_total)`:                                  "expected type range vector",
		`converge_time_to_consistency_seconds_bucket{le="2.5"} / on (le converge_time`: "unexpected",
	} {
		found := check(query, series)
		if !slices.ContainsFunc(found, func(wrong string) bool { return strings.Contains(wrong, want) }) {
			t.Errorf("%s: found %q, want %q", query, found, want)
		}
	}
}

// Each metric on the list that the console's reader should see is on a dashboard: what nobody looks at is
// either forgotten or not worth exporting.
func TestEveryMetricIsLookedAt(t *testing.T) {
	unseen := []string{
		"converge_api_idempotency_total", "converge_api_waiting_requests", "converge_consumer_batch_events", "converge_consumer_committed_offset",
		"converge_retry_attempts", "go_gc_duration_seconds", "go_memstats_heap_alloc_bytes",
	} // for digging, not for watching
	queries, _ := expressions(t)
	var all strings.Builder
	for _, q := range queries {
		all.WriteString(q.text)
	}
	for line := range strings.Lines(List) {
		name := strings.Fields(line)[0]
		if looked := strings.Contains(all.String(), name); looked == slices.Contains(unseen, name) {
			t.Errorf("%s: looked at: %v", name, looked)
		}
	}
}

func TestDashboardsUseTheProvisionedDatasourceAndDoNotOverlap(t *testing.T) {
	for file, d := range dashboards(t) {
		if d.UID == "" {
			t.Errorf("%s has no uid", file)
		}
		ids := map[int]bool{}
		taken := map[[2]int]string{}
		for _, p := range d.Panels {
			if ids[p.ID] {
				t.Errorf("%s: id %d twice", file, p.ID)
			}
			ids[p.ID] = true
			for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
				for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
					if other, ok := taken[[2]int{x, y}]; ok || x >= 24 {
						t.Fatalf("%s: %q overlaps %q or leaves the grid at %d,%d", file, p.Title, other, x, y)
					}
					taken[[2]int{x, y}] = p.Title
				}
			}
			if p.Type == "row" {
				continue
			}
			if want := (source{"prometheus", "prometheus"}); p.Datasource != want {
				t.Errorf("%s: panel %q asks %v", file, p.Title, p.Datasource)
			}
			for _, target := range p.Targets {
				if want := (source{"prometheus", "prometheus"}); target.Datasource != want {
					t.Errorf("%s: panel %q asks %v", file, p.Title, target.Datasource)
				}
			}
		}
		series := known(List)
		for _, v := range d.Templating.List {
			var metric, label string
			text := strings.NewReplacer("(", " ", ",", " ", ")", " ").Replace(v.Definition)
			if _, err := fmt.Sscanf(text, "label_values %s %s", &metric, &label); err != nil || !slices.Contains(series[metric], label) {
				t.Errorf("%s: variable %s asks %q, which nobody exports", file, v.Name, v.Definition)
			}
		}
	}
}

func TestDescribeWritesTheListsForm(t *testing.T) {
	registry := prometheus.NewRegistry()
	counter := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "b_total"}, []string{"z", "a"})
	counter.WithLabelValues("1", "2")
	registry.MustRegister(counter, prometheus.NewHistogram(prometheus.HistogramOpts{Name: "a_seconds"}))
	got, err := Describe(registry)
	if want := "a_seconds histogram\nb_total counter a z\n"; got != want || err != nil {
		t.Errorf("described as %q (%v), want %q", got, err, want)
	}
	if !slices.IsSorted(slices.Collect(strings.Lines(List))) {
		t.Error("metrics.txt is not sorted")
	}
}
