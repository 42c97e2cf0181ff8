package outbox_test

import (
	"testing"

	"converge/internal/mutants"
	"converge/internal/pgtest"
)

var plants = []mutants.Fault{
	{"producers/outbox/days.go", "	if len(open) > 0 {",
		`	if len(open) > 0 && !planted("no slot is asked") {`},
	{"producers/outbox/days.go", `	if _, err := tx.Exec(ctx, "LOCK TABLE ONLY "`,
		`	early, err := walEnd(ctx, tx)
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, "LOCK TABLE ONLY "`},
	{"producers/outbox/days.go", "	var marked, open []string",
		`	if planted("the position is noted before the lock") {
		end = early
	}
	_ = early
	var marked, open []string`},
	{"producers/outbox/days.go", "		if !confirmed {",
		`		if !confirmed && !(planted("one slot's word is enough") && name != own) {`},
	{"producers/outbox/days.go", "	case !found:", `	case !found && !planted("no slot is no obstacle"):`},
	{"producers/outbox/days.go", "if p.Kept, err = d.awaitConfirmed(ctx, tx, end);",
		`if p.Kept, err = d.awaitConfirmed(ctx, tx, end); planted("rows without a day need no slot") {
		p.Kept = ""
	}
	if `},
	{"internal/partitions/partitions.go", `"SELECT least($1, now())", now`,
		`plantedText("one clock is enough", "SELECT least($1, now())", "least($1, now())", "$1::timestamptz"), now`},
	{"internal/partitions/partitions.go", "_, err = tx.Exec(ctx, fmt.Sprintf(`CREATE TABLE",
		`if planted("a day is made under the parent's lock") {
			if _, err := tx.Exec(ctx, "SET LOCAL lock_timeout = '100ms'; LOCK TABLE "+parent); err != nil {
				return err
			}
		}
		_, err = tx.Exec(ctx, fmt.Sprintf(` + "`CREATE TABLE"},
	{"internal/partitions/partitions.go", `[]string{"LOCK TABLE ONLY " + list`,
		`[]string{plantedText("the table is locked before its days", "SELECT 1", "SELECT 1", "LOCK TABLE outbox"), "LOCK TABLE ONLY " + list`},
}

var verdicts = map[string]mutants.Verdict{
	"no slot is asked":                      {"TestOldRowsStayUntilTheSlotHasConfirmedThem", "rows that nobody has confirmed are gone"},
	"no slot is no obstacle":                {"TestOldRowsStayUntilTheSlotHasConfirmedThem", "rows that nobody has confirmed are gone"},
	"one slot's word is enough":             {"TestOldRowsStayUntilTheSlotHasConfirmedThem", "rows that nobody has confirmed are gone"},
	"the position is noted before the lock": {"TestWhatIsWrittenWhileADayIsClosedIsNotTakenForConfirmed", "rows that nobody has confirmed are gone"},
	"rows without a day need no slot":       {"TestOldRowsWithoutADayGoUnderTheSameRule", "1 rows are left"},
	"the table is locked before its days":   {"TestDaysThatSomebodyReadsAreKeptAndWritersDoNotWait", "a writer waited"},
	"one clock is enough":                   {"TestAClockThatJumpedAheadDropsNothing", "days that are not over are gone"},
	"a day is made under the parent's lock": {"TestADayIsMadeWhileATransactionWritesToAnother", "making a day waited for a writer"},
}

// The tests are worth what they catch: each planted fault must be found, for its reason.
func TestTestsFindPlantedFaults(t *testing.T) {
	t.Parallel()
	mutants.Find(t, "converge/producers/outbox", plants, verdicts, "CONVERGE_TEST_DATABASE="+pgtest.URL(t))
}
