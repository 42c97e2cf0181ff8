package httpapi

import (
	"testing"

	"converge/internal/mutants"
	"converge/internal/pgtest"
)

var faults = []mutants.Fault{
	{"producers/httpapi/idempotency.go", "defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()",
		`if claimed && planted("the key is stored outside the transaction") {
		_ = tx.Commit(ctx)
		if tx, err = pipeline.Begin(ctx, pool, pgx.TxOptions{}, func(*pgx.Batch) {}); err != nil {
			return Response{}, false, err
		}
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()`},
	{"producers/httpapi/idempotency.go", "if !expired && string(stored) != string(fingerprint) {",
		`if expired && planted("only a purge makes a key expire") {
		expired = len(stored) == 0
	}
	if (!expired || planted("an expired key is compared")) && string(stored) != string(fingerprint) && !planted("the body is not compared") {`},
	{"producers/httpapi/idempotency.go", "		return response, true, err\n",
		`		if !isProblem(err, KeyExpired) || !planted("an expired key is free again") {
			return response, true, err
		}
`},
	{"producers/httpapi/keys.go", "tag, err := k.Pool.Exec(ctx, purgeKeysSQL, k.Retention, purgeAtOnce)",
		`sql := purgeKeysSQL
	if planted("a purge frees the keys") {
		sql = "DELETE FROM idempotency_keys WHERE created_at <= now() - $1::interval AND $2 > 0"
	}
	tag, err := k.Pool.Exec(ctx, sql, k.Retention, purgeAtOnce)`},
	{"producers/httpapi/idempotency.go", "batch.Queue(claimKeySQL, tenant, operation",
		`if planted("tenants share their keys") {
			tenant = ""
		}
		batch.Queue(claimKeySQL, tenant, operation`},
	{"producers/httpapi/idempotency.go", "tx.QueryRow(ctx, storedKeySQL, Tenant(ctx), operation",
		`tx.QueryRow(ctx, storedKeySQL, map[bool]string{false: Tenant(ctx)}[planted("tenants share their keys")], operation`},
	{"producers/httpapi/api.go", "if stranger != nil && !a.public[pattern] {",
		`if stranger != nil && !a.public[pattern] && !(pattern == "" && planted("strangers are told what there is")) {`},
	{"producers/httpapi/tenant.go", `|| !strings.EqualFold(scheme, "Bearer") ||`,
		`|| !strings.EqualFold(scheme, "Bearer") && !planted("any scheme does") ||`},
	{"producers/httpapi/idempotency.go", "claimed = tag.RowsAffected() == 1",
		`claimed = tag.RowsAffected() == 1 || planted("whoever asks owns the key")`},
	{"producers/httpapi/idempotency.go", "fmt.Fprintf(hash, \"%s\\n%s\\n\", r.Method, r.URL.EscapedPath())",
		`if !planted("method and route are not compared") {
		fmt.Fprintf(hash, "%s\n%s\n", r.Method, r.URL.EscapedPath())
	}`},
	{"producers/httpapi/idempotency.go", "ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), a.cfg.BodyTime+a.cfg.KeyWait)",
		`ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), a.cfg.BodyTime+a.cfg.KeyWait)
	if planted("the effect ends with its client") {
		ctx, cancel = context.WithTimeout(r.Context(), a.cfg.BodyTime+a.cfg.KeyWait)
	}`},
	{"producers/httpapi/idempotency.go", "if response, err = effect(ctx, tx, r, body); err != nil {",
		`if response, err = effect(ctx, tx, r, body); err != nil && !planted("what fails is stored") {`},
	{"producers/httpapi/conditional.go", `} else if !strings.HasPrefix(tag, "W/") {`,
		`} else {
				if planted("weak tags match") {
					tag = strings.TrimPrefix(tag, "W/")
				}
				if strings.HasPrefix(tag, "W/") {
					continue
				}`},
	{"producers/httpapi/body.go", "decoder := jsontext.NewDecoder(bytes.NewReader(raw))",
		`decoder := jsontext.NewDecoder(bytes.NewReader(raw), jsontext.AllowDuplicateNames(planted("names may stand twice")), jsontext.AllowInvalidUTF8(planted("text may be no UTF-8")))`},
	{"producers/httpapi/body.go", "if !o.asked[name] {", `if !o.asked[name] && !planted("unknown members pass") {`},
	{"producers/httpapi/api.go", "|| w.status == clientLeft {", `|| w.status == clientLeft && !planted("who left is answered") {`},
}

var verdicts = map[string]mutants.Verdict{
	"the key is stored outside the transaction": {"TestARequestThatFailsDoesNotBurnItsKey", "the key is burned"},
	"what fails is stored":                      {"TestARequestThatFailsDoesNotBurnItsKey", "effects stayed"},
	"the body is not compared":                  {"TestAKeyBelongsToOneRequest", "want the problem idempotency-key-reused"},
	"method and route are not compared":         {"TestAKeyBelongsToOneRequest", "want the problem idempotency-key-reused"},
	"only a purge makes a key expire":           {"TestALateRetryIsToldThatItsKeyHasExpired", "want the problem idempotency-key-expired"},
	"an expired key is compared":                {"TestALateRetryIsToldThatItsKeyHasExpired", "want the problem idempotency-key-expired"},
	"an expired key is free again":              {"TestALateRetryIsToldThatItsKeyHasExpired", "charges"},
	"a purge frees the keys":                    {"TestALateRetryIsToldThatItsKeyHasExpired", "after the purge: "},
	"tenants share their keys":                  {"TestTenantsDoNotMeetInAKey", "another tenant: 422"},
	"strangers are told what there is":          {"TestWithoutATokenNothingIsTold", "want the problem unauthorized"},
	"any scheme does":                           {"TestWithoutATokenNothingIsTold", "want the problem unauthorized"},
	"whoever asks owns the key":                 {"TestSixtyFourClientsOnOneKeyMakeOneEffect", "64 charges"},
	"the effect ends with its client":           {"TestAnEffectIsFinishedAlthoughItsClientLeft", "0 charges"},
	"weak tags match":                           {"TestPreconditionsAreComparedStrongly", "holds for [3], want []"},
	"names may stand twice":                     {"TestWhatIsNotOneJSONValueIsMalformed", "a_duplicate,_deep"},
	"text may be no UTF-8":                      {"TestWhatIsNotOneJSONValueIsMalformed", "a_lone_high_surrogate"},
	"unknown members pass":                      {"TestEverythingThatIsWrongIsToldAtOnce", "unknown_in_items"},
	"who left is answered":                      {"TestAClientThatLeavesGetsNoEmptyAnswer", "HTTP/1.1 200 OK"},
}

// The tests are worth what they catch: each planted fault must be found, for its reason.
func TestTheTestsFindPlantedFaults(t *testing.T) {
	mutants.Find(t, "converge/producers/httpapi", faults, verdicts, "CONVERGE_TEST_DATABASE="+pgtest.URL(t))
}
