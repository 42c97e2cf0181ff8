package analytics

import (
	"testing"

	"converge/internal/mutants"
	"converge/internal/pgtest"
)

var faults = []mutants.Fault{
	{"consumers/analytics/analytics.go", "superseded := p.Version <= known[p.UserID]",
		`superseded := p.Version <= known[p.UserID] && !planted("versions are not compared in a batch")`},
	{"consumers/analytics/analytics.go", "batch.Queue(upsertSQL, c.users,",
		`batch.Queue(plantedText("versions are not compared in the table", upsertSQL, "WHERE p.version < excluded.version", ""), c.users,`},
	{"consumers/analytics/analytics.go", "for _, user := range slices.Sorted(maps.Keys(newest)) {",
		`order := slices.Sorted(maps.Keys(newest))
	if planted("rows are written in the order of the events") {
		order = users
	}
	for _, user := range order {`},
	{"consumers/analytics/analytics.go", "known[p.UserID], newest[p.UserID] = p.Version, i",
		`if _, later := newest[p.UserID]; !later || !planted("the first of a batch stays") {
				newest[p.UserID] = i
			}
			known[p.UserID] = p.Version`},
}

var verdicts = map[string]mutants.Verdict{
	"versions are not compared in a batch":        {"TestABatchIsTakenInAsIfOneByOne", "superseded"},
	"versions are not compared in the table":      {"TestAFirstVersionThatComesLateChangesNothing", "Version:3"},
	"the first of a batch stays":                  {"TestABatchIsTakenInAsIfOneByOne", "u-1: {UserID:u-1 Version:3"},
	"rows are written in the order of the events": {"TestBatchesOfTheSameUsersDoNotDeadlock", "deadlock detected"},
}

// The tests are worth what they catch: each planted fault must be found, for its reason.
func TestTheTestsFindPlantedFaults(t *testing.T) {
	mutants.Find(t, "converge/consumers/analytics", faults, verdicts, "CONVERGE_TEST_DATABASE="+pgtest.URL(t))
}
