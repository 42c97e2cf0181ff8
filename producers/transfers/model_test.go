package transfers_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"converge/consumers/ledger"
	"converge/producers/transfers"
	"converge/schemas"
)

// The model: the pure rules of Transfers and of the Ledger, joined by nothing but a bag of events. An event
// that was emitted may reach its reader at any time, in any order, any number of times, and every clock may
// strike at any moment. That is worse than what Kafka, the inbox and the retry ladder do together.

// delivery is one event of a transfer on its way to one reader.
type delivery struct{ event, reader string }

// deliveries numbers every delivery there can be, so that a set of them is a bit set.
var deliveries = func() []delivery {
	var all []delivery
	for _, route := range schemas.Routes() {
		for _, reader := range route.Readers {
			if (reader == "transfers" || reader == "ledger") && strings.HasPrefix(route.Type, "Transfer") {
				all = append(all, delivery{route.Type, reader})
			}
		}
	}
	return all
}()

// transfer is everything that the world knows of one transfer but the money. It is comparable: that is what
// lets a search visit each situation once.
type transfer struct {
	saga    transfers.Saga
	ledger  ledger.State
	reason  string // what the Ledger's TransferFailed says
	open    uint64 // deliveries of emitted events that were not made yet
	emitted uint64 // deliveries of emitted events
	entries string // the kinds of the entries made for it, in turn
}

func requested() transfer {
	tr := transfer{saga: transfers.Begun, ledger: ledger.Untouched}
	if err := tr.emit("TransferRequested"); err != nil {
		panic(err) // it is the first
	}
	return tr
}

func (tr *transfer) emit(event string) error {
	for i, d := range deliveries {
		if d.event != event {
			continue
		}
		if tr.emitted&(1<<i) != 0 {
			return fmt.Errorf("%s was said twice", event)
		}
		tr.emitted |= 1 << i
		tr.open |= 1 << i
	}
	return nil
}

// strikes are the inputs that no event brings.
var strikes = []transfers.Input{transfers.DeadlinePassed, transfers.AnswerOverdue}

// steps returns the name of every move that the world can make now. With once, an inbox keeps duplicates away.
func (tr *transfer) steps(once bool) []string {
	var steps []string
	for i, d := range deliveries {
		if tr.open&(1<<i) != 0 || tr.emitted&(1<<i) != 0 && !once {
			steps = append(steps, d.event)
		}
	}
	for _, s := range strikes {
		steps = append(steps, string(s))
	}
	return steps
}

// step makes the move and checks what must hold at every moment.
func (tr *transfer) step(move string, terms ledger.Terms, book ledger.Book) error {
	before := sums(book)
	if err := tr.move(move, terms, book); err != nil {
		return err
	}
	if after := sums(book); !maps.Equal(before, after) {
		return fmt.Errorf("money was %v and became %v", before, after)
	}
	for id, account := range book {
		if account.Balance < 0 && id != ledger.Equity(account.Currency) {
			return fmt.Errorf("%s has %d", id, account.Balance)
		}
	}
	return tr.check()
}

func (tr *transfer) move(move string, terms ledger.Terms, book ledger.Book) error {
	i := slices.IndexFunc(deliveries, func(d delivery) bool { return d.event == move })
	if i < 0 || deliveries[i].reader == "transfers" {
		if i >= 0 {
			tr.open &^= 1 << i
		}
		return tr.tell(transfers.Input(move))
	}
	tr.open &^= 1 << i
	step := ledger.On(tr.ledger, move, terms, book)
	if tr.ledger = step.Next; step.Entry != nil {
		tr.entries = strings.TrimSpace(tr.entries + " " + step.Entry.Kind)
	}
	if step.Say == "" {
		return nil
	}
	if step.Say == ledger.SaidFailed {
		tr.reason = step.Reason
	}
	return tr.emit(step.Say)
}

