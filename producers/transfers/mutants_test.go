package transfers_test

import (
	"maps"
	"testing"

	"converge/internal/mutants"
)

// plants are faults, each behind a switch, so that one build holds them all.
var plants = []mutants.Fault{
	{"consumers/ledger/rules.go", "case eventType == Requested && s == Untouched:",
		`case eventType == TimedOut && s == Untouched && planted("the Ledger leaves no tombstone"):
		return Step{Next: s, Say: SaidFailed, Reason: OutOfTime}
	case eventType == TimedOut && s == Debited && planted("the Ledger keeps what is held"):
		return Step{Next: Refunded, Say: SaidFailed, Reason: OutOfTime}
	case eventType == Confirmed && s == Refunded && planted("the Ledger credits what it gave back"):
		return credit(terms, book)
	case eventType == TimedOut && s == Refused && planted("the Ledger gives back what it never took"):
		return Step{Next: Refunded, Entry: book.move(Refund, Clearing(terms.Currency), terms.From, terms.Amount)}
	case eventType == TimedOut && s == Debited && planted("the Ledger does not say that the money is back"):
		step := refund(OutOfTime, terms, book)
		step.Say = ""
		return step
	case eventType == Requested && (s == Untouched || s == Debited && planted("the Ledger debits twice")):`},
	{"consumers/ledger/rules.go", "if reason == \"\" && book[terms.From].Balance < terms.Amount {",
		`if reason == "" && book[terms.From].Balance < terms.Amount && !planted("the Ledger overdraws") {`},
	{"consumers/ledger/rules.go", "case account.Closed:",
		`case account.Closed && !planted("the Ledger credits a closed account"):`},
	{"consumers/ledger/rules.go", "case !ok || own(id) || account.Currency != currency:",
		`case !ok || own(id) && !planted("the Ledger pays from what is held") || account.Currency != currency && !planted("the Ledger mixes currencies"):`},
	{"consumers/ledger/rules.go", "payee.Balance += amount",
		`payee.Balance += amount
	if kind == Refund && planted("a refund costs a cent") {
		payee.Balance--
	}`},
	{"producers/transfers/rules.go", "if s.State == Pending {\n\t\t\treturn s.enter(SaidConfirmed, Debited)",
		`if s.State == Pending || s.State == Compensating && planted("a debit overrules the deadline") || s.State == Debited && planted("every debit is confirmed") {
			return s.enter(SaidConfirmed, Debited)`},
	{"producers/transfers/rules.go", "if s.State == Pending {\n\t\t\ts.Reason = TimedOut",
		`if s.State == Debited && planted("the deadline strikes after the pivot") {
			s.Reason = TimedOut
			return s.enter(SaidTimedOut, Compensating)
		}
		if s.State == Pending && planted("a deadline waits for nobody") {
			s.Reason = TimedOut
			return s.enter(SaidTimedOut, Failed)
		}
		if s.State == Pending {
			s.Reason = TimedOut`},
	{"producers/transfers/rules.go", "if s.Reason == \"\" {",
		`if s.State == Stuck && planted("what is stuck stays stuck") {
			return s, nil, ""
		}
		if s.Reason == "" {`},
	{"producers/transfers/store.go", "balancesSQL, ids, amounts, versions)",
		`plantedText("a balance goes back in time", balancesSQL, "AND a.version < u.version", ""), ids, amounts, versions)`},
	{"producers/transfers/store.go", "batch.Queue(serialiseSQL)",
		`batch.Queue(plantedText("batches do not wait for each other", serialiseSQL, "pg_advisory_xact_lock(hashtext('converge.transfers'))", "1"))`},
	{"producers/transfers/http.go", "!httpapi.Owns(ctx, v.terms.from)", `!httpapi.Owns(ctx, v.terms.from) && !planted("another tenant's transfer is shown")`},
	{"producers/transfers/http.go", "s.pool, httpapi.Own(r.Context(), id))",
		`s.pool, map[bool]string{true: "acme/" + id, false: httpapi.Own(r.Context(), id)}[planted("another tenant's account is shown")])`},
	{"producers/transfers/http.go", "if c.State.Fails() {", `if c.State.Fails() || c.State == Stuck && planted("a status knows the future") {`},
	{"internal/sagas/keep.go", "if !awaited ||", `if !awaited || planted("nobody waits for a commit") ||`},
	{"producers/transfers/react.go", "tr.saga = next", `tr.saga = next
	if planted("what begins a failure is forgotten") {
		tr.saga.Reason = reason
	}`},
	{"producers/transfers/http.go", "if taken {", `if taken && !planted("a taken account is given away") {`},
	{"producers/transfers/http.go", `if asked.currency != "" && asked.currency != a.currency {`,
		`if asked.currency != "" && asked.currency != a.currency && !planted("any currency will do") {`},
	{"producers/transfers/request.go", "for i, a := range known {",
		`if planted("a request says nothing of its accounts") {
		known, accounts = nil, []schemas.OpenAccount{}
	}
	for i, a := range known {`},
	{"producers/transfers/rules.go", "if s.State != Pending && s.Reason == \"\" {",
		`if s.State != Pending && s.Reason == "" && !(s.State == Stuck && planted("a late credit is not heard")) {`},
}

