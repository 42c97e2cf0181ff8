package history

import (
	"fmt"
	"strings"
	"text/tabwriter"
	"time"
)

// Text is the report for people: properties, numbers, counterexamples, verdict.
func (r *Report) Text() string {
	var b strings.Builder
	table := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, result := range r.Results {
		detail := result.Detail
		if result.Verdict == FAIL {
			detail = fmt.Sprintf("%d violations; %s", result.Violations, detail)
		}
		fmt.Fprintf(table, "%s\t%s\t%s\n", result.Property, result.Verdict, detail)
	}
	table.Flush()
	b.WriteString("\n")
	r.Numbers.text(&b)
	for _, result := range r.Results {
		if result.Counterexample != nil {
			fmt.Fprintf(&b, "\n%s, smallest counterexample\n", result.Property)
			result.Counterexample.text(&b)
		}
	}
	fmt.Fprintf(&b, "\n%s  %s", r.Verdict, r.Plan.Name)
	if r.Plan.Mode != "" {
		fmt.Fprintf(&b, ", %s", r.Plan.Mode)
	}
	fmt.Fprintf(&b, ", seed %d\n", r.Plan.Seed)
	return b.String()
}

func (n *Numbers) text(b *strings.Builder) {
	fmt.Fprintf(b, "%d changes acknowledged (%d outcomes unknown, %d refused), %d users\n", n.Acked, n.UnknownWrites, n.FailedWrites, n.Users)
	fmt.Fprintf(b, "%d records on the topic, %d of them delivered again\n", n.Records, n.DeliveredAgain)
	table := tabwriter.NewWriter(b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(table, "commit → effect\tevents\tp50\tp95\tmax\t\n")
	for _, s := range n.Services {
		s.All.row(table, s.Service)
		if s.Outage.Count > 0 {
			s.Up.row(table, s.Service+", while up")
			s.Outage.row(table, s.Service+", while down")
		}
	}
	table.Flush()
	for _, c := range n.CatchUps {
		took := "never caught up"
		if c.Took > 0 {
			took = "caught up in " + round(c.Took)
			if c.Backlog > 0 {
				took += fmt.Sprintf(" (%.0f events/s)", float64(c.Backlog)/c.Took.Seconds())
			}
		}
		fmt.Fprintf(b, "%s was down %s, %d changes behind; %s\n", c.Service, round(c.Outage), c.Backlog, took)
	}
	fmt.Fprintf(b, "time to consistency after the last change: %s\n", round(n.Consistent))
}

func (l Latency) row(table *tabwriter.Writer, name string) {
	fmt.Fprintf(table, "%s\t%d\t%s\t%s\t%s\t\n", name, l.Count, round(l.P50), round(l.P95), round(l.Max))
}

func (c *Counterexample) text(b *strings.Builder) {
	fmt.Fprintf(b, "  %s\n", c.What)
	if c.EventID != "" {
		fmt.Fprintf(b, "  event %s", c.EventID)
		if c.Offset >= 0 {
			fmt.Fprintf(b, ", partition %d offset %d", c.Partition, c.Offset)
		}
		b.WriteString("\n")
	}
	for _, m := range []Moment{c.First, c.Second} {
		if m.What != "" {
			fmt.Fprintf(b, "  %s  %s\n", m.At.UTC().Format("15:04:05.000000"), m.What)
		}
	}
	if c.During != "" {
		fmt.Fprintf(b, "  meanwhile: %s\n", c.During)
	}
	fmt.Fprintf(b, "  likely cause: %s\n", c.Cause)
}

// round keeps three digits or so: more would claim more than was measured.
func round(d time.Duration) string {
	switch {
	case d >= 10*time.Second:
		d = d.Round(100 * time.Millisecond)
	case d >= 100*time.Millisecond:
		d = d.Round(time.Millisecond)
	case d >= time.Millisecond:
		d = d.Round(10 * time.Microsecond)
	default:
		d = d.Round(time.Microsecond)
	}
	return d.String()
}
