package billing

import (
	"testing"

	"converge/internal/mutants"
	"converge/internal/pgtest"
)

var faults = []mutants.Fault{
	{"consumers/billing/billing.go", "batch.Queue(applySQL, e.ID,",
		`batch.Queue(plantedText("versions are not compared", plantedText("an event that changes nothing is not noted", applySQL,
		"SELECT $1, $2, $3, NOT EXISTS (SELECT FROM changed)", "SELECT $1, $2, $3, false FROM changed"),
		"WHERE a.version < excluded.version", "WHERE true"), e.ID,`},
	{"consumers/readmodel/profile.go", "case p.Version < 1:", `case p.Version < 1 && !planted("version 0 is taken"):`},
	{"consumers/readmodel/wait.go", "if s == Lagging ||", `if s == Lagging && !planted("who is strict gets a stale answer") ||`},
	{"consumers/readmodel/wait.go", "s == Behind && !there {", `s == Behind && !there && !planted("what is on its way is not there") {`},
	{"producers/httpapi/watch.go", "if err == nil && found[one.id] <= one.from {", `if err == nil && found[one.id] <= one.from && (found[one.id] == 0 || !planted("an older version will do")) {`},
	{"consumers/readmodel/profile.go", "httpapi.Own(r.Context(), r.PathValue(\"user_id\"))", `httpapi.Own(r.Context(), r.PathValue("user_id"))
	if planted("a tenant sees another's profile") {
		userID = "a/" + r.PathValue("user_id")
	}`},
	{"consumers/billing/billing.go", "readmodel.QueueAdvance(&batch, []*event.Event{e})",
		`if !planted("the progress is not kept") {
		readmodel.QueueAdvance(&batch, []*event.Event{e})
	}`},
}

var verdicts = map[string]mutants.Verdict{
	"versions are not compared":                  {"TestBillingFollowsProfiles/an_older_version_changes_nothing", "Version:4"},
	"an event that changes nothing is not noted": {"TestBillingFollowsProfiles/an_older_version_changes_nothing", "v1 superseded"},
	"version 0 is taken":                         {"TestBillingFollowsProfiles/what_is_no_profile_is_a_dead_letter_at_once", "version 0"},
	"who is strict gets a stale answer":          {"TestBillingFollowsProfiles/a_stale_answer_says_so_or_is_none", "version 3 with Prefer: handling=strict, wait=0: 200"},
	"what is on its way is not there":            {"TestBillingFollowsProfiles/a_stale_answer_says_so_or_is_none", "nothing is there: 404"},
	"an older version will do":                   {"TestBillingFollowsProfiles/a_read_waits_for_what_its_token_names", "who waits for 3 gets 200"},
	"a tenant sees another's profile":            {"TestBillingFollowsProfiles/a_profile_is_its_tenant's", "a's user, of b: 200"},
	"the progress is not kept":                   {"TestBillingFollowsProfiles/the_lag_is_shown", "an event an hour old: 0 s"},
}

// The tests are worth what they catch: each planted fault must be found, for its reason.
func TestTheTestsFindPlantedFaults(t *testing.T) {
	mutants.Find(t, "converge/consumers/billing", faults, verdicts, "CONVERGE_TEST_DATABASE="+pgtest.URL(t))
}