// verdicts is what the model must say of each fault.
var verdicts = map[string]string{
	"the Ledger leaves no tombstone":                 "FAILED for the reason \"timed_out\", but the Ledger may still act",
	"the Ledger keeps what is held":                  "FAILED, but its entries are \"debit\"",
	"the Ledger credits what it gave back":           "TransferFailed was said twice",
	"the Ledger gives back what it never took":       "(clearing) USD has -5",
	"the Ledger does not say that the money is back": "everything is delivered and the transfer waits in COMPENSATING",
	"the Ledger debits twice":                        "TransferDebited was said twice",
	"the Ledger overdraws":                           "poor has -1",
	"the Ledger credits a closed account":            "ends map[COMPLETED :true FAILED timed_out:true], want map[FAILED account_closed:true FAILED timed_out:true]",
	"the Ledger pays from what is held":              "want map[FAILED account_not_found:true FAILED timed_out:true]",
	"the Ledger mixes currencies":                    "money was map[EUR:0 USD:0] and became",
	"a refund costs a cent":                          "money was map[EUR:0 USD:0] and became map[EUR:0 USD:-1]",
	"a debit overrules the deadline":                 "COMPENSATING to DEBITED by TransferDebited is not in the table",
	"every debit is confirmed":                       "DEBITED to DEBITED by TransferDebited is not in the table",
	"the deadline strikes after the pivot":           "waits in COMPENSATING, the Ledger in CREDITED",
	"a deadline waits for nobody":                    "FAILED for the reason \"timed_out\", but the Ledger may still act",
	"what is stuck stays stuck":                      "waits in STUCK, the Ledger in REFUNDED",
	"a late credit is not heard":                     "waits in STUCK, the Ledger in CREDITED",
}

// others is what the tests of the service must say of the faults that are not the model's to find.
var others = map[string]mutants.Verdict{
	"a balance goes back in time":            {Run: "TestABalanceNeverGoesBackInTime", Says: `"balance":9,"version":2`},
	"batches do not wait for each other":     {Run: "TestBatchesThatHearTheLedgerWaitForEachOther", Says: "it did not wait"},
	"nobody waits for a commit":              {Run: "TestATransferThatIsNotVisibleYetIsWaitedFor", Says: "nobody waited for the transfer's commit"},
	"what begins a failure is forgotten":     {Run: "TestADeadlineStrikesOnceAndTheMoneyStays", Says: "transfers_check"},
	"a taken account is given away":          {Run: "TestAnAccountIsOpenedOnce", Says: "201"},
	"another tenant's transfer is shown":     {Run: "TestTransfersAndAccountsAreTheirTenantsAlone", Says: "another tenant's GET /transfers"},
	"another tenant's account is shown":      {Run: "TestTransfersAndAccountsAreTheirTenantsAlone", Says: "another tenant's account"},
	"a status knows the future":              {Run: "TestEveryVersionOfATransferIsStreamed", Says: "-shown +streamed"},
	"any currency will do":                   {Run: "TestABadTransferIsRefusedWithAllThatIsWrong", Says: `"/currency": true`},
	"a request says nothing of its accounts": {Run: "TestATransferMayOvertakeTheOpeningOfItsAccounts", Says: `"TransferFailed"`},
}

// The tests are worth what they catch: each planted fault must be found, for its reason.
func TestPlantedFaultsAreFound(t *testing.T) {
	all := maps.Clone(others)
	for fault, says := range verdicts {
		all[fault] = mutants.Verdict{Run: "TestEveryTransferEndsCompletedOrFullyCompensated", Says: says}
	}
	mutants.Find(t, "converge/producers/transfers", plants, all)
}
