package httpapi

import (
	"testing"

	"converge/internal/mutants"
	"converge/internal/pgtest"
)

var faults = []mutants.Fault{
	{"producers/httpapi/idempotency.go", "defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()",
		`if planted("the key is stored outside the transaction") {
		if err := tx.Commit(ctx); err != nil {
			return Response{}, err
		}
		tx = pipeline.Lazy(o.pool, func(*pgx.Batch) {})
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()`},
	{"producers/httpapi/idempotency.go", "if !stored.expired && string(stored.fingerprint) != string(c.fingerprint) {",
		`if stored.expired && planted("only a purge makes a key expire") {
		stored.expired = len(stored.fingerprint) == 0
	}
	if (!stored.expired || planted("an expired key is compared")) && string(stored.fingerprint) != string(c.fingerprint) && !planted("the body is not compared") {`},
	{"producers/httpapi/idempotency.go", "if o.api.wary.Load() > 0 {",
		`if planted("an expired key is free again") {
		_, _ = o.pool.Exec(ctx, "DELETE FROM idempotency_keys WHERE created_at <= now() - $1::interval", o.api.cfg.KeyRetention)
	}
	if o.api.wary.Load() > 0 {`},
	{"producers/httpapi/keys.go", "tag, err := k.Pool.Exec(ctx, purgeKeysSQL, k.Retention, purgeAtOnce)",
		`sql := purgeKeysSQL
	if planted("a purge frees the keys") {
		sql = "DELETE FROM idempotency_keys WHERE created_at <= now() - $1::interval AND $2 > 0"
	}
	tag, err := k.Pool.Exec(ctx, sql, k.Retention, purgeAtOnce)`},
	{"producers/httpapi/idempotency.go", "claim{tenant: Tenant(ctx),", `claim{tenant: map[bool]string{false: Tenant(ctx)}[planted("tenants share their keys")],`},
	{"producers/httpapi/api.go", "if stranger != nil && !a.public[pattern] {",
		`if stranger != nil && !a.public[pattern] && !(pattern == "" && planted("strangers are told what there is")) {`},
	{"producers/httpapi/tenant.go", `|| !strings.EqualFold(scheme, "Bearer") ||`,
		`|| !strings.EqualFold(scheme, "Bearer") && !planted("any scheme does") ||`},
	{"producers/httpapi/idempotency.go", "batch.Queue(claimKeySQL,", `batch.Queue(claimKeySQL+map[bool]string{true: " ON CONFLICT DO NOTHING"}[planted("whoever asks owns the key")],`},
	{"producers/httpapi/idempotency.go", "batch.Queue(claimAnsweredSQL,", `batch.Queue(claimAnsweredSQL+map[bool]string{true: " ON CONFLICT DO NOTHING"}[planted("whoever asks, and waits for nothing, owns the key")],`},
	{"producers/httpapi/idempotency.go", "if err != nil && c.shared && !outage(err) {", `if err != nil && c.shared && !outage(err) && !planted("all fail for one") {`},
	{"producers/httpapi/idempotency.go", "wait = min(wait, sharedWait)", `if !planted("all wait for one") {
			wait = min(wait, sharedWait)
		}`},
	{"producers/httpapi/idempotency.go", "for _, s := range c.statements {", `if planted("queries are sent twice as they are") {
			batch.QueuedQueries = append(batch.QueuedQueries, c.statements...)
			continue
		}
		for _, s := range c.statements {`},
	{"producers/httpapi/idempotency.go", "if err := o.share(ctx, c); err != nil {", `if planted("an effect is told of before it has committed") {
			committed()
			committed = func() {}
		}
		if err := o.share(ctx, c); err != nil {`},
	{"producers/httpapi/group.go", "if g.running < g.lanes {", `if g.running < g.lanes || planted("everybody has a lane") {`},
	{"producers/httpapi/group.go", "g.waiting[:min(len(g.waiting), g.most-1)]...", `g.waiting[:min(len(g.waiting), map[bool]int{false: g.most - 1, true: 1 << 20}[planted("a run takes all")])]...`},
	{"producers/httpapi/group.go", "if g.withdraw(me) {", `if planted("who leaves stays in line") {
				return ctx.Err()
			}
			if planted("who is run is not waited for") {
				g.withdraw(me)
				return ctx.Err()
			}
			if g.withdraw(me) {`},
	{"producers/httpapi/group.go", "next := g.waiting[0]", `if planted("a lane is not passed on") {
		g.running--
		return
	}
	next := g.waiting[0]`},
	{"producers/httpapi/group.go", "err := errNotRun", `err := map[bool]error{false: errNotRun}[planted("a run that panics has happened")]`},
	{"producers/httpapi/group.go", "if c.err = err; c != me {", `if planted("the others hear of nothing") && c != me {
				c.turn <- false
				continue
			}
			if c.err = err; c != me {`},
	{"producers/httpapi/idempotency.go", "key: digest(key),", `key: map[bool]string{false: digest(key), true: key}[planted("keys are stored as they are")],`},
	{"producers/httpapi/idempotency.go", "begin != nil && !c.held {", `begin != nil && !c.held && !planted("what is wrong comes before the key") {`},
	{"producers/httpapi/idempotency.go", "if err := pipeline.Exec(ctx, tx, answerKeySQL,", `if planted("an answer that came late is not stored") {
		return c.response, tx.Commit(ctx)
	}
	if err := pipeline.Exec(ctx, tx, answerKeySQL,`},
	{"internal/pipeline/pipeline.go", "t.after = append(t.after, f)", `t.after = append(t.after, f)
		if planted("what came to nothing is told") {
			f()
		}`},
	{"producers/httpapi/idempotency.go", "fmt.Fprintf(hash, \"%s\\n%s\\n\", r.Method, r.URL.EscapedPath())",
		`if !planted("method and route are not compared") {
		fmt.Fprintf(hash, "%s\n%s\n", r.Method, r.URL.EscapedPath())
	}`},
	{"producers/httpapi/idempotency.go", "ctx, cancel := o.bounded(r.Context())",
		`ctx, cancel := o.bounded(r.Context())
	if planted("the effect ends with its client") {
		ctx, cancel = context.WithCancel(r.Context())
	}`},
	{"producers/httpapi/idempotency.go", "if c.response, err = o.effect(ctx, tx, r, body); err != nil {",
		`if c.response, err = o.effect(ctx, tx, r, body); err != nil && !planted("what fails is stored") {`},
	{"producers/httpapi/conditional.go", `} else if !strings.HasPrefix(tag, "W/") {`,
		`} else {
				if planted("weak tags match") {
					tag = strings.TrimPrefix(tag, "W/")
				}
				if strings.HasPrefix(tag, "W/") {
					continue
				}`},
	{"producers/httpapi/conditional.go", "return version != 0 && (p.any || p.names(version)) && !weaklyMatches(p.none, version)",
		`return version != 0 && (p.any || p.names(version)) && (!weaklyMatches(p.none, version) || planted("If-None-Match is not looked at"))`},
	{"producers/httpapi/conditional.go", `strings.TrimPrefix(tag, "W/") == ETag(version)`,
		`(strings.TrimPrefix(tag, "W/") == ETag(version) && !planted("If-None-Match compares strongly") || tag == ETag(version))`},
	{"producers/httpapi/conditional.go", "!weaklyMatches(p.none, version-1) && !weaklyMatches(p.none, version)",
		`!weaklyMatches(p.none, version-1) && (!weaklyMatches(p.none, version) || planted("a retry passes If-None-Match"))`},
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
	{"producers/httpapi/watch.go", "err = w.changed(ctx, opshttp.Draining(ctx), id, from)", `draining := opshttp.Draining(ctx)
	if planted("a drain leaves who waits alone") {
		draining = nil
	}
	err = w.changed(ctx, draining, id, from)`},
	{"producers/httpapi/watch.go", "return w.above(r, id, version-1, wait)", `if planted("a view waits for one version more") {
		version++
	}
	return w.above(r, id, version-1, wait)`},
	{"producers/httpapi/api.go", "errors.Is(err, io.ErrUnexpectedEOF)", `errors.Is(err, io.ErrUnexpectedEOF) && !planted("a lost connection is our fault")`},
	{"producers/httpapi/token.go", "version > 0 && named != id {", `version > 0 && named != id && !planted("a token is good for any resource") {`},
	{"producers/httpapi/token.go", "!hmac.Equal(raw[:macSize], a.sign(string(raw[macSize:]))) {", `!hmac.Equal(raw[:macSize], a.sign(string(raw[macSize:]))) && !planted("a forged token passes") {`},
	{"producers/httpapi/api.go", "|| w.status == clientLeft {", `|| w.status == clientLeft && !planted("who left is answered") {`},
}

