package orders_test

import (
	"testing"

	"converge/internal/mutants"
	"converge/internal/pgtest"
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
	{"producers/orders/http.go", "!httpapi.Owns(ctx, v.customerID)", `!httpapi.Owns(ctx, v.customerID) && !planted("another tenant's order is shown")`},
	{"producers/orders/place.go", "!httpapi.Owns(ctx, o.customerID)", `!httpapi.Owns(ctx, o.customerID) && !planted("another tenant's order is cancelled")`},
	{"producers/orders/http.go", "p.customerID = httpapi.Own(ctx, p.customerID)",
		`if !planted("events do not tell whose an order is") {
			p.customerID = httpapi.Own(ctx, p.customerID)
		}`},
	{"producers/orders/react.go", "o.version++\n", `if state == entered[0] || !planted("states that are passed are no versions") {
			o.version++
		}
`},
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

// others is what the tests of the service must say of the faults that are not the model's to find.
var others = map[string]mutants.Verdict{
	"another tenant's order is shown":        {Run: "TestAnOrderIsItsTenantsAlone", Says: "another tenant's GET"},
	"another tenant's order is cancelled":    {Run: "TestAnOrderIsItsTenantsAlone", Says: "another tenant's DELETE"},
	"events do not tell whose an order is":   {Run: "TestAnOrderIsItsTenantsAlone", Says: `told of customer "c-1"`},
	"states that are passed are no versions": {Run: "TestEveryVersionOfAnOrderIsStreamed", Says: "-shown +streamed"},
}

// The model is worth what it catches: each planted fault must be found, for its reason.
func TestModelFindsPlantedFaults(t *testing.T) {
	reasons := map[string]mutants.Verdict{}
	for fault, says := range verdicts {
		reasons[fault] = mutants.Verdict{Run: "TestEverySagaEndsCompletedOrFullyCompensated", Says: says}
	}
	for fault, verdict := range others {
		reasons[fault] = verdict
	}
	mutants.Find(t, "converge/producers/orders", plants, reasons, "CONVERGE_TEST_DATABASE="+pgtest.URL(t))
}
