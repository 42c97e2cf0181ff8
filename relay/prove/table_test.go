package prove

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// table shows a run to people.
func (r *result) table() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	row := func(what string, value any) { fmt.Fprintf(w, "%s\t%v\n", what, value) }
	counts := func(m map[string]int) string {
		var all []string
		for _, name := range slices.Sorted(maps.Keys(m)) {
			all = append(all, fmt.Sprintf("%s %d", name, m[name]))
		}
		return strings.Join(all, ", ")
	}
	v := r.Verdict
	verdict := "PASS"
	if !v.Passed() {
		verdict = "FAIL"
	}
	row("seed", r.Plan.Seed)
	row("took", time.Duration(r.Seconds*float64(time.Second)).Round(time.Second))
	row("exactly once, polling", fmt.Sprint(r.Plan.Once, ", ", r.Plan.Polls))
	row("kills (SIGKILL)", r.Kills)
	row("  at crash points", counts(r.Points))
	row("drains (SIGTERM)", r.Drains)
	for _, name := range slices.Sorted(maps.Keys(r.Troubles)) {
		row("trouble, "+name, r.Troubles[name])
	}
	row("rows committed", v.Committed)
	row("rows rolled back", v.RolledBack)
	row("rows of unanswered commits", v.Unknown)
	row("rows for the dead letters", v.DeadLetters)
	row("records received", v.Delivered)
	row("repeats", fmt.Sprintf("%d (%.0f for each kill)", v.Repeats, float64(v.Repeats)/float64(max(1, r.Kills))))
	row("samples of the slot", fmt.Sprintf("%d (%d with a side away)", v.Samples, r.Missed))
	for _, p := range Properties {
		row(string(p), v.Counts[p])
	}
	row("verdict", verdict)
	_ = w.Flush() // to memory
	return b.String()
}
