package orders_test

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"converge/producers/orders"
)

var update = flag.Bool("update", false, "write docs/saga.md anew")

const document = "../../docs/saga.md"

// everySaga returns every saga that any sequence of inputs leads to, sensible or not: events that no
// participant would ever say are among them, for anybody may write to a topic.
func everySaga() []orders.Saga {
	seen := map[orders.Saga]bool{{}: true}
	queue := []orders.Saga{{}}
	for i := 0; i < len(queue); i++ {
		for _, in := range orders.Inputs() {
			if next, _ := queue[i].On(in); !seen[next] {
				seen[next] = true
				queue = append(queue, next)
			}
		}
	}
	return queue
}

func TestEveryStateKnowsEveryInput(t *testing.T) {
	rested := map[orders.State]bool{}
	for _, saga := range everySaga() {
		rested[saga.State()] = true
		for _, in := range orders.Inputs() {
			next, entered := saga.On(in)
			at := saga.State()
			for _, state := range entered {
				if !slices.Contains(orders.Edges(), orders.Edge{From: at, To: state}) {
					t.Errorf("%+v on %s: %s to %s is not in the table", saga, in, at, state)
				}
				at = state
			}
			if at != next.State() {
				t.Errorf("%+v on %s: the path ends in %s, the state is %s", saga, in, at, next.State())
			}
			if saga.State().Terminal() && len(entered) > 0 {
				t.Errorf("%+v on %s: left a terminal state for %s", saga, in, entered)
			}
			if saga.Outcome != orders.Undecided && next.Outcome != saga.Outcome {
				t.Errorf("%+v on %s: the outcome changed to %s", saga, in, next.Outcome)
			}
			if again, more := next.On(in); again != next || len(more) > 0 {
				t.Errorf("%+v on %s twice: the duplicate made it %+v, %s", saga, in, again, more)
			}
			if next.Facts&saga.Facts != saga.Facts {
				t.Errorf("%+v on %s: a fact was forgotten", saga, in)
			}
		}
	}
	for _, state := range orders.States() {
		if rested[state] == (state == orders.Shipped) {
			t.Errorf("%s: reached %t", state, rested[state])
		}
	}
}

// What the architecture's transition table says, row by row.
func TestTransitionTable(t *testing.T) {
	for _, row := range []struct {
		before []orders.Input
		on     orders.Input
		want   []orders.State
		reason string
	}{
		{nil, orders.StockReserved, []orders.State{orders.Reserved}, ""},
		{nil, orders.StockRejected, []orders.State{orders.Failed}, "insufficient_inventory"},
		{[]orders.Input{orders.StockReserved}, orders.PaymentAuthorized, []orders.State{orders.Paid}, ""},
		{[]orders.Input{orders.StockReserved}, orders.PaymentDeclined, []orders.State{orders.Compensating}, "payment_declined"},
		{[]orders.Input{orders.PaymentAuthorized}, orders.ShipmentArranged, []orders.State{orders.Shipped, orders.Completed}, ""},
		{[]orders.Input{orders.PaymentAuthorized}, orders.ShipmentFailed, []orders.State{orders.Compensating}, "shipment_refused"},
		{nil, orders.DeadlinePassed, []orders.State{orders.Compensating}, "timed_out"},
		{[]orders.Input{orders.PaymentAuthorized}, orders.Cancel, []orders.State{orders.Compensating}, "cancelled"},
		{[]orders.Input{orders.ShipmentArranged}, orders.DeadlinePassed, nil, ""},
		{[]orders.Input{orders.ShipmentArranged}, orders.Cancel, nil, ""},
		{[]orders.Input{orders.PaymentDeclined}, orders.StockReleased, []orders.State{orders.Failed}, "payment_declined"},
		{[]orders.Input{orders.ShipmentFailed, orders.StockReleased}, orders.PaymentVoided, []orders.State{orders.Failed}, "shipment_refused"},
		{[]orders.Input{orders.Cancel, orders.StockReleased, orders.PaymentVoided}, orders.ShipmentCancelled, []orders.State{orders.Failed}, "cancelled"},
		{[]orders.Input{orders.Cancel, orders.StockReleased}, orders.PaymentVoided, nil, "cancelled"},
		{[]orders.Input{orders.Cancel}, orders.AcksOverdue, []orders.State{orders.Stuck}, "cancelled"},
		{[]orders.Input{orders.PaymentDeclined, orders.AcksOverdue}, orders.StockReleased, []orders.State{orders.Failed}, "payment_declined"},
		{[]orders.Input{orders.Cancel}, orders.ShipmentArranged, nil, "cancelled"},
		{[]orders.Input{orders.DeadlinePassed}, orders.Cancel, nil, "timed_out"},

		// Topics run ahead of each other: what comes first implies what led to it.
		{nil, orders.PaymentAuthorized, []orders.State{orders.Reserved, orders.Paid}, ""},
		{[]orders.Input{orders.PaymentAuthorized}, orders.StockReserved, nil, ""},
		{nil, orders.ShipmentArranged, []orders.State{orders.Reserved, orders.Paid, orders.Shipped, orders.Completed}, ""},
		{[]orders.Input{orders.StockReleased}, orders.PaymentDeclined, []orders.State{orders.Reserved, orders.Compensating, orders.Failed}, "payment_declined"},
		{[]orders.Input{orders.PaymentVoided, orders.StockReleased}, orders.ShipmentFailed,
			[]orders.State{orders.Reserved, orders.Paid, orders.Compensating, orders.Failed}, "shipment_refused"},
	} {
		var saga orders.Saga
		for _, in := range row.before {
			saga, _ = saga.On(in)
		}
		next, entered := saga.On(row.on)
		if diff := cmp.Diff(row.want, entered); diff != "" {
			t.Errorf("%s on %s (-want +got):\n%s", row.before, row.on, diff)
		}
		if next.Outcome.Reason() != row.reason {
			t.Errorf("%s on %s: reason %q, want %q", row.before, row.on, next.Outcome.Reason(), row.reason)
		}
	}
}

