package ledger

import (
	"testing"

	"converge/internal/mutants"
)

// plants are faults between the rules and the tables; those in the rules are planted by producers/transfers.
var plants = []mutants.Fault{
	{"consumers/ledger/store.go", "batch.Queue(serialiseSQL)",
		`batch.Queue(plantedText("batches do not wait for each other", serialiseSQL, "pg_advisory_xact_lock(hashtext('converge.ledger'))", "1"))`},
	{"consumers/ledger/store.go", "batch.Queue(openSQL, ids",
		`batch.Queue(plantedText("what accounts begin with comes from nowhere", openSQL, "a.balance - o.balance", "a.balance"), ids`},
	{"consumers/ledger/store.go", "batch.Queue(moveSQL, ids",
		`batch.Queue(plantedText("a balance is set aside from its entries", moveSQL, "a.balance + u.moved", "a.balance + u.moved * 2"), ids`},
	{"consumers/ledger/store.go", "counts = append(ids, id), append(moved, after[id].Balance-before[id].Balance), append(counts, n)",
		`counts = append(ids, id), append(moved, after[id].Balance-before[id].Balance), append(counts, n)
				if planted("a version says less than it should") {
					counts[len(counts)-1] = 1
				}`},
	{"consumers/ledger/react.go", "r.openings = append(r.openings, opening{a.AccountID, data.Currency, a.OpeningBalance})",
		`if !planted("a transfer does not open its accounts") {
					r.openings = append(r.openings, opening{a.AccountID, data.Currency, a.OpeningBalance})
				}`},
	{"consumers/ledger/react.go", "if row.state == Untouched {",
		`if row.state == Untouched || planted("terms are taken from any event") {`},
	{"consumers/ledger/react.go", "failed.AccountID, failed.Balance, failed.Version = row.terms.From, payer.Balance, payer.Version",
		`failed.AccountID, failed.Balance, failed.Version = row.terms.From, payer.Balance, payer.Version
			if planted("a refund tells the old balance") {
				failed.Balance -= row.terms.Amount
			}`},
}

var verdicts = map[string]mutants.Verdict{
	"batches do not wait for each other":          {Run: "TestTheBooksHoldWhenManyMoveMoneyAtOnce", Says: "40P01"},
	"what accounts begin with comes from nowhere": {Run: "TestATransferIsDebitedThenCredited", Says: `a balance is the sum of the account's postings, and its version counts them: ["(equity) USD 0 -10"]`},
	"a balance is set aside from its entries":     {Run: "TestATransferIsDebitedThenCredited", Says: `the clearing account holds what is debited and nothing else: ["(clearing) USD 8"]`},
	"a version says less than it should":          {Run: "TestNobodyPaysWhatHeHasNot", Says: `its version counts them: ["a 0 0"`},
	"a transfer does not open its accounts":       {Run: "TestATransferThatOvertakesItsAccountsOpensThem", Says: "(equity) USD -10"},
	"terms are taken from any event":              {Run: "TestARefusedCreditIsGivenBack", Says: "entries_amount_check"},
	"a refund tells the old balance":              {Run: "TestARefusedCreditIsGivenBack", Says: "account_closed 0"},
}

// The tests are worth what they catch: each planted fault must be found, for its reason.
func TestPlantedFaultsAreFound(t *testing.T) {
	mutants.Find(t, "converge/consumers/ledger", plants, verdicts)
}