var verdicts = map[string]mutants.Verdict{
	"the key is stored outside the transaction":         {"TestARequestThatFailsDoesNotBurnItsKey", "the key is burned"},
	"what fails is stored":                              {"TestARequestThatFailsDoesNotBurnItsKey", "effects stayed"},
	"the body is not compared":                          {"TestAKeyBelongsToOneRequest", "want the problem idempotency-key-reused"},
	"method and route are not compared":                 {"TestAKeyBelongsToOneRequest", "want the problem idempotency-key-reused"},
	"whoever asks owns the key":                         {"TestSixtyFourClientsOnOneKeyMakeOneEffect", "64 charges"},
	"whoever asks, and waits for nothing, owns the key": {"TestSixtyFourClientsOnOneKeyMakeOneEffect", "64 charges"},
	"all fail for one":                                  {"TestNobodyFailsForAnothersFault", "request 0: 500"},
	"all wait for one":                                  {"TestAKeyInFlightHoldsUpNobodyElse", "a request is not answered"},
	"queries are sent twice as they are":                {"TestNobodyFailsForAnothersFault", ": 500"},
	"an effect is told of before it has committed":      {"TestNobodyFailsForAnothersFault", "were told of"},
	"everybody has a lane":                              {"TestCallsThatWaitShareARun", "the runs are [[1] [2] [3]"},
	"a run takes all":                                   {"TestCallsThatWaitShareARun", "[3 4 5 6 7]"},
	"who leaves stays in line":                          {"TestACallThatLeavesIsNotRun", "the runs are [[1]], want [[1] [3]]"},
	"who is run is not waited for":                      {"TestACallThatIsRunIsWaitedFor", "was not waited for"},
	"a lane is not passed on":                           {"TestCallsThatWaitShareARun", "the runs are [[1] [2]], want"},
	"a run that panics has happened":                    {"TestARunThatPanicsIsNotTheEnd", "the errors are"},
	"the others hear of nothing":                        {"TestCallsThatWaitShareARun", "want bad"},
	"the effect ends with its client":                   {"TestAnEffectIsFinishedAlthoughItsClientLeft", "0 charges"},
	"If-None-Match is not looked at":                    {"TestBothPreconditionsMustHold", "holds for [3], want []"},
	"If-None-Match compares strongly":                   {"TestBothPreconditionsMustHold", "holds for [3], want []"},
	"a retry passes If-None-Match":                      {"TestBothPreconditionsMustHold", "held before [4], want []"},
	"keys are stored as they are":                       {"TestATakenKeyIsNotInTheLogOfPostgreSQL", "a-key-of-clients"},
	"weak tags match":                                   {"TestBothPreconditionsMustHold", "holds for [3], want []"},
	"names may stand twice":                             {"TestWhatIsNotOneJSONValueIsMalformed", "a_duplicate,_deep"},
	"text may be no UTF-8":                              {"TestWhatIsNotOneJSONValueIsMalformed", "a_lone_high_surrogate"},
	"unknown members pass":                              {"TestEverythingThatIsWrongIsToldAtOnce", "unknown_in_items"},
	"only the latest version is sent":                   {"TestAStreamHasEveryVersionOnce", "-shown +streamed"},
	"a stream resumes behind the next version":          {"TestAStreamResumesWithoutGapOrDuplicate", `events "3", want "2 3"`},
	"a stream begins anew":                              {"TestAStreamResumesWithoutGapOrDuplicate", `events "1 2 3", want "2 3"`},
	"only what happens after the first look is told":    {"TestAChangeBetweenReadingAndWaitingIsNotMissed", "the change was missed"},
	"any other version wakes":                           {"TestAnOlderVersionWakesNobody", "woken by version 1"},
	"the lead ends with its client":                     {"TestTheLeadPassesOnWhenItsClientLeaves", "deadlock"},
	"who waits takes the room of others":                {"TestWhoWaitsLeavesRoomForOthers", "three wait and one asks: 429"},
	"a drain leaves who waits alone":                    {"TestADrainEndsWhatWaits", "EOF"},
	"a view waits for one version more":                 {"TestAViewWaitsForItsVersion/the_next_version", "503 after 20s"},
	"a token is good for any resource":                  {"TestATokenIsGoodForItsResourceAlone", "of another resource: version 7"},
	"a forged token passes":                             {"TestATokenIsGoodForItsResourceAlone", "with another key: version 7"},
	"who left is answered":                              {"TestAClientThatLeavesGetsNoEmptyAnswer", "HTTP/1.1 200 OK"},
	"only a purge makes a key expire":                   {"TestALateRetryIsToldThatItsKeyHasExpired", "want the problem idempotency-key-expired"},
	"an expired key is compared":                        {"TestALateRetryIsToldThatItsKeyHasExpired", "want the problem idempotency-key-expired"},
	"an expired key is free again":                      {"TestALateRetryIsToldThatItsKeyHasExpired", "charges"},
	"a purge frees the keys":                            {"TestALateRetryIsToldThatItsKeyHasExpired", "after the purge: "},
	"tenants share their keys":                          {"TestTenantsDoNotMeetInAKey", "another tenant: 422"},
	"strangers are told what there is":                  {"TestWithoutATokenNothingIsTold", "want the problem unauthorized"},
	"any scheme does":                                   {"TestWithoutATokenNothingIsTold", "want the problem unauthorized"},
	"a lost connection is our fault":                    {"TestALostCommitIsLookedUpByItsKey", "want the problem dependency-unavailable"},
	"what is wrong comes before the key":                {"TestAKeyBelongsToOneRequest", "want the problem idempotency-key-reused"},
	"an answer that came late is not stored":            {"TestARetryGetsTheStoredAnswer", "500"},
	"what came to nothing is told":                      {"TestSixtyFourClientsOnOneKeyMakeOneEffect", "were told of"},
}

// The tests are worth what they catch: each planted fault must be found, for its reason.
func TestTheTestsFindPlantedFaults(t *testing.T) {
	mutants.Find(t, "converge/producers/httpapi", faults, verdicts, "CONVERGE_TEST_DATABASE="+pgtest.URL(t))
}