// The document shows every cell as the rules decide it.
func TestDocumentShowsEveryCell(t *testing.T) {
	want := table()
	if *update {
		if err := os.WriteFile(document, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(document)
	if err != nil {
		t.Fatalf("%v (write it with: go test ./producers/orders -run Document -update)", err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("docs/saga.md is not what the rules say (-rules +document); write it with -update:\n%s", diff)
	}
}

func table() string {
	cells := map[orders.State]map[orders.Input][]string{}
	for _, saga := range everySaga() {
		at := saga.State()
		if cells[at] == nil {
			cells[at] = map[orders.Input][]string{}
		}
		for _, in := range orders.Inputs() {
			cell := "–"
			if _, entered := saga.On(in); len(entered) > 0 {
				var names []string
				for _, state := range entered {
					names = append(names, string(state))
				}
				cell = strings.Join(names, ", ")
			}
			if !slices.Contains(cells[at][in], cell) {
				cells[at][in] = append(cells[at][in], cell)
			}
		}
	}
	var b strings.Builder
	b.WriteString(heading)
	states := []orders.State{orders.Pending, orders.Reserved, orders.Paid, orders.Compensating, orders.Stuck, orders.Completed, orders.Failed}
	b.WriteString("| on |")
	for _, state := range states {
		fmt.Fprintf(&b, " %s |", state)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(states)) + "\n")
	for _, in := range orders.Inputs() {
		fmt.Fprintf(&b, "| %s |", in)
		for _, state := range states {
			ways := cells[state][in]
			slices.SortFunc(ways, func(a, c string) int { return len(a) - len(c) })
			fmt.Fprintf(&b, " %s |", strings.Join(ways, "; or "))
		}
		b.WriteString("\n")
	}
	return b.String()
}

const heading = `# The order saga, cell by cell

Written by ` + "`go test ./producers/orders -run Document -update`" + ` from the rules themselves; a test compares.

Topics are independent, so any event may reach Orders in any state. A cell lists the states that the
order enters, in turn; – is no visible change. Several ways in one cell depend on what was heard before:
a reservation that was never heard of is implied by the payment that followed it, and an acknowledgement
that came before the failure it answers has been remembered. What cannot happen by the rules of the
participants (stock rejected after it was reserved) changes nothing. SHIPPED has no column: what follows
it needs nobody else.

`
