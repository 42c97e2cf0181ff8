package orders

// State is where an order's saga stands, in the saga's own words.
type State string

// The states. SHIPPED is passed through, never rested in: what follows it needs nobody else.
const (
	Pending      State = "PENDING"
	Reserved     State = "RESERVED"
	Paid         State = "PAID"
	Shipped      State = "SHIPPED"
	Completed    State = "COMPLETED"
	Compensating State = "COMPENSATING"
	Stuck        State = "STUCK"
	Failed       State = "FAILED"
)

// States returns every state, in the order in which a saga may pass them.
func States() []State {
	return []State{Pending, Reserved, Paid, Shipped, Completed, Compensating, Stuck, Failed}
}

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

// Input is what can happen to an order: an event by its type, or one of Orders' own decisions.
type Input string

// What participants say, by event type.
const (
	StockReserved     Input = "StockReserved"
	StockRejected     Input = "StockRejected"
	StockReleased     Input = "StockReleased"
	PaymentAuthorized Input = "PaymentAuthorized"
	PaymentDeclined   Input = "PaymentDeclined"
	PaymentVoided     Input = "PaymentVoided"
	ShipmentArranged  Input = "ShipmentArranged"
	ShipmentFailed    Input = "ShipmentFailed"
	ShipmentCancelled Input = "ShipmentCancelled"
)

// What Orders itself decides, at a customer's word or by the clock.
const (
	Cancel         Input = "cancel"
	DeadlinePassed Input = "deadline passed"
	AcksOverdue    Input = "acknowledgements overdue"
)

// Inputs returns every input there is.
func Inputs() []Input {
	return []Input{StockReserved, StockRejected, StockReleased, PaymentAuthorized, PaymentDeclined, PaymentVoided,
		ShipmentArranged, ShipmentFailed, ShipmentCancelled, Cancel, DeadlinePassed, AcksOverdue}
}

// Facts is a set of what participants have said of one order. It only grows, so the order in which
// independent topics deliver does not matter to it.
type Facts uint16

const (
	saidReserved Facts = 1 << iota
	saidRejected
	saidReleased
	saidAuthorized
	saidDeclined
	saidVoided
	saidArranged
	saidRefused
	saidCancelled

	acknowledgements = saidReleased | saidVoided | saidCancelled
)

func (f Facts) any(of Facts) bool { return f&of != 0 }
func (f Facts) all(of Facts) bool { return f&of == of }

// facts returns what an input tells, with what it implies: who authorized a payment had seen stock
// reserved, who decided on a shipment had seen a payment authorized. A topic may run ahead of another.
func facts(in Input) Facts {
	switch in {
	case StockReserved:
		return saidReserved
	case StockRejected:
		return saidRejected
	case StockReleased:
		return saidReleased
	case PaymentAuthorized:
		return saidAuthorized | saidReserved
	case PaymentDeclined:
		return saidDeclined | saidReserved
	case PaymentVoided:
		return saidVoided
	case ShipmentArranged:
		return saidArranged | saidAuthorized | saidReserved
	case ShipmentFailed:
		return saidRefused | saidAuthorized | saidReserved
	case ShipmentCancelled:
		return saidCancelled
	default:
		return 0
	}
}

// Outcome is the one decision of a saga: how it will end. For a failure it is the reason.
type Outcome string

// The outcomes. Delivered is the pivot: from there on nothing can fail.
const (
	Undecided    Outcome = ""
	Delivered    Outcome = "completed"
	OutOfStock   Outcome = "insufficient_inventory"
	Declined     Outcome = "payment_declined"
	Refused      Outcome = "shipment_refused"
	TimedOut     Outcome = "timed_out"
	WasCancelled Outcome = "cancelled"
)

// Reason returns why the order failed or is failing, "" when it is not.
func (o Outcome) Reason() string {
	if o == Delivered {
		return ""
	}
	return string(o)
}

// ReasonIn returns why an order of this outcome fails that is, or was, in the state. A state passed on the way to
// failure has none yet.
func (o Outcome) ReasonIn(state State) string {
	switch state {
	case Compensating, Stuck, Failed:
		return o.Reason()
	default:
		return ""
	}
}

// Announcement returns the type of the event that tells the others of the outcome, "" when they know it
// already: they brought it about.
func (o Outcome) Announcement() string {
	switch o {
	case TimedOut:
		return "OrderTimedOut"
	case WasCancelled:
		return "OrderCancelled"
	default:
		return ""
	}
}

