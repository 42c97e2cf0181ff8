package ledger

import "strings"

// State is what the Ledger has done for one transfer.
type State string

// The states. Those after DEBITED, REFUSED and WITHDRAWN are left by nothing.
const (
	Untouched State = "UNTOUCHED"
	Debited   State = "DEBITED"   // the money is on the clearing account
	Credited  State = "CREDITED"  // the payee has it
	Refused   State = "REFUSED"   // it never left the payer
	Refunded  State = "REFUNDED"  // the payer has it back
	Withdrawn State = "WITHDRAWN" // the time was up first
)

// States returns every state, in the order in which a transfer may pass them.
func States() []State {
	return []State{Untouched, Debited, Credited, Refused, Refunded, Withdrawn}
}

// What the Ledger reads of transfers.
const (
	Requested = "TransferRequested"
	Confirmed = "TransferConfirmed"
	TimedOut  = "TransferTimedOut"
)

// What the Ledger says; "" is nothing.
const (
	SaidDebited   = "TransferDebited"
	SaidCompleted = "TransferCompleted"
	SaidFailed    = "TransferFailed"
)

// Why a transfer fails.
const (
	InsufficientFunds = "insufficient_funds"
	AccountNotFound   = "account_not_found" // also: not in the transfer's currency
	AccountClosed     = "account_closed"
	OutOfTime         = "timed_out"
)

// Kinds of entry. A transfer has at most one of each.
const (
	Opening = "opening"
	Debit   = "debit"
	Credit  = "credit"
	Refund  = "refund"
)

// Entry moves an amount from one account to another: what it takes is what it gives.
type Entry struct {
	Kind   string
	From   string
	To     string
	Amount int64 // minor units, at least 1
}

// Account is what the books say of one account.
type Account struct {
	Currency string
	Balance  int64 // minor units
	Closed   bool
	Version  int64 // counts the entries, and the opening
}

// Book is the accounts by id. Invariant: entries leave the sum of the balances of a currency as it was, and
// no balance that they take from becomes negative but an equity's.
type Book map[string]Account

// The Ledger's own accounts. Nobody can open accounts of such names: ids have no brackets.
const (
	equity   = "(equity) "   // where opening balances come from
	clearing = "(clearing) " // where money is between debit and credit
)

// Equity returns the account that opening balances of a currency come from.
func Equity(currency string) string { return equity + currency }

// Clearing returns the account that holds the money of a currency that is on its way.
func Clearing(currency string) string { return clearing + currency }

// own reports whether an account is the Ledger's.
func own(id string) bool { return strings.HasPrefix(id, equity) || strings.HasPrefix(id, clearing) }

// move makes an entry.
func (b Book) move(kind, from, to string, amount int64) *Entry {
	payer := b[from]
	payer.Balance -= amount
	payer.Version++
	b[from] = payer
	payee := b[to]
	payee.Balance += amount
	payee.Version++
	b[to] = payee
	return &Entry{kind, from, to, amount}
}

// refuses returns why the account takes part in no transfer of the currency, "" when it does.
func (b Book) refuses(id, currency string) (reason string) {
	account, ok := b[id]
	switch {
	case !ok || own(id) || account.Currency != currency:
		return AccountNotFound
	case account.Closed:
		return AccountClosed
	default:
		return ""
	}
}

// Terms is what a transfer is about.
type Terms struct {
	From, To string
	Amount   int64 // minor units, at least 1
	Currency string
}

// Step is what the Ledger makes of one event.
type Step struct {
	Next   State
	Say    string // the type of an event, "" when there is nothing to say
	Reason string // of a SaidFailed
	Entry  *Entry // nil when no money moves
}

// On says what the Ledger makes of an event of a transfer, and does it in the book. Of a transfer that was
// dealt with there is nothing to say again: what became of it was said then. An event of any other type
// changes nothing.
func On(s State, eventType string, terms Terms, book Book) Step {
	switch {
	case eventType == Requested && s == Untouched:
		return debit(terms, book)
	case eventType == Confirmed && s == Debited:
		return credit(terms, book)
	case eventType == TimedOut && s == Debited:
		return refund(OutOfTime, terms, book)
	case eventType == TimedOut && s == Untouched:
		return Step{Next: Withdrawn, Say: SaidFailed, Reason: OutOfTime}
	default:
		return Step{Next: s}
	}
}

// debit takes the money from the payer, if it is there. Whether the payee can take it is the credit's
// question.
func debit(terms Terms, book Book) Step {
	reason := book.refuses(terms.From, terms.Currency)
	if reason == "" && book[terms.From].Balance < terms.Amount {
		reason = InsufficientFunds
	}
	if reason != "" {
		return Step{Next: Refused, Say: SaidFailed, Reason: reason}
	}
	return Step{Next: Debited, Say: SaidDebited, Entry: book.move(Debit, terms.From, Clearing(terms.Currency), terms.Amount)}
}

// credit gives the money to the payee, or back.
func credit(terms Terms, book Book) Step {
	if reason := book.refuses(terms.To, terms.Currency); reason != "" {
		return refund(reason, terms, book)
	}
	return Step{Next: Credited, Say: SaidCompleted, Entry: book.move(Credit, Clearing(terms.Currency), terms.To, terms.Amount)}
}

// refund gives the money back. No account refuses what came from it, a closed one neither.
func refund(reason string, terms Terms, book Book) Step {
	return Step{Next: Refunded, Say: SaidFailed, Reason: reason, Entry: book.move(Refund, Clearing(terms.Currency), terms.From, terms.Amount)}
}
