package orders_test

import (
	"testing"

	"converge/internal/mutants"
)

// plants are faults for the rules, each behind a switch, so that one build holds them all.
var plants = []mutants.Fault{
	{"consumers/inventory/rules.go", "if s == Released {",
		`if s == Untouched && planted("inventory leaves no tombstone") {
			return s, SaidReleased
		}
		if s == Released && !planted("inventory acknowledges every compensation") {`},
	{"consumers/inventory/rules.go", "if s == Reserved {",
		`if s == Reserved || s == Rejected && planted("inventory releases what it never reserved") {`},
	{"consumers/inventory/rules.go", "if shelf[sku].Available < quantity {",
		`if shelf[sku].Available < quantity && !(sku == "RARE-1" && planted("inventory reserves what is not there")) {`},
	{"producers/payments/rules.go", "if s == Voided {",
		`if s == Untouched && planted("payments leaves no tombstone") {
			return s, SaidVoided
		}
		if s == Voided || s == Declined && planted("payments does not acknowledge what it declined") {`},
	{"producers/payments/rules.go", "if s != Waiting {",
		`if s != Waiting && !(s == Voided && planted("a slow card answers after the payment was voided")) {`},
	{"consumers/shipping/rules.go", "if s == Cancelled {",
		`if s == Untouched && planted("shipping leaves no tombstone") {
			return s, SaidCancelled
		}
		if s == Cancelled {`},
	{"consumers/shipping/rules.go", "if s != Untouched {",
		`if s != Untouched && !(s == Cancelled && planted("shipping ships after a cancellation")) {`},
	{"producers/orders/rules.go", "next.Facts |= facts(in)",
		`if s.Outcome != Undecided || !facts(in).any(acknowledgements) || !planted("orders forgets an acknowledgement that comes early") {
			next.Facts |= facts(in)
		}`},
	{"producers/orders/rules.go", "case TimedOut, WasCancelled:\n\t\treturn acknowledgements",
		`case TimedOut, WasCancelled:
			if planted("orders waits for stock alone") {
				return saidReleased
			}
			return acknowledgements`},
	{"producers/orders/rules.go", "if next.Outcome == Undecided {",
		`if next.Outcome == Undecided ||
			in == ShipmentArranged && planted("the pivot overrules a cancellation") ||
			in == Cancel && planted("a cancellation overrules what was decided") {`},
	{"producers/orders/rules.go", "case s.Facts.all(s.Outcome.awaits()):",
		`case s.Facts.all(s.Outcome.awaits()) && !(s.Overdue && planted("orders stays stuck")):`},
}

// verdicts is what the model must say of each fault.
var verdicts = map[string]string{
	"inventory leaves no tombstone":                      "FAILED, but RESERVED",
	"inventory acknowledges every compensation":          "StockReleased was said twice",
	"inventory releases what it never reserved":          "BOOK-1: {Available:7 Reserved:-2}",
	"inventory reserves what is not there":               "RARE-1: {Available:-1 Reserved:1}",
	"payments leaves no tombstone":                       "FAILED, but RELEASED, AUTHORIZED",
	"payments does not acknowledge what it declined":     "everything is delivered and the order waits in COMPENSATING",
	"a slow card answers after the payment was voided":   "FAILED, but RELEASED, AUTHORIZED",
	"shipping leaves no tombstone":                       "FAILED, but RELEASED, VOIDED, ARRANGED",
	"shipping ships after a cancellation":                "FAILED, but RELEASED, VOIDED, ARRANGED",
	"orders forgets an acknowledgement that comes early": "everything is delivered and the order waits in COMPENSATING",
	"orders waits for stock alone":                       "FAILED, but",
	"the pivot overrules a cancellation":                 "the outcome cancelled became completed by ShipmentArranged",
	"a cancellation overrules what was decided":          "became cancelled by cancel",
	"orders stays stuck":                                 "everything is delivered and the order waits in STUCK",
}

// The model is worth what it catches: each planted fault must be found, for its reason.
func TestModelFindsPlantedFaults(t *testing.T) {
	reasons := map[string]mutants.Verdict{}
	for fault, says := range verdicts {
		reasons[fault] = mutants.Verdict{Run: "TestEverySagaEndsCompletedOrFullyCompensated", Says: says}
	}
	mutants.Find(t, "converge/producers/orders", plants, reasons)
}
