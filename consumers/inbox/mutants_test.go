package inbox_test

import (
	"testing"

	"converge/internal/mutants"
	"converge/internal/pgtest"
)

var plants = []mutants.Fault{
	{"internal/partitions/partitions.go", "kept = Start(kept.Add(-retention))",
		`if planted("a day is forgotten a day too early") {
		retention -= Day
	}
	kept = Start(kept.Add(-retention))`},
	{"consumers/inbox/inbox.go", "batch.Queue(insertSQL, ",
		`batch.Queue(plantedText("what is forgotten is fresh", insertSQL, "AND day < coalesce", "AND false AND day < coalesce"), `},
	{"consumers/inbox/days.go", "func forget(ctx context.Context, tx pgx.Tx, names []string, loose bool, kept time.Time) error {",
		`func forget(ctx context.Context, tx pgx.Tx, names []string, loose bool, kept time.Time) error {
	if planted("the horizon stays where it is") {
		return partitions.Drop(ctx, tx, names)
	}`},
	{"consumers/inbox/days.go", "if loose {", `if loose && !planted("rows without a day stay") {`},
}

var verdicts = map[string]mutants.Verdict{
	"a day is forgotten a day too early": {"TestAnEventIsRememberedForItsRetentionAndIsNeverFreshAgain", "an event at the end of its retention is forgotten"},
	"what is forgotten is fresh":         {"TestAnEventIsRememberedForItsRetentionAndIsNeverFreshAgain", "an event that was applied before its day was dropped is fresh"},
	"the horizon stays where it is":      {"TestADeliveryThatMeetsThePruneIsNotFresh", "fresh:"},
	"rows without a day stay":            {"TestRowsWithoutADayAreForgottenUnderTheSameRule", "an old event is duplicate"},
}

// The tests are worth what they catch: each planted fault must be found, for its reason.
func TestTestsFindPlantedFaults(t *testing.T) {
	t.Parallel()
	mutants.Find(t, "converge/consumers/inbox", plants, verdicts, "CONVERGE_TEST_DATABASE="+pgtest.URL(t))
}
