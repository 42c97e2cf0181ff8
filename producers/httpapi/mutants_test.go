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
	{"producers/httpapi/idempotency.go", "if string(stored) != string(fingerprint) {",
		`if string(stored) != string(fingerprint) && !planted("the body is not compared") {`},
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
	{"producers/httpapi/events.go", "for _, status := range found.Past[sent:] {",
		`if planted("only the latest version is sent") && sent < found.Now().Version {
			sent = found.Now().Version - 1
		}
		for _, status := range found.Past[sent:] {`},
	{"producers/httpapi/events.go", "sent = 0 // nobody has sent it\n\t}",
		`sent = 0 // nobody has sent it
	}
	if planted("a stream resumes behind the next version") && sent > 0 && sent < now.Version {
		sent++
	}
	if planted("a stream begins anew") {
		sent = 0
	}`},
	{"producers/httpapi/watch.go", "if err == nil && found[one.id] <= one.from {",
		`if planted("only what happens after the first look is told") && one.first == 0 {
			one.first, one.from = 1, found[one.id]
		}
		if planted("any other version wakes") && found[one.id] != one.from {
			one.from = found[one.id] - 1
		}
		if err == nil && found[one.id] <= one.from {`},
	{"producers/httpapi/watch.go", "woken chan error // of one place: who wakes does not wait", `woken chan error
	first int`},
	{"producers/httpapi/watch.go", "defer func() { <-w.lead }()", `defer func() {
				if !planted("the lead ends with its client") {
					<-w.lead
				}
			}()`},
	{"producers/httpapi/watch.go", "a.leave(p)\n\t}\n\ta.metrics", `if !planted("who waits takes the room of others") {
			a.leave(p)
		}
	}
	a.metrics`},
	{"producers/httpapi/api.go", "|| w.status == clientLeft {", `|| w.status == clientLeft && !planted("who left is answered") {`},
}

var verdicts = map[string]mutants.Verdict{
	"the key is stored outside the transaction":      {"TestARequestThatFailsDoesNotBurnItsKey", "the key is burned"},
	"what fails is stored":                           {"TestARequestThatFailsDoesNotBurnItsKey", "effects stayed"},
	"the body is not compared":                       {"TestAKeyBelongsToOneRequest", "want the problem idempotency-key-reused"},
	"method and route are not compared":              {"TestAKeyBelongsToOneRequest", "want the problem idempotency-key-reused"},
	"whoever asks owns the key":                      {"TestSixtyFourClientsOnOneKeyMakeOneEffect", "64 charges"},
	"the effect ends with its client":                {"TestAnEffectIsFinishedAlthoughItsClientLeft", "0 charges"},
	"weak tags match":                                {"TestPreconditionsAreComparedStrongly", "holds for [3], want []"},
	"names may stand twice":                          {"TestWhatIsNotOneJSONValueIsMalformed", "a_duplicate,_deep"},
	"text may be no UTF-8":                           {"TestWhatIsNotOneJSONValueIsMalformed", "a_lone_high_surrogate"},
	"unknown members pass":                           {"TestEverythingThatIsWrongIsToldAtOnce", "unknown_in_items"},
	"only the latest version is sent":                {"TestAStreamHasEveryVersionOnce", "-shown +streamed"},
	"a stream resumes behind the next version":       {"TestAStreamResumesWithoutGapOrDuplicate", `events "3", want "2 3"`},
	"a stream begins anew":                           {"TestAStreamResumesWithoutGapOrDuplicate", `events "1 2 3", want "2 3"`},
	"only what happens after the first look is told": {"TestAChangeBetweenReadingAndWaitingIsNotMissed", "the change was missed"},
	"any other version wakes":                        {"TestAnOlderVersionWakesNobody", "woken by version 1"},
	"the lead ends with its client":                  {"TestTheLeadPassesOnWhenItsClientLeaves", "deadlock"},
	"who waits takes the room of others":             {"TestWhoWaitsLeavesRoomForOthers", "two wait and one asks: 429"},
	"who left is answered":                           {"TestAClientThatLeavesGetsNoEmptyAnswer", "HTTP/1.1 200 OK"},
}

// The tests are worth what they catch: each planted fault must be found, for its reason.
func TestTheTestsFindPlantedFaults(t *testing.T) {
	mutants.Find(t, "converge/producers/httpapi", faults, verdicts, "CONVERGE_TEST_DATABASE="+pgtest.URL(t))
}
