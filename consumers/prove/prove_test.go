package prove

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"
)

var (
	number = flag.Int("prove.blows", 12, "how many blows the members take")
	seed   = flag.Uint64("prove.seed", 0, "repeat the plan of an earlier run; 0 makes a new one")
)

// complete is from how many blows on a run must have seen everything that there is.
const complete = 100

func newSeed() uint64 {
	if *seed != 0 {
		return *seed
	}
	return uint64(time.Now().UnixNano())
}

func TestEventsAreAppliedOnceAndInOrder(t *testing.T) {
	t.Parallel()
	r := prove(t, buildMember(t), "", plan{Blows: *number, Seed: newSeed(), Rate: 200, Members: 3, Hold: 1500 * time.Millisecond})
	t.Logf("\n%s", r.table())
	line, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("\n%s", line)
	r.mustPass(t)
	if *number < complete {
		return
	}
	for _, seen := range []map[string]int{r.Troubles, r.Blows} {
		for name, n := range seen {
			if n == 0 {
				t.Errorf("nothing was seen of %q", name)
			}
		}
	}
}

// mustPass fails the test unless the run went well and the judge found nothing.
func (r *result) mustPass(t *testing.T) {
	t.Helper()
	if r.Failure != nil {
		t.Error(r.Failure)
	}
	if !r.Verdict.Passed() {
		t.Errorf("the runtime broke its promise: %v\n%s", r.Verdict.Counts, strings.Join(r.Verdict.Examples, "\n"))
	}
}

// table shows a run to people.
func (r *result) table() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	row := func(what string, value any) { fmt.Fprintf(w, "%s\t%v\n", what, value) }
	v := r.Verdict
	verdict := "PASS"
	if !v.Passed() {
		verdict = "FAIL"
	}
	row("seed", r.Plan.Seed)
	row("took", time.Duration(r.Seconds*float64(time.Second)).Round(time.Second))
	for _, name := range slices.Sorted(maps.Keys(r.Blows)) {
		row("members, "+name, r.Blows[name])
	}
	for _, name := range slices.Sorted(maps.Keys(r.Troubles)) {
		row("trouble, "+name, r.Troubles[name])
	}
	row("COMMITs cut", r.Cuts)
	row("events on the topic", v.Facts)
	row("  sent once more by their producer", r.Upstream)
	row("effects", v.Effects)
	row("  after failed tries", v.Retried)
	row("  of redriven dead letters", v.Redriven)
	row("dead letters", v.Letters)
	row("  redriven under load, to die again", r.Redrives)
	row("  discarded", r.Discarded)
	row("events emitted, repeats of the relay included", v.Echoes)
	row("samples of offsets", fmt.Sprintf("%d (%d looks with a side away)", v.Samples, r.Missed))
	for _, p := range Properties {
		row(string(p), v.Counts[p])
	}
	row("verdict", verdict)
	_ = w.Flush() // to memory
	return b.String()
}