func outcome(in Input) Outcome {
	switch in {
	case StockRejected:
		return OutOfStock
	case PaymentDeclined:
		return Declined
	case ShipmentFailed:
		return Refused
	case ShipmentArranged:
		return Delivered
	case Cancel:
		return WasCancelled
	case DeadlinePassed:
		return TimedOut
	default:
		return Undecided
	}
}

// awaits returns the acknowledgements without which an order with the outcome is not FAILED. A failed
// step is known to have been the last, so those behind it never acted. A decision of Orders' own says
// nothing about how far the others are: all three must answer.
func (o Outcome) awaits() Facts {
	switch o {
	case Declined:
		return saidReleased
	case Refused:
		return saidReleased | saidVoided
	case TimedOut, WasCancelled:
		return acknowledgements
	default:
		return 0
	}
}

// Saga is all that decides where an order stands. The zero Saga is an order just placed.
type Saga struct {
	Facts Facts
	// Outcome is how the saga ends. Invariant: set once, never changed.
	Outcome Outcome
	// Overdue says that awaited acknowledgements did not come in time.
	Overdue bool
}

// State returns where the order stands: a function of the facts and the outcome alone, not of the
// order in which they came.
func (s Saga) State() State {
	switch {
	case s.Outcome == Undecided && s.Facts.any(saidAuthorized):
		return Paid
	case s.Outcome == Undecided && s.Facts.any(saidReserved):
		return Reserved
	case s.Outcome == Undecided:
		return Pending
	case s.Outcome == Delivered:
		return Completed
	case s.Facts.all(s.Outcome.awaits()):
		return Failed
	case s.Overdue:
		return Stuck
	default:
		return Compensating
	}
}

// On returns the saga after the input, and the states that it entered on the way, oldest first; none
// when the order looks as before. It is total: any input may come in any state, any number of times.
func (s Saga) On(in Input) (next Saga, entered []State) {
	if s.impossible(in) {
		return s, nil
	}
	next = s
	next.Facts |= facts(in)
	if next.Outcome == Undecided {
		next.Outcome = outcome(in)
	}
	if in == AcksOverdue && s.State() == Compensating {
		next.Overdue = true
	}
	return next, path(s, next)
}

// impossible reports whether the input contradicts what the participants have said, which their own
// rules exclude: an event made by hand, say. It changes nothing; the deadline ends the order if need be.
func (s Saga) impossible(in Input) bool {
	if s.Outcome != Undecided {
		return false // whatever comes, the decision stands
	}
	switch in {
	case StockRejected:
		return s.Facts.any(saidReserved)
	case PaymentDeclined:
		return s.Facts.any(saidAuthorized)
	case ShipmentArranged: // somebody has undone a step already: not a pivot
		return s.Facts.any(acknowledgements)
	default:
		return false
	}
}

// path returns the states between two sagas, after's included. Each step of it is a row of the
// transition table, also when one event tells of several steps.
func path(before, after Saga) []State {
	from, to := before.State(), after.State()
	if from == to {
		return nil
	}
	var entered []State
	forward := []State{Pending, Reserved, Paid, Shipped, Completed}
	reached := 0 // how far along forward the facts say that the order came
	switch {
	case after.Outcome == Delivered:
		reached = 4
	case before.Outcome != Undecided:
		reached = -1
	case after.Facts.any(saidAuthorized):
		reached = 2
	case after.Facts.any(saidReserved):
		reached = 1
	}
	for i, state := range forward {
		if i > position(forward, from) && i <= reached {
			entered = append(entered, state)
		}
	}
	if after.Outcome == Undecided || after.Outcome == Delivered {
		return entered
	}
	if before.Outcome == Undecided && after.Outcome != OutOfStock {
		entered = append(entered, Compensating)
	}
	if to != Compensating {
		entered = append(entered, to)
	}
	return entered
}

func position(states []State, of State) int {
	for i, s := range states {
		if s == of {
			return i
		}
	}
	return len(states)
}

// Edge is one change of state.
type Edge struct{ From, To State }

// Edges returns every change of state that can be seen, the placing of the order (from "") included.
func Edges() []Edge {
	return []Edge{
		{"", Pending},
		{Pending, Reserved}, {Pending, Failed}, {Pending, Compensating},
		{Reserved, Paid}, {Reserved, Compensating},
		{Paid, Shipped}, {Paid, Compensating},
		{Shipped, Completed},
		{Compensating, Stuck}, {Compensating, Failed},
		{Stuck, Failed},
	}
}
