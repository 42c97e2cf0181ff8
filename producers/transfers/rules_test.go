package transfers_test

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"converge/producers/transfers"
)

var update = flag.Bool("update", false, "write docs/transfers.md anew")

const document = "../../docs/transfers.md"

// reasons are what the Ledger gives.
var reasons = []string{"insufficient_funds", "account_closed", "timed_out"}

// everySaga returns every saga that any sequence of inputs leads to, sensible or not: events that the Ledger
// would never say are among them, for anybody may write to a topic.
func everySaga() []transfers.Saga {
	seen := map[transfers.Saga]bool{transfers.Begun: true}
	queue := []transfers.Saga{transfers.Begun}
	for i := 0; i < len(queue); i++ {
		for _, in := range transfers.Inputs() {
			for _, reason := range reasons {
				if next, _, _ := queue[i].On(in, reason); !seen[next] {
					seen[next] = true
					queue = append(queue, next)
				}
			}
		}
	}
	return queue
}

func TestEveryStateKnowsEveryInput(t *testing.T) {
	rested := map[transfers.State]bool{}
	for _, saga := range everySaga() {
		rested[saga.State] = true
		for _, in := range transfers.Inputs() {
			for _, reason := range reasons {
				next, entered, say := saga.On(in, reason)
				at := saga.State
				for _, state := range entered {
					if !slices.Contains(transfers.Edges(), transfers.Edge{From: at, To: state}) {
						t.Errorf("%+v on %s: %s to %s is not in the table", saga, in, at, state)
					}
					at = state
				}
				if at != next.State {
					t.Errorf("%+v on %s: the path ends in %s, the state is %s", saga, in, at, next.State)
				}
				if saga.State.Terminal() && (next != saga || say != "") {
					t.Errorf("%+v on %s: left for %+v, saying %q", saga, in, next, say)
				}
				if saga.Reason != "" && next.Reason != saga.Reason {
					t.Errorf("%+v on %s: the reason became %s", saga, in, next.Reason)
				}
				if (next.State == transfers.Completed) && next.Reason != "" || next.State == transfers.Failed && next.Reason == "" {
					t.Errorf("%+v on %s: ended as %+v", saga, in, next)
				}
				if again, more, said := next.On(in, reason); again != next || len(more) > 0 || said != "" {
					t.Errorf("%+v on %s twice: the duplicate made it %+v, %s, saying %q", saga, in, again, more, said)
				}
			}
		}
	}
	for _, state := range transfers.States() {
		if !rested[state] {
			t.Errorf("nothing leads to %s", state)
		}
	}
}

// Every cell of state and input, as the design says it.
func TestTransitionTable(t *testing.T) {
	timedOut := []transfers.Input{transfers.DeadlinePassed}
	debited := []transfers.Input{transfers.LedgerDebited}
	lost := []transfers.Input{transfers.LedgerDebited, transfers.AnswerOverdue}
	unheard := []transfers.Input{transfers.DeadlinePassed, transfers.AnswerOverdue}
	completed := []transfers.Input{transfers.LedgerDebited, transfers.LedgerCompleted}
	failed := []transfers.Input{transfers.LedgerFailed}
	none := map[transfers.Input]string{}
	for _, row := range []struct {
		before []transfers.Input
		want   map[transfers.Input]string // states entered, what is said; nothing for the rest
	}{
		{nil, map[transfers.Input]string{transfers.LedgerDebited: "DEBITED TransferConfirmed", transfers.LedgerFailed: "FAILED",
			transfers.DeadlinePassed: "COMPENSATING TransferTimedOut"}},
		{debited, map[transfers.Input]string{transfers.LedgerCompleted: "COMPLETED", transfers.LedgerFailed: "COMPENSATING FAILED", transfers.AnswerOverdue: "STUCK"}},
		{timedOut, map[transfers.Input]string{transfers.LedgerFailed: "FAILED", transfers.AnswerOverdue: "STUCK"}},
		{lost, map[transfers.Input]string{transfers.LedgerCompleted: "COMPLETED", transfers.LedgerFailed: "FAILED"}},
		{unheard, map[transfers.Input]string{transfers.LedgerFailed: "FAILED"}},
		{completed, none},
		{failed, none},
	} {
		saga := transfers.Begun
		for _, in := range row.before {
			saga, _, _ = saga.On(in, "account_closed")
		}
		for _, in := range transfers.Inputs() {
			next, entered, say := saga.On(in, "account_closed")
			var words []string
			for _, state := range entered {
				words = append(words, string(state))
			}
			if say != "" {
				words = append(words, say)
			}
			if got := strings.Join(words, " "); got != row.want[in] {
				t.Errorf("after %v, %s: %q, want %q", row.before, in, got, row.want[in])
			}
			if len(entered) > 0 && next.State == transfers.Failed {
				want := "account_closed"
				if slices.Contains(row.before, transfers.DeadlinePassed) {
					want = transfers.TimedOut
				}
				if next.Reason != want {
					t.Errorf("after %v, %s: reason %s, want %s", row.before, in, next.Reason, want)
				}
			}
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
		t.Fatalf("%v (write it with: go test ./producers/transfers -run Document -update)", err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("docs/transfers.md is not what the rules say (-rules +document); write it with -update:\n%s", diff)
	}
}

func table() string {
	cells := map[transfers.State]map[transfers.Input][]string{}
	for _, saga := range everySaga() {
		if cells[saga.State] == nil {
			cells[saga.State] = map[transfers.Input][]string{}
		}
		for _, in := range transfers.Inputs() {
			cell := "–"
			if _, entered, say := saga.On(in, reasons[0]); len(entered) > 0 {
				var names []string
				for _, state := range entered {
					names = append(names, string(state))
				}
				cell = strings.Join(names, ", ")
				if say != "" {
					cell += "; says `" + say + "`"
				}
			}
			if ways := cells[saga.State]; !slices.Contains(ways[in], cell) {
				ways[in] = append(ways[in], cell)
			}
		}
	}
	var b strings.Builder
	b.WriteString(heading)
	b.WriteString("| on |")
	for _, state := range transfers.States() {
		fmt.Fprintf(&b, " %s |", state)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(transfers.States())) + "\n")
	for _, in := range transfers.Inputs() {
		fmt.Fprintf(&b, "| %s |", in)
		for _, state := range transfers.States() {
			ways := cells[state][in]
			slices.SortFunc(ways, func(a, c string) int { return len(a) - len(c) })
			fmt.Fprintf(&b, " %s |", strings.Join(ways, "; or "))
		}
		b.WriteString("\n")
	}
	return b.String()
}

const heading = `# The transfer saga, cell by cell

Written by ` + "`go test ./producers/transfers -run Document -update`" + ` from the rules themselves; a test compares.

Transfers and the Ledger tell each other what happened; neither commands the other. The Ledger debits when it
hears ` + "`TransferRequested`" + `, credits or refunds when it hears ` + "`TransferConfirmed`" + `, and refunds, or never debits, when
it hears ` + "`TransferTimedOut`" + `. A cell lists the states that the transfer enters, in turn, and what Transfers then
says; – is nothing. Two ways in one cell: a transfer that is STUCK after it timed out is completed by nothing.

`
