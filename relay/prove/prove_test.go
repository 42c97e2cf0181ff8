package prove

import (
	"encoding/json"
	"flag"
	"strings"
	"testing"
	"time"

	"converge/internal/proof"
)

var (
	kills = flag.Int("prove.kills", 20, "how often to kill the relay")
	once  = flag.Bool("prove.exactly-once", false, "have the relay publish exactly once")
	polls = flag.Bool("prove.polling", false, "have the relay poll")
	long  = flag.Duration("prove.outage", 0, "how long Kafka's long outage lasts; 0 is a minute in a long run, 3 s in a short one")
	seed  = flag.Uint64("prove.seed", 0, "repeat the plan of an earlier run; 0 makes a new one")
)

// complete is from how many kills on a run must have seen everything that there is.
const complete = 100

func newSeed() uint64 {
	if *seed != 0 {
		return *seed
	}
	return uint64(time.Now().UnixNano())
}

func TestRelayLosesNothing(t *testing.T) {
	t.Parallel()
	p := plan{Kills: *kills, Seed: newSeed(), Once: *once, Polls: *polls, Rate: 400, Hold: 900 * time.Millisecond, Long: 3 * time.Second, Patience: proof.Patience}
	if *kills >= complete {
		p.Long = time.Minute
	}
	if *long > 0 {
		p.Long = *long
	}
	r := prove(t, buildRelay(t), "", p)
	t.Logf("\n%s", r.table())
	line, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("\n%s", line)
	r.mustPass(t)
	if *kills < complete {
		return
	}
	for _, point := range p.points() {
		if r.Points[point] == 0 {
			t.Errorf("no relay died at the point %s", point)
		}
	}
	for trouble, n := range r.Troubles {
		if n == 0 {
			t.Errorf("nothing was seen of the trouble %s", trouble)
		}
	}
}

// A relay that publishes exactly once repeats nothing, killed in trouble of every kind.
func TestRelayThatPublishesExactlyOnceRepeatsNothing(t *testing.T) {
	t.Parallel()
	r := prove(t, buildRelay(t), "", plan{Kills: 8, Seed: newSeed(), Once: true, Rate: 400, Hold: 900 * time.Millisecond, Long: 3 * time.Second, Patience: proof.Patience})
	t.Logf("\n%s", r.table())
	r.mustPass(t)
}

// A relay that polls promises the same.
func TestRelayThatPollsLosesNothing(t *testing.T) {
	t.Parallel()
	r := prove(t, buildRelay(t), "", plan{Kills: 8, Seed: newSeed(), Polls: true, Rate: 400, Hold: 900 * time.Millisecond, Long: 3 * time.Second, Patience: proof.Patience})
	t.Logf("\n%s", r.table())
	r.mustPass(t)
}

// mustPass fails the test unless the run went well and the judge found nothing.
func (r *result) mustPass(t *testing.T) {
	t.Helper()
	if r.Failure != nil {
		t.Error(r.Failure)
	}
	if !r.Verdict.Passed() {
		t.Errorf("the relay broke its promise: %v\n%s", r.Verdict.Counts, strings.Join(r.Verdict.Examples, "\n"))
	}
}

// A relay that was asked to end has confirmed all that it sent. The proof of the exact position is that nothing
// comes again, not even a transaction, however busy the stream was.
func TestDrainedRelayRepeatsNothing(t *testing.T) {
	t.Parallel()
	r := drained(t, buildRelay(t), "")
	r.mustPass(t)
	if r.Drains != drains || r.Verdict.Committed != drains*backlog || r.Verdict.Repeats != 0 {
		t.Errorf("%d drains with %d rows and %d repeats, want %d with %d and none", r.Drains, r.Verdict.Committed, r.Verdict.Repeats, drains, drains*backlog)
	}
}
