package transfers

// State is where a transfer's saga stands, in the saga's own words.
type State string

// The states.
const (
	Pending      State = "PENDING"
	Debited      State = "DEBITED"
	Completed    State = "COMPLETED"
	Compensating State = "COMPENSATING"
	Stuck        State = "STUCK"
	Failed       State = "FAILED"
)

// States returns every state, in the order in which a saga may pass them.
func States() []State { return []State{Pending, Debited, Compensating, Stuck, Completed, Failed} }

// Terminal reports whether the state is one that no input leaves.
func (s State) Terminal() bool { return s == Completed || s == Failed }

// Public returns the state as the API tells it: PENDING, IN_PROGRESS, COMPLETED or FAILED.
func (s State) Public() string {
	switch s {
	case Pending, Completed, Failed:
		return string(s)
	default:
		return "IN_PROGRESS"
	}
}

// Fails reports whether a transfer that entered the state has the reason for which it will end. STUCK has it or
// not: it depends on what was before.
func (s State) Fails() bool { return s == Compensating || s == Failed }

// Input is what can happen to a transfer: an event by its type, or what the clock says.
type Input string

// What the Ledger says, by event type. Its last word on a transfer is final: it has the money.
const (
	LedgerDebited   Input = "TransferDebited"
	LedgerCompleted Input = "TransferCompleted"
	LedgerFailed    Input = "TransferFailed"
)

// What the clock says.
const (
	DeadlinePassed Input = "deadline passed"
	AnswerOverdue  Input = "answer overdue"
)

// Inputs returns every input there is.
func Inputs() []Input {
	return []Input{LedgerDebited, LedgerCompleted, LedgerFailed, DeadlinePassed, AnswerOverdue}
}

// What Transfers says of a transfer, beside that it was requested; "" is nothing.
const (
	SaidConfirmed = "TransferConfirmed"
	SaidTimedOut  = "TransferTimedOut"
)

// Why a transfer fails.
const (
	InsufficientFunds = "insufficient_funds"
	AccountNotFound   = "account_not_found"
	AccountClosed     = "account_closed"
	TimedOut          = "timed_out" // the reason that Transfers gives itself; the others come from the Ledger
)

// Reasons returns every reason there is.
func Reasons() []string { return []string{InsufficientFunds, AccountNotFound, AccountClosed, TimedOut} }

// Saga is all that decides where a transfer stands. The zero Saga is none: begin with [Begun].
type Saga struct {
	State State
	// Reason is why the transfer fails. Invariant: set once, never changed, by whatever began the failure.
	Reason string
}

// Begun is the saga of a transfer that was just requested.
var Begun = Saga{State: Pending}

// On returns the saga after the input, the states that it entered on the way, oldest first, and what
// there is to say; no states when the transfer stands as before. reason is the Ledger's, of a
// [LedgerFailed]. It is total: any input may come in any state, any number of times.
//
// What the Ledger's own rules exclude, an event made by hand, say, changes nothing.
//
// The confirmation is the pivot: debit and deadline race, and whichever comes here first decides. Before it,
// a transfer times out; after it, only the Ledger can say no, and the money is waited for, however long.
func (s Saga) On(in Input, reason string) (next Saga, entered []State, say string) {
	if s.State.Terminal() {
		return s, nil, ""
	}
	switch in {
	case LedgerDebited:
		if s.State == Pending {
			return s.enter(SaidConfirmed, Debited)
		}
	case LedgerCompleted:
		if s.State != Pending && s.Reason == "" { // the Ledger credits only what was confirmed
			return s.enter("", Completed)
		}
	case LedgerFailed:
		if s.Reason == "" {
			s.Reason = reason
		}
		if s.State == Debited {
			return s.enter("", Compensating, Failed)
		}
		return s.enter("", Failed)
	case DeadlinePassed:
		if s.State == Pending {
			s.Reason = TimedOut
			return s.enter(SaidTimedOut, Compensating)
		}
	case AnswerOverdue:
		if s.State == Debited || s.State == Compensating {
			return s.enter("", Stuck)
		}
	}
	return s, nil, ""
}

func (s Saga) enter(say string, states ...State) (Saga, []State, string) {
	s.State = states[len(states)-1]
	return s, states, say
}

// Edge is one change of state.
type Edge struct{ From, To State }

// Edges returns every change of state that can be seen, the request (from "") included.
func Edges() []Edge {
	return []Edge{
		{"", Pending},
		{Pending, Debited}, {Pending, Compensating}, {Pending, Failed},
		{Debited, Completed}, {Debited, Compensating}, {Debited, Stuck},
		{Compensating, Failed}, {Compensating, Stuck},
		{Stuck, Completed}, {Stuck, Failed},
	}
}