// tell gives Transfers an input and checks what it does with it.
func (tr *transfer) tell(in transfers.Input) error {
	next, entered, say := tr.saga.On(in, tr.reason)
	if tr.saga.State.Terminal() && (len(entered) > 0 || next != tr.saga) {
		return fmt.Errorf("%s left by %s", tr.saga.State, in)
	}
	at := tr.saga.State
	for _, state := range entered {
		if !slices.Contains(transfers.Edges(), transfers.Edge{From: at, To: state}) {
			return fmt.Errorf("%s to %s by %s is not in the table", at, state, in)
		}
		at = state
	}
	// What a status shows is in the states that were entered and in how it ended: the reason comes with the first
	// state that fails, and stays.
	if failing := slices.ContainsFunc(entered, transfers.State.Fails); tr.saga.Reason != "" && next.Reason != tr.saga.Reason ||
		tr.saga.Reason == "" && (next.Reason != "") != failing || failing && !entered[0].Fails() {
		return fmt.Errorf("the reason %q became %q by way of %s", tr.saga.Reason, next.Reason, entered)
	}
	if tr.saga = next; say == "" {
		return nil
	}
	return tr.emit(say)
}

// check: what is COMPLETED was paid, what is FAILED moved nothing in the end, and what was heard by
// everybody needs no clock to end.
func (tr *transfer) check() error {
	switch tr.saga.State {
	case transfers.Completed:
		if tr.entries != "debit credit" {
			return fmt.Errorf("COMPLETED, but its entries are %q", tr.entries)
		}
	case transfers.Failed:
		if tr.entries != "" && tr.entries != "debit refund" {
			return fmt.Errorf("FAILED, but its entries are %q", tr.entries)
		}
		if tr.ledger == ledger.Untouched || tr.saga.Reason == "" {
			return fmt.Errorf("FAILED for the reason %q, but the Ledger may still act", tr.saga.Reason)
		}
	default:
		if tr.open == 0 {
			return fmt.Errorf("everything is delivered and the transfer waits in %s, the Ledger in %s", tr.saga.State, tr.ledger)
		}
	}
	return nil
}

// sums returns the sum of the balances by currency.
func sums(book ledger.Book) map[string]int64 {
	total := map[string]int64{}
	for _, account := range book {
		total[account.Currency] += account.Balance
	}
	return total
}

// bookOf returns books in which the accounts were opened.
func bookOf(accounts map[string]ledger.Account) ledger.Book {
	book := ledger.Book{}
	for id, account := range accounts {
		book[id] = account
		equity := book[ledger.Equity(account.Currency)]
		equity.Currency = account.Currency
		equity.Balance -= account.Balance
		book[ledger.Equity(account.Currency)] = equity
		book[ledger.Clearing(account.Currency)] = ledger.Account{Currency: account.Currency}
	}
	return book
}

// Every situation that one transfer can get into is visited, not a sample of them.
func TestEveryTransferEndsCompletedOrFullyCompensated(t *testing.T) {
	accounts := map[string]ledger.Account{
		"rich": {Currency: "USD", Balance: 10}, "poor": {Currency: "USD", Balance: 4}, "exact": {Currency: "USD", Balance: 5},
		"foreign": {Currency: "EUR", Balance: 10}, "closed": {Currency: "USD", Balance: 10, Closed: true},
	}
	reasons := map[string]string{"poor": ledger.InsufficientFunds, "nobody": ledger.AccountNotFound, "foreign": ledger.AccountNotFound,
		"closed": ledger.AccountClosed, ledger.Clearing("USD"): ledger.AccountNotFound}
	for _, from := range []string{"rich", "exact", "poor", "closed", "foreign", "nobody", ledger.Clearing("USD")} {
		for _, to := range []string{"rich", "poor", "closed", "foreign", "nobody", ledger.Clearing("USD")} {
			for _, once := range []bool{false, true} {
				if from == to {
					continue
				}
				t.Run(fmt.Sprintf("%s pays %s, once %t", from, to, once), func(t *testing.T) {
					terms := ledger.Terms{From: from, To: to, Amount: 5, Currency: "USD"}
					ends := visit(t, terms, accounts, once)
					reason := reasons[from]
					if reason == "" && to != "poor" {
						reason = reasons[to]
					}
					want := map[string]bool{"FAILED timed_out": true, "COMPLETED ": true}
					if reason != "" {
						want = map[string]bool{"FAILED timed_out": true, "FAILED " + reason: true}
					}
					if !maps.Equal(ends, want) {
						t.Errorf("ends %v, want %v", ends, want)
					}
				})
			}
		}
	}
}

