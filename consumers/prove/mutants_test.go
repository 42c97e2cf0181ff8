package prove

import (
	"strings"
	"testing"
	"time"

	"converge/internal/mutants"
)

// faults are those that consumers have had, each behind its switch, in one build.
var faults = []mutants.Fault{
	{File: "consumers/group/batch.go", Old: "tx := took.tx\n",
		New: `if planted("marks before it handles") {
		if err := took.tx.Commit(ctx); err != nil {
			return err
		}
		if took.tx, err = g.store.begin(ctx); err != nil {
			return err
		}
	}
	tx := took.tx
`},
	{File: "consumers/group/batch.go", Old: "queries.Queue(fenceSQL, ",
		New: `fence := fenceSQL
		if planted("the fence lets everyone pass") {
			fence = "UPDATE consumer_offsets SET next_offset = $5 WHERE consumer = $1 AND topic = $2 AND partition = $3 AND $4::bigint >= 0"
		}
		queries.Queue(fence, `},
	{File: "consumers/group/batch.go", Old: "e := fromRecord(r)\n",
		New: `e := fromRecord(r)
		if planted("dedupes by the aggregate") {
			e.ID = uuid.NewSHA1(uuid.NameSpaceOID, e.Key)
		}
`},
	{File: "consumers/group/batch.go", Old: "if !t.fresh[e.ID] {",
		New: `if planted("dedupes in memory") {
			if seen(e.ID) {
				duplicates++
				continue
			}
		} else if !t.fresh[e.ID] {`},
	{File: "consumers/group/batch.go", Old: "// admit asks the guard",
		New: `var seenIDs sync.Map

// seen asks an inbox that its process takes with it.
func seen(id uuid.UUID) bool {
	_, there := seenIDs.Load(id)
	return there
}

// admit asks the guard`},
	{File: "consumers/group/batch.go", Old: "g.count(b, result, time.Since(began))",
		New: `for _, e := range b.events {
		seenIDs.Store(e.ID, true)
	}
	g.count(b, result, time.Since(began))`},
	{File: "consumers/group/batch.go", Old: "\t\"math/rand/v2\"\n", New: "\t\"math/rand/v2\"\n\t\"sync\"\n"},
	{File: "consumers/group/handle.go", Old: "return class == event.ClassInfrastructure ||",
		New: `return class == event.ClassInfrastructure && !planted("an outage counts as an attempt") && !planted("an outage fills the dead letters") ||`},
	{File: "consumers/group/handle.go", Old: "return event.Classify(f.Err) == event.ClassPermanent ||",
		New: `return event.Classify(f.Err) == event.ClassPermanent || planted("an outage fills the dead letters") && event.Classify(f.Err) == event.ClassInfrastructure ||`},
	{File: "consumers/group/handle.go", Old: "} else if held[g.ladder.KeyOf(e)] {",
		New: `} else if held[g.ladder.KeyOf(e)] && !planted("overtakes what is held") {`},
	{File: "consumers/group/batch.go", Old: "g.reached(p, position{stored: stored, most: at.most}, stored)",
		New: `if g.reached(p, position{stored: stored, most: at.most}, stored); planted("tells Kafka what it has not reached") {
		g.reached(p, position{stored: stored, most: at.most}, stored+1)
	}`},
	{File: "consumers/retry/dead.go", Old: "return outbox.AppendRecords(", New: `if planted("a dead letter stays in the table") {
		return nil
	}
	return outbox.AppendRecords(`},
}

// Each fault breaks a promise, and the run must say which. Only what brings it out is done, so that few blows do.
func TestJudgeFindsPlantedFaults(t *testing.T) {
	t.Parallel()
	binary := buildMember(t, faults...)
	const (
		kill, zombie, storm, none = "killed (SIGKILL)", "stopped (SIGSTOP) past its session", "rebalance storm", "none"
		away                      = "handler: what it needs is away"
	)
	for fault, wants := range map[string]struct {
		property Property
		only     []string
	}{
		"none":                                {"", []string{none, kill, zombie}},
		"marks before it handles":             {Lost, []string{none, kill}},
		"the fence lets everyone pass":        {Regressed, []string{none, zombie}},
		"dedupes by the aggregate":            {Lost, []string{none, kill}},
		"dedupes in memory":                   {Twice, []string{none, storm}},
		"an outage counts as an attempt":      {Blamed, []string{away, kill}},
		"an outage fills the dead letters":    {Blamed, []string{away, kill}},
		"overtakes what is held":              {Disorder, []string{none, kill}},
		"tells Kafka what it has not reached": {Ahead, []string{none, kill}},
		"a dead letter stays in the table":    {Divided, []string{none, kill}},
	} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			p := plan{Blows: 4, Seed: newSeed(), Rate: 200, Members: 3, Hold: time.Second, Only: wants.only}
			r := prove(t, binary, fault, p)
			// The blow must come at the wrong moment, which 4 do not promise.
			for more := 0; more < 2 && wants.property != "" && r.Verdict.Counts[wants.property] == 0; more++ {
				p.Seed++
				r = prove(t, binary, fault, p)
			}
			t.Logf("\n%s", r.table())
			if wants.property == "" {
				r.mustPass(t)
			} else if r.Verdict.Counts[wants.property] == 0 {
				t.Errorf("the judge found %v and not %q\n%s", r.Verdict.Counts, wants.property, strings.Join(r.Verdict.Examples, "\n"))
			}
		})
	}
}
