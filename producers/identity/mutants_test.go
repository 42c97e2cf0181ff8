package identity

import (
	"testing"

	"converge/internal/mutants"
	"converge/internal/pgtest"
)

var faults = []mutants.Fault{
	{"producers/identity/identity.go", "p, err := s.apply(r, httpapi.Own(r.Context(), userID), wanted, condition)",
		`own := httpapi.Own(r.Context(), userID)
		if planted("tenants share their users") {
			own = userID
		}
		p, err := s.apply(r, own, wanted, condition)`},
	{"producers/identity/identity.go", "find(r.Context(), s.pool, selectSQL, httpapi.Own(r.Context(), userID))",
		`find(r.Context(), s.pool, selectSQL, map[bool]string{true: userID, false: httpapi.Own(r.Context(), userID)}[planted("tenants share their users")])`},
	{"producers/identity/identity.go", `for range tries {`,
		`if planted("an address belongs to one tenant") {
		const sql = "SELECT user_id FROM profiles WHERE email = $1 AND user_id <> $2"
		if rows, err := s.pool.Query(ctx, sql, wanted(content{}).email, userID); err == nil {
			if taken, _ := pgx.CollectRows(rows, pgx.RowTo[string]); len(taken) > 0 {
				return profile{}, httpapi.Fail(httpapi.Conflict, "")
			}
		}
	}
	for range tries {`},
	{"producers/identity/identity.go", "next := current.of(wanted(current.content()))",
		`next := current.of(wanted(current.content()))
	if planted("a patch replaces") {
		next = current.of(wanted(content{email: current.Email, displayName: current.DisplayName}))
	}`},
	{"producers/identity/identity.go", "if !condition.Holds(current.Version) {",
		`if !condition.Holds(current.Version) && !(planted("a stale patch wins") && method == http.MethodPatch && current.Version > 0) {`},
	{"producers/identity/identity.go", "if method == http.MethodPatch && len(members) == 0 {",
		`if method == http.MethodPatch && len(members) == 0 && !planted("an empty patch is a version") {`},
	{"producers/identity/rules.go", "before := c\n",
		`before := c
	if planted("whatever is so now was done") {
		last = nil
	}
`},
}

var verdicts = map[string]mutants.Verdict{
	"tenants share their users":        {"TestTenantsHaveProfilesOfTheirOwn", "of another tenant's: 200"},
	"an address belongs to one tenant": {"TestTenantsHaveProfilesOfTheirOwn", "another tenant's user of the same address: 409"},
	"a patch replaces":                 {"TestAPatchChangesTheMembersThatItNamesAndNoOthers", "want {email:ada@example.org displayName:Countess address:1 Main St"},
	"a stale patch wins":               {"TestAPatchNeedsTheVersionThatIsThere", `["If-Match" "\"2\""]: 200`},
	"an empty patch is a version":      {"TestAPatchThatChangesNothingMakesNoVersion", `"2"`},
	"whatever is so now was done":      {"TestARetriedPatchIsFoundDone", "from 1: 200"},
}

// The tests are worth what they catch: each planted fault must be found, for its reason.
func TestTheTestsFindPlantedFaults(t *testing.T) {
	mutants.Find(t, "converge/producers/identity", faults, verdicts, "CONVERGE_TEST_DATABASE="+pgtest.URL(t))
}
