package orderviews

import (
	"testing"

	"converge/internal/mutants"
	"converge/internal/pgtest"
)

var faults = []mutants.Fault{
	{"consumers/orderviews/orderviews.go", "batch.Queue(upsertSQL, ids,",
		`batch.Queue(plantedText("versions are not compared in the table", plantedText("an order moves in the list", upsertSQL,
		"version = excluded.version,", "version = excluded.version, placed_at = excluded.placed_at,"),
		"WHERE v.version < excluded.version", ""), ids,`},
	{"consumers/orderviews/orderviews.go", "v.version <= old.version {", `v.version <= old.version && !planted("versions are not compared in a batch") {`},
	{"consumers/orderviews/orderviews.go", "for _, id := range slices.Sorted(maps.Keys(views)) {",
		`order := slices.Sorted(maps.Keys(views))
	if planted("rows are written in the order of the events") {
		order = nil
		for _, e := range events {
			order = append(order, e.AggregateID)
		}
	}
	for _, id := range order {`},
	{"consumers/orderviews/http.go", "found[0].tenant == httpapi.Tenant(r.Context()) {", `(found[0].tenant == httpapi.Tenant(r.Context()) || planted("a tenant sees another's view")) {`},
	{"consumers/orderviews/http.go", "sql, args := allSQL, []any{q.before.placedAt, q.before.id, q.limit + 1,",
		`sql, args := plantedText("a tenant lists another's views", allSQL, "- 1, 0)) = $4", "- 1, 0)) >= $4"), []any{q.before.placedAt, q.before.id, q.limit + 1,`},
	{"consumers/orderviews/http.go", "if err := standing.Refuse(true); err != nil {", `if err := standing.Refuse(true); err != nil && !planted("a strict list is stale") {`},
	{"producers/httpapi/watch.go", "return err == nil && found[id] >= version, err", `return err == nil && (found[id] >= version || found[id] > 0 && planted("an older version will do")), err`},
	{"producers/httpapi/token.go", "version > 0 && named != id {", `version > 0 && named != id && !planted("a token is good for any order") {`},
	{"consumers/orderviews/http.go", "given, err := url.ParseQuery(raw)\n\tif err != nil {", "given, err := url.ParseQuery(raw)\n\tif err != nil && !planted(\"half a query is read\") {"},
	{"consumers/orderviews/http.go", "found[:q.limit], cursor{last.placedAt, last.ID}.String()",
		`found[:q.limit], cursor{last.placedAt, last.ID}.String()
		if planted("a page ends by its moment alone") {
			p.NextCursor = cursor{last.placedAt, "0"}.String()
		}`},
}

var verdicts = map[string]mutants.Verdict{
	"versions are not compared in the table":      {"TestAnOlderVersionChangesNothing", "step 1: "},
	"versions are not compared in a batch":        {"TestAnOlderVersionChangesNothing", "step 2: "},
	"an order moves in the list":                  {"TestPagesStandStillUnderWrites", "limit 2:"},
	"rows are written in the order of the events": {"TestBatchesOfTheSameOrdersDoNotDeadlock", "deadlock detected"},
	"half a query is read":                        {"TestBadQueriesAreRefused", "customer_id=%zz"},
	"a tenant sees another's view":                {"TestAViewIsItsTenants", "order 0 to \"b\": 200"},
	"a tenant lists another's views":              {"TestAViewIsItsTenants", "the list of \"a\": 200"},
	"a strict list is stale":                      {"TestAStaleViewIsToldApart", "GET /order-views for version 2 of o-1, strict: 200"},
	"an older version will do":                    {"TestAStaleViewIsToldApart", "GET /order-views/o-1 for version 2 of o-1, strict: 200"},
	"a token is good for any order":               {"TestAStaleViewIsToldApart", "/order-views/o-1: 200"},
	"a page ends by its moment alone":             {"TestPagesStandStillUnderWrites", "limit 2:"},
}

// The tests are worth what they catch: each planted fault must be found, for its reason.
func TestTheTestsFindPlantedFaults(t *testing.T) {
	mutants.Find(t, "converge/consumers/orderviews", faults, verdicts, "CONVERGE_TEST_DATABASE="+pgtest.URL(t))
}
