package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"converge/internal/usage"
)

// Report is a run, as --json writes it.
type Report struct {
	Date         time.Time         `json:"date"`
	Machine      usage.Machine     `json:"machine"`
	Versions     map[string]string `json:"versions"`
	Scale        float64           `json:"scale"`
	Rounds       int               `json:"rounds"`
	Small        bool              `json:"small"` // embedded Kafka, no Debezium
	Seconds      float64           `json:"seconds"`
	Measurements []Measurement     `json:"measurements"`
	Ratios       []Ratio           `json:"ratios"`
}

// Ratio compares us with another, formed within each round. More than 1 is better for us.
type Ratio struct {
	Case  string  `json:"case"`
	To    string  `json:"to"`
	Of    string  `json:"of"`
	Value Spread  `json:"value"`
	Aim   float64 `json:"aim,omitempty"`
}

// Spread is the median of the rounds, and the least and the greatest.
type Spread struct {
	Median float64 `json:"median"`
	Least  float64 `json:"least"`
	Most   float64 `json:"most"`
}

func spreadOf(values []float64) Spread {
	if len(values) == 0 {
		return Spread{}
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := sorted[len(sorted)/2]
	if len(sorted)%2 == 0 {
		middle = (middle + sorted[len(sorted)/2-1]) / 2
	}
	return Spread{middle, sorted[0], sorted[len(sorted)-1]}
}

func (s Spread) format(one func(float64) string) string {
	if s.Median == 0 {
		return "–"
	}
	if s.Least == s.Most {
		return one(s.Median)
	}
	return fmt.Sprintf("%s (%s–%s)", one(s.Median), one(s.Least), one(s.Most))
}

func per(seconds float64, rows int) float64 {
	if seconds == 0 {
		return 0
	}
	return float64(rows) / seconds
}

func (m Measurement) perMillion(seconds float64) float64 { return seconds * 1e6 / float64(m.Rows) }

// line is what progress says of a pass.
func (m Measurement) line() string {
	what := thousands(per(m.Seconds, m.Rows)) + " rows/s"
	if m.P50 > 0 {
		what = fmt.Sprintf("p50 %s ms, p99 %s ms", short(m.P50), short(m.P99))
	}
	return fmt.Sprintf("%s %s, %s CPU s per million, %s MB (stolen %.0f %%, others %.0f %%)",
		m.Contender, what, short(m.perMillion(m.CPU)), megabytes(float64(m.PeakBytes)), m.StealPercent, m.OtherPercent)
}

func thousands(v float64) string { return fmt.Sprintf("%.0fk", v/1000) }
func megabytes(v float64) string { return fmt.Sprintf("%.0f", v/(1<<20)) }
func percent(v float64) string   { return fmt.Sprintf("%.0f %%", v) }

func short(v float64) string {
	if v < 10 {
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

func times(v float64) string {
	if v < 10 {
		return fmt.Sprintf("%.2f ×", v)
	}
	return fmt.Sprintf("%.0f ×", v)
}

// of returns the measurements of one contender in one case, by round.
func (r *Report) of(name, contender string) (found []Measurement) {
	for _, m := range r.Measurements {
		if m.Case == name && m.Contender == contender {
			found = append(found, m)
		}
	}
	return found
}

// values applies a function to measurements.
func values(measured []Measurement, of func(Measurement) float64) []float64 {
	list := make([]float64, len(measured))
	for i, m := range measured {
		list[i] = of(m)
	}
	return list
}

func (r *Report) contenders(name string) (names []string) {
	for _, m := range r.Measurements {
		if m.Case == name && !slices.Contains(names, m.Contender) {
			names = append(names, m.Contender)
		}
	}
	return names
}

func (r *Report) cases() (names []string) {
	for _, m := range r.Measurements {
		if !slices.Contains(names, m.Case) {
			names = append(names, m.Case)
		}
	}
	return names
}

// quotient is something to compare: less of it is better.
type quotient struct {
	to, of string
	cost   func(m Measurement) float64
}

// others returns the contenders that are no fixed ones.
func (r *Report) others() (names []string) {
	for _, name := range r.cases() {
		for _, contender := range r.contenders(name) {
			if !slices.Contains([]string{ourName, yardstickName, debeziumName}, contender) && !slices.Contains(names, contender) {
				names = append(names, contender)
			}
		}
	}
	return names
}

// compare forms the ratios. Like is compared with like: with pg_recvlogical from the start to the end, with Debezium
// from the first row to the last, which leaves out what a connector needs to start.
func (r *Report) compare(trials []trial) {
	quotients := []quotient{
		{yardstickName, "rows/s, start to end", func(m Measurement) float64 { return m.Seconds }},
		{debeziumName, firstToLast, func(m Measurement) float64 { return m.FirstToLast }},
		{debeziumName, "p50", func(m Measurement) float64 { return m.P50 }},
		{debeziumName, "p99", func(m Measurement) float64 { return m.P99 }},
		{debeziumName, "CPU", func(m Measurement) float64 { return m.CPU }},
		{debeziumName, "peak memory", func(m Measurement) float64 { return float64(m.PeakBytes) }},
	}
	// Another build of the relay is compared in everything.
	for _, name := range r.others() {
		quotients = append(quotients,
			quotient{name, "rows/s, start to end", func(m Measurement) float64 { return m.Seconds }},
			quotient{name, "CPU", func(m Measurement) float64 { return m.CPU }},
			quotient{name, "walsender CPU", func(m Measurement) float64 { return m.WALSenderCPU }},
			quotient{name, "broker CPU", func(m Measurement) float64 { return m.BrokerCPU }},
			quotient{name, "p50", func(m Measurement) float64 { return m.P50 }},
			quotient{name, "p99", func(m Measurement) float64 { return m.P99 }},
			quotient{name, "peak memory", func(m Measurement) float64 { return float64(m.PeakBytes) }})
	}
	for _, t := range trials {
		us := r.of(t.Name, ourName)
		for _, q := range quotients {
			them := r.of(t.Name, q.to)
			var rounds []float64
			for _, m := range us {
				at := slices.IndexFunc(them, func(other Measurement) bool { return other.Round == m.Round })
				if at < 0 {
					continue // it failed
				}
				if mine, theirs := q.cost(m), q.cost(them[at]); mine > 0 && theirs > 0 {
					rounds = append(rounds, theirs/mine)
				}
			}
			if len(rounds) > 0 {
				r.Ratios = append(r.Ratios, Ratio{t.Name, q.to, q.of, spreadOf(rounds), t.aim(q.to, q.of)})
			}
		}
	}
}

const firstToLast = "rows/s, first to last"

// aim returns the ratio that is aimed at, 0 if none is.
func (t trial) aim(to, of string) float64 {
	switch {
	case to == yardstickName:
		return 1
	case to == debeziumName && of == firstToLast && t.perTransaction == 1:
		return 3
	case to == debeziumName && of == firstToLast:
		return 4
	}
	return 0
}

// print writes the table.
func (r *Report) print(out io.Writer) {
	fmt.Fprintf(out, "\nbench-relay, %s: %d × %s, %s GB, %s\n", r.Date.Format("2006-01-02 15:04"), r.Machine.Cores, r.Machine.Processor,
		short(float64(r.Machine.MemoryBytes)/(1<<30)), r.Machine.Kernel)
	var versions []string
	for _, name := range []string{"converge", "PostgreSQL", "Kafka", "Debezium", "Java"} {
		if v := r.Versions[name]; v != "" {
			versions = append(versions, name+" "+v)
		}
	}
	fmt.Fprintf(out, "%s; %d partitions, acks=all; scale %g\n", strings.Join(versions, ", "), partitions, r.Scale)
	fmt.Fprintf(out, "median of %d rounds (least–most); every topic checked for count, ids, payloads and order\n", r.Rounds)
	for _, name := range r.cases() {
		fmt.Fprintf(out, "\n%s\n", name)
		r.printCase(out, name)
	}
	fmt.Fprintf(out, "\nin %s\n", time.Duration(r.Seconds*float64(time.Second)).Round(time.Second))
}

func (r *Report) printCase(out io.Writer, name string) {
	w := tabwriter.NewWriter(out, 2, 0, 3, ' ', 0)
	columns := []struct {
		title string
		of    func(Measurement) float64
		as    func(float64) string
	}{
		{"rows/s", func(m Measurement) float64 { return per(m.Seconds, m.Rows) }, thousands},
		{"first to last", func(m Measurement) float64 { return per(m.FirstToLast, m.Rows) }, thousands},
		{"p50 ms", func(m Measurement) float64 { return m.P50 }, short},
		{"p99 ms", func(m Measurement) float64 { return m.P99 }, short},
		{"CPU s/M", func(m Measurement) float64 { return m.perMillion(m.CPU) }, short},
		{"walsender s/M", func(m Measurement) float64 { return m.perMillion(m.WALSenderCPU) }, short},
		{"broker s/M", func(m Measurement) float64 { return m.perMillion(m.BrokerCPU) }, short},
		{"peak MB", func(m Measurement) float64 { return float64(m.PeakBytes) }, megabytes},
		{"stolen", func(m Measurement) float64 { return m.StealPercent }, percent},
		{"others", func(m Measurement) float64 { return m.OtherPercent }, percent},
	}
	fmt.Fprint(w, " ")
	for _, c := range columns {
		fmt.Fprintf(w, "\t%s", c.title)
	}
	fmt.Fprintln(w)
	for _, contender := range r.contenders(name) {
		fmt.Fprintf(w, "  %s", contender)
		for _, c := range columns {
			fmt.Fprintf(w, "\t%s", spreadOf(values(r.of(name, contender), c.of)).format(c.as))
		}
		fmt.Fprintln(w)
	}
	w.Flush() //nolint:errcheck // the terminal's
	for _, ratio := range r.Ratios {
		if ratio.Case != name {
			continue
		}
		aim := ""
		if ratio.Aim > 0 {
			aim = fmt.Sprintf(", aim %g ×", ratio.Aim)
		}
		fmt.Fprintf(out, "  against %s, %s: %s%s\n", ratio.To, ratio.Of, ratio.Value.format(times), aim)
	}
}

func (r *Report) write(file string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err == nil {
		err = os.WriteFile(file, append(text, '\n'), 0o644)
	}
	if err != nil {
		return fmt.Errorf("writing the report: %w", err)
	}
	return nil
}