// visit walks every situation and returns how the transfer can end.
func visit(t *testing.T, terms ledger.Terms, accounts map[string]ledger.Account, once bool) map[string]bool {
	t.Helper()
	type arrival struct {
		from transfer
		by   string
	}
	books := map[transfer]ledger.Book{requested(): bookOf(accounts)}
	seen := map[transfer]arrival{requested(): {}}
	queue := []transfer{requested()}
	ends := map[string]bool{}
	for len(queue) > 0 {
		here := queue[0]
		queue = queue[1:]
		if here.open == 0 && here.saga.State.Terminal() {
			ends[string(here.saga.State)+" "+here.saga.Reason] = true
		}
		for _, move := range here.steps(once) {
			next, book := here, maps.Clone(books[here])
			err := next.step(move, terms, book)
			if _, known := seen[next]; !known {
				seen[next] = arrival{here, move}
				books[next] = book
				queue = append(queue, next)
			}
			if err != nil {
				trace := []string{move}
				for at := here; seen[at].by != ""; at = seen[at].from {
					trace = append([]string{seen[at].by}, trace...)
				}
				t.Fatalf("%v\nafter: %s", err, strings.Join(trace, "; "))
			}
		}
	}
	return ends
}

// Many transfers draw on the same accounts, in random interleavings. rapid prints the seed of a failure and
// the shortest run that shows it.
func TestMoneyIsConservedOverManyTransfers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		accounts := map[string]ledger.Account{"a": {Currency: "USD", Balance: 10}, "b": {Currency: "USD", Balance: 3}, "c": {Currency: "USD"},
			"closed": {Currency: "USD", Closed: true}}
		book := bookOf(accounts)
		name := rapid.SampledFrom([]string{"a", "b", "c", "closed", "nobody"})
		n := rapid.IntRange(1, 6).Draw(t, "transfers")
		all, terms := make([]transfer, n), make([]ledger.Terms, n)
		for i := range all {
			all[i] = requested()
			terms[i] = ledger.Terms{From: name.Draw(t, "from"), Amount: rapid.Int64Range(1, 9).Draw(t, "amount"), Currency: "USD"}
			terms[i].To = name.Filter(func(to string) bool { return to != terms[i].From }).Draw(t, "to")
		}
		for range rapid.IntRange(0, 80).Draw(t, "steps") {
			i := rapid.IntRange(0, n-1).Draw(t, "transfer")
			move := rapid.SampledFrom(all[i].steps(false)).Draw(t, "move")
			if err := all[i].step(move, terms[i], book); err != nil {
				t.Fatalf("transfer %d: %v", i, err)
			}
		}
		want := map[string]int64{}
		for id, account := range accounts {
			want[id] = account.Balance
		}
		for i := range all { // faults stop: what is due is delivered
			for all[i].open != 0 {
				bit := slices.IndexFunc(deliveries, func(d delivery) bool { return all[i].open&(1<<slices.Index(deliveries, d)) != 0 })
				if err := all[i].step(deliveries[bit].event, terms[i], book); err != nil {
					t.Fatalf("transfer %d: %v", i, err)
				}
			}
			if all[i].saga.State == transfers.Completed {
				want[terms[i].From] -= terms[i].Amount
				want[terms[i].To] += terms[i].Amount
			}
		}
		for id := range accounts {
			if book[id].Balance != want[id] {
				t.Fatalf("%s has %d, by the transfers that completed %d", id, book[id].Balance, want[id])
			}
		}
		if held := book[ledger.Clearing("USD")].Balance; held != 0 {
			t.Fatalf("%d is held and nothing is on its way", held)
		}
	})
}
